"""One hostile file in a folder of good ones: it gives the right pixels, or a named error, or is replaced and listed."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxvision.data import InputContract, Skips, build, eval_batches, open_source, preprocess, train_batches
from jaxvision.data.transforms.pixels import center, quickly_resized, shorter_side_to
from jaxvision.errors import Unreadable, UserError
from tests.conftest import ROOT
from tests.data.test_jpeg import PACKED, XMP, example, exif, inserted, picture, saved, segment

SIZE = 16
CONTRACT = InputContract(size=SIZE, resize=SIZE + 2)
RESIZE = (("resize", {}), ("center_crop", {}))
CROP = (("random_resized_crop", {}), ("flip", {}))
HEIGHT, WIDTH = 30, 40
GOOD, PROGRESSIVE = saved(picture(HEIGHT, WIDTH)), example("progressive", HEIGHT, WIDTH)
BATCH = 5


@pytest.fixture(autouse=True)
def _no_hang():
    """A minute a test; a hang would otherwise be the last that is heard of the run."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


# --------------------------------------------------------------------------- the folder


def folder(root, name="bad.jpg", content=GOOD):
    """12 good images of two classes, and the `content` of dog/`name`: bytes, or a function that makes it at a path."""
    for k in range(12):
        path = root / ("cat", "dog")[k % 2] / f"{k:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(picture(HEIGHT + k, WIDTH, k), progressive=k % 3 == 0))
    path = root / "dog" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def opened(root, path):
    """The source, and which of its samples is at the path."""
    source = open_source(f"folder:{root}")
    return source, [source.where(i) for i in range(len(source))].index(str(path))


def train(source, specs=CROP, *, stop=6, start=0, batch_size=BATCH, seed=3, threads=0, **options):
    transforms = build(specs, CONTRACT)
    return list(
        train_batches(
            source, transforms, CONTRACT, batch_size=batch_size, seed=seed, start=start, stop=stop, threads=threads,
            **options,
        )
    )  # fmt: skip


def evaluate(source, **options):
    return list(eval_batches(source, CONTRACT, batch_size=BATCH, threads=0, **options))


def joined(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def same(first, second, rows=slice(None)):
    for key in first:
        assert np.array_equal(first[key][rows], second[key][rows]), key


# --------------------------------------------------------------------------- legal files


def reference(data):
    """Pillow's pixels, upright, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "I;16":
            grey = np.round(np.asarray(image) / 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


COLOUR = Image.fromarray(picture(HEIGHT, WIDTH))
ALPHA = COLOUR.copy()
ALPHA.putalpha(Image.fromarray(picture(HEIGHT, WIDTH, 1)[:, :, 0]))
PALETTE = COLOUR.quantize(50)
NOT_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0"
TURNED_PNG = Image.Exif()
TURNED_PNG[0x0112] = 6
SOS = GOOD.index(b"\xff\xda") + 14
MIDDLE = (SOS + len(GOOD)) // 2  # of the codes; half of so small a file is tables


def flipped(data, *places):
    data = bytearray(data)
    for place in places:
        data[place] ^= 0x55
    return bytes(data)


LEGAL = {
    "garbage in the middle": flipped(GOOD, *range(MIDDLE, MIDDLE + 9)),
    "garbage in the middle, progressive": flipped(PROGRESSIVE, len(PROGRESSIVE) - 20),
    "half, but with an end marker": GOOD[:MIDDLE] + b"\xff\xd9",
    "grayscale": example("grey", HEIGHT, WIDTH),
    "progressive": PROGRESSIVE,
    "restart markers": example("restarts", HEIGHT, WIDTH),
    "4:4:4": example("4:4:4", HEIGHT, WIDTH),
    "4:2:2": example("4:2:2", HEIGHT, WIDTH),
    "4:2:0": example("4:2:0", HEIGHT, WIDTH),
    **{name: example(name) for name in PACKED},  # 4:1:1, 4:4:0, 4:4:1, arithmetic codes
    "CMYK": saved(COLOUR.convert("CMYK")),
    "RGB components": saved(COLOUR, keep_rgb=True),
    "Adobe's mark, no transform": inserted(GOOD, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")),
    "Adobe's mark after the frame": inserted(GOOD, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), 0xDA),
    "bytes after the end": GOOD + b"trailing" * 100,
    "a second image after the end": GOOD + example("grey", 8, 8),
    "fill bytes and a comment": inserted(GOOD, b"\xff\xff" + segment(0xFE, b"\xff\xd9 not the end")),
    **{f"orientation {k}": inserted(GOOD, segment(0xE1, exif(k))) for k in range(10)},
    **{f"orientation {k}, big-endian": inserted(GOOD, segment(0xE1, exif(k, ">"))) for k in range(10)},
    "orientation after the frame": inserted(GOOD, segment(0xE1, exif(6)), 0xDA),
    "orientation in XMP": inserted(GOOD, segment(0xE1, XMP)),
    "orientation in PNG": encoded(COLOUR, "PNG", exif=TURNED_PNG),
    "orientation in WebP": encoded(COLOUR, "WEBP", exif=TURNED_PNG),
    "PNG of 16 bits": encoded(Image.fromarray(picture(HEIGHT, WIDTH)[:, :, 0].astype(np.uint16) * 251), "PNG"),
    "PNG of 1 bit": encoded(COLOUR.convert("1"), "PNG"),
    "PNG, palette": encoded(PALETTE, "PNG"),
    "PNG, palette with transparency": encoded(PALETTE, "PNG", transparency=bytes(range(0, 250, 5))),
    "PNG, RGBA": encoded(ALPHA, "PNG"),
    "PNG, LA": encoded(ALPHA.convert("LA"), "PNG"),
    "WebP": encoded(COLOUR, "WEBP"),
    "WebP, lossless with alpha": encoded(ALPHA, "WEBP", lossless=True),
    "GIF": encoded(COLOUR, "GIF"),
    "GIF, animated": encoded(COLOUR, "GIF", save_all=True, append_images=[ImageOps.invert(COLOUR)] * 3),
    "BMP": encoded(COLOUR, "BMP"),
    "TIFF": encoded(COLOUR, "TIFF"),
    "a single pixel": saved(picture(1, 1)),
    "a line": saved(picture(1, 2000)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_legal_files_give_pillows_pixels(tmp_path, name):
    path = folder(tmp_path, content=LEGAL[name])
    source, bad = opened(tmp_path, path)
    want = reference(LEGAL[name])
    height, width = want.shape[:2]
    whole = (("random_resized_crop", {"scale": (1, 1), "ratio": (width / height, width / height)}),)
    row = next(i for i, k in enumerate(joined(train(source, RESIZE))["index"]) if k == bad)
    if min(height, width) < 2 * SIZE:  # otherwise it would be decoded smaller, see test_jpeg.py
        got = joined(train(source, whole))["image"][row]
        assert np.array_equal(got, quickly_resized(want, SIZE, SIZE, "bilinear"))
    got = joined(train(source, RESIZE))["image"][row]
    assert np.array_equal(got, center(quickly_resized(want, *shorter_side_to(want, SIZE), "bilinear"), SIZE))
    assert np.array_equal(joined(evaluate(source))["image"][bad], preprocess(CONTRACT)(want))
    assert joined(evaluate(source))["label"][bad] == 1


@pytest.mark.parametrize("part", [NOT_EXIF, b"Exif\0\0nonsense", b"Exif\0\0", exif(6)[:-12], b"Exif\0\0II*\0\0\0\0\0"])
@pytest.mark.parametrize("before", [None, 0xDA])
def test_damaged_exif_data_cost_no_pixels(tmp_path, part, before):
    path = folder(tmp_path, content=inserted(GOOD, segment(0xE1, part), before))
    source, bad = opened(tmp_path, path)
    want = preprocess(CONTRACT)(reference(GOOD))
    assert np.array_equal(joined(evaluate(source))["image"][bad], want)
    train(source)


# --------------------------------------------------------------------------- files that cannot be read


def png(width, height, rows, depth=1):
    """A grey PNG file of any claimed size; `rows`: how many rows of zeros it really has, made piece by piece."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, row = zlib.compressobj(1), bytes(1 + (width * depth + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


FRAME = GOOD.index(b"\xff\xc0")


def sized(width, height):
    """A JPEG file that claims this size."""
    return GOOD[: FRAME + 5] + struct.pack(">HH", height, width) + GOOD[FRAME + 9 :]


LARGE = sized(65000, 65000)
GIF = encoded(COLOUR, "GIF")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def dangling(path):
    path.symlink_to(path.with_name("nowhere"))


def endless(path):
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")  # the name of a socket has at most 107 bytes
        os.close(folder)


def vast(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def zeros(path):
    path.symlink_to("/dev/zero")


UNREADABLE = {
    "truncated at 10 %": (GOOD[: len(GOOD) // 10], "truncated|cannot decode"),
    "truncated in its tables": (GOOD[: len(GOOD) // 2], "Truncated"),
    "truncated in its codes": (GOOD[:MIDDLE], "truncated"),
    "truncated at 99 %": (GOOD[: len(GOOD) * 99 // 100], "truncated"),
    "without its last two bytes": (GOOD[:-2], "truncated"),
    "progressive, truncated": (PROGRESSIVE[:-200], "truncated"),
    "nothing but a header": (GOOD[:SOS], "truncated"),
    "a broken Huffman table": (flipped(GOOD, *range(GOOD.index(b"\xff\xc4") + 5, GOOD.index(b"\xff\xc4") + 21)), ""),
    "12 bits": (GOOD[: FRAME + 4] + b"\x0c" + GOOD[FRAME + 5 :], "no such format"),
    "lossless, which it is not": (GOOD[: FRAME + 1] + b"\xc3" + GOOD[FRAME + 2 :], ""),
    "0 bytes": (b"", "0 bytes"),
    "text": (b"this is text, not an image\n", "no such format; the first bytes are b'this is "),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "a program": (EPS, "EPS"),
    "zeros": (bytes(5000), "no such format"),
    "PNG, truncated": (encoded(COLOUR, "PNG")[:-300], "truncated"),
    "PNG, a wrong checksum": (flipped(encoded(COLOUR, "PNG"), 60), ""),
    "PNG of 900 million pixels": (png(30000, 30000, 30), "more than max_pixels="),
    "JPEG that claims 65000 x 65000": (LARGE, "more than max_pixels="),
    "GIF that claims 65000 x 65000": (GIF[:6] + struct.pack("<HH", 65000, 65000) + GIF[10:], "more than max_pixels="),
    "JPEG of 169 million pixels": (sized(13000, 13000), "13000 x 13000 pixels are more than max_pixels="),
    "TIFF of 32 bits": (encoded(Image.new("F", (9, 9)), "TIFF"), "32 bits"),
    "a dangling link": (dangling, "No such file"),
    "a pipe": (os.mkfifo, "not a file"),
    "a link to an endless device": (zeros, "not a file"),
    "a socket": (endless, "No such device"),
    "a file of a terabyte": (vast, "1,099,511,627,776 bytes are more than an image has"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_ends_the_run_by_its_name(tmp_path, name):
    content, reason = UNREADABLE[name]
    path = folder(tmp_path, content=content)
    source, _ = opened(tmp_path, path)
    for run in (
        lambda: train(source, CROP),
        lambda: train(source, RESIZE),
        lambda: train(source, CROP, threads=2),
        lambda: evaluate(source),
    ):
        with pytest.raises(Unreadable) as error:
            run()
        assert str(path) in str(error.value)
        assert re.search(reason, str(error.value))
        assert re.search("cannot (read|decode)", str(error.value))
        assert "BytesIO" not in str(error.value)


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_replaced_and_all_else_stays(tmp_path, name):
    content, reason = UNREADABLE[name]
    path = folder(tmp_path / "bad", content=content)
    folder(tmp_path / "good")
    source, bad = opened(tmp_path / "bad", path)
    repaired, _ = opened(tmp_path / "good", tmp_path / "good/dog/bad.jpg")
    for specs in (CROP, RESIZE):
        skips = Skips(0.1)
        got, want = joined(train(source, specs, skips=skips)), joined(train(repaired, specs))
        hit = want["index"] == bad
        assert hit.sum() >= 2  # it came in two epochs, and is counted once
        same(got, want, ~hit)
        assert (got["index"][hit] != bad).all()
        assert got["mask"].all()
        (row,) = skips.rows()
        assert row["sample"] == bad
        assert str(path) in row["reason"]
        assert re.search(reason, row["reason"])
        same(got, joined(train(source, specs, skips=Skips(0.1), threads=3)))
    skips = Skips(0.1)
    got, want = joined(evaluate(source, skips=skips)), joined(evaluate(repaired))
    hit = want["index"] == bad
    same(got, want, ~hit)
    assert not got["mask"][hit].any()
    assert (got["index"][hit] == -1).all()
    assert not got["image"][hit].any()
    assert [r["sample"] for r in skips.rows()] == [bad]


def test_replacements_are_the_same_however_the_run_is_split(tmp_path):
    """By threads, processes, hosts and resumes; with three bad files of 13, so that replacements are replaced, too."""
    folder(tmp_path, content=b"")
    for name in ("cat/00.jpg", "dog/05.jpg"):
        (tmp_path / name).write_bytes(b"text")
    source = open_source(f"folder:{tmp_path}")
    skips = Skips(0.5)
    whole = train(source, skips=skips, stop=20)
    assert len(skips.rows()) == 3
    assert {0} < set(joined(whole)["index"].tolist()) | {0}
    for options in ({"threads": 1}, {"threads": 4}, {"threads": 4, "prefetch": 1}, {"processes": 2}):
        again = Skips(0.5)
        same(joined(whole), joined(train(source, skips=again, stop=20, **options)))
        assert again.rows() == skips.rows()
    for start in (1, 7, 19):
        for a, b in zip(whole[start:], train(source, skips=Skips(0.5), start=start, stop=20), strict=True):
            same(a, b)
    counted: dict = {}
    for rows in ([0, 3], [4, 1], [2]):
        own = Skips(0.5)
        for a, b in zip(whole, train(source, skips=own, stop=20, rows=rows), strict=True):
            same({key: value[rows] for key, value in a.items()}, b)
        counted |= own.seen
    assert counted == skips.seen


def test_skips_go_on_from_an_earlier_session(tmp_path):
    source, bad = opened(tmp_path, folder(tmp_path, content=b""))
    skips = Skips(0.1, {bad: "an earlier reason"})
    train(source, skips=skips)
    assert [r["sample"] for r in skips.rows()] == [bad]


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000)])
def test_a_line_that_would_be_a_wall_is_unreadable(tmp_path, size):
    """Its shorter side made 256 it would have 3.9 billion pixels; a crop of it is a crop."""
    path = folder(tmp_path, "bad.png", encoded(Image.new("RGB", size), "PNG"))
    source, bad = opened(tmp_path, path)
    contract = InputContract(size=224, resize=256)
    specs = (("resize", {"size": 256}), ("center_crop", {"size": SIZE}))
    for run in (
        lambda **more: list(eval_batches(source, contract, batch_size=BATCH, threads=0, **more)),
        lambda **more: train(source, specs, **more),
    ):
        with pytest.raises(Unreadable, match=rf"bad\.png: {size[0]} x {size[1]} pixels are a line, \d+ x \d+ once"):
            run()
        skips = Skips(0.1)
        run(skips=skips)
        assert list(skips.seen) == [bad]
    train(source, CROP)


def test_max_pixels_is_the_limit_of_all_readers(tmp_path):
    path = folder(tmp_path, content=saved(picture(HEIGHT + 20, WIDTH)))
    source, bad = opened(tmp_path, path)
    limit = (HEIGHT + 20) * WIDTH
    for specs, options in ((CROP, {}), (RESIZE, {}), (CROP, {"threads": 2}), (CROP, {"processes": 1})):
        with pytest.raises(Unreadable, match=rf"bad\.jpg: .*40 x 50 pixels are more than max_pixels={limit - 1}"):
            train(source, specs, max_pixels=limit - 1, **options)
    train(source, CROP, max_pixels=limit)
    evaluate(source, max_pixels=limit)
    skips = Skips(0.1)
    evaluate(source, max_pixels=limit - 1, skips=skips)
    assert list(skips.seen) == [bad]


def test_no_memory_for_a_transform_names_the_file(tmp_path):
    def fail(*_):
        raise MemoryError

    path = folder(tmp_path)
    source, _ = opened(tmp_path, path)
    batches = train_batches(source, [fail], CONTRACT, batch_size=1, seed=0, start=0, stop=1, threads=0)
    with pytest.raises(UserError, match=r"\.jpg: no memory for the transforms of 40 x \d+ pixels: lower data"):
        next(batches)


# --------------------------------------------------------------------------- too many


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 3}, {"processes": 1}])
def test_too_many_bad_files_are_counted_and_listed(tmp_path, options):
    folder(tmp_path)
    bad = [tmp_path / "cat" / f"{k:02}.jpg" for k in (0, 2, 4)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    source = open_source(f"folder:{tmp_path}")
    assert len(train(source, skips=Skips(3 / 13), stop=9, **options)) == 9
    for run in (train, evaluate):
        with pytest.raises(UserError, match=r"3 of the 13 samples .* more than the 2 that data\.skip_at_most") as error:
            run(source, skips=Skips(2.9 / 13), **(options if run is train else {}))
        assert all(str(path) in str(error.value) for path in bad)
        assert not isinstance(error.value, Unreadable)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 3}])
def test_all_files_bad_ends_with_an_error(tmp_path, options):
    folder(tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"")
    source = open_source(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"100 images in a row cannot be read, the last: .*\.jpg.*0 bytes"):
        train(source, skips=Skips(1.0), **options)
    skips = Skips(1.0)
    assert not joined(evaluate(source, skips=skips))["mask"].any()
    assert len(skips.rows()) == 13
    with pytest.raises(UserError, match="13 samples"):
        evaluate(source, skips=Skips(0.9))


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(UserError, match="skip_at_most"):
        Skips(share)


# --------------------------------------------------------------------------- bombs


def test_bombs_take_no_memory(tmp_path):
    """Files of a few kilobytes that claim gigabytes of pixels, each in all three ways to read."""
    files = {
        "whole.png": png(14000, 14000, 14000),  # 196 million real pixels
        "wide.png": png(2**31 - 1, 1, 1, 8)[:200],
        "large.jpg": LARGE,
        "169 million.jpg": sized(13000, 13000),
        "large.gif": GIF[:6] + struct.pack("<HH", 65000, 65000) + GIF[10:],
        "large.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 40000, 40000, 1, 24) + bytes(24),
    }
    (tmp_path / "x").mkdir()
    for name, content in files.items():
        assert len(content) < 2_000_000
        (tmp_path / "x" / name).write_bytes(content)
    code = f"""
import re
from jaxvision.data import *
from jaxvision.errors import Unreadable
source, contract = open_source("folder:{tmp_path}"), InputContract(size=16, resize=16)
memory = lambda: int(re.search("VmHWM: *\\t* *([0-9]+)", open("/proc/self/status").read())[1]) // 1024
before = memory()
for k in range(len(source)):
    for name in ("random_resized_crop", "resize"):
        try:
            next(train_batches(source, build([(name, {{}})], contract), contract, batch_size=1, seed=0, start=k,
                               stop=k + 1, threads=0))
            print("read")
        except Unreadable as error:
            print(str(error).split(":")[0])
skips = Skips(1.0)
list(eval_batches(source, contract, batch_size=2, skips=skips, threads=0))
print(len(skips.rows()), memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *named, last = done.stdout.splitlines()
    assert sorted(named) == sorted(str(tmp_path / "x" / name) for name in files for _ in range(2))
    assert last.split()[0] == "6"
    assert int(last.split()[1]) < 100, "megabytes"


# --------------------------------------------------------------------------- names, links, permissions


NAMES = {
    "Unicode": "ünï 猫",
    "newline": "line\nbreak",
    "space": " two  words ",
    "emoji": "🐕‍🦺",
    "quotes": "tab\t'quote\"",
    "braces": "{0} %s $HOME *?[",
    "dashes": "--help",
    "long": "x" * 200,
    "decomposed": unicodedata.normalize("NFD", "é"),
    "no UTF-8": os.fsdecode(b"not-utf8-\xff\xfe"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_classes(tmp_path, name):
    folder(tmp_path)
    here = tmp_path / NAMES[name]
    here.mkdir()
    (here / f"{NAMES[name]}.jpg").write_bytes(GOOD)
    bad = here / f"{NAMES[name]} bad.jpg"
    bad.write_bytes(GOOD[:-2])
    source, place = opened(tmp_path, bad)
    assert NAMES[name] in source.classes
    for options in ({"threads": 2}, {"processes": 1}):
        with pytest.raises(Unreadable) as error:
            train(source, **options)
        assert str(bad) in str(error.value)
    skips = Skips(0.1)
    got = joined(evaluate(source, skips=skips))
    assert np.array_equal(got["image"][source.where(place - 1) == str(bad) or place + 1], got["image"][place + 1]) or (
        got["mask"].sum() == len(source) - 1
    )
    assert json.loads(json.dumps(skips.rows())) == [{"sample": place, "reason": skips.seen[place]}]
    assert str(bad) in skips.seen[place]


@pytest.mark.parametrize(
    ("first", "second"), [("cat", "Cat"), ("straße", "STRASSE"), ("é", unicodedata.normalize("NFD", "é"))]
)
def test_classes_that_differ_only_in_case(tmp_path, first, second):
    for name in (first, second, "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.jpg").write_bytes(GOOD)
    assert len(list((tmp_path / "pets").iterdir())) == 3, "this disk tells no case"
    table = tmp_path / "pets.csv"
    table.write_text("path,label\n" + "".join(f"pets/{n}/1.jpg,{n}\n" for n in (first, second, "dog")))
    tar = tmp_path / "pets.tar"
    subprocess.run(["tar", "cf", str(tar), "-C", str(tmp_path / "pets"), first, second, "dog"], check=True)
    listing = tmp_path / "pets" / "classes.txt"
    for uri in (f"folder:{tmp_path / 'pets'}", f"csv:{table}", f"tar:{tar}"):
        with pytest.raises(UserError, match="rename one or merge them") as error:
            open_source(uri)
        assert ascii(first) in str(error.value)
        assert ascii(second) in str(error.value)
    listing.write_text(f"{first}\n{second}\ndog\n", encoding="utf-8")  # both are meant, as the letters a and A are
    for uri in (f"folder:{tmp_path / 'pets'}", f"csv:{table}?classes={listing}", f"tar:{tar}?classes={listing}"):
        assert open_source(uri).classes == (first, second, "dog")


def test_folders_that_are_called_like_images(tmp_path):
    folder(tmp_path)
    (tmp_path / "dog/empty.jpg").mkdir()
    (tmp_path / "dog/full.jpg").mkdir()
    (tmp_path / "dog/full.jpg/1.jpg").write_bytes(GOOD)
    source, place = opened(tmp_path, tmp_path / "dog/full.jpg/1.jpg")
    assert len(source) == 14
    assert np.array_equal(joined(evaluate(source))["image"][place], preprocess(CONTRACT)(reference(GOOD)))


def test_a_file_that_becomes_a_folder(tmp_path):
    path = folder(tmp_path)
    source, _ = opened(tmp_path, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Unreadable, match=r"cannot read .*bad\.jpg"):
        evaluate(source)
    skips = Skips(0.1)
    evaluate(source, skips=skips)
    assert len(skips.rows()) == 1


def test_a_circle_of_links_names_the_place(tmp_path):
    folder(tmp_path, content=lambda path: path.symlink_to(path))
    with pytest.raises(UserError, match=r"dog.*Too many levels of symbolic links"):
        evaluate(open_source(f"folder:{tmp_path}"))


def test_links_are_followed(tmp_path):
    target = tmp_path / "elsewhere.bin"
    target.write_bytes(GOOD)
    path = folder(tmp_path / "pets", content=lambda path: path.symlink_to(target))
    source, place = opened(tmp_path / "pets", path)
    assert np.array_equal(joined(evaluate(source))["image"][place], preprocess(CONTRACT)(reference(GOOD)))


def test_a_file_without_read_permission(tmp_path):
    path = folder(tmp_path)
    path.chmod(0)
    source, place = opened(tmp_path, path)
    if os.geteuid() == 0:  # permissions do not bind root
        assert joined(evaluate(source))["mask"][place]
        return
    with pytest.raises(Unreadable, match=r"cannot read .*bad\.jpg: Permission denied"):
        evaluate(source)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_disk_that_fails(tmp_path, monkeypatch, error):
    path = folder(tmp_path)
    source, place = opened(tmp_path, path)
    real = os.open

    def fails(name, *arguments, **options):
        if os.fspath(name) == str(path):
            raise error
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(Unreadable, match=rf"bad\.jpg: {error.strerror}"):
        train(source)
    skips = Skips(0.1)
    train(source, skips=skips)
    assert [r["sample"] for r in skips.rows()] == [place]


# --------------------------------------------------------------------------- any damage


class Memory:
    """One image, from memory."""

    uri, kind, classes = "memory:", "class", ("only",)
    labels = np.zeros(1, np.int32)

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return {"image": self.data, "label": 0, "index": 0}

    def where(self, i):
        return "memory/0.jpg"


KINDS = ("4:2:0", "4:4:4", "grey", "progressive", "restarts")
WHOLE = (("random_resized_crop", {"scale": (1, 1), "ratio": (WIDTH / HEIGHT, WIDTH / HEIGHT)}),)
SMALL = (("random_resized_crop", {"size": 8, "scale": (1, 1), "ratio": (WIDTH / HEIGHT, WIDTH / HEIGHT)}),)


def outcome(data, specs, size=SIZE):
    """The pixels of an image that is all of a data set; None if it is unreadable."""
    contract = InputContract(size=size, resize=size)
    batches = train_batches(
        Memory(data), build(specs, contract), contract, batch_size=1, seed=0, start=0, stop=1, threads=0
    )
    try:
        return next(batches)["image"][0]
    except Unreadable as error:
        reason = str(error)
    assert reason.startswith("memory/0.jpg: cannot decode")
    return None


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6),
    st.one_of(st.none(), st.floats(0, 1)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_any_damage_gives_pillows_pixels_or_is_named(kind, flips, end, marker, header):
    """Bytes changed anywhere, or in the header only; cut off anywhere, with or without an end marker put back."""
    data = bytearray(example(kind, HEIGHT, WIDTH))
    reach = min(640, len(data)) if header else len(data)
    for place, change in flips:
        data[int(place * (reach - 1))] ^= change
    if end is not None:
        data = data[: int(end * len(data))]
    data = bytes(data) + (b"\xff\xd9" if marker else b"")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            want = reference(data)
    except Exception:
        want = None  # Pillow raises almost anything
    if want is not None and max(want.shape) > 3000:
        return  # it would take seconds
    outcome(data, SMALL, 8)
    part, whole = outcome(data, WHOLE), outcome(data, RESIZE)
    if want is None:
        assert part is None or part.shape == (SIZE, SIZE, 3)
        return
    assert whole is not None
    assert part is not None
    assert np.array_equal(whole, center(quickly_resized(want, *shorter_side_to(want, SIZE), "bilinear"), SIZE))
    if kind == "progressive":  # what the missing scans would have told is guessed, by each version in its own way
        return
    if want.shape[:2] == (HEIGHT, WIDTH):
        assert np.array_equal(part, quickly_resized(want, SIZE, SIZE, "bilinear"))


@given(
    st.binary(max_size=300), st.sampled_from((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"))
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_named(data, start):
    for specs in (WHOLE, RESIZE):
        pixels = outcome(start + data, specs)
        assert pixels is None or pixels.shape == (SIZE, SIZE, 3)


# --------------------------------------------------------------------------- the command


CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.data.update(train="folder:{root}", transforms=(("random_resized_crop", {{}}),), threads=2)
config.batch_size, config.steps = 8, 8
config.evals = dict(test=dict(metric="topk", data="folder:{root}", every_epochs=0, every_steps=8))
config.checkpoint.update(every_epochs=0.0, every_steps=8)
"""
BAD = {"truncated": ("bad.jpg", GOOD[:-2]), "no UTF-8 in the name": (os.fsdecode(b"b\xff.jpg"), b"text")}


@pytest.mark.parametrize("name", BAD)
def test_the_command(command, tmp_path, name):
    root = tmp_path / "pets"
    path = folder(root, *BAD[name])
    source, place = opened(root, path)
    (tmp_path / "tiny.py").write_text(CONFIG.format(root=root))
    shown = path.name.encode("utf-8", "backslashreplace").decode()  # as Python writes to a terminal

    done = command("jaxvision.train", "--config", tmp_path / "tiny.py", "--workdir", tmp_path / "stop")
    assert done.returncode == 2, done.stderr
    (paragraph,) = done.stderr.strip().split("\n\n")
    assert f"{root}/dog/{shown}: cannot decode the image" in paragraph
    assert "Traceback" not in paragraph

    arguments = ("--config.data.on_error=skip", "--config.data.skip_at_most=0.5")
    done = command("jaxvision.train", "--config", tmp_path / "tiny.py", "--workdir", tmp_path / "skip", *arguments)
    assert done.returncode == 0, done.stderr
    for file in ("summary.json", "eval/test.json"):
        (row,) = json.loads((tmp_path / "skip" / file).read_text())["skipped"]
        assert row["sample"] == place
        assert str(path) in row["reason"]
    certificate = json.loads((tmp_path / "skip/eval/test.json").read_text())
    assert certificate["count"] == len(source) - 1
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "done"
