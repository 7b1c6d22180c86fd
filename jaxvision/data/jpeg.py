"""A part of a JPEG file to pixels: only what the crop needs is transformed and coloured.

All entropy codes down to the last row of the crop must still be read; that is two thirds of the work of a whole
decode, so a crop of half the area costs 0.78 of it (docs/data.md has the figures). libjpeg-turbo does it through
version 3 of its TurboJPEG interface, where a library with that interface is found; else Pillow does, at the price of a
whole decode. The pixels are the same: both are libjpeg-turbo, with the accurate inverse DCT and smooth chroma.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import io
import struct
import threading
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# Start-of-frame markers of 8-bit Huffman-coded JPEG: baseline, extended, progressive.
_FRAMES = (0xC0, 0xC1, 0xC2)
_ALL_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Header(NamedTuple):
    """Facts of a JPEG file that a crop needs before the file is decoded."""

    height: int
    width: int
    channels: int  # 1 (luma) or 3
    block: int  # width in pixels of what is decoded together (the MCU)


def scan(data: bytes) -> Header | None:
    """The header of an ordinary JPEG file; None for anything that Pillow should see whole.

    Ordinary: 8 bits, Huffman-coded, luma or YCbCr, upright by its EXIF data, of no more pixels than Pillow takes
    without a warning, ending with its end marker (so not cut off).
    """
    if data[:3] != b"\xff\xd8\xff" or not data.endswith(b"\xff\xd9"):
        return None
    at, size, header = 2, len(data), None
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # the codes begin; what follows changes nothing
            return header
        length = (data[at + 2] << 8) | data[at + 3]
        body = at + 4
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            return None  # a marker that has no place here
        if marker in _ALL_FRAMES:
            if header is not None:
                return None
            header = _frame(data, marker, body)
            if header is None:
                return None
        if marker == 0xE1 and not _upright(data[body : at + 2 + length]):
            return None
        if marker == 0xEE and data[body : body + 5] == b"Adobe" and data[body + 11 : body + 12] != b"\x01":
            return None  # colours that are not YCbCr
        at += 2 + length
    return None


def _frame(data: bytes, marker: int, body: int) -> Header | None:
    if marker not in _FRAMES or len(data) < body + 6 or data[body] != 8:
        return None
    height, width, channels = struct.unpack_from(">HHB", data, body + 1)
    largest = Image.MAX_IMAGE_PIXELS
    if channels not in (1, 3) or not height or not width or (largest and height * width > largest):
        return None
    factors = [data[body + 7 + 3 * c] for c in range(channels)] if len(data) >= body + 6 + 3 * channels else []
    if not factors or (channels == 3 and data[body + 6] == ord("R")):  # components called R, G, B
        return None
    return Header(height, width, channels, 8 * max(f >> 4 for f in factors) if channels == 3 else 8)


def _upright(segment: bytes) -> bool:
    """Whether an APP1 segment leaves the picture as it is; False also where it cannot be read."""
    if b"tiff:Orientation" in segment:  # XMP says it too, and Pillow listens
        return False
    if segment[:6] != b"Exif\0\0":
        return True
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(segment[6:10])
    try:
        if order is None:
            return False
        (start,) = struct.unpack_from(order + "I", segment, 10)
        (count,) = struct.unpack_from(order + "H", segment, 6 + start)
        for entry in range(count):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", segment, 8 + start + 12 * entry)
            if tag == 0x0112:
                return (kind, number, value) == (3, 1, 1)
    except struct.error:
        return False
    return True


def cut(data: bytes, header: Header, top: int, left: int, height: int, width: int, factor: int = 1) -> np.ndarray:
    """The box of an image that `scan` accepts: uint8 [height // factor, width // factor, channels].

    Its memory is this thread's, and the thread's next `cut` writes over it. With a `factor` of 2, 4 or 8 the inverse
    DCT itself makes the image so many times smaller, and `top` and `left` must be multiples of it. Raises ValueError
    or OSError for damaged data.
    """
    if library() is not None:
        return _local.get().cut(data, header, top, left, height, width, factor)
    with Image.open(io.BytesIO(data)) as image:
        if factor > 1:
            image.draft(None, (header.width // factor, header.height // factor))
        box = (left // factor, top // factor, (left + width) // factor, (top + height) // factor)
        pixels = np.asarray(image.crop(box))  # Pillow copies three times what it hands over
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


# --------------------------------------------------------------------------- libjpeg-turbo


class _Region(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("x", "y", "w", "h"))


class _Scale(ctypes.Structure):
    _fields_ = (("numerator", ctypes.c_int), ("denominator", ctypes.c_int))


_DECOMPRESS, _RGB, _GREY, _WARNING = 1, 0, 6, 0  # TJINIT_DECOMPRESS, TJPF_RGB, TJPF_GRAY, TJERR_WARNING


@functools.cache
def library() -> Any:
    """(quick, slow): the functions of libturbojpeg, version 3, twice; None if there is none.

    `slow` lets go of the GIL, which costs more than the quick calls take.
    """
    for path in _candidates():
        try:
            quick, slow = ctypes.PyDLL(path), ctypes.CDLL(path)
            handle, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
            quick.tj3Init.argtypes, quick.tj3Init.restype = [integer], handle
            quick.tj3Destroy.argtypes, quick.tj3Destroy.restype = [handle], None
            quick.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
            quick.tj3SetScalingFactor.argtypes = [handle, _Scale]
            quick.tj3SetCroppingRegion.argtypes = [handle, _Region]
            quick.tj3GetErrorCode.argtypes = [handle]
            slow.tj3Decompress8.argtypes = [handle, ctypes.c_char_p, size, handle, integer, integer]
            return quick, slow
        except (OSError, AttributeError):
            continue  # absent, or of version 2
    return None


def _candidates() -> list[str]:
    """The library inside the package `turbojpeg`, which itself is not imported; then the system's."""
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    return [str(f.locate()) for f in files if f.name.startswith("libturbojpeg")] + ["libturbojpeg.so.0"]


class _Decoder:
    """The library, and the memory that a thread decodes into."""

    def __init__(self) -> None:
        self.quick, self.slow = library()
        self.memory = np.empty(0, np.uint8)

    def cut(self, data: bytes, header: Header, top: int, left: int, height: int, width: int, factor: int) -> np.ndarray:
        full_height, full_width = -(-header.height // factor), -(-header.width // factor)
        top, left, height, width = top // factor, left // factor, height // factor, width // factor
        # Smooth chroma looks at the neighbours, so one pixel more on each side; blocks are decoded whole. Rows of a
        # single chroma sample would not be smoothed, so eight pixels at least, where there are so many.
        block = header.block // factor
        x, y = max(0, min(left - 1, full_width - 8)) // block * block, max(0, top - 1)
        right, bottom = min(full_width, max(left + width + 1, x + 8)), min(full_height, top + height + 1)
        rows, columns, channels = bottom - y, right - x, header.channels
        size = rows * columns * channels
        if self.memory.size < size:
            self.memory = np.empty(size * 5 // 4, np.uint8)
        # A new one for each image, in less than 1 us: it would keep the tables of this image for the next one that
        # lacks some, and after an error refuse all others.
        quick, handle = self.quick, self.quick.tj3Init(_DECOMPRESS)
        good = (
            quick.tj3DecompressHeader(handle, data, len(data)) == 0
            and quick.tj3SetScalingFactor(handle, _Scale(1, factor)) == 0
            and quick.tj3SetCroppingRegion(handle, _Region(x, y, columns, rows)) == 0
        )
        if good:
            form = _RGB if channels == 3 else _GREY
            result = self.slow.tj3Decompress8(handle, data, len(data), self.memory.ctypes.data, 0, form)
            # Warnings (stray bytes between markers, damaged codes) are none to Pillow either.
            good = result == 0 or quick.tj3GetErrorCode(handle) == _WARNING
        quick.tj3Destroy(handle)
        if not good:
            raise ValueError("libjpeg-turbo cannot decode it")
        pixels = self.memory[:size].reshape(rows, columns, channels)
        return pixels[top - y : top - y + height, left - x : left - x + width]


class _Local(threading.local):
    decoder: _Decoder | None = None

    def get(self) -> _Decoder:
        if self.decoder is None:
            self.decoder = _Decoder()
        return self.decoder


_local = _Local()
