"""npz: the files of MedMNIST, and others with arrays of images and of labels."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from jaxvision.data.sources.arrays import Arrays, check_size, named, numbers, split_of
from jaxvision.data.sources.common import parse_query, sibling
from jaxvision.errors import UserError

SPLITS = ("train", "val", "test")
_DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


class Npz(Arrays):
    """A split of images in one npz file: FILE.npz/train, /val or /test.

    The arrays are `train_images` and `train_labels`, as MedMNIST has them, or `x_train` and `y_train`, as Keras has
    them. Pickled arrays are never read.

    Images are uint8 [N, H, W] or [N, H, W, 1 or 3]. Labels are integers [N] or [N, 1], classes, or [N, K] of 0 and 1,
    tags. MedMNIST's files hold no names: classes are the lines of classes=FILE, else `0` to the largest label of all
    parts; tags `0` to `K - 1`.

    Raises UserError for a file that is absent, damaged or too large for this machine, and for arrays of another kind.
    """

    def __init__(self, rest: str) -> None:
        self.uri = f"npz:{rest}"
        path, query = parse_query(self.uri, rest, ("classes",))
        path, split = split_of(self.uri, path, SPLITS)
        self._place = f"{path}, {split}"
        headers = _headers(path)
        pairs = {s: keys for s in SPLITS for keys in ((f"{s}_images", f"{s}_labels"), (f"x_{s}", f"y_{s}"))
                 if set(keys) <= headers.keys()}  # fmt: skip
        if split not in pairs:
            there = ", ".join(sorted(headers)[:10]) or "nothing"
            raise UserError(
                f"{path} has no {split}_images and {split}_labels, but {there}: "
                + (f"take {' or '.join(f'npz:{path}/{s}' for s in pairs)}" if pairs else "it is no data set of images")
            )
        images, labels = pairs[split]
        _check_images(path, images, headers[images])
        count = headers[images].shape[0]
        for of in (keys[1] for keys in pairs.values()):
            _check_labels(path, of, headers[of], headers[labels].shape[1:])
        if headers[labels].shape[0] != count:
            raise UserError(f"{path}: {count:,} images in {images}, {headers[labels].shape[0]:,} labels in {labels}")
        self._images = _array(path, images).reshape(count, *headers[images].shape[1:3], -1)
        found = {of: _array(path, of) for of in (keys[1] for keys in pairs.values())}
        mine, listing = found[labels].reshape(count, -1), query.get("classes", "")
        self.kind = "class"
        if mine.shape[1] > 1:
            self.kind = "tags"
            odd = np.flatnonzero(((mine != 0) & (mine != 1)).any(1))
            if len(odd):
                raise UserError(
                    f"{path}: {labels} has {mine.shape[1]} columns, which are tags, and in row {odd[0]} other numbers "
                    f"than 0 and 1 ({mine[odd[0]].tolist()[:5]}): one class a sample is one column"
                )
            self.labels = mine.astype(np.float32)
            self.classes = named(path, np.arange(mine.shape[1]), numbers(mine.shape[1]), listing)
            if len(self.classes) != mine.shape[1]:
                raise UserError(f"{listing} has {len(self.classes)} lines, {labels} of {path} {mine.shape[1]} columns")
            return
        largest = max(int(array.max()) for array in found.values())
        self.classes = named(f"{path}, {labels}", mine[:, 0], numbers(largest + 1), listing)
        self.labels = mine[:, 0].astype(np.int32)


def _headers(path: str) -> dict[str, _Header]:
    """Shape and dtype of each array, before memory is taken for any."""
    if not os.path.isfile(path):
        raise UserError(f"cannot open {path}: no such file{sibling(path, files=True)}")
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    if version not in read:
                        continue  # of names that are no ASCII: no array of images
                    shape, _, dtype = read[version](file)
                    header = file.tell()
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise UserError(f"{path} holds two arrays that are called {name}: fetch it again")
                found[name] = _Header(shape, dtype)
                if dtype.hasobject:
                    continue  # refused by name, where it is asked for
                size = math.prod(shape) * dtype.itemsize
                if min(shape, default=0) < 0 or size + header != info.file_size:
                    raise UserError(
                        f"{path}: the header of {name} says {dtype}{list(shape)}, which are {size:,} bytes, and "
                        f"{info.file_size - header:,} are there: fetch it again"
                    )
                check_size(f"{path}, {name},", size, info.compress_size)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"cannot read {path} as .npz ({error}): fetch it again") from error
    return found


def _check_images(path: str, name: str, header: _Header) -> None:
    shape = header.shape
    _check_pickled(path, name, header)
    if (
        header.dtype == np.uint8
        and math.prod(shape) > 0
        and (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)))
    ):
        return
    volumes = "; it seems to hold volumes, and these are networks for images" if len(shape) in (4, 5) else ""
    raise UserError(
        f"{path}: {name} is {header.dtype}{list(shape)}, wanted uint8 [N, H, W] or [N, H, W, 1 or 3]{volumes}"
    )


def _check_labels(path: str, name: str, header: _Header, columns: tuple[int, ...]) -> None:
    _check_pickled(path, name, header)
    good = header.dtype.kind in "iub" and len(header.shape) in (1, 2) and math.prod(header.shape) > 0
    if not good or header.shape[1:] != columns:
        raise UserError(
            f"{path}: {name} is {header.dtype}{list(header.shape)}, wanted integers [N], [N, 1] (a class each) or "
            "[N, K] (tags, 0 or 1), alike in all parts"
        )


def _check_pickled(path: str, name: str, header: _Header) -> None:
    if header.dtype.hasobject:
        raise UserError(
            f"{path}: {name} holds Python objects, which are pickled, and reading a pickle runs whatever code is in "
            "it: save it again as an array of numbers"
        )


def _array(path: str, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.ascontiguousarray(arrays[name])
    except (*_DAMAGE, MemoryError) as error:
        raise UserError(f"cannot read {name} of {path} ({error}): fetch it again") from error
