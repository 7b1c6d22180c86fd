"""tar: images in tar files, read in place."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import pathlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvision.data.sources.common import (
    ENDINGS,
    EXTENSIONS,
    LARGEST,
    class_order,
    ending,
    parse_query,
    read_classes,
    read_lines,
    sibling,
)
from jaxvision.data.sources.folder import check_case, check_parts_of_paths
from jaxvision.errors import Unreadable, UserError, nearest
from jaxvision.runtime import paths

SUFFIX = ".index.npz"
VERSION = 3  # of the index file
OPEN_FILES = 128  # at once, of a source of many tars
MOST_CLASSES = 1_000_000  # that a number in a .cls file may ask for
LARGEST_LABEL = 1 << 20  # bytes of a .json file
SAMPLED = 16  # members whose headers are compared before an index is believed

_BLOCK, _PAGE, _CHUNK = 512, 4096, 1 << 20
_IMAGE = tuple(e.encode() for e in EXTENSIONS)
_NAMED = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, EXTENSIONS))}))\s+(.+)", re.IGNORECASE)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


class Tar:
    """Images in uncompressed tar files, read in place. `shard-{000..146}.tar` and `shard-*.tar` name several.

    What they hold decides where the classes come from:

      tars in a tar   the names of the inner tars (training images of ILSVRC2012)
      .cls files      webdataset: 7.cls has the class of 7.jpg, a number or a name
      label=PART      webdataset: the class is in another part of the sample, 7.txt (label=txt) or 7.json (label=json,
                      or label=json.FIELD for a field of it); label=folder: such files say nothing of the class
      labels=FILE     a line an image: its class, in the order of the sorted image names, or its name and its class;
                      numbers need meta=FILE, which has lines of a number and a class (validation images of ILSVRC2012)
      folders         the folder that an image is in

    As in webdataset a sample's key ends at the first dot of the file's name, so a.v1.png and a.v1.cls are the parts
    v1.png and v1.cls of sample a. A sample has one image with a label of the same name but for its last ending.

    Classes are in the order of `class_order`, or the lines of classes=FILE. Samples are ordered by class, then by path;
    with labels=FILE by path; those of webdataset as they come. Hidden names (a leading dot) are left out. Other files
    are counted in `left_out`, by ending.

    Where the images are is read from all headers once and kept in PATH.index.npz, if that can be written. The listing
    takes the bytes of the names and 32 more a sample. Tars that were concatenated are read to the end, as by
    `tar --ignore-zeros`.

    Raises:
      UserError: a tar that is absent, compressed, cut off or damaged, an image without a class, a class without an
        image, two images in one sample, no image at all, .txt or .json files beside the images and no word of what
        they are.
    """

    kind = "class"

    def __init__(self, rest: str) -> None:
        self.uri = f"tar:{rest}"
        path, query = parse_query(self.uri, rest, ("label", "labels", "meta", "classes"))
        query = {key: os.path.expanduser(value) for key, value in query.items()}
        label = query.get("label", "")
        _check_label(self.uri, label, "labels" in query)
        if "meta" in query and "labels" not in query:
            raise UserError(f"{self.uri!r}: meta explains the numbers of labels: add labels=FILE or remove meta")
        wanted = read_classes(query["classes"]) if "classes" in query else None
        paths = _expand(os.path.expanduser(path))
        parts = [_index(path, label) for path in paths]
        layout = parts[0].layout
        for path, part in zip(paths, parts):
            if part.layout != layout:
                raise UserError(f"{paths[0]} has {_LAYOUTS[layout]}, {path} has {_LAYOUTS[part.layout]}: name only one")
        self.left_out = dict(sum((Counter(part.left_out) for part in parts), Counter()))
        beside = next((k for k, part in enumerate(parts) if part.beside), None)
        if beside is not None and layout == "flat" and label != "folder" and "labels" not in query:
            raise UserError(f"{paths[beside]} has {parts[beside].beside}")
        self._files = _Files(paths, [part.stamp for part in parts])
        self._first = np.cumsum([0, *(len(part.offsets) for part in parts)])  # entry first[k] is the first of tar k
        self._offsets = np.concatenate([part.offsets for part in parts])
        self._sizes = np.concatenate([part.sizes for part in parts])
        self._ends = np.cumsum(np.concatenate([[0], *(np.diff(part.ends) for part in parts)]))
        self._names = b"".join(part.names for part in parts)  # the name of entry e is bytes ends[e] to ends[e + 1]

        numbers: dict[str, int] = {}  # of the classes, as they come
        order: np.ndarray | None = None
        if "labels" in query:
            if layout != "flat":
                raise UserError(f"{paths[0]} has {_LAYOUTS[layout]}, which say the classes: remove labels=")
            names = [self._name(e) for e in range(len(self._offsets))]
            order = np.array(sorted(range(len(names)), key=names.__getitem__))
            texts = _read_labels(query["labels"], query.get("meta"), paths[0], [names[e] for e in order], wanted)
            labels = np.empty(len(names), np.int32)
            labels[order] = [numbers.setdefault(text, len(numbers)) for text in texts]
        else:
            for part in parts:
                for name in part.groups:
                    numbers.setdefault(name, len(numbers))
            labels = np.concatenate([np.array([numbers[name] for name in p.groups], np.int32)[p.group] for p in parts])
            if layout == "flat" and "" in numbers:
                raise UserError(
                    f"{self._where(int(np.argmax(labels == numbers[''])))} is in no folder, so it has no class: "
                    "add ?labels=FILE to the URI, a text with a line `NAME CLASS` for each image"
                )
            if layout == "flat" and b"train" in self._names.lower():
                check_parts_of_paths(paths[0], map(self._name, range(len(self._offsets))))
        place = query.get("labels", paths[0])
        self.classes, places = _classes(place, list(numbers), wanted, query.get("classes", ""), layout in _PARTS)
        labels = places[labels]
        if layout in _PARTS:
            order = np.arange(len(labels))
        elif order is None:
            order = np.argsort(labels, kind="stable")  # within a class by tar, then by path, as the entries are
        self._order = order.astype(np.int32)  # sample i is entry order[i]
        self.labels = labels[order]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        e = self._order[i]
        size = int(self._sizes[e])
        if size > LARGEST:
            raise Unreadable(f"cannot read {self.where(i)}: {size:,} bytes are more than an image has")
        try:
            data = self._files.read(self._tar(e), int(self._offsets[e]), size)
        except OSError as error:
            raise Unreadable(f"cannot read {self.where(i)}: {error.strerror}") from error
        if len(data) != size:
            raise UserError(f"{self.where(i)} is cut off: the tar was shortened while it was read; start again")
        return {"image": data, "label": int(self.labels[i]), "index": i}

    def where(self, i: int) -> str:
        return self._where(self._order[range(len(self))[i]])

    def member(self, i: int) -> str:
        return _text(self._name(self._order[range(len(self))[i]]))

    def _where(self, e: int) -> str:
        return f"{self._files.paths[self._tar(e)]}, member {_text(self._name(e))}"

    def _name(self, e: int) -> bytes:
        return self._names[self._ends[e] : self._ends[e + 1]]

    def _tar(self, e: int) -> int:
        return int(np.searchsorted(self._first, e, side="right")) - 1


class _File:
    """A file that is open for as long as somebody holds this, so none is closed under a thread that reads."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Any = os.close) -> None:
        if hasattr(self, "number"):
            close(self.number)


class _Files:
    """Reads of several files by many threads. Opened at the first use, anew after unpickling."""

    def __init__(self, paths: list[str], stamps: list[tuple[int, ...]]) -> None:
        """`stamps`: size and modification time that each must have, and more that may change, as by a new link."""
        self.paths = paths
        self._stamps = stamps
        self._lock = threading.Lock()
        self._open: dict[int, _File] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _Files, (self.paths, self._stamps)

    def read(self, k: int, offset: int, size: int) -> bytes:
        with self._lock:
            file = self._open.get(k)
            if file is None:
                try:
                    file = _File(self.paths[k])
                except OSError as error:  # not of one sample: all that follow would fail as well
                    raise UserError(f"cannot open {self.paths[k]}: {error.strerror}; put it back") from error
                if _stamp(os.fstat(file.number))[:2] != self._stamps[k][:2]:
                    raise UserError(f"{self.paths[k]} has changed since its headers were read: start again")
                if len(self._open) == OPEN_FILES:
                    del self._open[next(iter(self._open))]
                self._open[k] = file
        return os.pread(file.number, size, offset)


# --------------------------------------------------------------------------- names and labels


_PARTS = ("cls", "txt", "json")  # endings of webdataset's files that may have the class
_LAYOUTS = {
    "inner": "tars in it",
    **{part: f".{part} files" for part in _PARTS},
    "flat": "images without .cls files",
}


def _check_label(uri: str, label: str, listed: bool) -> None:
    """Raises UserError for a `label=` of a URI that names no part of a sample, or beside `labels=FILE`."""
    if label and label not in (*_PARTS, "folder") and not re.fullmatch(r"json\..+", label):
        raise UserError(
            f"{uri!r}: label={label} is unknown, wanted cls, txt, json or json.FIELD (the file beside an image that "
            "has its class) or folder; a file with the labels of all images is labels=FILE"
        )
    if label and listed:
        raise UserError(f"{uri!r}: label= and labels= both say where the classes are: remove one")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _expand(path: str) -> list[str]:
    """The tars that a path names: {000..146} is a range, * any characters (sorted)."""
    if os.path.exists(path):
        return [path]
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if found:
        first, last = found[1], found[2]
        if int(first) > int(last):
            raise UserError(f"the range {found[0]} in {path} is empty: write the lower number first")
        # As in bash: numbers are filled up with zeros if one is written so
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        names = [f"{k:0{width}}" for k in range(int(first), int(last) + 1)]
        return [p for name in names for p in _expand(path[: found.start()] + name + path[found.end() :])]
    if "*" in path:
        paths = sorted(p for p in glob.glob(glob.escape(path).replace("[*]", "*")) if not p.endswith(SUFFIX))
        if not paths:
            raise UserError(f"no file matches {path}{sibling(os.path.dirname(path) or '.')}: correct the path")
        return paths
    return [path]


def _classes(
    place: str, found: list[str], wanted: tuple[str, ...] | None, listing: str, numbers: bool
) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names in order, and the place of each of `found` there, int32. `numbers`: found may be such places."""
    if numbers and all(re.fullmatch("[0-9]+", n) for n in found) and not (wanted and set(found) <= set(wanted)):
        places = [int(n) for n in found]
        limit = MOST_CLASSES if wanted is None else len(wanted)
        if max(places) >= limit:
            have = f"at most {limit} are supported" if wanted is None else f"{listing} has {limit}, counted from 0"
            raise UserError(f"{place} has class number {max(places)}, but {have}: correct the .cls file or the list")
        return wanted or tuple(map(str, range(max(places) + 1))), np.array(places, np.int32)
    if wanted is None:
        wanted = class_order(found)
        check_case(wanted, place, "a file, classes=FILE")
    order = {name: k for k, name in enumerate(wanted)}
    for name in found:
        if name not in order:
            raise UserError(f"{place} has class {name!r}, which is not in {listing}: {nearest(name, wanted)}")
    return wanted, np.array([order[name] for name in found], np.int32)


def _read_labels(
    listing: str, meta: str | None, path: str, names: list[bytes], wanted: tuple[str, ...] | None
) -> list[str]:
    """The class of each image, from a file of labels. `names`: of the images, sorted; `path`: of the (first) tar."""
    lines = [(k, line.strip()) for k, line in enumerate(read_lines(listing), 1) if line.strip()]
    if not lines:
        raise UserError(f"{listing} is empty: write a line `NAME CLASS` for each image of {path}")
    places: dict[str, int] = {}  # of images by path, file name and file name without its end; -1: of several
    for i, name in enumerate(map(_text, names)):
        base = name.rpartition("/")[2]
        for key in {name, base, base.rpartition(".")[0]}:
            places[key] = i if places.get(key, i) == i else -1
    if _NAMED.fullmatch(lines[0][1]) or lines[0][1].split()[0] in places:
        found: dict[int, str] = {}
        for k, line in lines:
            match = _NAMED.fullmatch(line)
            name, label = match.groups() if match else (line.split()[0], " ".join(line.split()[1:]))
            i = places.get(name, -2)
            if not label:
                raise UserError(f"{listing}, line {k}: {line!r} has no class, wanted NAME CLASS")
            if i < 0:
                what = "no image" if i == -2 else "several images"
                raise UserError(f"{listing}, line {k}: {path} has {what} {name!r}: write the path in the tar")
            if i in found:
                raise UserError(f"{listing}, line {k}: {name!r} came before: remove one of the lines")
            found[i] = label
        for i, name in enumerate(map(_text, names)):
            if i not in found:
                raise UserError(f"{listing} has no line for {name} of {path}: add it")
        labels = [found[i] for i in range(len(names))]
    else:
        if len(lines) != len(names):
            raise UserError(f"{listing} has {len(lines)} lines, but {path} has {len(names)} images: correct the list")
        labels = [line for _, line in lines]

    numbers = all(re.fullmatch("[0-9]+", label) for label in labels)
    if meta is not None:
        if not numbers:
            raise UserError(f"the labels in {listing} are no numbers, which meta would explain: remove meta=")
        table = _read_meta(meta)
        for label in labels:
            if int(label) not in table:
                raise UserError(f"{listing} has number {label}, which {meta} lacks: add the line")
        return [table[int(label)] for label in labels]
    if numbers and not (wanted and set(labels) <= set(wanted)):
        raise UserError(
            f"the labels in {listing} are numbers. Those of ILSVRC2012_validation_ground_truth.txt are ILSVRC ids, "
            "whose order is not that of the sorted wnids: add &meta=FILE to the URI, a text with a line `ID WNID` for "
            "each number (data/meta.mat of the devkit has them), or give a file of wnids"
        )
    return labels


def _read_meta(path: str) -> dict[int, str]:
    """The class of each number, from lines `NUMBER CLASS ...`."""
    table: dict[int, str] = {}
    for k, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2 or not re.fullmatch("[0-9]+", words[0]):
            raise UserError(f"{path}, line {k}: {line!r}, wanted a number and a class, such as `449 n01440764`")
        if table.setdefault(int(words[0]), words[1]) != words[1]:
            raise UserError(f"{path}, line {k}: {words[0]} is already {table[int(words[0])]}: remove one of the lines")
    return table


# --------------------------------------------------------------------------- the index of one tar


@dataclasses.dataclass(frozen=True)
class _Index:
    """The images of one tar: sorted by path, those of webdataset by offset."""

    stamp: tuple[int, ...]
    made_for: str  # the label that was asked for, and the endings that are images
    layout: str  # see _LAYOUTS
    offsets: np.ndarray  # int64 [N]
    sizes: np.ndarray  # int64 [N]
    ends: np.ndarray  # int64 [N + 1], of the names
    names: bytes
    group: np.ndarray  # int32 [N], a place in groups
    groups: list[str]  # names of the classes; "" where there is none
    left_out: dict[str, int]  # members that are no part of a sample: how many, by ending or reason
    beside: str  # which .txt or .json files lie beside images, and what to write; "" where there are none


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _made_for(label: str) -> str:
    return " ".join((label, *EXTENSIONS))


def _digest(file: int, offsets: np.ndarray) -> str:
    """SHA-256 over the headers and the first bytes of SAMPLED members, the first and the last among them.

    It tells tars apart where the time of the last change has too few digits, or a disk keeps none.
    """
    chosen = np.unique(np.linspace(0, len(offsets) - 1, SAMPLED).astype(int))
    blocks = (os.pread(file, 2 * _BLOCK, int(offsets[k]) - _BLOCK) for k in chosen)
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def _index(path: str, label: str) -> _Index:
    """The index of a tar: the saved one beside it if that is whole and of this very tar, else made and saved."""
    try:
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder, wanted a tar file: did you mean 'folder:{path}'?")
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise UserError(f"{path} is a pipe or a device, which has no random access: name a tar file")
        file = _File(path)
        stamp = _stamp(os.fstat(file.number))
        index = _load(path + SUFFIX, file.number, stamp, label)
        if index is None:
            index = _scan(path, file.number, stamp, label)
            _save(path + SUFFIX, index, _digest(file.number, index.offsets))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{sibling(path, files=True)}") from error
    return index


def _load(path: str, tar: int, stamp: tuple[int, ...], label: str) -> _Index | None:
    """The index in a file; None if there is none, or one that is stale, damaged or of another label."""
    try:
        with np.load(path, allow_pickle=False) as table:
            if (int(table["version"]), *map(int, table["stamp"])) != (VERSION, *stamp):
                return None
            offsets, sizes, ends = (table[key].astype(np.int64, casting="no") for key in ("offsets", "sizes", "ends"))
            names, group = table["names"].tobytes(), table["group"].astype(np.int32, casting="no")
            digest, text = str(table["digest"]), json.loads(table["text"].tobytes())
            index = _Index(stamp, offsets=offsets, sizes=sizes, ends=ends, names=names, group=group, **text)
        count = len(index.offsets)
        whole = (
            index.layout in _LAYOUTS
            and index.made_for == _made_for(label)
            and 0 < count == len(index.sizes) == len(index.group) == len(index.ends) - 1
            and index.ends[0] == 0
            and index.ends[-1] == len(index.names)
            and np.diff(index.ends).min() > 0
            and min(index.offsets.min(), index.sizes.min(), index.group.min()) >= 0
            and (index.offsets + index.sizes).max() <= stamp[0]
            and index.group.max() < len(index.groups)
            and digest == _digest(tar, index.offsets)
        )
    except Exception:  # whatever is wrong with it, it can be made again
        return None
    return index if whole else None


def _save(path: str, index: _Index, digest: str) -> None:
    """Writes an index to a file, all or nothing. Nothing where that is not allowed: it only saves time."""
    text = {key: getattr(index, key) for key in ("made_for", "layout", "groups", "left_out", "beside")}
    with (
        contextlib.suppress(OSError),
        paths.whole(pathlib.Path(path), shared=True) as beside,
        open(beside, "xb") as file,
    ):
        np.savez(
            file,
            version=np.array(VERSION),
            stamp=np.array(index.stamp),
            digest=np.array(digest),
            offsets=index.offsets,
            sizes=index.sizes,
            ends=index.ends,
            names=np.frombuffer(index.names, np.uint8),
            group=index.group,
            text=np.frombuffer(json.dumps(text).encode(), np.uint8),
        )


def _scan(path: str, file: int, stamp: tuple[int, ...], label: str) -> _Index:
    """Reads all headers of a tar, and of the tars in it. `file`: its descriptor."""
    offsets, sizes, group = array.array("q"), array.array("q"), array.array("i")
    names: list[bytes] = []
    groups: dict[bytes, int] = {}
    inner = 0
    part, _, field = (label or "cls").partition(".")
    labels: dict[bytes, bytes] = {}  # what the label files say, by their names without the last ending
    others: list[bytes] = []  # names of all other files
    links = 0

    def add(name: bytes, kind: bytes, offset: int, size: int, parent: bytes) -> bool:
        if _hidden(name) or not name.lower().endswith(_IMAGE) or kind == b"5":
            return False
        if kind not in _PLAIN:
            what = "a link" if kind in b"12" else "no plain file"
            raise UserError(f"{path}, member {_text(name)} is {what}: pack it again with `tar --hard-dereference -hcf`")
        offsets.append(offset)
        sizes.append(size)
        group.append(groups.setdefault(parent, len(groups)))
        names.append(name)
        return True

    beside: dict[bytes, tuple[int, int]] = {}  # (offset, size) of the .txt and .json files, while none is the label
    for name, kind, offset, size in _members(path, file, 0, stamp[0]):
        folder, _, base = name.rpartition(b"/")
        if add(name, kind, offset, size, folder.rpartition(b"/")[2]) or _hidden(name) or kind not in _PLAIN:
            links += kind in b"12" and not _hidden(name)
            continue
        stem, _, end = name.rpartition(b".")
        if base.lower().endswith(b".tar"):
            before = len(names)
            for below, kind, start, length in _members(f"{path}, member {_text(name)}", file, offset, offset + size):
                if not _hidden(below) and not add(name + b"/" + below, kind, start, length, base[:-4]):
                    others += [below] * (kind in _PLAIN)
            if len(names) == before:
                raise UserError(f"{path}, member {_text(name)} holds no image ({ENDINGS}): add images or remove it")
            inner += len(names) - before
        elif end.lower() == part.encode() and b"." in base:
            if stem in labels:
                raise UserError(f"{path}, key {_text(stem)}: has two .{part} files: pack it again with one")
            labels[stem] = _read_class(path, file, name, field, offset, size)
        else:
            others.append(name)
            if end.lower() in (b"txt", b"json"):
                beside[name] = offset, size
    if inner and (inner < len(names) or labels):
        raise UserError(f"{path} holds tars with images and also images or .{part} files: pack only one of both")
    if not names and not labels:
        raise UserError(f"{path} holds no image ({ENDINGS}): is it the right tar?")
    if label and label != "folder" and not labels:
        raise UserError(f"{path} holds no .{part} file, which label={label} asks for: correct the URI")

    if labels:
        layout = part
        chosen = _paired(path, names, labels, part)  # entries by key
        order = sorted(chosen.values())
        groups = {}
        for e in order:
            group[e] = groups.setdefault(labels[names[e].rpartition(b".")[0]], len(groups))
        others = [name for name in others if _key(name) not in chosen]
    else:
        layout = "inner" if inner else "flat"
        order = sorted(range(len(names)), key=names.__getitem__)
        for e, after in itertools.pairwise(order):
            if names[e] == names[after]:
                raise UserError(f"{path} holds {_text(names[e])} twice: pack it again with one of them")
    return _Index(
        stamp,
        _made_for(label),
        layout,
        np.array(offsets, np.int64)[order],
        np.array(sizes, np.int64)[order],
        np.cumsum([0, *(len(names[e]) for e in order)], dtype=np.int64),
        b"".join(names[e] for e in order),
        np.array(group, np.int32)[order],
        [_text(name) for name in groups],
        dict(Counter(ending(_text(name)) for name in others) + Counter(links=links)),
        _beside(file, names, beside) if layout == "flat" else "",
    )


def _paired(path: str, names: list[bytes], labels: dict[bytes, bytes], part: str) -> dict[bytes, int]:
    """The entry of the image of each sample of webdataset, by its key. UserError for a sample without one or with two.

    An image and its label have the same name but for the last ending; where they have no dot before that, other pairs
    are other parts of the sample.
    """
    images: dict[bytes, int] = {}
    for e, name in enumerate(names):
        stem = name.rpartition(b".")[0]
        if stem in images and stem in labels:
            raise UserError(f"{path}, key {_text(stem)}: has two images: pack it again with one")
        images[stem] = e
    chosen: dict[bytes, int] = {}
    for stem in images.keys() & labels.keys():
        key = _key(stem + b".")
        if stem != key and key in images and key in labels:
            continue
        rival = chosen.setdefault(key, images[stem])
        if rival == images[stem] and stem != key:
            rival = images.get(key, rival)  # an image of the key itself, without a label
        if rival != images[stem]:
            first, second = sorted(_text(names[e]) for e in (rival, images[stem]))
            raise UserError(
                f"{path}, key {_text(key)}: has two images, {first} and {second}: the key of webdataset ends at the "
                "first dot of the file's name, so pack them again with other signs than dots"
            )
    for kind, stems, lack in (f"a .{part} file", labels, "image"), ("an image", images, f".{part} file"):
        for stem in stems:
            if _key(stem + b".") not in chosen:
                raise UserError(
                    f"{path}, key {_text(stem)}: has {kind} but no {lack} of this name: pack it again with both"
                )
    return chosen


def _beside(file: int, names: list[bytes], beside: dict[bytes, tuple[int, int]]) -> str:
    """Text for an error about .txt or .json files that have the names of images; "" where there are none."""
    if not beside:
        return ""
    stems = {name.rpartition(b".")[0] for name in names}
    name = next((name for name in beside if name.rpartition(b".")[0] in stems), None)
    if name is None:
        return ""
    ways, fields = "?label=txt if it is the class", ""
    if name.lower().endswith(b".json"):
        offset, size = beside[name]
        try:
            content = json.loads(os.pread(file, min(size, LARGEST_LABEL), offset))
        except ValueError:
            content = None
        ways = "?label=json if it is the class"
        if isinstance(content, dict):
            fields = f" (fields {', '.join(content)})"
            ways = "?label=json.FIELD with the field that is the class"
    return (
        f"{_text(name)} beside the image of that name{fields}: add {ways}, or ?label=folder if the class is the folder"
    )


def _hidden(name: bytes) -> bool:
    return name.startswith(b".") or b"/." in name


def _key(name: bytes) -> bytes:
    """The key of a webdataset member, the path up to the first dot of the file's name: a/7 of a/7.seg.png."""
    dot = name.find(b".", name.rfind(b"/") + 1)
    return name[:dot] if dot >= 0 else name


def _read_class(path: str, file: int, name: bytes, field: str, offset: int, size: int) -> bytes:
    """The class in a label file, a number or a name; `field`: of a JSON object. UserError where it has none."""
    end = name.rpartition(b".")[2].lower()
    text: Any = os.pread(file, min(size, LARGEST_LABEL), offset).removeprefix(b"\xef\xbb\xbf").strip()
    if end == b"json":
        try:
            text = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}, member {_text(name)} is no JSON ({error}): pack it again") from error
        if field:
            if not isinstance(text, dict) or field not in text:
                have = f"has {', '.join(text)}" if isinstance(text, dict) else "is no object"
                raise UserError(f"{path}, member {_text(name)} has no field {field!r}, it {have}: correct label=")
            text = text[field]
        if isinstance(text, dict):
            raise UserError(
                f"{path}, member {_text(name)} has the fields {', '.join(text)}: name one, label=json.FIELD"
            )
        text = b"" if isinstance(text, bool) or not isinstance(text, int | str) else str(text).strip().encode()
    if not text or size > (LARGEST_LABEL if end == b"json" else _PAGE) or re.search(rb"[\0-\x1f]|^-[0-9]+$", text):
        raise UserError(
            f"{path}, key {_text(_key(name))}: the .{_text(end)} file says {_text(text[:40])!r}, "
            "wanted a class number from 0 or a class name: pack it again"
        )
    return text


# --------------------------------------------------------------------------- the format

_PLAIN = (b"0", b"\0", b"7")  # files; the others that have data are extensions and what nobody knows
_BARE = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no data, whatever the size says


def _members(place: str, file: int, start: int, end: int) -> Iterator[tuple[bytes, bytes, int, int]]:
    """(name, type, offset of the data, size) of each member of the tar at bytes start to end of a file.

    Formats ustar, GNU (long names, sizes in base 256) and pax (path and size), by hand: tarfile takes three
    times as long and keeps an object a member. Raises UserError for what is no tar, or one that is cut off.
    """
    page, base = b"", 0
    at = begin = start
    long = b""  # the name that GNU tar gives the next member
    once: dict[bytes, bytes] = {}  # what pax says of the next member
    always: dict[bytes, bytes] = {}  # and of all that follow
    while True:
        if not base <= at <= base + len(page) - _BLOCK:
            page, base = os.pread(file, _PAGE - at % _PAGE, at), at  # up to the end of the page: disks read no less
        block = page[at - base : at - base + _BLOCK]
        if at == begin:
            for magic, how in _COMPRESSED.items():
                if block.startswith(magic):
                    raise UserError(
                        f"{place} is compressed ({how}), which has no random access: decompress it and name the .tar"
                    )
        if len(block) < _BLOCK or at + _BLOCK > end:
            raise UserError(f"{place} is cut off: it ends at byte {end} without the mark of its end; get it again")
        if block[0] == 0 and not block.strip(b"\0"):
            at = start = _after_zeros(file, at, end)  # of another tar, if tars were concatenated
            if at == end:
                return
            continue
        try:
            # The sum counts its own 8 bytes as spaces
            if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
                raise ValueError
            size = _number(block[124:136])
            if size < 0:
                raise ValueError
        except ValueError:
            what = "is no tar" if at == begin else "goes on after its end" if at == start else "is damaged"
            raise UserError(f"{place} {what}: no header of a member at byte {at}; get it again") from None
        kind = block[156:157]
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        offset = at + _BLOCK

        if kind in b"LKxg":
            if offset + size <= end:
                data = os.pread(file, size, offset)
                try:
                    if kind == b"L":
                        long = data.split(b"\0", 1)[0]
                    elif kind == b"x":
                        once = _records(data)
                    elif kind == b"g":
                        always.update(_records(data))
                except ValueError:
                    raise UserError(f"{place} is damaged: no pax header at byte {offset}; get it again") from None
        else:
            if once or always or long:
                known = {**always, **once}
                name = known.get(b"path", long or name)
                size = int(known.get(b"size", size))
                if any(key.startswith(b"GNU.sparse.") for key in known):
                    kind = b"S"
            name = _plain(name)
            if kind == b"S":
                raise UserError(f"{place}, member {_text(name)} is sparse: pack it again without `tar --sparse`")
            if kind == b"\0" and name.endswith(b"/"):
                kind = b"5"  # a folder, before there were types
            long, once = b"", {}
            if kind in _BARE:
                size = 0
        if offset + size > end:
            raise UserError(
                f"{place} is cut off: it ends at byte {end}, but {_text(name)} needs {size} bytes from byte {offset}; "
                "get it again"
            )
        if kind not in b"LKxg":
            yield name, kind, offset, size
        at = offset + -(-size // _BLOCK) * _BLOCK


def _after_zeros(file: int, at: int, end: int) -> int:
    """The next block that is not all zeros, or `end`."""
    while at < end:
        chunk = os.pread(file, min(_CHUNK, end - at), at)
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk) or not chunk:
            return at + zeros - zeros % _BLOCK
        at += zeros
    return end


def _plain(name: bytes) -> bytes:
    """A name as it would be without a leading / or ./, and no /./ inside."""
    if name.startswith((b"/", b"./")):
        name = re.sub(rb"^(\.?/)+", b"", name)
    return name.replace(b"/./", b"/") if b"/./" in name else name


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or 256 at the base after a byte 128. ValueError if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _records(data: bytes) -> dict[bytes, bytes]:
    """The path, the size and the marks of sparse files in a pax header; ValueError if it is none."""
    found = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.index(b" ", at)
        length = int(data[at:space])
        key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
        if not equals or length <= 0:
            raise ValueError
        if key == b"size" and int(value) < 0:
            raise ValueError
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key] = value
        at += length
    return found
