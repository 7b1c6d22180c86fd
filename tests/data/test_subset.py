"""?split=...&seed=...: disjoint, complete, shuffled, the same for every source."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.data import InputContract, open_source, train_batches
from jaxvision.data.order import permutation
from jaxvision.data.sources import hold_out
from jaxvision.errors import UserError


def indices(uri):
    source = open_source(uri)
    return [source[i]["index"] for i in range(len(source))]


def test_two_parts_are_the_whole():
    train, rest = indices("digits:all?split=0:90%&seed=1"), indices("digits:all?split=90%:100%&seed=1")
    assert (len(train), len(rest)) == (1617, 180)
    assert sorted(train + rest) == list(range(1797))
    assert train == sorted(train), "the source's own order"
    assert train != indices("digits:all?split=0:90%&seed=2")
    assert indices("digits:all?split=0:90%") == indices("digits:all?split=0:90%&seed=0")


@given(st.integers(1, 400), st.lists(st.integers(0, 100), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_any_cuts_share_nothing_and_leave_nothing_out(length, cuts, seed):
    ends = [0, *sorted(cuts), 100]
    parts = []
    for a, b in itertools.pairwise(ends):
        if a * length // 100 < b * length // 100:
            parts += indices(f"fake:{length}x1?split={a}%:{b}%&seed={seed}")
    assert sorted(parts) == list(range(length))


def test_a_part_has_samples_of_every_class_although_the_source_is_sorted(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for k in range(50):
            (tmp_path / name / f"{k}.png").write_bytes(b"x")
    part = open_source(f"folder:{tmp_path}?split=0:50%")
    assert np.bincount(part.labels).min() > 15
    assert part.classes == ("a", "b", "c")
    assert [part[i]["label"] for i in range(len(part))] == part.labels.tolist()
    assert part.where(0) == str(tmp_path / part.classes[part.labels[0]] / part.where(0).rpartition("/")[2])


def test_a_tenth_of_each_class_is_held_out():
    for uri in ("digits:all", "digits:all?seed=3", "fake:95x8?classes=3", "digits:all?split=0:50%&per_class=11"):
        kept, held_out = hold_out(uri)
        whole = indices(uri.partition("?seed")[0])
        assert sorted(indices(kept) + indices(held_out)) == whole
        counts = np.bincount(open_source(held_out).labels)
        assert counts.tolist() == (-(-np.bincount(open_source(uri.partition("?seed")[0]).labels) // 10)).tolist()
    assert indices(hold_out("digits:all?seed=3")[1]) != indices(hold_out("digits:all")[1])
    assert hold_out("tfds:cifar10/train?data_dir=/d") == (
        "tfds:cifar10/train[:90%]?data_dir=/d", "tfds:cifar10/train[90%:]?data_dir=/d")  # fmt: skip
    for part in ("digits:all?part=0:50%", "tfds:cifar10/train[:50%]", "tfds:cifar10/train+test"):
        with pytest.raises(UserError, match=r"a part of a source already.*name the data to measure on"):
            hold_out(part)
    assert hold_out("/my/photos") == ("/my/photos", "/my/photos")  # open_source says that a scheme is missing


def test_absolute_numbers_and_other_keys():
    assert len(open_source("fake:100x8?classes=3&split=10:30")) == 20
    assert open_source("fake:100x8?split=10:30&classes=3").classes == ("class 0", "class 1", "class 2")
    assert len(open_source("fake:100x8?split=:30")) == 30
    assert len(open_source("fake:100x8?split=30:")) == 70


@pytest.mark.parametrize("per_class", [1, 5, 40])
def test_so_many_of_each_class(per_class):
    part = open_source(f"digits:train?per_class={per_class}&seed=1")
    assert len(part) == 10 * per_class
    np.testing.assert_array_equal(np.bincount(part.labels), np.full(10, per_class))
    assert [part[i]["label"] for i in range(len(part))] == part.labels.tolist()
    mine = indices(f"digits:train?per_class={per_class}&seed=1")
    assert mine == sorted(set(mine)), "the source's own order, each once"
    assert mine != indices(f"digits:train?per_class={per_class}&seed=2")
    assert set(mine) <= set(indices(f"digits:train?per_class={per_class + 1}&seed=1"))
    assert part.classes == open_source("digits:train").classes


def test_of_each_class_the_first_in_the_permutation():
    """A plain reading of the rule, without and within a split."""
    whole = open_source("digits:train")
    for split, places in (("", slice(None)), ("split=0:50%&", slice(0, 718)), ("split=50%:100%&", slice(718, None))):
        order = permutation(3, 0, len(whole))[places]
        want = [[k for k in order if whole.labels[k] == c][:7] for c in range(10)]
        got = indices(f"digits:train?{split}per_class=7&seed=3")
        assert got == sorted(whole[int(k)]["index"] for k in np.ravel(want))
    one, other = (set(indices(f"digits:train?split={s}&per_class=7&seed=3")) for s in ("0:50%", "50%:100%"))
    assert not one & other


def test_of_each_class_of_a_source_of_tags(tmp_path):
    (tmp_path / "labels.csv").write_text("image,cat,dog\na.png,1,0\nb.png,0,1\n")
    with pytest.raises(UserError, match=r"per_class needs one class a sample, and the labels of .* are tags"):
        open_source(f"csv:{tmp_path}/labels.csv?kind=tags&per_class=1")


def test_batches_from_a_part_and_pickling():
    part = pickle.loads(pickle.dumps(open_source("fake:40x8?split=0:25%&seed=3")))
    contract = InputContract(size=8, resize=8)
    batches = list(train_batches(part, [], contract, batch_size=10, seed=0, start=0, stop=3))
    assert all(sorted(b["index"]) == sorted(indices("fake:40x8?split=0:25%&seed=3")) for b in batches)


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("fake:9x8?split=half", "split must be like 0:90%"),
        ("fake:9x8?split=%:5", "split must be like"),
        ("fake:9x8?split=0:101%", "101% is more than all"),
        ("fake:9x8?split=0:10", "does not lie in the 9 samples"),
        ("fake:9x8?split=5:3", "does not lie in the 9 samples"),
        ("fake:9x8?split=3:3", "leaves none of the 9 samples"),
        ("fake:9x8?split=0:5&seed=x", "seed must be a whole number"),
        ("fake:9x8?seed=1", "seed goes with split, per_class or part"),
        ("fake:9x8?split=", "split has no value"),
        ("fake:9x8?per_class=0", "per_class must be a whole number from 1 on, got '0'"),
        ("fake:9x8?per_class=x", "per_class must be a whole number"),
        ("fake:9x8?per_class=1", "of class 'class 9' there are only 0: lower per_class"),
        ("digits:train?per_class=150", "per_class is 150, and of class '"),
        ("digits:train?split=0:50%&per_class=100", "lower per_class, or widen split"),
        ("fake:9x8?splt=0:5", "unknown key 'splt'"),
    ],
)
def test_errors(uri, wanted):
    with pytest.raises(UserError) as error:
        open_source(uri)
    assert wanted in str(error.value)
