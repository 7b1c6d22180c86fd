"""Encoded bytes to uint8 pixels. Pillow's are the reference, and the quicker way for JPEG gives the same."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvision.data import jpeg
from jaxvision.errors import Unreadable, UserError


def decode(image: bytes | np.ndarray | Image.Image, channels: int, where: str) -> np.ndarray:
    """The pixels of an image, upright.

    Args:
      image: an encoded file (JPEG, PNG, WebP, BMP, GIF, TIFF), pixels uint8 [H, W] or [H, W, 1 or 3],
        or an image of Pillow, which stays as it is.
      channels: 3 for RGB, 1 for luma (ITU-R 601, as Pillow).
      where: the place of the sample, for the error message.

    Returns:
      uint8 [H, W, channels], perhaps read-only. The EXIF orientation is applied. Alpha is dropped, not
      composited (so a transparent pixel shows its hidden colour), as torchvision's loader does. 16-bit grey
      is scaled to 8 bits (Pillow alone clips it to white). Of an animation, the first frame.

    Raises:
      Unreadable: damaged or truncated file; UserError: pixels of another shape or type. Both name `where`.
    """
    if isinstance(image, np.ndarray):
        return _adapt(image, channels, where)
    if isinstance(image, Image.Image):
        return _of_pillow(image, channels, where)
    if not image:
        raise Unreadable(f"{where}: cannot decode the image, it has 0 bytes: copy it again or remove it")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.format == "EPS":
                raise UserError("cannot decode EPS, a program that Pillow has Ghostscript run: convert it to PNG")
            opened.load()  # fails here on a truncated file
            _turn_upright(opened)
            return _pixels(opened, channels)
    except UserError as error:
        raise Unreadable(f"{where}: {error}") from None
    except UnidentifiedImageError:
        reason = f"Pillow knows no such format; the first bytes are {image[:8]!r}"
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged files (SyntaxError, struct.error ...).
        reason = str(error) or type(error).__name__
    raise Unreadable(f"{where}: cannot decode the image ({reason}): copy it again or remove it")


def _of_pillow(image: Image.Image, channels: int, where: str) -> np.ndarray:
    try:
        copied = image.copy()  # reads it, if that was not done yet
        copied.format = image.format
        _turn_upright(copied)
        return _pixels(copied, channels)
    except Exception as error:  # as above
        raise Unreadable(f"{where}: cannot decode the image ({str(error) or type(error).__name__})") from None


class Encoded:
    """An ordinary JPEG file of which only a part shall be decoded; `shape` is (height, width, channels)."""

    def __init__(self, data: bytes, header: jpeg.Header, where: str) -> None:
        self.shape = (header.height, header.width, header.channels)
        self._data, self._header, self._where = data, header, where

    def cut(self, top: int, left: int, height: int, width: int, size: int) -> np.ndarray:
        """The pixels of a box, which will be resized to `size` x `size`: uint8 [height / k, width / k, channels].

        They are valid until this thread cuts again. k is 1 unless the box has at least twice `size` both ways: then it
        is the largest of 2, 4 and 8 that leaves `size` pixels, and the box moves to multiples of k. That is as
        Pillow's `draft` does it, inside the inverse DCT, which averages, so nothing is aliased.
        """
        factor = next((k for k in (8, 4, 2) if height // k >= size and width // k >= size), 1)
        top, left = top // factor * factor, left // factor * factor
        try:
            return jpeg.cut(self._data, self._header, top, left, height, width, factor)
        except (ValueError, OSError, SyntaxError):
            whole = decode(self._data, self.shape[2], self._where)  # it may do, or knows what is wrong
        return whole[top : top + height, left : left + width]


def open_image(image: bytes | np.ndarray, channels: int, where: str) -> np.ndarray | Encoded:
    """As `decode`, but an ordinary JPEG file stays encoded, for a transform that cuts a part out of it."""
    if isinstance(image, bytes):
        header = jpeg.scan(image)
        if header is not None and header.channels == channels:
            return Encoded(image, header, where)
    return decode(image, channels, where)


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        pass  # damaged EXIF data are no reason to lose good pixels; what could be read of them was applied


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 [H, W, channels] of any Pillow mode."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if sixteen_bits:
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)  # round(v / 257): 65535 becomes 255
        return np.repeat(grey[:, :, None], channels, axis=2)
    if image.mode in ("I", "F"):
        raise UserError(
            f"cannot decode an image of 32 bits a pixel (Pillow mode {image.mode}), "
            "since its range is unknown: convert it to 8 or 16 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours as straight to RGB, which warns
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


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
