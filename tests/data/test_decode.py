"""Encoded bytes of every kind, good and damaged."""

import gzip
import io
import struct
import sys
import warnings
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxvision import config
from jaxvision.data import decode
from jaxvision.data.decode import MAX_PIXELS, Encoded, open_image
from jaxvision.errors import Unreadable, UserError
from tests.data.test_survey import png_of_16_bits_in_colour

GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 10), np.arange(0, 160, 10)), -1).astype(np.uint8)
RGB = np.concatenate([GRADIENT, 255 - GRADIENT[:, :, :1]], -1)  # [16, 24, 3]


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats(format, channels):
    pixels = decode(encoded(Image.fromarray(RGB), format), channels, "here")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 24, channels)
    want = RGB if channels == 3 else np.asarray(Image.fromarray(RGB).convert("L"))[:, :, None]
    limit = 0 if format in ("PNG", "BMP", "TIFF") else 60  # palette, or lossy
    assert np.abs(pixels.astype(int) - want).max() <= limit


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(channels, format):
    values = np.array([[0, 128, 129, 257, 1000, 32768, 65406, 65407, 65535]], np.uint16)
    pixels = decode(encoded(Image.fromarray(values), format), channels, "here")
    assert pixels.shape == (1, 9, channels)
    assert pixels[0, :, 0].tolist() == [round(int(v) / 257) for v in values[0]]
    assert (pixels == pixels[:, :, :1]).all()


def test_grey_palette_cmyk_and_one_bit():
    grey = Image.fromarray(RGB[:, :, 0])
    assert (decode(encoded(grey, "PNG"), 3, "") == RGB[:, :, :1]).all()
    assert (decode(encoded(grey, "PNG"), 1, "") == RGB[:, :, :1]).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns about transparency in a palette
        pixels = decode(encoded(palette, "PNG", transparency=bytes([0, 255])), 3, "")
    assert pixels.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red = decode(encoded(cmyk, "JPEG", quality=95), 3, "")[4, 4].astype(int)
    assert red[0] > 240
    assert red[1] < 15
    assert red[2] < 15
    assert decode(encoded(Image.new("1", (3, 2), 1), "PNG"), 3, "").tolist() == np.full((2, 3, 3), 255).tolist()


def test_alpha_is_dropped_not_composited():
    rgba = Image.new("RGBA", (1, 1), (10, 200, 30, 0))
    assert decode(encoded(rgba, "PNG"), 3, "").tolist() == [[[10, 200, 30]]]
    assert decode(encoded(Image.new("LA", (1, 1), (77, 0)), "PNG"), 3, "").tolist() == [[[77, 77, 77]]]


# --------------------------------------------------------------------------- range


@given(
    hnp.arrays(np.uint16, (3, 4)),
    st.tuples(st.integers(-70000, 70000), st.integers(-70000, 70000)).filter(lambda p: p[0] < p[1]),
)
def test_range_is_a_line_between_its_ends(values, window):
    low, high = window
    pixels = decode(encoded(Image.fromarray(values), "PNG"), 1, "here", range=window)[:, :, 0]
    want = [[round(255 * (Fraction(min(max(int(v), low), high)) - low) / (high - low)) for v in row] for row in values]
    assert pixels.tolist() == want  # halves to even, as round


@given(hnp.arrays(np.uint16, (3, 4)))
def test_the_range_of_the_type_is_the_default(values):
    image = encoded(Image.fromarray(values), "TIFF")
    assert (decode(image, 3, "here") == decode(image, 3, "here", range=(0, 65535))).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_twelve_bits_keep_their_levels(dtype, channels):
    values = np.arange(4096, dtype=dtype).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(values), "TIFF"), channels, "here", range=(0, 4095))
    assert pixels.shape == (64, 64, channels)
    assert len(np.unique(pixels)) == 256
    assert (pixels[0, 0].max(), pixels[-1, -1].min()) == (0, 255)
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(values), "TIFF")))  # as a caller of `predict` may have it
    assert (decode(opened, channels, "here", range=(0, 4095)) == pixels).all()


def test_range_leaves_eight_bits_alone():
    for image in (RGB, RGB[:, :, 0]):
        plain = encoded(Image.fromarray(image), "PNG")
        assert (decode(plain, 3, "", range=(0, 100)) == decode(plain, 3, "")).all()
    assert (decode(JPEG, 3, "", range=(0, 100)) == decode(JPEG, 3, "")).all()
    assert (decode(RGB, 3, "", range=(0, 100)) == RGB).all()


def test_range_of_what_has_none():
    with pytest.raises(UserError, match=r"32 bits .*set config\.data\.range"):
        decode(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), 3, "here")
    with pytest.raises(UserError, match=r"here: .*not all finite"):
        decode(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), 3, "here", range=(0, 1))
    colour = png_of_16_bits_in_colour(4095)
    assert decode(colour, 3, "here").shape == (8, 8, 3)
    for image in (colour, Image.open(io.BytesIO(colour))):
        with pytest.raises(UserError, match=r"here: .*cannot apply data\.range .*16 bits a channel"):
            decode(image, 3, "here", range=(0, 4095))


# --------------------------------------------------------------------------- background


@given(hnp.arrays(np.uint8, (2, 3, 4)), st.tuples(*[st.integers(0, 255)] * 3))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_background_is_alpha_times_colour(format, rgba, background):
    pixels = decode(encoded(Image.fromarray(rgba), format), 3, "", background=background)
    alpha = rgba[:, :, 3:] / 255
    assert np.abs(pixels - (alpha * rgba[:, :, :3] + (1 - alpha) * np.array(background))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB", "1", "I;16"])
def test_background_in_every_kind_of_transparency(mode):
    red, white = (255, 0, 0), (255, 255, 255)
    if mode in ("RGBA", "LA"):
        image, options = Image.new(mode, (2, 1), (0,) * len(mode)), {}
        image.putpixel((1, 0), (10,) * (len(mode) - 1) + (255,))
    else:
        of = "P" if mode == "PA" else mode
        image = Image.new(of, (2, 1))
        image.putpixel((1, 0), {"RGB": (10, 10, 10), "1": 1, "I;16": 10 * 257}.get(of, 1 if of == "P" else 10))
        if of == "P":
            image.putpalette([0, 0, 0, 10, 10, 10])
        options = {"transparency": bytes([0, 255]) if mode == "PA" else (0, 0, 0) if mode == "RGB" else 0}
    file = encoded(image, "PNG", **options)
    seen = 255 if mode == "1" else 10
    assert decode(file, 3, "")[0].tolist() == [[0] * 3, [seen] * 3]  # as it has always been
    assert decode(file, 3, "", background=red)[0].tolist() == [list(red), [seen] * 3]
    assert decode(file, 1, "", background=white)[0].tolist() == [[255], [seen]]
    assert decode(file, 1, "", background=red)[0].tolist() == [[76], [seen]]  # its luma


def test_background_of_what_is_opaque():
    for image in (encoded(Image.fromarray(RGB), "PNG"), JPEG, RGB):
        assert (decode(image, 3, "", background=(1, 2, 3)) == decode(image, 3, "")).all()


# --------------------------------------------------------------------------- files of others


FOREIGN = {
    "DICOM": (bytes(128) + b"DICM" + bytes(100), "a DICOM file: convert it to a PNG of 16 bits"),
    "NIfTI": (struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(9), "a NIfTI volume"),
    "NIfTI, gzip": (gzip.compress(struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(9)), "a NIfTI volume"),
    "NIfTI-2": (struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n" + bytes(500), "a NIfTI volume"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "a video"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "SVG with a header": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "an SVG drawing"),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a .mat file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "EXR": (b"\x76\x2f\x31\x01\x02\0\0\0", "an OpenEXR image"),
    "npy": (b"\x93NUMPY\x01\0", "an array of NumPy"),
    "zip": (b"PK\x03\x04" + bytes(30), "a packed archive: unpack it"),
    "gzip": (gzip.compress(b"hello"), "a packed archive: unpack it"),
    "gzip, damaged": (b"\x1f\x8bhello", "a packed archive: unpack it"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_of_others_are_called_what_they_are(case):
    content, words = FOREIGN[case]
    with pytest.raises(Unreadable) as caught:
        decode(content, 3, "shelf 3")
    assert str(caught.value).startswith("shelf 3: cannot decode the image, it is ")
    assert words in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = {  # how a viewer must turn stored pixels (EXIF 2.3, tag 0x0112)
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(RGB), "PNG", exif=exif)
    assert (decode(file, 3, "") == upright(RGB)).all()


def test_arrays_are_adapted():
    grey = RGB[:, :, :1]
    assert (decode(grey, 3, "") == np.repeat(grey, 3, 2)).all()
    assert (decode(grey[:, :, 0], 1, "") == grey).all()
    assert decode(RGB, 3, "") is RGB
    luma = (RGB @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    assert np.abs(decode(RGB, 1, "") - luma).max() < 1
    for bad in (RGB.astype(np.float32), RGB[:, :, :2], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UserError, match="shelf 3: the source gives"):
            decode(bad, 3, "shelf 3")


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "TGA", "PPM")


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_pixels_are_refused_before_they_are_decoded(form):
    file, picture = encoded(Image.fromarray(RGB), form), Image.fromarray(RGB)
    for image in (file, picture):
        assert decode(image, 3, "here", max_pixels=16 * 24).shape == (16, 24, 3)
        with pytest.raises(
            Unreadable, match=r"^/x: cannot decode the image, 24 x 16 pixels are more than max_pixels=383"
        ):
            decode(image, 3, "/x", max_pixels=16 * 24 - 1)
    whole = open_image(file, 3, "here", max_pixels=16 * 24)
    assert isinstance(whole, Encoded) == (form == "JPEG")
    with pytest.raises(Unreadable, match="24 x 16 pixels are more than max_pixels=383"):
        open_image(file, 3, "here", max_pixels=16 * 24 - 1)


def test_an_icon_with_a_larger_image_in_it_is_refused():
    icon = encoded(Image.new("RGB", (64, 64)), "ICO", sizes=[(64, 64)])
    assert icon[6:8] == b"@@"
    lie = icon[:6] + b"\x10\x10" + icon[8:]
    with pytest.raises(Unreadable, match="64 x 64 pixels are more than max_pixels=1000"):
        decode(lie, 3, "/x", max_pixels=1000)


def test_more_than_pillow_allows_may_be_asked_for(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for form in ("PNG", "JPEG"):
        file = encoded(Image.fromarray(RGB), form)
        with pytest.raises(Unreadable, match="it has more than max_pixels=100 allows"):
            decode(file, 3, "/x", max_pixels=100)
        assert Image.MAX_IMAGE_PIXELS == 100
        assert decode(file, 3, "/x", max_pixels=1000).shape == (16, 24, 3)
        assert Image.MAX_IMAGE_PIXELS == 1000
        Image.MAX_IMAGE_PIXELS = 100


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
@pytest.mark.parametrize("background", [(), (9, 200, 30)])
def test_large_images_are_taken_over_in_strips(monkeypatch, mode, channels, background):
    image = Image.fromarray(RGB)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(
            RGB[:, :, 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
            * (250 if mode == "I;16" else 17)
        )
    else:
        image = image.quantize(9) if mode == "P" else image.convert("RGBA" if "A" in mode else "RGB").convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 252, 28))
    if "A" in mode:
        image.putalpha(Image.fromarray(RGB[:, :, 1]))
    how = dict(range=(100, 3000) if mode in ("I", "F") else (), background=background)
    want = decode(image, channels, "here", **how)
    assert want.std() > 2
    for strip in (1, 24, 100, 383):
        monkeypatch.setattr(sys.modules["jaxvision.data.decode"], "STRIP", strip)
        assert np.array_equal(decode(image, channels, "here", **how), want)


def test_the_limit_is_pillows_and_the_configs():
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS == config.default().data.max_pixels


JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")
PNG = encoded(Image.fromarray(RGB), "PNG")


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"", "0 bytes"),
        (b"this is text", "this is"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:20], ""),
        (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], ""),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "32 bits"),
    ],
)
def test_damaged_files_name_the_place_and_the_reason(damaged, reason):
    with pytest.raises(UserError, match=r"^/data/cat/7\.jpg: cannot decode") as error:
        decode(damaged, 3, "/data/cat/7.jpg")
    assert reason in str(error.value)
    assert "BytesIO" not in str(error.value)
