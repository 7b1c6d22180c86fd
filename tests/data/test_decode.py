"""Encoded bytes of every kind, good and damaged."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import decode
from jaxvision.errors import UserError

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
