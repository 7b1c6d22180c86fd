"""idx: the files of MNIST and of the data sets that took over its format."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from typing import IO

import numpy as np

from jaxvision.data.sources.arrays import Arrays, check_size, named, numbers, split_of
from jaxvision.data.sources.common import parse_query, sibling
from jaxvision.errors import UserError, nearest

# SHA-256 of the labels of Fashion-MNIST, whose files are called as MNIST's
_FASHION = (
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",  # train
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",  # test
)
_PRODUCTS = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# EMNIST (Cohen et al. 2017, https://arxiv.org/abs/1702.05373): what its classes are called
_EMNIST = {
    "emnist-byclass": "0123456789" + _UPPER + _UPPER.lower(),
    "emnist-bymerge": "0123456789" + _UPPER + "abdefghnqrt",
    "emnist-balanced": "0123456789" + _UPPER + "abdefghnqrt",
    "emnist-letters": _UPPER,  # which it counts from 1
    "emnist-digits": "0123456789",
    "emnist-mnist": "0123456789",
}
_FILE = re.compile(r"(?:(.+)-)?(train|t10k|test)-(images)[-.]idx3-ubyte(?:\.gz)?")
_NEXT = "fetch it again"


class Idx(Arrays):
    """DIR/train or DIR/test in the format of MNIST, gzip or not: uint8 images [28, 28, 1] with one label each.

    Files are `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, those of the test `t10k-` or `test-`; a dot for
    the hyphen before `idx`, and `.gz`, may be. A prefix, as in `emnist-letters-train-images-idx3-ubyte.gz`, is the name
    of one of several data sets in a folder: `set=emnist-letters`.

    Classes are the lines of classes=FILE; else the products, where the labels are to the byte those of Fashion-MNIST;
    else the characters, where the files are called as EMNIST's; else `0` to the largest label of both parts.
    EMNIST's files hold their characters mirrored along the diagonal; here they are upright.

    Raises UserError for files that are absent, no idx, cut or too long, or that do not fit together.
    """

    kind = "class"

    def __init__(self, rest: str) -> None:
        self.uri = f"idx:{rest}"
        path, query = parse_query(self.uri, rest, ("classes", "set"))
        folder, split = split_of(self.uri, path, ("train", "test"))
        there = _sets(folder)
        self._place, pair, other = _choose(self.uri, folder, there, split, query.get("set", ""))
        images, self.labels = _read(self._place, 3), _read(pair, 1).astype(np.int32)
        if len(images) != len(self.labels):
            raise UserError(
                f"{self._place} holds {len(images):,} images, {pair} {len(self.labels):,} labels: take both files from "
                "the same data set"
            )
        name = _set(self._place)
        if name in _EMNIST:
            images = images.transpose(0, 2, 1)
        self._images = np.ascontiguousarray(images)[..., None]
        if name == "emnist-letters":
            self.labels -= 1
        self.classes = _classes(pair, self.labels, other, name, query.get("classes", ""))


def _classes(place: str, labels: np.ndarray, other: str | None, name: str, listing: str) -> tuple[str, ...]:
    if name in _EMNIST or listing:
        return named(place, labels, tuple(_EMNIST.get(name, "")), listing)
    if hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() in _FASHION:
        return tuple(_PRODUCTS.split(","))
    most = max(int(array.max()) for array in (labels, *([_read(other, 1)] if other else [])))
    return named(place, labels, numbers(most + 1))


def _sets(folder: str) -> dict[str, dict[str, str]]:
    """{"": {"train": path, "test": path}} of the files of images; of a packed and a plain one, the plain one."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"cannot open the folder {folder}: {error.strerror}{sibling(folder)}") from error
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _FILE.fullmatch(name)
        if match and os.path.isfile(os.path.join(folder, name)):
            split = "train" if match[2] == "train" else "test"
            found.setdefault(match[1] or "", {}).setdefault(split, os.path.join(folder, name))
    return found


def _choose(
    uri: str, folder: str, there: dict[str, dict[str, str]], split: str, wanted: str
) -> tuple[str, str, str | None]:
    """(images, labels, labels of the other part or None): paths."""
    if not there:
        inner = os.path.join(folder, "raw")  # as torchvision has it
        hint = (
            f": write idx:{inner}/{split}"
            if os.path.isdir(inner) and _sets(inner)
            else (
                ": it needs train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same two that begin with t10k, "
                "perhaps with .gz"
            )
        )
        raise UserError(f"{folder} holds no images in the format of MNIST{hint}")
    if not wanted and len(there) > 1:
        choices = ", ".join(f"set={name}" for name in there if name)
        raise UserError(f"{folder} holds {len(there)} data sets: add one of {choices} to the URI, after ?")
    name = wanted or next(iter(there))
    if name not in there:
        raise UserError(f"{folder} holds no data set {name!r} ({uri!r}): {nearest(name, list(there))}")
    if split not in there[name]:
        raise UserError(f"{folder} holds no {split} images of this data set: fetch the rest of its files")
    other = there[name].get("test" if split == "train" else "train")
    labels = [_labels_of(path) if path else None for path in (there[name][split], other)]
    if labels[0] is None:
        raise UserError(f"{there[name][split]} has no file of labels beside it, as *-labels-idx1-ubyte: fetch it, too")
    return there[name][split], labels[0], labels[1]


def _labels_of(images: str) -> str | None:
    """The path of the labels that go with a file of images, packed or not; None if there is none."""
    folder, name = os.path.split(images)
    stem = re.sub(r"-images[-.]idx3-ubyte(\.gz)?$", "", name)
    for ending in ("-labels-idx1-ubyte", "-labels.idx1-ubyte"):
        for path in (os.path.join(folder, stem + ending), os.path.join(folder, stem + ending + ".gz")):
            if os.path.isfile(path):
                return path
    return None


def _set(images: str) -> str:
    match = _FILE.fullmatch(os.path.basename(images))
    assert match
    return match[1] or ""


def _read(path: str, dimensions: int) -> np.ndarray:
    """The array in an idx file, which must be of uint8 and have so many dimensions."""
    try:
        with open(path, "rb") as raw:
            packed = os.fstat(raw.fileno()).st_size
            compressed = raw.read(2) == b"\x1f\x8b"  # whatever its name says: browsers unpack
            raw.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=raw) as file:
                    return _array(path, file, dimensions, packed)
            return _array(path, raw, dimensions, None)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): {_NEXT}") from error


def _array(path: str, file: IO[bytes] | gzip.GzipFile, dimensions: int, packed: int | None) -> np.ndarray:
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, 8, dimensions)):
        raise UserError(
            f"{path} begins with {header[:4].hex(' ')}, and an idx file of uint8 in {dimensions} dimensions with "
            f"00 00 08 {dimensions:02}: {_NEXT}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise UserError(f"{path} ends within its header: {_NEXT}")
    shape = struct.unpack_from(f">{dimensions}I", header, 4)
    size, words = math.prod(shape), " x ".join(map(str, shape))
    if not size:
        raise UserError(f"{path} says that it holds {words} numbers, none: {_NEXT}")
    check_size(path, size, packed)
    data = np.empty(size, np.uint8)
    view, got = data.data, 0
    while got < size:
        block = file.read(min(1 << 20, size - got))
        if not block:
            raise UserError(f"{path} says that it holds {words} numbers and ends after {got:,} of {size:,}: {_NEXT}")
        view[got : got + len(block)] = block
        got += len(block)
    if file.read(1):
        raise UserError(f"{path} says that it holds {words} numbers and goes on after them: {_NEXT}")
    return data.reshape(shape)
