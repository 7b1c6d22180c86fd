"""tar: bytes as tarfile extracts them in every format, the three layouts, the saved index, and what goes wrong."""

import gc
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import jaxvision.data.sources.tar as module
from jaxvision.data import open_source
from jaxvision.errors import Unreadable, UserError

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def data(members, form=tarfile.GNU_FORMAT, **pax):
    """The bytes of a tar: (name, bytes or a TarInfo's fields) pairs, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=pax) as tar:
        for name, content in dict(members).items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(entry, key, value)
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def pack(path, members, **more):
    path.write_bytes(data(members, **more))
    return f"tar:{path}"


def header(name, size=0, kind=b"0", size_field=None):
    """One header of ustar, by hand."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size_field or b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def content(k):
    """Bytes that tell one image from another, of sizes around those of a block."""
    return f"image {k} ".encode() * (k * 37 % 150)


def everything(source):
    return [(source.where(i), source[i]["image"], source.classes[source[i]["label"]]) for i in range(len(source))]


# --------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_are_those_that_tarfile_extracts(tmp_path, form):
    long = "a folder of forty letters, more or less/" * 4  # 160: a prefix in ustar, an extension in the others
    names = ["cat/1.jpg", "./cat/2.PNG", "ünï 猫/3.jpeg", f"{long}dog/4.jpg", f"cat/{'n' * 90}.jpg", "/cat/5.webp"]
    if form != "ustar":
        names += [f"{long}{'ü' * 120}/6.jpg", f"cat/{'猫' * 80}.jpg"]
    members = [("cat", {"type": tarfile.DIRTYPE}), ("cat/notes.txt", b"no image")]
    members += [(name, content(k)) for k, name in enumerate(names)]
    members += [("cat/._1.jpg", b"hidden"), (".git/1.jpg", b"hidden"), ("cat/to.txt", dict(type=b"2", linkname="x"))]
    uri = pack(tmp_path / "x.tar", members, form=FORMATS[form])
    source = open_source(uri)
    with tarfile.open(tmp_path / "x.tar") as tar:
        wanted = {}
        for member in tar.getmembers():
            name = member.name.removeprefix("./").lstrip("/")
            if member.name in names or f"./{name}" in names or f"/{name}" in names:
                wanted[name] = tar.extractfile(member).read()
    assert len(wanted) == len(names) == len(source)
    found = {where.split(", member ", 1)[1]: image for where, image, _ in everything(source)}
    assert found == wanted
    for where, _, name in everything(source):
        assert where.split(", member ", 1)[1].split("/")[-2] == name
    assert source.classes == tuple(sorted({name.split("/")[-2] for name in wanted}))


@pytest.mark.parametrize("zeros", [512, 1024, 20 * 512, 3 << 20])
def test_concatenated_tars_are_read_to_the_end(tmp_path, zeros):
    """As GNU tar reads them with --ignore-zeros, which is asked here."""
    tars = [data({f"{name}/{k}.jpg": content(9 * k + ord(name)) for k in range(3)}) for name in "ab"]
    path = tmp_path / "x.tar"
    path.write_bytes(
        tars[0].rstrip(b"\0").ljust(-(-len(tars[0].rstrip(b"\0")) // 512) * 512, b"\0") + bytes(zeros) + tars[1]
    )
    listed = subprocess.run(["tar", "-tif", path], capture_output=True, text=True, check=True).stdout.split()
    source = open_source(f"tar:{path}")
    assert [source.where(i).rpartition(" ")[2] for i in range(len(source))] == listed
    assert len(listed) == 6
    with tarfile.open(path, ignore_zeros=True) as tar:
        assert [s[1] for s in everything(source)] == [tar.extractfile(name).read() for name in listed]


def test_what_follows_the_end_of_a_tar_is_refused_if_it_is_none(tmp_path):
    tar = data({"a/1.jpg": b"one"})
    for more, wanted in (
        (b"nonsense".ljust(512, b"!"), rf"x\.tar goes on after its end: no header of a member at byte {len(tar)}"),
        (data({"b/1.jpg": b"two"})[:1024], "is cut off"),
        (data({"b/1.jpg": b"two"})[:700], "is cut off"),
        (data({"a/1.jpg": b"two"}), r"holds a/1\.jpg twice"),
    ):
        (tmp_path / "x.tar").write_bytes(tar + more)
        with pytest.raises(UserError, match=wanted):
            open_source(f"tar:{tmp_path}/x.tar")


def test_pax_globals_and_sizes_count(tmp_path):
    record = b"21 path=cat/long.jpg\n"
    size = b"9 size=3\n"
    blocks = header(b"pax", len(record + size), b"x") + (record + size).ljust(512, b"\0")
    blocks += header(b"short", 0) + b"abc".ljust(512, b"\0")
    blocks += header(b"pax", len(size), b"g") + size.ljust(512, b"\0")
    blocks += header(b"dog/1.jpg", 0) + b"def".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(blocks + bytes(1024))
    assert [(s[1], s[2]) for s in everything(open_source(f"tar:{tmp_path}/x.tar"))] == [
        (b"abc", "cat"),
        (b"def", "dog"),
    ]


def test_sizes_in_base_256_and_old_headers(tmp_path):
    size = 9 << 30
    with open(tmp_path / "x.tar", "wb") as file:  # nine GiB, of which the disk holds two pages
        file.write(header(b"big.bin", size_field=b"\x80" + size.to_bytes(11, "big")))
        file.seek(size, os.SEEK_CUR)
        file.write(header(b"cat/", 0, b"\0") + header(b"cat/1.jpg", 3, b"\0") + b"abc".ljust(512, b"\0") + bytes(1024))
    source = open_source(f"tar:{tmp_path}/x.tar")
    assert [source[0], len(source)] == [{"image": b"abc", "label": 0, "index": 0}, 1]


# --------------------------------------------------------------------------- layouts


def test_tars_in_a_tar(tmp_path):
    inner = {
        "n02.tar": data({"n02_9.JPEG": b"two nine", "n02_10.JPEG": b"two ten"}),
        "n01-b.tar": data({"n01-b_1.JPEG": b"one b"}, form=tarfile.PAX_FORMAT),
        "n01.tar": data({"./n01_2.JPEG": b"one two", "._n01_2.JPEG": b"hidden", "readme.txt": b""}),
    }
    uri = pack(tmp_path / "train.tar", inner)
    source = open_source(uri)
    assert source.classes == ("n01", "n01-b", "n02")
    assert (source.labels.tolist(), source.labels.dtype) == ([0, 1, 2, 2], np.int32)
    at = f"{tmp_path}/train.tar, member "
    assert [source.where(i) for i in range(4)] == [
        f"{at}n01.tar/n01_2.JPEG",
        f"{at}n01-b.tar/n01-b_1.JPEG",
        f"{at}n02.tar/n02_10.JPEG",
        f"{at}n02.tar/n02_9.JPEG",
    ]
    assert [source[i]["image"] for i in range(4)] == [b"one two", b"one b", b"two ten", b"two nine"]
    assert [source[i]["index"] for i in (0, 3, -1)] == [0, 3, 3]
    with pytest.raises(IndexError):
        source[4]

    (tmp_path / "classes.txt").write_text("n02\nn05\nn01\nn01-b\n")
    pinned = open_source(f"{uri}?classes={tmp_path}/classes.txt")
    assert pinned.classes == ("n02", "n05", "n01", "n01-b")
    assert pinned.labels.tolist() == [0, 0, 2, 3]
    (tmp_path / "classes.txt").write_text("n02\nn1\n")
    with pytest.raises(UserError, match=r"train\.tar has class 'n01.*', which is not in .*classes\.txt: did you mean"):
        open_source(f"{uri}?classes={tmp_path}/classes.txt")


def test_folders_are_classes(tmp_path):
    uri = pack(tmp_path / "x.tar", {"train/dog/2.jpg": b"d2", "cat/1.jpg": b"c1", "a/b/dog/1.jpg": b"d1"})
    source = open_source(uri)
    assert [s[1:] for s in everything(source)] == [(b"c1", "cat"), (b"d1", "dog"), (b"d2", "dog")]


VAL = {f"ILSVRC2012_val_{k:08d}.JPEG": content(k) for k in (3, 1, 2)}


def test_labels_from_a_file(tmp_path):
    uri = pack(tmp_path / "val.tar", VAL)
    listing, meta = tmp_path / "labels.txt", tmp_path / "meta.txt"

    def classes(text, query=""):
        listing.write_text(text)
        source = open_source(f"{uri}?labels={listing}{query}")
        assert [source[i]["image"] for i in range(3)] == [content(k) for k in (1, 2, 3)]
        return [source.classes[label] for label in source.labels]

    assert classes("n02\nn01\nn02\n") == ["n02", "n01", "n02"]
    assert classes("great white shark\ntench\n\ntench") == ["great white shark", "tench", "tench"]
    assert classes(
        "ILSVRC2012_val_00000002.JPEG tabby cat\nILSVRC2012_val_00000001.JPEG n01\nILSVRC2012_val_00000003.JPEG\tn03\n"
    ) == ["n01", "tabby cat", "n03"]
    assert classes("".join(f"ILSVRC2012_val_0000000{k} n{k}\n" for k in (3, 1, 2))) == ["n1", "n2", "n3"]
    meta.write_text("490 n02 kit fox\n361 n01\n7 n00\n")
    assert classes("490\n361\n490\n", f"&meta={meta}") == ["n02", "n01", "n02"]
    (tmp_path / "classes.txt").write_text("n03\nn02\nn01\n")
    assert classes("n02\nn01\nn02\n", f"&classes={tmp_path}/classes.txt") == ["n02", "n01", "n02"]
    (tmp_path / "classes.txt").write_text("1\n0\n")
    assert classes("0\n1\n1\n", f"&classes={tmp_path}/classes.txt") == ["0", "1", "1"]


def test_labels_find_images_in_folders(tmp_path):
    uri = pack(tmp_path / "x.tar", {"a/1.jpg": b"a1", "b/1.jpg": b"b1", "b/my 2.jpg": b"b2"})
    (tmp_path / "labels.txt").write_text("my 2.jpg x\na/1.jpg y\nb/1.jpg z\n")
    source = open_source(f"{uri}?labels={tmp_path}/labels.txt")
    assert [s[1:] for s in everything(source)] == [(b"a1", "y"), (b"b1", "z"), (b"b2", "x")]
    (tmp_path / "labels.txt").write_text("my 2.jpg x\n1.jpg y\nb/1.jpg z\n")
    with pytest.raises(UserError, match=r"line 2: .*several images '1\.jpg': write the path"):
        open_source(f"{uri}?labels={tmp_path}/labels.txt")


@pytest.mark.parametrize(
    ("text", "meta", "wanted"),
    [
        ("\n", None, "is empty"),
        ("a\nb\n", None, "has 2 lines, but .* has 3 images"),
        ("1\n2\n3\n", None, r"ILSVRC ids, whose order is not that of the sorted wnids: add &meta=FILE"),
        ("1\n2\n3\n", "1 a\n2 b\n", "has number 3, which .* lacks"),
        ("1\n2\n3\n", "1 a\n2\n", "line 2: '2', wanted a number and a class"),
        ("1\n2\n3\n", "1 a\n1 b\n", "line 2: 1 is already a"),
        ("a\nb\nc\n", "1 a\n", "are no numbers, .*remove meta="),
        ("ILSVRC2012_val_00000001.JPEG a\n", None, "has no line for ILSVRC2012_val_00000002.JPEG"),
        ("ILSVRC2012_val_00000001.JPEG a\n" * 2, None, "line 2: .* came before"),
        ("ILSVRC2012_val_00000001.JPEG a\nILSVRC2012_val_00000009.JPEG b\n", None, "line 2: .* has no image"),
        ("ILSVRC2012_val_00000001.JPEG a\nILSVRC2012_val_00000002.JPEG\n", None, "line 2: .* has no class"),
    ],
)
def test_wrong_labels(tmp_path, text, meta, wanted):
    uri = pack(tmp_path / "val.tar", VAL)
    (tmp_path / "labels.txt").write_text(text)
    uri += f"?labels={tmp_path}/labels.txt"
    if meta:
        (tmp_path / "meta.txt").write_text(meta)
        uri += f"&meta={tmp_path}/meta.txt"
    with pytest.raises(UserError, match=wanted):
        open_source(uri)


def test_webdataset(tmp_path):
    members = {"b/7.v1.jpg.json": b"{}", "b/7.jpg": b"seven", "b/7.cls": b"2\n", "b/7.mask.png": b"mask"}
    uri = pack(tmp_path / "x.tar", {**members, "a/3.cls": b" 010", "a/3.JPG": b"three"})
    source = open_source(uri)
    assert source.classes == tuple(map(str, range(11)))
    assert [s[1:] for s in everything(source)] == [(b"seven", "2"), (b"three", "10")]  # as they come
    (tmp_path / "classes.txt").write_text("\n".join(f"class {k}" for k in range(11)))
    named = open_source(f"{uri}?classes={tmp_path}/classes.txt")
    assert [s[2] for s in everything(named)] == ["class 2", "class 10"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"class number 10, but .*classes\.txt has 2, counted from 0"):
        open_source(f"{uri}?classes={tmp_path}/classes.txt")
    (tmp_path / "classes.txt").write_text("2\n010\n")  # names, since they are all there
    assert open_source(f"{uri}?classes={tmp_path}/classes.txt").labels.tolist() == [0, 1]


def test_keys_of_webdataset_end_at_the_first_dot(tmp_path):
    """webdataset splits a name by ^((?:.*/|)[^.]+)[.]([^/]*)$: a.v1.png and a.v1.cls are parts of sample a."""
    members = {"b.x/a.v1.png": b"dotted", "b.x/a.v1.cls": b"1", "b.x/a.v1.json": b"{}"}
    source = open_source(pack(tmp_path / "x.tar", {**members, "7.jpg": b"plain", "7.cls": b"0", "7.seg.png": b"mask"}))
    assert [s[1:] for s in everything(source)] == [(b"dotted", "1"), (b"plain", "0")]
    assert source.left_out == {}
    both = {"7.jpg": b"plain", "7.cls": b"0", "7.v2.jpg": b"other", "7.v2.cls": b"1"}
    assert [s[1:] for s in everything(open_source(pack(tmp_path / "x.tar", both)))] == [(b"plain", "0")]


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"a.v1.png": b"", "a.v1.cls": b"0", "a.v2.png": b"", "a.v2.cls": b"1"}, "two images, a.v1.png and a.v2.png"),
        ({"a.png": b"", "a.v2.png": b"", "a.v2.cls": b"1"}, "key a: has two images, a.png and a.v2.png: the key"),
        ({"a.v1.png": b"", "a.cls": b"1"}, r"key a: has a .cls file but no image of this name"),
        ({"a.v1.png": b"", "b.png": b"", "b.cls": b"1"}, r"key a.v1: has an image but no .cls file"),
        ({"a.v1.png": b"", "a.v1.jpg": b"", "a.v1.cls": b"1"}, "key a.v1: has two images"),
    ],
)
def test_dots_that_say_two_things_are_refused(tmp_path, members, wanted):
    with pytest.raises(UserError, match=wanted):
        open_source(pack(tmp_path / "x.tar", members))


def test_labels_in_other_parts_of_a_sample(tmp_path):
    members = {}
    for k, name in enumerate(("cat", "dög")):
        fields = {"label": k, "name": name, "caption": None}
        members |= {
            f"train/{k}.jpg": content(k),
            f"train/{k}.txt": f"\ufeff{name}\r\n".encode(),
            f"train/{k}.json": json.dumps(fields).encode(),
        }
    uri = pack(tmp_path / "x.tar", members)
    for _ in range(2):  # each label makes an index of its own
        for label, classes in {"txt": ["cat", "dög"], "json.label": ["0", "1"], "json.name": ["cat", "dög"]}.items():
            source = open_source(f"{uri}?label={label}")
            assert [s[2] for s in everything(source)] == classes
            assert [s[1] for s in everything(source)] == [content(0), content(1)]
            assert source.left_out == {}
    folders = open_source(f"{uri}?label=folder")
    assert (folders.classes, folders.left_out) == (("train",), {".txt": 2, ".json": 2})
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert open_source(f"{uri}?labels={tmp_path}/labels.txt").classes == ("a", "b")
    numbers = pack(tmp_path / "y.tar", {"0.jpg": b"", "0.json": b"3", "1.jpg": b"", "1.json": b'"1"'})
    assert open_source(f"{numbers}?label=json").labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("members", "query", "wanted"),
    [
        ({"a/1.jpg": b"", "a/1.txt": b"x"}, "", r"x\.tar has a/1\.txt beside the image.*\?label=txt .*\?label=folder"),
        (
            {"1.jpg": b"", "1.json": b'{"id": 1, "cls": 2}'},
            "",
            r"1\.json .*\(fields id, cls\): add \?label=json\.FIELD",
        ),
        ({"1.jpg": b"", "1.json": b"2"}, "", r"add \?label=json if"),
        ({"1.jpg": b"", "1.json": b"{"}, "", r"add \?label=json if"),
        ({"1.jpg": b"", "1.json": b"{"}, "?label=json", r"member 1\.json is no JSON"),
        ({"1.jpg": b"", "1.json": b'{"id": 1}'}, "?label=json", r"1\.json has the fields id: name one"),
        ({"1.jpg": b"", "1.json": b'{"id": 1}'}, "?label=json.cls", r"1\.json has no field 'cls', it has id: correct"),
        ({"1.jpg": b"", "1.json": b"[1]"}, "?label=json.cls", "it is no object"),
        ({"1.jpg": b"", "1.json": b"[1]"}, "?label=json", "key 1: the .json file says ''"),
        ({"1.jpg": b"", "1.json": b'{"c": true}'}, "?label=json.c", "key 1: the .json file says ''"),
        ({"1.jpg": b"", "1.json": b'{"c": 1.5}'}, "?label=json.c", "key 1: the .json file says ''"),
        ({"1.jpg": b"", "1.json": b"-1"}, "?label=json", "key 1: the .json file says '-1'"),
        ({"1.jpg": b"", "1.txt": b"a cat\non a mat"}, "?label=txt", "key 1: the .txt file says"),
        ({"1.jpg": b"", "1.txt": "cat".encode("utf-16")}, "?label=txt", "key 1: the .txt file says"),
        ({"1.jpg": b"", "1.txt": b"x", "2.jpg": b""}, "?label=txt", "key 2: has an image but no .txt file"),
        ({"1.jpg": b"", "1.txt": b"x", "2.txt": b"x"}, "?label=txt", "key 2: has a .txt file but no image"),
        ([("1.jpg", b""), ("1.txt", b"x"), ("1.TXT", b"x")], "?label=txt", "key 1: has two .txt files"),
    ],
)
def test_labels_of_webdataset_that_are_none(tmp_path, members, query, wanted):
    with pytest.raises(UserError, match=wanted) as error:
        open_source(pack(tmp_path / "x.tar", members) + query)
    assert str(tmp_path / "x.tar") in str(error.value)


def test_what_is_left_out_is_counted(tmp_path):
    members = {"a/1.jpg": b"", "a/2.HEIC9": b"", "a/README": b"", "a/.hidden.txt": b"", "b/3.jpg": b"", "b/x.txt": b""}
    assert open_source(pack(tmp_path / "x.tar", members)).left_out == {".heic9": 1, "no ending": 1, ".txt": 1}
    pack(tmp_path / "y.tar", {"a/1.jpg": b"", "a/2.txt": b""})
    for _ in range(2):  # from the index, too
        assert open_source(f"tar:{tmp_path}/*.tar").left_out == {".heic9": 1, "no ending": 1, ".txt": 2}
    members = {"1.jpg": b"", "1.cls": b"0", "1.json": b"{}", "2.jxl9": b"", "2.json": b"{}"}
    assert open_source(pack(tmp_path / "z.tar", members)).left_out == {".jxl9": 1, ".json": 1}  # sample 2
    inner = {"n01.tar": data({"1.jpg": b"", "1.heic9": b""})}
    assert open_source(pack(tmp_path / "w.tar", inner)).left_out == {".heic9": 1}


def test_several_shards(tmp_path):
    for k in range(12):
        members = {f"{k}{i}.{end}": b"%d %d" % (k, i) for i in range(2) for end in ("jpg",)}
        pack(tmp_path / f"shard-{k:03d}.tar", {**members, f"{k}0.cls": "ü".encode(), f"{k}1.cls": b"b" if k else b"c"})
    wanted = [(b"%d %d" % (k, i), ("ü", "b" if k else "c")[i]) for k in range(12) for i in range(2)]
    for _ in range(2):  # the second time there are index files beside the shards
        for pattern in ("shard-{000..011}.tar", "shard-*", "shard-{00..01}*.tar"):
            source = open_source(f"tar:{tmp_path}/{pattern}")
            assert source.classes == ("b", "c", "ü")
            assert [s[1:] for s in everything(source)] == wanted
    assert source.where(23) == f"{tmp_path}/shard-011.tar, member 111.jpg"
    assert [s[1:] for s in everything(open_source(f"tar:{tmp_path}/shard-{{009..010}}.tar"))] == wanted[18:22]
    with pytest.raises(UserError, match=r"shard-012\.tar: No such file.*did you mean"):
        open_source(f"tar:{tmp_path}/shard-{{000..012}}.tar")
    with pytest.raises(UserError, match=r"\{3\.\.1\} .* is empty"):
        open_source(f"tar:{tmp_path}/shard-{{3..1}}.tar")
    with pytest.raises(UserError, match="no file matches"):
        open_source(f"tar:{tmp_path}/shart-*.tar")
    pack(tmp_path / "shard-012.tar", {"a/1.jpg": b""})
    with pytest.raises(UserError, match=r"shard-000\.tar has \.cls files, .*shard-012\.tar has images without"):
        open_source(f"tar:{tmp_path}/shard-*.tar")


def test_shards_of_folders_are_ordered_by_class_then_shard(tmp_path):
    pack(tmp_path / "1.tar", {"b/1.jpg": b"1b1", "a/2.jpg": b"1a2"})
    pack(tmp_path / "2.tar", {"a/1.jpg": b"2a1", "b/0.jpg": b"2b0"})
    source = open_source(f"tar:{tmp_path}/{{1..2}}.tar")
    assert [s[1:] for s in everything(source)] == [(b"1a2", "a"), (b"2a1", "a"), (b"1b1", "b"), (b"2b0", "b")]


# --------------------------------------------------------------------------- the index


@pytest.fixture
def scans(monkeypatch):
    """The paths whose headers are read."""
    done = []
    scan = module._scan
    monkeypatch.setattr(module, "_scan", lambda path, *more: done.append(path) or scan(path, *more))
    return done


def test_the_index_is_used_again_until_the_tar_changes(tmp_path, scans):
    path = tmp_path / "x.tar"
    uri = pack(path, {"ü/1.jpg": b"one", os.fsdecode(b"\xff/2.jpg"): b"two"})
    first = everything(open_source(uri))
    assert everything(open_source(uri)) == first
    assert len(scans) == 1
    assert sorted(os.listdir(tmp_path)) == ["x.tar", "x.tar.index.npz"]  # no temporary file is left

    pack(path, {"a/1.jpg": b"one", "a/3.jpg": b"three", "b/1.jpg": b"four"})
    assert [s[1:] for s in everything(open_source(uri))] == [(b"one", "a"), (b"three", "a"), (b"four", "b")]
    assert len(scans) == 2
    os.utime(path, ns=(1, 1))
    open_source(uri)
    assert len(scans) == 3
    open_source(uri)
    assert len(scans) == 3


@pytest.mark.parametrize("how", ["replaced", "written over", "no time of change"])
def test_another_tar_of_equal_size_and_time_is_noticed(tmp_path, monkeypatch, how):
    path = tmp_path / "x.tar"
    members = [[(f"{(k + a) % 2}/{k:03}.jpg", content(k)) for k in range(100)] for a in (0, 1)]
    uri = pack(path, members[0])
    if how == "no time of change":  # as on a disk that keeps none
        monkeypatch.setattr(module, "_stamp", lambda status: (status.st_size, status.st_mtime_ns, 0))
    before = open_source(uri)
    status = path.stat()
    target = tmp_path / "new.tar" if how == "replaced" else path
    target.write_bytes(data(members[1]))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    target.replace(path)
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    found = open_source(uri)
    assert [found.where(i) for i in range(100)] != [before.where(i) for i in range(100)]
    assert {s[0].rpartition(" ")[2]: s[1] for s in everything(found)} == dict(members[1])


def test_an_old_version_of_the_index_is_made_again(tmp_path, scans, monkeypatch):
    uri = pack(tmp_path / "x.tar", {"a/1.jpg": b"one"})
    open_source(uri)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    open_source(uri)
    assert len(scans) == 2


def test_a_damaged_index_is_made_again(tmp_path, scans):
    uri = pack(tmp_path / "x.tar", {f"{k % 3}/{k}.jpg": content(k) for k in range(9)})
    index = tmp_path / "x.tar.index.npz"
    wanted = everything(open_source(uri))
    whole = index.read_bytes()
    damaged = [b"", b"nonsense", whole[: len(whole) // 2], whole[:-1]]
    where = whole.index(b"0/0.jpg")  # in the names
    damaged.append(whole[:where] + b"9" + whole[where + 1 :])
    for k, text in enumerate(damaged):
        index.write_bytes(text)
        assert everything(open_source(uri)) == wanted
        assert len(scans) == k + 2
        assert index.read_bytes()[:4] == whole[:4]  # and saved again
    with np.load(index) as table:
        fields = dict(table)
    for change in (
        {"offsets": fields["offsets"] + 10**6},
        {"ends": fields["ends"] * 0},
        {"group": fields["group"] + 9},
    ):
        np.savez(index, **{**fields, **change})
        assert everything(open_source(uri)) == wanted
    assert len(scans) == len(damaged) + 4


@pytest.mark.parametrize("broken", ["open", "replace"])
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, scans, monkeypatch, capfd, broken):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    uri = pack(tmp_path / "x.tar", {"a/1.jpg": b"one"})
    if broken == "open":
        monkeypatch.setattr(module, "open", refuse, raising=False)
    else:
        monkeypatch.setattr(module.os, "replace", refuse)
    for _ in range(2):
        assert open_source(uri)[0]["image"] == b"one"
    assert len(scans) == 2
    assert os.listdir(tmp_path) == ["x.tar"]
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------- pickling, threads, memory


@pytest.mark.parametrize("limit", [1, 128])
def test_pickles_and_is_read_by_threads(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(module, "OPEN_FILES", limit)  # 1: files are closed while others read
    for shard in range(4):
        pack(tmp_path / f"{shard}.tar", {f"{k % 3}/{k}.jpg": content(4 * k + shard) for k in range(50)})
    source = open_source(f"tar:{tmp_path}/*.tar")
    wanted = everything(source)
    again = pickle.loads(pickle.dumps(source))
    assert (again.classes, again.uri, again.kind) == (source.classes, source.uri, "class")
    assert (again.labels == source.labels).all()

    def read(again, seed):
        order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(again))
        return all(again[i]["image"] == wanted[i][1] and again[i]["index"] == i for i in order.tolist())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [again] * 8, range(8)))
    assert sorted(s[1] for s in wanted) == sorted(content(4 * k + s) for k in range(50) for s in range(4))
    if sys.platform == "linux":
        del again, source
        gc.collect()
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        assert not [x for x in links if os.path.lexists(x) and os.readlink(x).startswith(str(tmp_path))]


def test_200_thousand_entries_take_few_bytes(tmp_path):
    count = 200_000
    with open(tmp_path / "x.tar", "wb") as file:
        for start in range(0, count, 1000):
            file.write(b"".join(header(b"%03d/%08d.jpg" % (k % 1000, k)) for k in range(start, start + 1000)))
        file.write(bytes(1024))
    for _ in range(2):  # scanned, and from the index
        source = open_source(f"tar:{tmp_path}/x.tar")
        assert len(source) == count
        assert len(source.classes) == 1000
        arrays = [v for v in vars(source).values() if isinstance(v, np.ndarray)]
        assert all(a.base is None or a.base.nbytes == a.nbytes for a in arrays)  # no view keeps a larger one
        assert sum(a.nbytes for a in arrays) / count < 33
        assert (len(pickle.dumps(source)) - len(source._names)) / count < 33
        assert source.where(201) == f"{tmp_path}/x.tar, member 001/00001001.jpg"


# --------------------------------------------------------------------------- what goes wrong


def test_a_tar_that_is_cut_off_names_the_place(tmp_path):
    whole = data({"a/1.jpg": b"x" * 2000, "a/2.jpg": b"y" * 2000})
    path = tmp_path / "x.tar"
    for length, wanted in (
        (2000, r"x\.tar is cut off: it ends at byte 2000, but a/1\.jpg needs 2000 bytes from byte 512"),
        (2560, r"x\.tar is cut off: it ends at byte 2560 without the mark of its end"),
        (2700, r"x\.tar is cut off: it ends at byte 2700 without"),
        (5000, r"ends at byte 5000, but a/2\.jpg needs 2000 bytes from byte 3072"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=wanted):
            open_source(f"tar:{path}")
    pack(path, {"n01.tar": data({"1.jpg": b""}), "n02.tar": whole[:2560]})
    with pytest.raises(UserError, match=r"x\.tar, member n02\.tar is cut off: it ends at byte \d+ without"):
        open_source(f"tar:{path}")
    assert os.listdir(tmp_path) == ["x.tar"]


def test_damage_is_found(tmp_path):
    whole = bytearray(data({"a/1.jpg": b"x" * 2000, "a/2.jpg": b"y" * 2000}))
    whole[2560 + 3] ^= 1
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(UserError, match=r"x\.tar is damaged: no header of a member at byte 2560"):
        open_source(f"tar:{tmp_path}/x.tar")
    (tmp_path / "x.tar").write_bytes(header(b"pax", 9, b"x") + b"nonsense!".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(UserError, match="no pax header at byte 512"):
        open_source(f"tar:{tmp_path}/x.tar")
    (tmp_path / "x.tar").write_bytes(b"no tar at all " * 100)
    with pytest.raises(UserError, match=r"x\.tar is no tar"):
        open_source(f"tar:{tmp_path}/x.tar")


def test_compressed_tars_are_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data({"a/1.jpg": b""})))
    with pytest.raises(UserError, match=r"x\.tar\.gz is compressed \(gzip\).*decompress it"):
        open_source(f"tar:{tmp_path}/x.tar.gz")
    for mode, how in (("w:bz2", "bzip2"), ("w:xz", "xz")):
        with tarfile.open(tmp_path / "y.tar", mode):
            pass
        with pytest.raises(UserError, match=rf"compressed \({how}\)"):
            open_source(f"tar:{tmp_path}/y.tar")
    uri = pack(tmp_path / "z.tar", {"n01.tar": (tmp_path / "x.tar.gz").read_bytes()})
    with pytest.raises(UserError, match=r"z\.tar, member n01\.tar is compressed"):
        open_source(uri)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, r"holds no image \(jpg "),
        ({"a/readme.txt": b"", "a/.1.jpg": b""}, "holds no image"),
        ({"1.jpg": b""}, r"member 1\.jpg is in no folder, .*add \?labels=FILE"),
        ({"a/1.jpg": b"", "2.jpg": b""}, r"member 2\.jpg is in no folder"),
        ([("a/1.jpg", b""), ("a/1.jpg", b"2")], r"holds a/1\.jpg twice"),
        ({"a/1.jpg": b"", "a/2.jpg": dict(type=tarfile.LNKTYPE, linkname="a/1.jpg")}, r"a/2\.jpg is a link: pack"),
        ({"a/1.jpg": dict(type=tarfile.SYMTYPE, linkname="x")}, "is a link"),
        ({"a/1.jpg": dict(type=tarfile.FIFOTYPE)}, "is no plain file"),
        ({"n01.tar": data({"1.txt": b""})}, r"member n01\.tar holds no image"),
        ({"n01.tar": data({"1.jpg": b""}), "1.jpg": b""}, "pack only one of both"),
        ({"n01.tar": data({"1.jpg": b""}), "1.cls": b"0"}, "pack only one of both"),
        ({"1.jpg": b"", "1.cls": b"0", "s/2.jpg": b""}, "key s/2: has an image but no .cls"),
        ({"1.jpg": b"", "1.cls": b"0", "2.cls": b"0"}, "key 2: has a .cls file but no image"),
        ({"1.mask.png": b"", "1.cls": b"0"}, "key 1: has a .cls file but no image"),
        ({"1.jpg": b"", "1.png": b"", "1.cls": b"0"}, "key 1: has two images"),
        ([("1.jpg", b""), ("1.cls", b"0"), ("1.cls", b"1")], "key 1: has two .cls"),
        ({"1.jpg": b"", "1.cls": b" \n"}, "key 1: the .cls file says ''"),
        ({"1.jpg": b"", "1.cls": b"-1"}, "key 1: the .cls file says '-1'"),
        ({"1.jpg": b"", "1.cls": b"a\nb"}, "key 1: the .cls file says"),
        ({"1.jpg": b"", "1.cls": b"0" * 5000}, "key 1: the .cls file says"),
        ({"1.jpg": b"", "1.cls": b"99999999"}, "class number 99999999, but at most"),
    ],
)
def test_wrong_members(tmp_path, members, wanted):
    with pytest.raises(UserError, match=wanted) as error:
        open_source(pack(tmp_path / "x.tar", members))
    assert str(tmp_path / "x.tar") in str(error.value)


def test_sparse_files_are_refused(tmp_path):
    record = b"22 GNU.sparse.major=1\n"
    for blocks in (
        header(b"a/1.jpg", 0, b"S"),
        header(b"pax", len(record), b"x") + record.ljust(512, b"\0") + header(b"a/1.jpg"),
    ):
        (tmp_path / "x.tar").write_bytes(blocks + bytes(1024))
        with pytest.raises(UserError, match=r"a/1\.jpg is sparse"):
            open_source(f"tar:{tmp_path}/x.tar")


def test_links_are_counted_and_what_never_ends_is_refused(tmp_path):
    members = {"a/1.jpg": b"", "b": dict(type=tarfile.SYMTYPE, linkname="a"), ".c": dict(type=tarfile.SYMTYPE)}
    uri = pack(tmp_path / "x.tar", members)
    assert open_source(uri).left_out == {"links": 1}
    os.mkfifo(tmp_path / "y.tar")
    for path in ("/dev/zero", f"{tmp_path}/y.tar"):
        with pytest.raises(UserError, match=f"{path} is a pipe or a device"):
            open_source(f"tar:{path}")
    for key in ("labels", "classes"):
        with pytest.raises(UserError, match="cannot read /dev/zero: it is a device"):
            open_source(f"{uri}?{key}=/dev/zero")
    with pytest.raises(UserError, match="/dev/zero: it is a device"):
        open_source("csv:/dev/zero")


def test_wrong_uris(tmp_path):
    uri = pack(tmp_path / "x.tar", {"a/1.jpg": b""})
    (tmp_path / "labels.txt").write_text("a\n")
    labels = f"labels={tmp_path}/labels.txt"
    inner = pack(tmp_path / "inner.tar", {"n01.tar": data({"1.jpg": b""})})
    cls = pack(tmp_path / "cls.tar", {"1.jpg": b"", "1.cls": b"0"})
    for wrong, wanted in (
        (f"tar:{tmp_path}", "is a folder, wanted a tar file: did you mean 'folder:"),
        (f"tar:{tmp_path}/xx.tar", r"xx\.tar: No such file.*did you mean .*x\.tar"),
        (f"{uri}?lable=x", "did you mean 'labels?'"),
        (f"{uri}?label=x", "label=x is unknown, wanted cls, txt, json or json.FIELD .*is labels=FILE"),
        (f"{uri}?label=cls&{labels}", "both say where the classes are"),
        (f"{uri}?label=txt", r"holds no \.txt file, which label=txt asks for"),
        (f"{uri}?meta=x", "add labels=FILE or remove meta"),
        (f"{uri}?labels={tmp_path}/label.txt", r"label\.txt: No such file.*did you mean .*labels\.txt"),
        (f"{uri}?classes={tmp_path}/none.txt", r"none\.txt: No such file"),
        (f"{uri}?{labels}&meta={tmp_path}/none.txt", "are no numbers"),
        (f"{inner}?{labels}", "has tars in it, which say the classes: remove labels="),
        (f"{cls}?{labels}", r"has \.cls files, which say the classes"),
    ):
        with pytest.raises(UserError, match=wanted):
            open_source(wrong)


def test_a_tar_that_changes_while_it_is_in_use(tmp_path):
    path = tmp_path / "x.tar"
    source = open_source(pack(path, {"a/1.jpg": b"x" * 5000}))
    assert len(source[0]["image"]) == 5000
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"member a/1\.jpg is cut off"):
        source[0]
    with pytest.raises(UserError, match=r"x\.tar has changed since its headers were read: start again"):
        pickle.loads(pickle.dumps(source))[0]
    path.unlink()
    with pytest.raises(UserError, match=r"cannot open .*x\.tar: No such file"):
        pickle.loads(pickle.dumps(source))[0]


def test_a_disk_that_fails_names_the_member(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    source = open_source(pack(tmp_path / "x.tar", {"a/1.jpg": b"x"}))
    monkeypatch.setattr(module.os, "pread", fail)
    with pytest.raises(Unreadable, match=r"cannot read .*x\.tar, member a/1\.jpg: Input/output error"):
        source[0]
