"""A look at some of the data before a run begins: unused levels, hidden colours, images that are shared."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data.contract import InputContract
from jaxvision.data.decode import Levels, levels
from jaxvision.data.sources import Digits, Fake, Source, Subset
from jaxvision.data.sources.arrays import Arrays
from jaxvision.data.sources.classes import Renumbered
from jaxvision.errors import UserError

LOOK = 16  # images whose levels are looked at
FILES = 4096  # images of a source that are compared with those of another one
RECORDS = 1024  # the same where each must be read to be known
IN_MEMORY = 100_000  # the same where they are in memory
BYTES = 256 << 20  # that are read for it at most, of each source
SECONDS = 5.0  # that reading them takes at most


def spread(count: int, most: int) -> list[int]:
    """`most` of the numbers 0 .. count - 1, evenly spread; all if there are no more."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def encoded(source: Source, most: int = LOOK) -> Iterator[bytes]:
    """The files of some samples, as they are; none for what is unreadable, or pixels."""
    for i in spread(len(source), most):
        try:
            image = source[i]["image"]
        except UserError:
            continue  # whoever needs it tells
        if isinstance(image, bytes):
            yield image


# --------------------------------------------------------------------------- levels


def levels_told(what: str, images: Iterable[bytes], contract: InputContract) -> list[str]:
    """Lines for people about images whose levels `contract` hardly uses, or whose transparency it drops.

    Args:
      what: the name of the images.
      images: some of their files.
    """
    found = [of for image in images if (of := levels(image)) is not None]
    among = f"of {len(found)} images of {what} that were looked at"
    deep, lines = [of for of in found if of.bits > 8], []
    grey, colour = [of for of in deep if of.grey], [of for of in deep if not of.grey]
    if grey:
        lines += _unused(grey, f"{len(grey)} {among}", contract)
    elif contract.range and found:
        lines.append(f"data.range = {contract.range} has no effect: none {among} is grey of more than 8 bits")
    if colour and max(of.high for of in colour) < 1 << 15:
        high = max(of.high for of in colour)
        lines.append(
            f"warning: {len(colour)} {among} have 16 bits a channel with colours or alpha and hold levels up to "
            f"{high:.10g} of 65535: {high // 257 + 1:.10g} of 256 are left; convert them to 8 bits a channel"
        )
    transparent = sum(of.transparent for of in found)
    if transparent and not contract.background:
        lines.append(
            f"warning: {transparent} {among} have transparent pixels, and their hidden colours are what is seen; "
            "config.data.background = (255, 255, 255) puts them on white"
        )
    return lines


def _unused(found: list[Levels], those: str, contract: InputContract) -> list[str]:
    """A line about unused levels, if those used are less than half of what becomes 0 to 255."""
    low, high = min(of.low for of in found), max(of.high for of in found)
    bottom, top = contract.range or (0.0, 65535.0)
    used = min(high, top) - max(low, bottom)
    if not contract.range and max(of.bits for of in found) > 16:
        return []  # refused when it is decoded, with what to set
    fit = (0, (1 << int(high).bit_length()) - 1) if low >= 0 and high < 1 << 15 else (low, high)
    if used >= (top - bottom) / 2 or fit == contract.range:
        return []
    left = max(0, round(used * 255 / (top - bottom))) + 1
    of = f"data.range = ({bottom:.10g}, {top:.10g})" if contract.range else "the 65536 of their type"
    return [
        f"warning: {those} have more than 8 bits a pixel and hold levels {low:.10g} to {high:.10g}, a part of {of}: "
        f"{left} of 256 are left; set config.data.range = ({fit[0]:.10g}, {fit[1]:.10g})"
    ]


# --------------------------------------------------------------------------- shared images


class _Image(NamedTuple):
    """Known facts of an image: its place in the source, device and inode of its file, its size, its SHA-256.

    Device and inode are known where the image is a file, the SHA-256 if the image was read. The size is in bytes.
    """

    place: int
    file: tuple[int, int] | None
    size: int
    digest: bytes


def shared(train: Source, other: Source) -> str:
    """A line about the images that two sources share, "" if there are none: by file, else by SHA-256 among equal sizes.

    The work is bounded, see FILES, RECORDS, BYTES and SECONDS; what was left out is said, also where nothing was found.
    """
    train, other = _with_own_classes(train), _with_own_classes(other)
    if isinstance(train, Fake) or isinstance(other, Fake):
        return ""  # the same noise, by design
    (mine, whole), (theirs, whole_too) = _parts(train), _parts(other)
    if whole.uri == whole_too.uri:
        both = np.intersect1d(mine, theirs)
        if len(both):
            return _line(len(both), other, f"as {whole.where(int(both[0]))}", "")
    a, b = _look(train), _look(other)
    files = {of.file: of.place for of in a if of.file}
    pairs = {of.place: files[of.file] for of in b if of.file in files}
    b_left = [of for of in b if of.place not in pairs]
    a_read, b_read = _read(train, a, b_left), _read(other, b_left, a)
    digests = {of.digest: of.place for of in reversed(a_read) if of.digest}
    pairs |= {of.place: digests[of.digest] for of in b_read if of.digest in digests}
    among = ""
    if len(a) < len(train) or len(b) < len(other):
        among = f" (looked at {len(a):,} of {len(train):,} and {len(b):,} of {len(other):,} images)"
    elif not all(of.digest for of in (*a_read, *b_read)):
        among = f" (of those of equal size not all were read, in {SECONDS:g} s and up to {BYTES >> 20} MB)"
    if pairs:
        place, of_place = min(pairs.items())
        return _line(len(pairs), other, f"such as {other.where(place)}, which is {train.where(of_place)}", among)
    return f"no image of {other.uri} was found among the training images{among}" if among else ""


def _with_own_classes(source: Source) -> Source:
    """The source without new numbers for its classes, of which it may have several on top of each other."""
    while isinstance(source, Renumbered):
        source = source.whole
    return source


def _line(count: int, other: Source, example: str, among: str) -> str:
    return (
        f"warning: {count:,} of the {len(other):,} images of {other.uri} are training images, too, {example}{among}: "
        "what is measured on them says nothing about new images"
    )


def _parts(source: Source) -> tuple[np.ndarray, Source]:
    """(places, source) of a source; of a part, its places in the whole and the whole."""
    if isinstance(source, Subset):
        return source.chosen, source.whole
    return np.arange(len(source)), source


def _look(source: Source) -> list[_Image]:
    """Some images of a source: by their files' status where they are files, else read, up to BYTES."""
    if len(source) and _status(source.where(0)):
        there = ((i, _status(source.where(i))) for i in spread(len(source), FILES))
        return [_Image(i, (s.st_dev, s.st_ino), s.st_size, b"") for i, s in there if s]
    _, whole = _parts(source)
    most = IN_MEMORY if isinstance(whole, Arrays | Digits) else RECORDS
    return [of for of in _digested(source, [_Image(i, None, 0, b"") for i in spread(len(source), most)]) if of.digest]


def _read(source: Source, images: list[_Image], others: list[_Image]) -> list[_Image]:
    """Images that have the size of one of the others, with their digests, up to BYTES."""
    sizes = {of.size for of in others}
    return _digested(source, [of for of in images if of.size in sizes])


def _digested(source: Source, images: list[_Image]) -> list[_Image]:
    """The images with size and digest; after BYTES or SECONDS as they are. Unreadable ones are left out."""
    found, left, end = [], BYTES, time.monotonic() + SECONDS
    for of in images:
        if left > 0 and not of.digest and time.monotonic() < end:
            try:
                image = source[of.place]["image"]
            except UserError:
                continue  # whoever needs it tells
            size = len(image) if isinstance(image, bytes) else image.nbytes
            of = of._replace(size=size, digest=_digest(image))
            left -= size
        found.append(of)
    return found


def _status(path: str) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _digest(image: Any) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
