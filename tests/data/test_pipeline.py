"""The order law, hosts, resume, threads, padding, and errors that come out of reader threads."""

import gc
import itertools
import shutil
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import (
    InputContract,
    build,
    eval_batches,
    generator,
    open_source,
    permutation,
    sample_index,
    train_batches,
)
from jaxvision.errors import UserError

CONTRACT = InputContract(size=8, resize=8)
SPECS = (("shift", {"share": 0.2}), ("flip", {}), ("affine", {"degrees": 10, "share": 0.1}))
DIGITS = open_source("digits:train")
FAKE = open_source("fake:37x8")


def batches(source=FAKE, specs=SPECS, contract=CONTRACT, *, batch_size=10, seed=5, start=0, stop=6, **options):
    return list(
        train_batches(
            source,
            build(specs, contract),
            contract,
            batch_size=batch_size,
            seed=seed,
            start=start,
            stop=stop,
            **options,
        )
    )


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            assert np.array_equal(a[key], b[key]), key


# --------------------------------------------------------------------------- order


def independent_order(seed, epoch, length):
    """The law of the order, written again: the samples in the order of raw Philox words."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, 2**64 - 1], np.uint64))
    words = [int(w) for w in bits.random_raw(length)]
    return sorted(range(length), key=lambda i: words[i])


def test_order_law_and_types():
    want = [i for epoch in range(2) for i in independent_order(5, epoch, 37)]
    got = batches()
    assert np.concatenate([b["index"] for b in got]).tolist() == want[:60]
    assert [sample_index(5, n, 37) for n in range(60)] == want[:60]
    for batch in got:
        kinds = {k: (v.dtype.name, v.shape) for k, v in batch.items()}
        assert kinds == {
            "image": ("uint8", (10, 8, 8, 3)),
            "label": ("int32", (10,)),
            "index": ("int64", (10,)),
            "mask": ("bool", (10,)),
        }
        assert batch["mask"].all()
        assert (batch["label"] == batch["index"] % 10).all()


def test_order_never_changes():
    """Known answers: a run must resume after an upgrade of numpy."""
    assert permutation(0, 0, 10).tolist() == [7, 8, 4, 5, 3, 1, 9, 2, 6, 0]
    assert permutation(7, 3, 10).tolist() == [2, 6, 1, 3, 4, 7, 0, 9, 5, 8]


@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_each_epoch_is_a_permutation(seed, epoch, length):
    order = permutation(seed, epoch, length)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(length))


def test_each_sample_once_an_epoch_and_epochs_differ():
    index = np.concatenate([b["index"] for b in batches(DIGITS, (), batch_size=479, stop=6)])  # 3 batches an epoch
    first, second = index[:1437], index[1437:]
    assert len(set(first)) == 1437
    assert set(first) == set(second)
    assert (first == second).mean() < 0.02
    other = permutation(6, 0, 1437)
    assert (other == permutation(5, 0, 1437)).mean() < 0.02


def test_a_batch_larger_than_the_source():
    index = np.concatenate([b["index"] for b in batches(open_source("fake:3x8"), batch_size=10, stop=3)])
    assert all(sorted(index[k : k + 3]) == [0, 1, 2] for k in range(0, 30, 3))


# --------------------------------------------------------------------------- randomness


def test_augmentation_depends_on_seed_n_and_position_alone():
    """Rows made by hand from generator(seed, n, position)."""
    transforms = build(SPECS, CONTRACT)
    for step, batch in enumerate(batches(stop=5)):
        for row in range(10):
            n = step * 10 + row
            image = FAKE[sample_index(5, n, 37)]["image"]
            for position, transform in enumerate(transforms):
                image = transform(image, generator(5, n, position))
            assert (batch["image"][row] == image).all()


def test_generators_differ():
    draws = {generator(s, n, p).random() for s in range(5) for n in range(50) for p in range(4)}
    assert len(draws) == 1000
    assert generator(1, 2, 3).random() == generator(1, 2, 3).random()


def test_an_image_is_augmented_anew_each_epoch():
    first, second = batches(specs=(("pad_and_crop", {}),), batch_size=37, stop=2)
    a, b = first["image"][np.argsort(first["index"])], second["image"][np.argsort(second["index"])]
    assert np.mean([(x == y).all() for x, y in zip(a, b)]) < 0.2


# --------------------------------------------------------------------------- hosts, resume, threads


@given(st.lists(st.integers(0, 3), min_size=10, max_size=10), st.randoms())
@settings(max_examples=15, deadline=None)
def test_any_split_over_hosts_is_the_same_global_batch(owner, random):
    whole = batches(start=2, stop=4)
    rows = [[r for r in range(10) if owner[r] == host] for host in range(4)]
    for part in rows:
        random.shuffle(part)
        for batch, mine in zip(whole, batches(start=2, stop=4, rows=part, threads=0), strict=True):
            same([{k: v[part] for k, v in batch.items()}], [mine])


@given(st.integers(0, 8))
@settings(max_examples=9, deadline=None)
def test_resuming_anywhere_equals_the_tail(start):
    same(batches(start=start, stop=8), batches(stop=8)[start:])


def test_starting_late_is_immediate():
    begin = time.perf_counter()
    batches(start=10**12, stop=10**12 + 1)
    assert time.perf_counter() - begin < 60  # a walk there would take years


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 4}, {"threads": 4, "prefetch": 1}, {"prefetch": 9}])
def test_threads_do_not_matter(options):
    same(batches(DIGITS, batch_size=64, stop=12, threads=1), batches(DIGITS, batch_size=64, stop=12, **options))


def test_every_batch_has_its_own_memory():
    got = batches(specs=())
    for a, b in itertools.pairwise(got):
        assert not np.shares_memory(a["image"], b["image"])
    got[0]["image"][:] = 0
    assert got[1]["image"].any()
    assert batches(specs=())[0]["image"].any()


# --------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("length", "batch_size"), [(37, 10), (37, 37), (37, 64), (40, 10), (1, 3), (37, 1)])
def test_evaluation_counts_every_sample_once(length, batch_size):
    source = open_source(f"fake:{length}x8")
    got = list(eval_batches(source, CONTRACT, batch_size=batch_size))
    assert len(got) == -(-length // batch_size)
    joined = {k: np.concatenate([b[k] for b in got]) for k in got[0]}
    assert joined["mask"].sum() == length
    assert len(joined["mask"]) % batch_size == 0
    assert joined["index"][joined["mask"]].tolist() == list(range(length))
    assert all((joined["image"][i] == source[i]["image"]).all() for i in range(length))
    padding = ~joined["mask"]
    assert (joined["image"][padding] == 0).all()
    assert (joined["label"][padding] == 0).all()
    assert (joined["index"][padding] == -1).all()


@given(st.lists(st.integers(0, 2), min_size=10, max_size=10))
@settings(max_examples=10, deadline=None)
def test_evaluation_split_over_hosts(owner):
    whole = list(eval_batches(FAKE, CONTRACT, batch_size=10))
    for host in range(3):
        rows = [r for r in range(10) if owner[r] == host]
        mine = list(eval_batches(FAKE, CONTRACT, batch_size=10, rows=rows, threads=0))
        same([{k: v[rows] for k, v in batch.items()} for batch in whole], mine)  # as many batches, too


# --------------------------------------------------------------------------- errors and ends


@pytest.fixture
def folder(tmp_path):
    for k in range(12):
        path = tmp_path / "pets" / f"class {k % 2}" / f"{k:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + k, 12), (k, k, k)).save(path)
    return tmp_path / "pets"


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_a_damaged_file_surfaces_from_the_thread(folder, content):
    bad = folder / "class 1" / "07.jpg"
    bad.write_bytes(bad.read_bytes()[:300] if content == "half" else content)
    source = open_source(f"folder:{folder}")
    crop = build([("random_resized_crop", {})], CONTRACT)
    first = [source.where(sample_index(0, n, 12)) for n in range(12)].index(str(bad))
    iterator = train_batches(source, crop, CONTRACT, batch_size=1, seed=0, start=0, stop=10**6, threads=4)
    assert len(list(itertools.islice(iterator, first))) == first  # the batches before it arrive
    begin = time.perf_counter()
    with pytest.raises(UserError, match=r"class 1/07\.jpg: cannot decode"):
        next(iterator)
    assert time.perf_counter() - begin < 60
    with pytest.raises(UserError, match=r"07\.jpg"):
        list(eval_batches(source, CONTRACT, batch_size=4))


def test_a_file_deleted_during_training(folder):
    source = open_source(f"folder:{folder}")
    shutil.rmtree(folder / "class 0")
    with pytest.raises(UserError, match=r"cannot read .*class 0"):
        batches(source, [("random_resized_crop", {})], batch_size=12)


@pytest.mark.parametrize(
    ("size", "specs", "wanted"),
    [
        ("9x4", (), 'add ("resize", {})'),
        ("9x10", (("flip", {}),), 'add ("resize", {})'),
        ("9x4", (("center_crop", {}),), "cannot cut 8 x 8 pixels out of an image of 4 x 4"),
    ],
)
def test_another_size_says_which_transform_to_add(size, specs, wanted):
    with pytest.raises(UserError) as error:
        batches(open_source(f"fake:{size}"), specs)
    assert wanted in str(error.value)
    assert f"fake:{size}, sample" in str(error.value)


def test_oblong_images_are_told_to_crop(folder):
    source = open_source(f"folder:{folder}")
    with pytest.raises(UserError, match=r'the network takes 8 x 8 and 3: add \("random_resized_crop"'):
        batches(source, batch_size=1)
    with pytest.raises(UserError, match=r'end the transforms with \("center_crop"'):
        batches(source, [("resize", {})], batch_size=12)


def test_labels_outside_the_classes():
    source = open_source("digits:all")
    source.classes = source.classes[:9]
    with pytest.raises(UserError, match=r"sample 9: label 9 is outside 0\.\.8"):
        list(eval_batches(source, CONTRACT, batch_size=20))


def test_bad_arguments_raise_at_once():
    for source, options, wanted in (
        (open_source("fake:0x8"), {}, "holds no samples"),
        (FAKE, {"rows": [10]}, "global batch of 10"),
        (FAKE, {"rows": [-1]}, "global batch of 10"),
    ):
        with pytest.raises(UserError, match=wanted):  # without next()
            train_batches(source, [], CONTRACT, batch_size=10, seed=0, start=0, stop=5, **options)
        with pytest.raises(UserError, match=wanted):
            eval_batches(source, CONTRACT, batch_size=10, **options)
    with pytest.raises(UserError, match="batch_size is 0"):
        eval_batches(FAKE, CONTRACT, batch_size=0)
    assert batches(start=5, stop=5) == []


@pytest.mark.parametrize("end", ["close", "drop", "error"])
def test_threads_end(end):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("reader")]

    before = set(readers())
    size = "fake:40x9" if end == "error" else "fake:40x8"
    iterator = train_batches(open_source(size), [], CONTRACT, batch_size=4, seed=0, start=0, stop=10**9, threads=3)
    if end == "error":
        # The error, kept with its frames, must not keep the threads.
        with pytest.raises(UserError) as kept:
            next(iterator)
        assert kept.value
    else:
        next(iterator)
        assert set(readers()) - before
    if end == "close":
        iterator.close()
    elif end == "drop":
        del iterator
    deadline = time.monotonic() + 10
    while set(readers()) - before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert not set(readers()) - before, "threads are left"


def test_grey_networks_get_one_channel():
    contract = InputContract(size=8, resize=8, channels=1, mean=(0.5,), std=(0.5,))
    (batch,) = batches(DIGITS, SPECS, contract, stop=1)
    assert batch["image"].shape == (10, 8, 8, 1)
    (plain,) = batches(DIGITS, (), contract, stop=1)
    (colour,) = batches(DIGITS, (), CONTRACT, stop=1)
    assert (plain["image"] == colour["image"][..., :1]).all()
