"""Encoded bytes to uint8 pixels. Pillow's are the reference, and the quicker way for JPEG gives the same."""

from __future__ import annotations

import io
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvision.data import jpeg
from jaxvision.errors import Unreadable, UserError

MAX_PIXELS = 89_478_485  # from which on Pillow warns; a thread takes 7 bytes a pixel while it decodes
STRIP = 1 << 22  # pixels that are taken over from Pillow at a time


def decode(
    image: bytes | np.ndarray | Image.Image,
    channels: int,
    where: str,
    *,
    range: tuple[float, ...] = (),
    background: tuple[int, ...] = (),
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The pixels of an image, upright.

    Args:
      image: an encoded file of a format that Pillow reads (but EPS), pixels uint8 [H, W] or [H, W, 1 or 3], or an
        image of Pillow, which stays as it is.
      channels: 3 for RGB, 1 for luma (ITU-R 601, as Pillow).
      where: the place of the sample, for the error message.
      range: (lowest, highest) level of grey files of more than 8 bits: they become 0 and 255, what lies beyond is
        clipped. Without it 16 bits are scaled as a whole, and 32 bits refused. Files of 8 bits stay as they are.
      background: (red, green, blue) that transparent pixels are composited on. Without it alpha is dropped, so a
        transparent pixel shows its hidden colour, as torchvision's loader does.
      max_pixels: of an encoded image, or one of Pillow; a larger one is refused before its pixels are decoded. More
        than `PIL.Image.MAX_IMAGE_PIXELS` raises that, too.

    Returns:
      uint8 [H, W, channels], perhaps read-only. The EXIF orientation is applied. 16-bit grey
      is scaled to 8 bits (Pillow alone clips it to white). Of an animation, the first frame.

    Raises:
      Unreadable: damaged or truncated file, or too many pixels; UserError: pixels of another shape or type. Both name
        `where`.
    """
    if isinstance(image, np.ndarray):
        return _adapt(image, channels, where)
    if isinstance(image, Image.Image):
        return _of_pillow(image, channels, where, range, background, max_pixels)
    if not image:
        raise Unreadable(f"{where}: cannot decode the image, it has 0 bytes: copy it again or remove it")
    _let_pillow(max_pixels)
    try:
        with Image.open(io.BytesIO(image)) as opened:
            check_pixels(*opened.size, max_pixels)
            if opened.format == "EPS":
                raise UserError("cannot decode EPS, a program that Pillow has Ghostscript run: convert it to PNG")
            _check_depth(opened, range)
            opened.load()  # fails here on a truncated file
            check_pixels(*opened.size, max_pixels)  # of an icon, the size of the image in it
            _turn_upright(opened)
            return _pixels(opened, channels, range, background)
    except UserError as error:
        raise Unreadable(f"{where}: {error}") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"{where}: {_too_many('it has', max_pixels)}") from None
    except UnidentifiedImageError:
        reason = f"Pillow knows no such format; the first bytes are {image[:8]!r}"
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged files (SyntaxError, struct.error ...).
        reason = str(error) or type(error).__name__
    if known := foreign(image):
        raise Unreadable(f"{where}: cannot decode the image, it is {known}")
    raise Unreadable(f"{where}: cannot decode the image ({reason}): copy it again or remove it")


def _let_pillow(max_pixels: int) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # it would refuse twice as many by itself


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises UserError for an image of more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise UserError(_too_many(f"{width} x {height} pixels are", max_pixels))


def _too_many(what: str, max_pixels: int) -> str:
    return (
        f"cannot decode the image, {what} more than max_pixels={max_pixels} allows: make it smaller, or raise "
        "data.max_pixels (--max-pixels of a command)"
    )


def _of_pillow(
    image: Image.Image,
    channels: int,
    where: str,
    range: tuple[float, ...],
    background: tuple[int, ...],
    max_pixels: int,
) -> np.ndarray:
    try:
        check_pixels(*image.size, max_pixels)
        _check_depth(image, range)
        copied = image.copy()  # reads it, if that was not done yet
        copied.format = image.format
        _turn_upright(copied)
        return _pixels(copied, channels, range, background)
    except UserError as error:
        raise Unreadable(f"{where}: {error}") from None
    except Exception as error:  # as above
        raise Unreadable(f"{where}: cannot decode the image ({str(error) or type(error).__name__})") from None


class Encoded:
    """An ordinary JPEG file of which only a part shall be decoded; `shape` is (height, width, channels)."""

    def __init__(self, data: bytes, header: jpeg.Header, where: str, max_pixels: int) -> None:
        self.shape = (header.height, header.width, header.channels)
        self._data, self._header, self._where, self._max_pixels = data, header, where, max_pixels

    def cut(
        self, top: int, left: int, height: int, width: int, sides: tuple[int, int]
    ) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """The pixels of a box, which will be resized to `sides` (height, width), uint8 [height / k, width / k, C];
        and which box (top, left, height, width) they are.

        They are valid until this thread cuts again. k is 1 unless the box has at least twice `sides`: then it is the
        largest of 2, 4 and 8 that leaves `sides`, and the box moves to multiples of k. That is as
        Pillow's `draft` does it, inside the inverse DCT, which averages, so nothing is aliased.
        """
        factor = next((k for k in (8, 4, 2) if height // k >= sides[0] and width // k >= sides[1]), 1)
        top, left = top // factor * factor, left // factor * factor
        try:
            made = jpeg.cut(self._data, self._header, top, left, height, width, factor)
            return made, (top, left, made.shape[0] * factor, made.shape[1] * factor)
        except (ValueError, OSError, SyntaxError):
            # it may do, or knows what is wrong
            whole = decode(self._data, self.shape[2], self._where, max_pixels=self._max_pixels)
        return whole[top : top + height, left : left + width], (top, left, height, width)


def open_image(
    image: bytes | np.ndarray, channels: int, where: str, *, max_pixels: int = MAX_PIXELS, **how: tuple
) -> np.ndarray | Encoded:
    """As `decode`, but an ordinary JPEG file stays encoded, for a transform that cuts a part out of it."""
    if isinstance(image, bytes):
        _let_pillow(max_pixels)
        header = jpeg.scan(image)
        if header is not None and header.channels == channels and header.height * header.width <= max_pixels:
            return Encoded(image, header, where, max_pixels)  # 8 bits and opaque: `how` has no meaning for it
    return decode(image, channels, where, max_pixels=max_pixels, **how)


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        pass  # damaged EXIF data are no reason to lose good pixels; what could be read of them was applied


def _pixels(image: Image.Image, channels: int, *how: tuple) -> np.ndarray:
    """uint8 [H, W, channels] of any Pillow mode. By strips, since copies on the way take several times as much."""
    width, height = image.size
    if width * height <= STRIP:
        return _converted(image, channels, *how)
    pixels = np.empty((height, width, channels), np.uint8)
    for top in range(0, height, rows := max(1, STRIP // width)):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip.format = image.format
        pixels[top : top + rows] = _converted(strip, channels, *how)
    return pixels


def _converted(image: Image.Image, channels: int, range: tuple[float, ...], background: tuple[int, ...]) -> np.ndarray:
    if _is_deep(image):
        grey = _eight_bits(image, range)
        pixels = np.repeat(grey[:, :, None], channels, axis=2)
        key = image.info.get("transparency")  # the one level that is transparent
        if background and isinstance(key, int):
            pixels[np.asarray(image) == key] = _adapt(np.array([[background]], np.uint8), channels, "")[0, 0]
        return pixels
    if background and image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours as straight to RGB, which warns
    mode = "RGB" if channels == 3 else "L"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _has_sixteen_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _eight_bits(image: Image.Image, range: tuple[float, ...]) -> np.ndarray:
    """uint8 [H, W] of an image of which `_is_deep` holds."""
    values = np.asarray(image)
    if not range:
        if _has_sixteen_bits(image):
            return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257): 65535 becomes 255
        raise UserError(
            f"cannot decode an image of 32 bits a pixel (Pillow mode {image.mode}), since its range is unknown: "
            "convert it to 8 or 16 bits, or set config.data.range = (lowest, highest)"
        )
    if not np.isfinite(values).all():
        raise UserError("cannot decode an image whose pixels are not all finite numbers: convert it")
    low, high = range
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) * 255 / (high - low)).astype(np.uint8)


def _deep_colour(image: Image.Image) -> bool:
    """Whether an opened image that was not read yet has 16 bits a channel, of which Pillow will keep 8."""
    tiles = getattr(image, "tile", [])
    return image.mode in ("RGB", "RGBA", "RGBX", "LA") and any(";16" in str(tile[3]) for tile in tiles)


def _check_depth(image: Image.Image, range: tuple[float, ...]) -> None:
    if range and _deep_colour(image):
        raise UserError(
            "cannot apply data.range to an image of 16 bits a channel with colours or alpha, of which Pillow reads the "
            "upper 8: convert it to grey alone, or to 8 bits a channel"
        )


class Levels(NamedTuple):
    """What levels and transparency an image has, of an encoded file."""

    bits: int  # a channel: 8, 16 or 32
    grey: bool
    low: float  # the lowest and the highest level there is; of 16 bits in colour, as Pillow reads it, times 257
    high: float
    transparent: bool  # some of its pixels are, at least by half


_LARGEST = 40_000_000  # pixels that `levels` looks at


def levels(image: bytes) -> Levels | None:
    """What the image's levels are; None if that cannot be told. A JPEG file is not decoded for it."""
    if image[:3] == b"\xff\xd8\xff":
        return Levels(8, False, 0, 255, False)
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.format == "EPS" or opened.width * opened.height > _LARGEST:
                return None
            colour, deep = _deep_colour(opened), _is_deep(opened)
            if not (colour or deep or opened.has_transparency_data):
                return Levels(8, False, 0, 255, False)
            opened.load()
            alpha = not deep and opened.has_transparency_data
            transparent = alpha and bool(np.asarray(opened.convert("RGBA").getchannel("A")).min() < 128)
            if not (colour or deep):
                return Levels(8, False, 0, 255, transparent)
            pixels = np.asarray(opened if deep else opened.convert("RGB"))
            low, high = float(pixels.min()), float(pixels.max())
            if colour:
                return Levels(16, False, 257 * low, 257 * high, transparent)
            return Levels(16 if _has_sixteen_bits(opened) else 32, True, low, high, transparent)
    except Exception:  # as in `decode`, which tells what is wrong
        return None


def _adapt(image: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Pixels that a source delivers as an array, with the number of channels asked for."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
        raise UserError(
            f"{where}: the source gives {image.dtype}{list(image.shape)} for an image: it must give "
            "uint8[H, W, 1 or 3] or encoded bytes"
        )
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]


# What a file begins with, from which byte on; what it is; what to do
_FOREIGN = (
    (128, b"DICM", "a DICOM file", "convert it to a PNG of 16 bits (pydicom, dcmtk), and set config.data.range"),
    (344, (b"n+1\0", b"ni1\0"), "a NIfTI volume", "save its slices as PNG of 16 bits (nibabel)"),
    (4, (b"n+2\0", b"ni2\0"), "a NIfTI volume", "save its slices as PNG of 16 bits (nibabel)"),
    (0, b"NRRD0", "an NRRD volume", "save its slices as PNG of 16 bits"),
    (0, b"%PDF", "a PDF document", "save its pages or pictures as PNG (pdftoppm, pdfimages)"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image of floating-point numbers", "convert it to PNG"),
    (0, (b"#?RADIANCE", b"#?RGBE"), "a Radiance image of floating-point numbers", "convert it to PNG"),
    (0, b"MATLAB ", "a .mat file of MATLAB", "save its pictures as PNG"),
    (0, b"\x89HDF", "an HDF5 file", "save its pictures as PNG"),
    (0, b"\x93NUMPY", "an array of NumPy", "save it as PNG"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image", "convert it to JPEG or PNG"),
    (0, b"gimp xcf", "a drawing of GIMP", "export it as PNG"),
    (0, b"version https://git-lfs", "the pointer that Git LFS leaves in place of a file", "run git lfs pull"),
    (0, (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ"), "a packed archive", "unpack it"),
)  # fmt: skip
_BRANDS = {  # of files in ISO's container
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC image"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF image"),
    b"crx ": "a raw image of a Canon camera",
}


def foreign(data: bytes) -> str:
    """What a well-known file is that Pillow does not read, and what to do with it; "" for any other."""
    for at, magic, name, advice in _FOREIGN:
        if data.startswith(magic, at):
            packed = data[:2] == b"\x1f\x8b" and _unpacked_start(data)
            return (packed and foreign(packed)) or f"{name}: {advice}"
    if data[4:8] == b"ftyp":
        return f"{_BRANDS.get(data[8:12], 'a video')}, damaged or not read by Pillow here: convert it to JPEG or PNG"
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text:
        return "an SVG drawing: convert it to PNG (rsvg-convert, Inkscape)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps the refusal of a download: fetch the image again"
    return ""


def _unpacked_start(data: bytes) -> bytes:
    """The first bytes that come out of gzip, if it is not damaged."""
    try:
        return zlib.decompressobj(31).decompress(data[:4096], 1024)
    except zlib.error:
        return b""
