"""Common parts of sources: the protocol, queries in URIs, image files in folders."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile

from jaxvision.data.sample import label_field
from jaxvision.errors import Unreadable, UserError, look_alike, nearest


def _extensions() -> tuple[str, ...]:
    """The endings of the files that the installed Pillow decodes, the usual ones first."""
    usual = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    known = {".mpo": "JPEG", **Image.registered_extensions()}  # .mpo: a JPEG file with more behind it
    # EPS is a program, which Ghostscript would run; MPEG and the stubs are recognised but not decoded
    stubs = {name for name, (factory, _) in Image.OPEN.items() if _is_stub(factory)}
    read = {end for end, name in known.items() if name in Image.OPEN.keys() - stubs - {"EPS", "MPEG"}}
    return (*(end for end in usual if end in read), *sorted(read - set(usual)))


def _is_stub(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


EXTENSIONS = _extensions()
ENDINGS = " ".join(end[1:] for end in EXTENSIONS[:8]) + " and what else Pillow reads"  # for messages


class Source(Protocol):
    """Samples by number. `source[i]` must be safe to call from several threads, and a source must pickle."""

    uri: str
    # What is known of a sample. "class": its class; "tags": any number of classes, as 0 and 1; "values": numbers, to be
    # regressed; "none": nothing, which tasks without labels learn from. Any other kind declares its `fields`.
    kind: str
    classes: tuple[str, ...]  # what "tags" and "values" count along their last axis has its names here too

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"image": uint8 [H, W, C] or encoded bytes, "index": int, and each field}; IndexError outside.

        The field of a label is labels[i]. An array is the caller's own, or read-only."""

    @property
    def labels(self) -> np.ndarray:
        """All labels, in order, without reading images: int32 [N] (class, none) or float32 [N, K] (tags, values)."""

    def where(self, i: int) -> str:
        """The place of sample i, for people: a path where there is one; IndexError outside."""

    # What not every source has:
    #   fields: tuple[Field, ...], what a sample holds beside its image, see data/sample.py; else `label`, by the kind;
    #   objects: int32 [N], how many objects each sample has, where a field is per object;
    #   left_out: dict[str, int], how many files beside the samples were left out, by ending or reason;
    #   member(i): str, the path of sample i below the source's folder or in its tar;
    #   groups: int32 [N], samples of one number belong together, such as the images of one patient;
    #   reads_for_labels: bool, True where `labels` reads all records.


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by number if all of them are integers, else as text.

    The one rule for all sources that find names without an order: folders, tars, tables. Where an order is stored
    (classes.txt, classes=FILE, records, TFDS, the header of a table), that one counts.
    """
    names = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]{1,1000}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_label(source: Source, label: int, where: str) -> None:
    """Raises UserError, naming `where`, for a number that is no place in the source's classes."""
    count = len(source.classes)
    if not 0 <= label < count:
        raise UserError(
            f"{where}: label {label} is outside 0..{count - 1}, the {count} classes of {source.uri}: correct the label "
            "or the class list"
        )


PART = ("split", "per_class", "part", "group", "seed")  # the keys that choose a part of any source, see Subset


def parse_query(uri: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """("path", {"key": "value"}) of path?key=value&key=value, taken literally (no %-escapes).

    Raises UserError for a key that is not `known`, that comes twice or that has no value.
    """
    path, _, tail = rest.partition("?")
    query: dict[str, str] = {}
    for item in tail.split("&") if tail else []:
        key, equals, value = item.partition("=")
        if key not in known:
            raise UserError(f"unknown key {key!r} in {uri!r}: {nearest(key, [k for k in (*known, *PART) if k != key])}")
        if not equals or not value:
            raise UserError(f"{uri!r}: {key} has no value, wanted {key}=...")
        if key in query:
            raise UserError(f"{uri!r}: {key} comes twice, as {query[key]} and as {value}: remove one of them")
        query[key] = value
    return path, query


# What a spreadsheet takes for a formula, or what ends a cell for it and begins another (OWASP, "CSV Injection"), after
# apostrophes; and numbers, which it may take for what they are.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20].", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guarded(cell: str) -> str:
    """A cell of a table as a spreadsheet shows it: an apostrophe before what it would run as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unguarded(cell: str) -> str:
    """The inverse of `guarded`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


LARGEST = 768 << 20  # bytes of a file with an image: 89 million pixels of 8 bytes


def read_file(path: str) -> bytes:
    """All bytes of a file, in half the calls that `open` makes. OSError for a folder, and at once for a pipe, or what
    is larger than LARGEST."""
    if "\0" in path:
        raise OSError(errno.EINVAL, "no file's name has a zero byte")
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a file")
        if status.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are more than an image has")
        data = os.read(file, status.st_size + 1)
        while len(data) < status.st_size:  # a network disk may cut a read short
            more = os.read(file, status.st_size - len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(file)


def read_image(path: str, more: str = "") -> bytes:
    """All bytes of an image file that a source lists. Raises Unreadable, with `more` at the end of the message."""
    try:
        return read_file(path)
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {error.strerror}{more}") from error


def subfolders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and is_folder(e))


def ending(name: str) -> str:
    """The ending of a file's name in lower case, as `Source.left_out` counts it."""
    return os.path.splitext(name)[1].lower() or "no ending"


def counted(left_out: dict[str, int]) -> str:
    """`Source.left_out` in words, the most frequent first: "12 .txt, 3 .heic"."""
    return ", ".join(f"{count:,} {what}" for what, count in sorted(left_out.items(), key=lambda pair: -pair[1]))


def left_out(sources: Iterable[Source]) -> dict[str, dict[str, int]]:
    """URI -> `Source.left_out`, of those sources that left something out; of parts that of the whole, once."""
    found = {}
    for source in sources:
        whole: Any = source
        while hasattr(whole, "whole"):
            whole = whole.whole
        found[whole.uri] = getattr(whole, "left_out", {})
    return {uri: counts for uri, counts in found.items() if counts}


def notes(sources: Iterable[Source]) -> list[str]:
    """Notes on sources for people before use: what was left out, how often each tag comes.

    Sources of the same URI are told once.
    """
    sources = list({source.uri: source for source in sources}.values())
    lines = [f"{uri} leaves out {counted(counts)}" for uri, counts in left_out(sources).items()]
    for source in sources:
        field = label_field(source)
        if field is not None and field.unknown is not None:
            labels = source.labels
            ones, unknown = np.nansum(labels, 0).astype(int).tolist(), np.isnan(labels).sum(0).tolist()
            tags = [
                f"{name} {count:,}" + (f" ({missing:,} unknown)" if missing else "")
                for name, count, missing in zip(source.classes[:50], ones, unknown)
            ]
            more = f", and {len(source.classes) - 50:,} more tags" if len(source.classes) > 50 else ""
            lines.append(f"tags of {source.uri}: {', '.join(tags)}{more}; none: {int((labels == 0).all(1).sum()):,}")
    return lines


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; no link that leads to itself is."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images(
    folder: str,
    below: str,
    seen: set[tuple[int, int]],
    endings: tuple[str, ...] = EXTENSIONS,
    left_out: Counter[str] | None = None,
) -> Iterator[str]:
    """Paths of the images in folder/below, relative to folder. `seen` stops circles of symbolic links, and `left_out`
    counts the other files by their endings. Hidden names are in neither."""
    here = os.path.join(folder, below)
    try:
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    yield from images(folder, os.path.join(below, entry.name), seen, endings, left_out)
                elif entry.name.lower().endswith(endings):
                    yield os.path.join(below, entry.name)
                elif left_out is not None:
                    left_out[ending(entry.name)] += 1
    except OSError as error:
        raise UserError(f"cannot list {here}: {error.strerror}") from error


class Names:
    """Many file names in little memory: their bytes, and 8 more a name."""

    def __init__(self, names: list[bytes]) -> None:
        self._ends = np.cumsum([0, *map(len, names)])  # name i is bytes ends[i] to ends[i + 1]
        self._joined = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self._joined[self._ends[i] : self._ends[i + 1]])


def check_ends(path: str) -> None:
    """Raises OSError for a device, which may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a device, not a file")


def read_lines(path: str) -> list[str]:
    """The lines of a text file, blank ones too; UserError if it cannot be read. Bytes that are no UTF-8 survive."""
    try:
        check_ends(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{sibling(path, files=True)}") from error


def read_classes(path: str) -> tuple[str, ...]:
    """The class names in a text file, one a line; UserError if it names one twice or none."""
    names = [line for line in read_lines(path) if line.strip()]
    seen = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path} names {name!r} twice: remove one of the lines")
        seen.add(name)
    if not names:
        raise UserError(f"{path} names no class: write one name a line")
    return tuple(names)


def sibling(path: str, files: bool = False) -> str:
    """The tail of an error about an absent folder (or file): what is beside it."""
    parent, name = os.path.split(os.path.abspath(path))
    if os.path.exists(path) or not os.path.isdir(parent):
        return ""
    there = os.listdir(parent) if files else subfolders(parent)
    alike = next((other for other in there if look_alike(name, other)), None)
    if alike is not None:
        return f"; did you mean {alike!a} of {parent}, which looks the same as {name!a}?"
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {os.path.join(parent, near[0])}?"
    return f"; {parent} exists, see what it holds"
