"""What is told of the data before a run begins: levels, transparency, images that training and evaluation share."""

import io
import os
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import InputContract, open_source, survey
from jaxvision.data.sources import only_present, with_classes
from tests.data.test_arrays import pixels, write_idx

RNG = np.random.default_rng(0)


def file(array, format="PNG", **options):
    written = io.BytesIO()
    Image.fromarray(array).save(written, format, **options)
    return written.getvalue()


def grey(low, high, format="PNG"):
    levels = RNG.integers(low, high + 1, (16, 16)).astype(np.uint16)
    levels[0, :2] = low, high
    return file(levels, format)


def png_of_16_bits_in_colour(high):
    """Written by hand, since Pillow writes none."""
    levels = RNG.integers(0, high + 1, (8, 8, 3)).astype(">u2")
    levels[0, 0] = high
    rows = b"".join(b"\0" + row.tobytes() for row in levels)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def told(images, **contract):
    return survey.levels_told("these", images, InputContract(**contract))


# --------------------------------------------------------------------------- levels


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("low", "high", "left", "advice"),
    [
        (0, 4095, 17, "(0, 4095)"),  # an X-ray of 12 bits
        (0, 3200, 13, "(0, 4095)"),
        (0, 16383, 65, "(0, 16383)"),
        (31000, 34000, 13, "(31000, 34000)"),  # CT with an offset
    ],
)
def test_a_fraction_of_the_type_is_told_and_what_to_set(low, high, left, advice, format):
    images = [grey(low, high, format) for _ in range(3)]
    (line,) = told(images)
    assert (
        f"3 of 3 images of these that were looked at have more than 8 bits a pixel and hold levels {low} to {high}"
        in line
    )
    assert f"{left} of 256 are left; set config.data.range = {advice}" in line
    assert told(images, range=eval(advice)) == []  # and then it is quiet


def test_what_uses_its_levels_is_not_told():
    assert told([grey(0, 65535), grey(0, 100)]) == []  # one dark image says nothing about all
    assert told([grey(2000, 2100)], range=(0, 4095)) == []  # all are dim, and it was said what to set
    assert told([file(pixels(8, 8)), file(pixels(8, 8, 3), "JPEG"), b"no image", b""]) == []
    assert told([file(np.zeros((4, 4), np.float32), "TIFF")]) == []  # refused when it is read


def test_a_range_that_does_not_fit_is_told():
    (line,) = told([grey(0, 255)], range=(0, 4095))
    assert "a part of data.range = (0, 4095): 17 of 256 are left; set config.data.range = (0, 255)" in line
    for format in ("PNG", "JPEG"):
        (line,) = told([file(pixels(8, 8), format)], range=(0, 4095))
        assert "data.range = (0, 4095) has no effect: none of 1 images" in line
    (line,) = told([grey(0, 255)], range=(1000, 4095))
    assert ": 1 of 256 are left" in line


def test_sixteen_bits_in_colour():
    (line,) = told([png_of_16_bits_in_colour(4095)])
    assert "16 bits a channel with colours or alpha and hold levels up to 3855 of 65535: 16 of 256 are left" in line
    assert told([png_of_16_bits_in_colour(65535)]) == []


def test_transparency_is_told():
    clear = pixels(8, 8, 4)
    clear[0, 0, 3] = 0
    opaque = clear.copy()
    opaque[:, :, 3] = 255
    (line,) = told([file(clear), file(opaque), file(pixels(8, 8, 3))])
    assert "1 of 3 images of these that were looked at have transparent pixels" in line
    assert "config.data.background = (255, 255, 255)" in line
    assert told([file(clear)], background=(255, 255, 255)) == []
    assert told([file(opaque)]) == []


# --------------------------------------------------------------------------- shared images


def folder(root, images):
    for name, content in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return open_source(f"folder:{root}")


@pytest.fixture
def photos(tmp_path):
    images = {f"{'ab'[k % 2]}/{k}.png": file(pixels(6 + k % 3, 6, 3)) for k in range(12)}
    return images, folder(tmp_path / "train", images)


def test_files_of_the_same_content(tmp_path, photos):
    images, train = photos
    test = {f"{'ab'[k % 2]}/{k}.png": file(pixels(7, 6, 3)) for k in range(6)}
    assert survey.shared(train, folder(tmp_path / "none", test)) == ""
    test |= {"a/copy.png": images["b/3.png"], "b/other name.png": images["a/4.png"]}
    line = survey.shared(train, folder(tmp_path / "test", test))
    assert f"2 of the 8 images of folder:{tmp_path}/test are training images, too" in line
    assert f"such as {tmp_path}/test/a/copy.png, which is {tmp_path}/train/b/3.png:" in line
    assert "looked at" not in line


def test_equal_sizes_are_not_equal_content(tmp_path):
    train = folder(tmp_path / "train", {"a/1.png": b"1234", "b/2.png": b"5678"})
    test = folder(tmp_path / "test", {"a/1.png": b"4321", "b/2.png": b"8765"})
    assert survey.shared(train, test) == ""


def test_links_are_found_without_reading(tmp_path, photos, monkeypatch):
    _, train = photos
    (tmp_path / "test").mkdir()
    os.symlink(tmp_path / "train" / "a", tmp_path / "test" / "a")
    (tmp_path / "test" / "b").mkdir()
    os.link(tmp_path / "train" / "b" / "1.png", tmp_path / "test" / "b" / "x.png")
    monkeypatch.setattr(survey, "_digest", lambda image: pytest.fail("reads"))
    assert "7 of the 7 images" in survey.shared(train, open_source(f"folder:{tmp_path}/test"))


def test_parts_of_one_data_set(tmp_path, photos):
    _, train = photos
    uri = train.uri
    assert survey.shared(open_source(f"{uri}?split=0:50%"), open_source(f"{uri}?split=50%:100%")) == ""
    line = survey.shared(open_source(f"{uri}?split=0:75%"), open_source(f"{uri}?split=50%:100%"))
    assert "3 of the 6 images" in line
    assert "12 of the 12 images" in survey.shared(train, open_source(uri))
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "train/a/zz.png")  # twice in one folder
    halves = [open_source(f"{uri}?split={part}&seed={seed}") for seed in range(6) for part in ("0:50%", "50%:100%")]
    lines = [survey.shared(a, b) for a, b in zip(halves[::2], halves[1::2])]
    assert any("1 of the" in line for line in lines)
    assert not all(lines)


def test_new_numbers_of_classes_hide_nothing():
    """Two of them lie on the data of an evaluation with classes="subset"."""
    train = open_source("digits:all")
    part = open_source("digits:all?per_class=2")
    part = only_present(with_classes(part, [*train.classes, "ten"], "the training data"))
    assert "20 of the 20 images" in survey.shared(train, part)
    assert ", as digits:all, sample" in survey.shared(train, part), "by their places, without reading"
    noise = open_source("fake:9x8")
    assert survey.shared(noise, only_present(with_classes(noise, [*noise.classes, "no"], "the training data"))) == ""


def test_across_kinds_of_sources(tmp_path, photos):
    _, train = photos
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        for name in ("a/0.png", "b/1.png"):
            archive.add(tmp_path / "train" / name, name)
        new = file(pixels(9, 9, 3))
        info = tarfile.TarInfo("a/new.png")
        info.size = len(new)
        archive.addfile(info, io.BytesIO(new))
    tar = open_source(f"tar:{tmp_path}/test.tar")
    assert "2 of the 3 images" in survey.shared(train, tar)
    assert "2 of the 12 images" in survey.shared(tar, train)
    table = tmp_path / "t.csv"
    table.write_text("path,label\ntrain/a/0.png,a\n")
    assert "1 of the 1 images" in survey.shared(train, open_source(f"csv:{table}"))


def test_pixels_in_memory_are_compared_all(tmp_path):
    images = pixels(5000, 4, 4)
    write_idx(tmp_path, images, np.zeros(5000, np.uint8))
    write_idx(tmp_path, np.concatenate([pixels(3, 4, 4), images[4321:4322]]), np.zeros(4, np.uint8), "t10k")
    line = survey.shared(open_source(f"idx:{tmp_path}/train"), open_source(f"idx:{tmp_path}/test"))
    assert "1 of the 4 images" in line
    assert "image 3, which is" in line
    assert "image 4321" in line


def test_a_bounded_look_says_so(tmp_path, photos, monkeypatch):
    images, train = photos
    test = folder(tmp_path / "test", {"a/x.png": images["a/0.png"], "b/y.png": images["b/9.png"]})
    monkeypatch.setattr(survey, "FILES", 2)
    line = survey.shared(train, test)
    assert "2 of the 2 images" in line  # the first and the last are looked at
    assert "(looked at 2 of 12 and 2 of 2 images)" in line
    none = folder(tmp_path / "none", {"a/x.png": file(pixels(9, 9, 3)), "b/y.png": file(pixels(9, 9, 3))})
    assert survey.shared(train, none) == (
        f"no image of folder:{tmp_path}/none was found among the training images (looked at 2 of 12 and 2 of 2 images)"
    )
    monkeypatch.undo()
    monkeypatch.setattr(survey, "BYTES", 1)
    alike = folder(tmp_path / "alike", {f"{c}/{k}.png": images[f"{c}/{k}.png"] for k, c in enumerate("ababab")})
    assert "(of those of equal size not all were read, in 5 s and up to 0 MB)" in survey.shared(train, alike)
    write_idx(tmp_path / "i", pixels(9, 4, 4), np.zeros(9, np.uint8))
    monkeypatch.undo()
    monkeypatch.setattr(survey, "SECONDS", 0.0)
    source = open_source(f"idx:{tmp_path}/i/train")
    assert survey.shared(source, alike).endswith("(looked at 0 of 9 and 6 of 6 images)")


def test_unreadable_files_and_noise_are_left_to_others(tmp_path, photos):
    _, train = photos
    test = folder(tmp_path / "test", {"a/0.png": b"", "b/1.png": b""})
    os.remove(tmp_path / "test" / "a" / "0.png")
    assert survey.shared(train, test).startswith("no image of folder:")
    assert survey.shared(open_source("fake:9x8"), open_source("fake:9x8")) == ""
    assert survey.shared(open_source("digits:train"), open_source("digits:test")) == ""
