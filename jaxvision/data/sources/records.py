"""records: what `python -m jaxvision.pack` wrote, a few large files instead of a million small ones."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import os
import pathlib
import struct
import threading
from typing import Any

import numpy as np
from PIL import Image

from jaxvision.config.ranges import is_name
from jaxvision.data.sample import LABEL
from jaxvision.data.sources.common import sibling
from jaxvision.errors import UserError
from jaxvision.runtime import paths

VERSION = 1
INFO, PLAN, LABELS, INDEX = "info.json", "packing.json", "labels.npy", "index.npy"
FILE, PIXELS = 0, 1  # what a record holds: a file's bytes, or the PNG of an image that the source gave as pixels
_HEADER = struct.Struct("<3sBiq")
_MAGIC = b"JVR"
# Random access: no reading ahead, and the calling thread reads. Several threads may use one reader.
_READER = "readahead_buffer_size:0,max_parallelism:0"


class Records:
    """A packed data set: FOLDER/info.json, labels.npy, index.npy and shard-00000-of-00008.array_record, ...

    A shard is an ArrayRecord file of group size 1, uncompressed: reading one sample reads its bytes and no
    others, and each record has a checksum. A record is a header of 16 bytes, little-endian, then the image:

      bytes 0-2   b"JVR"
      byte 3      0: the image is an encoded file; 1: it is the PNG of what the source gave as pixels
      bytes 4-7   int32, the label if it is one number, else -1 (labels.npy is what counts)
      bytes 8-15  int64, the `index` that the sample had in the source

    Samples come as the source gave them: encoded bytes as bytes, pixels as uint8 [H, W, 1 or 3].

    Opening reads info.json, compares the sizes of all files, and the SHA-256 of info.json, labels.npy and index.npy
    (16 MB for 1.3 million classes); a shard is opened when first read. Each record that is read is compared with
    index.npy, and with labels.npy where a label is one number. Data sets of earlier releases have no index.npy, and a
    digest of labels.npy only.

    Raises UserError for a folder that is not packed to the end, an unknown version, a file that is absent, of another
    size or changed, at a damaged record, and at one that is not the sample it should be.
    """

    def __init__(self, path: str, info: dict[str, Any] | None = None) -> None:
        """`info`: what info.json will hold, for the check before it is written."""
        self.uri = f"records:{path}"
        self.root = os.path.expanduser(path)  # a disk's, or a bucket's: its files are fetched when first read
        self._path = path
        info = _read_info(self.root) if info is None else info
        try:
            self.info = info
            self.kind: str = info["kind"]
            self.classes: tuple[str, ...] = tuple(info["classes"])
            self._names = [str(shard["name"]) for shard in info["shards"]]
            foreign = [name for name in self._names if not is_name(name)]
            if foreign:  # a path would be read, or fetched to, outside the folder
                raise ValueError(f"a shard is called {foreign[0]!r}")
            counts = [int(shard["count"]) for shard in info["shards"]]
            small = {LABELS: info["labels"]} | ({INDEX: info["index"]} if "index" in info else {})
            sizes = {name: int(about["bytes"]) for name, about in small.items()}
            digests = {name: str(about["sha256"]) for name, about in small.items()}
            sizes |= {name: int(shard["bytes"]) for name, shard in zip(self._names, info["shards"])}
            if self.kind not in LABEL or sum(counts) != info["count"]:
                raise ValueError(f"{self.kind!r} labels, {info['count']} samples")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.root}/{INFO} is damaged ({error!r}): pack the data again") from error
        if "checksum" in info and info["checksum"] != checksum(info):
            raise UserError(
                f"{self.root}/{INFO} is damaged (changed since it was written): copy it again or pack the data again"
            )
        if not paths.is_bucket(self.root):
            for name, size in sizes.items():
                _check_size(os.path.join(self.root, name), size)
        self._sizes = sizes
        self._ends = [0, *itertools.accumulate(counts)]  # shard k holds samples ends[k] to ends[k + 1]
        files = {name: self._file(name) for name in small}
        for name, digest in digests.items():
            _check_digest(files[name], digest)
        field = LABEL[self.kind]
        self._scalar = not field.shape
        self.labels = _read_array(files[LABELS], np.dtype(field.dtype), 1 + len(field.shape), len(self))
        self._index = _read_array(files[INDEX], np.int64, 1, len(self)) if INDEX in files else None
        self._readers: list[Any] = [None] * len(counts)
        self._locks = [threading.Lock() for _ in counts]

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self._path,)  # opened again there: neither readers nor maps of files pickle

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        shard, k = self._place(i)
        try:
            noted, index, image = _unpack(self._reader(shard).read([k])[0])
        except (RuntimeError, ValueError, OSError, SyntaxError) as error:  # the last of a PNG, says Pillow
            reason = " ".join(str(error).split())
            raise UserError(f"{self.where(i)}: damaged ({reason}): copy the file again or pack again") from error
        label = self.labels[i]
        wanted = index if self._index is None else int(self._index[i])
        if index != wanted or (self._scalar and noted != label):
            raise UserError(
                f"{self.where(i)} is another sample: it has index {index} and label {noted}, {INDEX} and {LABELS} say "
                f"{wanted} and {label}; were files exchanged or copied from another data set? Copy the folder again or "
                "pack again"
            )
        return {"image": image, "label": int(label) if self._scalar else np.array(label), "index": index}

    def where(self, i: int) -> str:
        shard, k = self._place(range(len(self))[i])
        return f"{os.path.join(self.root, self._names[shard])}, record {k}"

    def _place(self, i: int) -> tuple[int, int]:
        """The shard that holds sample i, and its number there."""
        shard = bisect.bisect_right(self._ends, i) - 1
        return shard, i - self._ends[shard]

    def _reader(self, shard: int) -> Any:
        reader = self._readers[shard]
        if reader is None:
            with self._locks[shard]:
                reader = self._readers[shard]
                if reader is None:
                    path = self._file(self._names[shard])
                    reader = open_shard(path, self._ends[shard + 1] - self._ends[shard])
                    self._readers[shard] = reader
        return reader

    def _file(self, name: str) -> str:
        return str(paths.fetched(os.path.join(self.root, name), self._sizes[name]))


def shard_name(k: int, shards: int) -> str:
    return f"shard-{k:05}-of-{shards:05}.array_record"


def open_shard(path: str, count: int) -> Any:
    """A reader of an ArrayRecord file. Raises ValueError if it does not hold `count` records."""
    from array_record.python import array_record_module  # here: compiled, not for every machine

    reader = array_record_module.ArrayRecordReader(os.fsencode(path), _READER, file_reader_buffer_size=1 << 15)
    if not reader.ok() or reader.num_records() != count:
        raise ValueError(f"{reader.num_records()} records instead of {count}")
    return reader


def record(sample: dict[str, Any], kind: str) -> bytes:
    """A record of a sample; see `Records`. An image of pixels must be uint8 [H, W] or [H, W, 1 or 3]."""
    image, content = sample["image"], FILE
    if isinstance(image, np.ndarray):
        buffer, content = io.BytesIO(), PIXELS
        Image.fromarray(image.squeeze(2) if image.shape[2:] == (1,) else image).save(buffer, "PNG")
        image = buffer.getvalue()
    label = -1 if LABEL[kind].shape else int(sample["label"])
    return _HEADER.pack(_MAGIC, content, label, int(sample["index"])) + image


def _unpack(record: bytes) -> tuple[int, int, bytes | np.ndarray]:
    """(label, index, image) of a record. Raises ValueError or OSError."""
    if len(record) < _HEADER.size:
        raise ValueError(f"only {len(record)} bytes")
    magic, content, label, index = _HEADER.unpack_from(record)
    if magic != _MAGIC or content not in (FILE, PIXELS):
        raise ValueError(f"it begins with {record[:4]!r}")
    image = record[_HEADER.size :]
    if content == FILE:
        return label, index, image
    with Image.open(io.BytesIO(image)) as opened:
        pixels = np.asarray(opened)
    return label, index, pixels if pixels.ndim == 3 else pixels[:, :, None]


def sample_digest(sample: dict[str, Any], kind: str) -> bytes:
    """A sample's part of the digest of a data set: its index, its label, the SHA-256 of its image.

    The index is int64, the label int32 or float32 [K], little-endian. Of an encoded image the
    bytes are hashed, of pixels the shape (3 x int64; [H, W] counts as [H, W, 1]) and then the pixels.
    """
    image = sample["image"]
    if isinstance(image, np.ndarray):
        shape = image.shape if image.ndim == 3 else (*image.shape, 1)
        image = np.array(shape, "<i8").tobytes() + image.tobytes()
    label = np.asarray(sample["label"], np.dtype(LABEL[kind].dtype).newbyteorder("<"))
    return struct.pack("<q", int(sample["index"])) + label.tobytes() + hashlib.sha256(image).digest()


def checksum(info: dict[str, Any]) -> str:
    """SHA-256 of what info.json says beside it."""
    text = json.dumps({key: value for key, value in info.items() if key != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_info(root: str) -> dict[str, Any]:
    path = os.path.join(root, INFO)
    try:
        info = json.loads(paths.path(path).read_text())
        version = info["version"]
    except FileNotFoundError as error:
        if paths.path(os.path.join(root, PLAN)).exists():
            raise UserError(f"{root} is not packed to the end: run the same command of jaxvision.pack again") from error
        raise UserError(
            f"{root} is no packed data set, {path} does not exist{sibling(root)}; "
            "make one: python -m jaxvision.pack --from URI --out FOLDER"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): pack the data again") from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version}, this jaxvision reads {VERSION}: update jaxvision")
    return info


def _check_size(path: str, size: int) -> None:
    try:
        found = os.path.getsize(path)
    except OSError as error:
        raise UserError(f"cannot open {path}, which {INFO} lists: {error.strerror}: copy the folder again") from error
    if found != size:
        raise UserError(f"{path} has {found} bytes, {INFO} says {size}: copy it again or pack again")


def _check_digest(path: str, wanted: str) -> None:
    try:
        found = paths.digest(pathlib.Path(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: copy it again or pack again") from error
    if found != wanted:
        raise UserError(
            f"{path} has changed since it was written ({INFO} has its SHA-256): copy it again or pack again"
        )


def _read_array(path: str, dtype: Any, axes: int, count: int) -> np.ndarray:
    """`count` rows, mapped: no memory is taken for what is not read."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): copy it again or pack again") from error
    if array.dtype != dtype or array.ndim != axes or len(array) != count:
        raise UserError(
            f"{path} holds {array.dtype}{list(array.shape)}, wanted {np.dtype(dtype)} of {count} samples: pack again"
        )
    return array
