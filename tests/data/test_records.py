"""records: — what was packed comes back as it was, from any thread, and damage is named."""

import io
import json
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import open_source, sources
from jaxvision.data.packing import content_digest
from jaxvision.data.sources import records
from jaxvision.errors import UserError
from jaxvision.pack import pack

ROOT = pathlib.Path(__file__).parents[2]


class Memory:
    """A source of any samples: `rows` are (image, label, index)."""

    def __init__(self, rows, kind="class", classes=("a", "b")):
        self.uri, self.rows, self.kind, self.classes = "memory:", rows, kind, classes
        dtype = np.int32 if kind == "class" else np.float32
        self.labels = np.array([label for _, label, _ in rows], dtype)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        image, label, index = self.rows[i]
        return {"image": image, "label": label, "index": index}

    def where(self, i):
        return f"memory, row {i}"


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Packs a source, by its URI or the object, and gives the URI of the result."""

    def run(source, *arguments):
        uri = source
        if not isinstance(source, str):
            monkeypatch.setitem(sources.SCHEMES, "memory", lambda rest: source)
            uri = "memory:"
        out = tmp_path / f"packed {len(list(tmp_path.iterdir()))}"
        pack(["--from", uri, "--out", str(out), "--json", *map(str, arguments)])
        return f"records:{out}"

    return run


@pytest.fixture
def folder(tmp_path):
    """24 PNG, JPEG and GIF files of two classes, with names of all sorts."""
    root = tmp_path / "pets"
    names = ["ünï 猫", "line\nbreak", "plain", "tab\t'quote\""]
    for k in range(24):
        suffix, kind = (("png", "PNG"), ("JPG", "JPEG"), ("gif", "GIF"))[k % 3]
        path = root / ("klasse 1 ß", "b")[k % 2] / f"{names[k % 4]} {k:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k).integers(0, 256, (9 + k, 30 - k, 3), np.uint8)
        Image.fromarray(noise).save(path, kind)
    return f"folder:{root}"


def same(a, b):
    assert len(a) == len(b)
    assert a.classes == b.classes
    assert a.kind == b.kind
    assert (a.labels == b.labels).all()
    assert a.labels.dtype == b.labels.dtype
    for i in range(len(a)):
        x, y = a[i], b[i]
        assert type(x["image"]) is type(y["image"])
        if isinstance(x["image"], bytes):
            assert x["image"] == y["image"]
        else:
            assert x["image"].dtype == y["image"].dtype == np.uint8
            assert np.array_equal(x["image"], y["image"])
        assert np.array_equal(x["label"], y["label"])
        assert x["index"] == y["index"]


# --------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("shards", [1, 5, 24])
def test_a_folder_comes_back_byte_by_byte(packed, folder, shards):
    source, back = open_source(folder), open_source(packed(folder, "--shards", shards))
    same(source, back)
    assert content_digest(source) == content_digest(back) == back.info["digest"]
    assert len(back.info["shards"]) == shards
    with pytest.raises(IndexError):
        back[24]


@pytest.mark.parametrize("uri", ["digits:test", "fake:20x16?classes=3"])
def test_pixels_come_back_as_pixels(packed, uri):
    source, back = open_source(uri), open_source(packed(uri, "--shards", 3))
    same(source, back)
    assert content_digest(source) == content_digest(back) == back.info["digest"]


def test_grey_pixels(packed):
    grey = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 1), np.uint8)
    source = Memory([(grey[0], 0, 7), (grey[1, :, :, 0], 1, 2**40), (grey[2], 1, 0)])
    back = open_source(packed(source))
    assert [back[i]["image"].shape for i in range(3)] == [(5, 7, 1)] * 3  # [H, W] counts as [H, W, 1]
    assert all((back[i]["image"] == grey[i]).all() for i in range(3))
    assert [back[i]["index"] for i in range(3)] == [7, 2**40, 0]
    assert content_digest(source) == content_digest(back) == back.info["digest"]


@pytest.mark.parametrize("kind", ["tags", "values"])
def test_labels_of_several_numbers(packed, kind):
    rng = np.random.default_rng(0)
    rows = [
        (
            rng.integers(0, 256, (4, 4, 3), np.uint8),
            rng.normal(size=3).astype(np.float32) if kind == "values" else rng.integers(0, 2, 3).astype(np.float32),
            i,
        )
        for i in range(9)
    ]
    source = Memory(rows, kind, ("x", "y", "z"))
    back = open_source(packed(source, "--shards", 2))
    same(source, back)
    assert content_digest(source) == content_digest(back)
    back[0]["label"][:] = 0  # a sample is the caller's own


def test_a_packed_set_can_be_packed_again(packed, folder):
    first = packed(folder, "--shards", 5)
    second = packed(first, "--shards", 2)
    same(open_source(first), open_source(second))


def test_the_digest_sees_every_part_of_a_sample():
    image = np.zeros((2, 3, 3), np.uint8)
    base = content_digest(Memory([(image, 0, 0)]))
    other = image.copy()
    other[1, 2, 0] = 1
    for row in ((other, 0, 0), (image, 1, 0), (image, 0, 1), (image.reshape(3, 2, 3), 0, 0), (image.tobytes(), 0, 0)):
        assert content_digest(Memory([row])) != base
    two = [(image, 0, 0), (other, 0, 1)]
    assert content_digest(Memory(two)) != content_digest(Memory(two[::-1]))


def test_the_format_is_pinned(packed, folder):
    """What was packed once must stay readable: a change here needs another VERSION."""
    from array_record.python.array_record_module import ArrayRecordReader

    source, root = open_source(folder), packed(folder, "--shards", 2).removeprefix("records:")
    reader = ArrayRecordReader(f"{root}/shard-00001-of-00002.array_record")
    assert "group_size:1" in reader.writer_options_string()
    (record,) = reader.read([3])
    sample = source[12 + 3]
    assert record[:4] == b"JVR\0"
    assert int.from_bytes(record[4:8], "little") == sample["label"]
    assert int.from_bytes(record[8:16], "little") == sample["index"]
    assert record[16:] == sample["image"]
    assert (np.load(f"{root}/labels.npy") == source.labels).all()
    assert (np.load(f"{root}/index.npy") == np.arange(24)).all()
    info = json.loads(pathlib.Path(root, "info.json").read_text())
    assert info["version"] == records.VERSION == 1
    assert {"name", "count", "bytes", "sha256", "digest"} == set(info["shards"][0])
    assert info["source"]["uri"] == folder


# --------------------------------------------------------------------------- access


def test_any_order_and_any_thread(packed, folder):
    source, back = open_source(folder), open_source(packed(folder, "--shards", 7))
    want = [source[i]["image"] for i in range(24)]
    wrong = []

    def read(seed):
        order = random.Random(seed).choices(range(24), k=1000)
        wrong.extend(i for i in order if back[i]["image"] != want[i])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_pickles_small_and_opens_again(packed, folder):
    back = open_source(packed(folder, "--shards", 2))
    back[3]
    text = pickle.dumps(back)
    assert len(text) < 500
    same(back, pickle.loads(text))


def test_opening_reads_no_shard_and_imports_no_jax(packed, folder):
    uri = packed(folder, "--shards", 2)
    code = f"""
import sys
from jaxvision.data import open_source
source = open_source({uri!r})
assert not [m for m in sys.modules if m.startswith("array_record")]
assert source._readers == [None, None]
assert len(source) == 24 and source[23]["label"] == 1
assert source._readers[0] is None
assert not {{"jax", "grain", "tensorflow"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_where_names_file_and_record(packed, folder):
    uri = packed(folder, "--shards", 2)
    root = uri.removeprefix("records:")
    assert open_source(uri).where(12) == f"{root}/shard-00001-of-00002.array_record, record 0"
    with pytest.raises(IndexError):
        open_source(uri).where(24)


def test_the_home_is_expanded(packed, folder, tmp_path, monkeypatch):
    name = pathlib.Path(packed(folder).removeprefix("records:")).name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source(f"records:~/{name}")) == 24


# --------------------------------------------------------------------------- what is wrong


def test_errors_name_the_file_and_the_next_step(packed, folder, tmp_path):
    good = pathlib.Path(packed(folder, "--shards", 2).removeprefix("records:"))
    shard = "shard-00001-of-00002.array_record"

    def message(change):
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        change(bad)
        with pytest.raises(UserError) as error:
            open_source(f"records:{bad}")
        return str(error.value)

    def edit(**changes):
        def change(bad):
            info = json.loads((bad / "info.json").read_text())
            (bad / "info.json").write_text(json.dumps({**info, **changes}))

        return change

    text = message(lambda bad: (bad / shard).unlink())
    assert f"bad/{shard}" in text
    assert "No such file" in text
    text = message(lambda bad: (bad / shard).write_bytes((bad / shard).read_bytes()[:-1]))
    assert f"bad/{shard} has " in text
    assert "copy it again" in text
    assert "labels.npy has" in message(lambda bad: (bad / "labels.npy").write_bytes(b"\x93NUMPY"))
    assert "labels.npy" in message(
        lambda bad: (bad / "labels.npy").write_bytes(bytes((bad / "labels.npy").stat().st_size))
    )
    assert "version 2, this jaxvision reads 1: update" in message(edit(version=2))
    assert "info.json is damaged" in message(edit(count=23))
    assert "info.json is damaged" in message(edit(shards=7))
    outside = [{"name": "../shard", "count": 24, "bytes": 1}]
    assert "a shard is called '../shard'" in message(edit(shards=outside))
    assert "info.json is damaged" in message(edit(kind="sort"))
    assert "info.json is damaged" in message(lambda bad: (bad / "info.json").write_text('{"version": 1, '))
    assert "jaxvision.pack --from URI" in message(lambda bad: (bad / "info.json").unlink())

    def unfinished(bad):
        (bad / "info.json").unlink()
        (bad / "packing.json").write_text("{}")

    assert "not packed to the end: run the same command" in message(unfinished)
    with pytest.raises(UserError, match=r"did you mean .*packed"):
        open_source(f"records:{good}s")


def test_a_damaged_record_is_named_and_the_others_are_read(packed, folder):
    uri = packed(folder, "--shards", 2)
    source = open_source(folder)
    path = pathlib.Path(uri.removeprefix("records:")) / "shard-00001-of-00002.array_record"
    data = bytearray(path.read_bytes())
    place = data.find(source[12 + 5]["image"])
    assert place > 0
    data[place + 40] ^= 1
    path.write_bytes(data)
    back = open_source(uri)
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard-00001-of-00002\.array_record, record 5: damaged .*hash mismatch"):
            back[12 + 5]
    assert all(back[i]["image"] == source[i]["image"] for i in range(24) if i != 17)


def test_a_shard_of_zeros_is_named(packed, folder):
    uri = packed(folder, "--shards", 2)
    path = pathlib.Path(uri.removeprefix("records:")) / "shard-00000-of-00002.array_record"
    path.write_bytes(bytes(path.stat().st_size))
    back = open_source(uri)
    with pytest.raises(UserError, match=r"shard-00000-of-00002\.array_record, record 2: damaged"):
        back[2]
    assert back[12]["index"] == 12


def bitmap(seed):
    """A BMP file; all have the same size."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


LABELS_OF = {
    "class": lambda k: k % 2,
    "none": lambda k: 0,
    "tags": lambda k: (1.0, 0.0),
    "values": lambda k: (2.5, 1.0),
}


def of_an_earlier_release(root):
    """Makes a packed folder one that has no index.npy."""
    info = json.loads((root / "info.json").read_text())
    del info["index"], info["checksum"]
    (root / "info.json").write_text(json.dumps(info))
    (root / "index.npy").unlink()


def exchange(root):
    names = [root / f"shard-0000{k}-of-00002.array_record" for k in (0, 1)]
    assert names[0].stat().st_size == names[1].stat().st_size
    names[0].rename(root / "other")
    names[1].rename(names[0])
    (root / "other").rename(names[1])


@pytest.mark.parametrize("kind", LABELS_OF)
def test_shards_that_were_exchanged_are_noticed(packed, kind):
    rows = [(bitmap(k), LABELS_OF[kind](k), 100 - k) for k in range(10)]
    uri = packed(Memory(rows, kind), "--shards", 2)
    exchange(pathlib.Path(uri.removeprefix("records:")))
    back = open_source(uri)
    for i in range(10):
        with pytest.raises(UserError, match=rf"record {i % 5} is another sample: it has index .* say {100 - i} and"):
            back[i]


def test_data_sets_of_earlier_releases_are_read_and_their_classes_compared(packed):
    rows = [(bitmap(k), k // 5, 100 - k) for k in range(10)]
    uri = packed(Memory(rows), "--shards", 2)
    root = pathlib.Path(uri.removeprefix("records:"))
    of_an_earlier_release(root)
    same(open_source(uri), Memory(rows))
    same(open_source(packed(uri)), Memory(rows))
    exchange(root)
    with pytest.raises(UserError, match=r"shard-00000-of-00002\.array_record, record 3 is another sample"):
        open_source(uri)[3]


@pytest.mark.parametrize("name", ["labels.npy", "index.npy"])
def test_any_bit_of_a_small_file_that_changed_is_noticed(packed, name):
    uri = packed("digits:test")
    path = pathlib.Path(uri.removeprefix("records:")) / name
    whole = path.read_bytes()
    for place in (*range(0, 140, 7), *range(140, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=rf"{name} has changed since it was written .*pack again"):
            open_source(uri)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}, which info.json lists: No such file"):
        open_source(uri)


@pytest.mark.parametrize("key", ["classes", "shards"])
def test_another_order_in_info_json_is_noticed(packed, folder, key):
    uri = packed(folder, "--shards", 2)
    path = pathlib.Path(uri.removeprefix("records:")) / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info))  # written otherwise, but the same
    open_source(uri)
    path.write_text(json.dumps({**info, key: info[key][::-1]}))
    with pytest.raises(UserError, match=r"info\.json is damaged \(changed since it was written\)"):
        open_source(uri)
