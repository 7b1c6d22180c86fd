"""cifar: the binary archives of CIFAR-10 and CIFAR-100, packed or unpacked."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxvision.data.sources.arrays import Arrays, named, split_of
from jaxvision.data.sources.common import parse_query, read_file, sibling
from jaxvision.errors import UserError, nearest

_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32
_MOST = 512 << 20  # bytes that an archive may hold; CIFAR's are 184 million
_FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")  # as the archives unpack
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz")


class _Layout(NamedTuple):
    """One of the two data sets: its files, and the label bytes before each image, each with its file of names."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: dict[str, str]


_LAYOUTS = (
    _Layout(tuple(f"data_batch_{k}.bin" for k in range(1, 6)), ("test_batch.bin",), {"fine": "batches.meta.txt"}),
    _Layout(
        ("train.bin",), ("test.bin",), {"coarse": "coarse_label_names.txt", "fine": "fine_label_names.txt"}
    ),
)  # fmt: skip


class Cifar(Arrays):
    """`train` or `test` of CIFAR-10 or CIFAR-100 in the binary version: uint8 images [32, 32, 3] with one label each.

    PATH is the archive, `cifar-10-binary.tar.gz`, read as it is; the folder that it unpacks to; or the folder that one
    of them lies in. Of CIFAR-100 `label=coarse` takes the 20 groups instead of the 100 classes. Class names and their
    order are the archive's own.

    Raises UserError for files that are absent or cut, and for the version of Python's pickles.
    """

    kind = "class"

    def __init__(self, rest: str) -> None:
        self.uri = f"cifar:{rest}"
        path, query = parse_query(self.uri, rest, ("label",))
        path, split = split_of(self.uri, path, ("train", "test"))
        self._place, names, read = _open(path)
        layouts = [layout for layout in _LAYOUTS if {*layout.train, *layout.test} & names]
        if len(layouts) > 1:
            raise UserError(f"{self._place} holds both CIFAR-10 and CIFAR-100: move one of them to another folder")
        if not layouts:
            raise UserError(_foreign(self._place, names))
        layout, label = layouts[0], query.get("label", "fine")
        if label not in layout.labels:
            raise UserError(f"{self.uri!r}: there are no {label!r} labels: {nearest(label, list(layout.labels))}")
        files, listing = (layout.train if split == "train" else layout.test), layout.labels[label]
        for name in (*files, listing):
            if name not in names:
                raise UserError(f"{self._place} lacks {name}: fetch and unpack the whole archive, from {_HOME}")
        rows = [_records(f"{self._place}, {name}", read(name), len(layout.labels)) for name in files]
        self.labels = np.concatenate([r[:, list(layout.labels).index(label)] for r in rows]).astype(np.int32)
        pixels = (r[:, len(layout.labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for r in rows)
        self._images = np.concatenate(list(pixels))
        self.classes = _names(f"{self._place}, {listing}", read(listing))
        named(self._place, self.labels, self.classes)


def _records(place: str, data: bytes, labels: int) -> np.ndarray:
    size = labels + _PIXELS
    if not data or len(data) % size:
        raise UserError(f"{place} has {len(data):,} bytes, which are no records of {size}: fetch the archive again")
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def _names(place: str, data: bytes) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in data.decode("ascii").splitlines() if line.strip())
    except UnicodeDecodeError:
        names = ()
    if not names or len(set(names)) < len(names):
        raise UserError(f"{place} holds no list of different class names: fetch the archive again")
    return names


def _open(path: str) -> tuple[str, set[str], Callable[[str], bytes]]:
    """(where the files are, their names, what reads one) of an archive or a folder."""
    if os.path.isfile(path):
        members = _unpacked(path)
        return path, set(members), members.__getitem__
    try:
        names = {entry.name for entry in os.scandir(path)}
    except OSError as error:
        raise UserError(
            f"cannot open {path}: {error.strerror}{sibling(path, files=True)}. CIFAR is at {_HOME}"
        ) from error
    inner = [name for name in (*_FOLDERS, *_ARCHIVES) if name in names]
    if len(inner) > 1 and not any(name.endswith(".bin") for name in names):
        # a folder and the archive that it came from are one data set
        inner = [n for n in inner if n not in _ARCHIVES or _FOLDERS[_ARCHIVES.index(n)] not in inner]
        if len(inner) > 1:
            raise UserError(f"{path} holds {' and '.join(inner)}: name one, as cifar:{path}/{inner[0]}/train")
    if inner and not any(name.endswith(".bin") for name in names):
        return _open(os.path.join(path, inner[0]))

    def read(name: str) -> bytes:
        try:
            return read_file(os.path.join(path, name))
        except OSError as error:
            raise UserError(f"cannot read {os.path.join(path, name)}: {error.strerror}") from error

    return path, names, read


def _unpacked(path: str) -> dict[str, bytes]:
    """The files of an archive, by the last part of their names. Raises UserError.

    It is unpacked as a whole, up to a bound, and then read: so a header that lies takes no memory.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(_MOST + 1)
        if len(data) > _MOST:
            raise UserError(f"{path} unpacks to more than {_MOST:,} bytes, CIFAR's archives to 184 million: "
                            f"fetch one from {_HOME}")  # fmt: skip
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            found: dict[str, bytes] = {}
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                name = os.path.basename(member.name)
                if name in found:
                    raise UserError(f"{path} holds two files that are called {name}: fetch one from {_HOME}")
                file = archive.extractfile(member)
                found[name] = file.read() if file and name.endswith((".bin", ".txt")) else b""
                if name.endswith((".bin", ".txt")) and len(found[name]) != member.size:
                    raise UserError(f"{path} ends within {name}: fetch it again, from {_HOME}")
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"cannot read {path} as an archive of CIFAR ({error}): fetch it again, from {_HOME}") from error
    return found


def _foreign(place: str, names: set[str]) -> str:
    """Reason why the files found are not the binary version of CIFAR."""
    if any(name.endswith(".mat") for name in names):
        return f"{place} is the version of CIFAR for MATLAB: take the binary version, from {_HOME}"
    if names & {"data_batch_1", "test_batch", "batches.meta", "meta", "train"}:
        return (
            f"{place} is the version of CIFAR for Python, which is pickled, and reading a pickle runs whatever code is "
            f"in it: take the binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, from {_HOME}"
        )
    listed = ", ".join(sorted(names)[:5]) or "nothing"
    return f"{place} holds no files of CIFAR's binary version, but {listed}: fetch it from {_HOME}"
