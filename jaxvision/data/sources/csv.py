"""csv: a table of image files and what is on them."""

from __future__ import annotations

import array
import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxvision.data.sources.common import (
    Names,
    check_ends,
    class_order,
    parse_query,
    read_classes,
    read_image,
    sibling,
    unguarded,
)
from jaxvision.data.sources.folder import check_case
from jaxvision.errors import UserError, nearest
from jaxvision.runtime import paths


class Holds(NamedTuple):
    """Content of the cells of a kind of labels: numbers; one name a row; or several."""

    numbers: bool = False
    one: bool = False
    several: bool = False


LABELLED = {"class": Holds(one=True), "tags": Holds(several=True), "values": Holds(numbers=True)}
HOLDS = {"": Holds(), **LABELLED}  # "": the table will say
KEYS = ("kind", "root", "classes", "delimiter", "sep", "image", "label", "group", "suffix")
FIRST = ("path", "file", "filename", "image")  # what the header may call the column of paths
SIGNS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "space": " ", "pipe": "|"}
UNKNOWN = ("", "nan", "na")  # what a cell of 0 and 1 may hold where nobody knows


class Csv:
    """Images that a csv file lists: a header line, then a path and its labels in each row, in this order.

    `class`: one column, the name of a class, or one-hot columns, which the header names; label int. `tags`: any number
    of names in a row, also none, or columns of 0 and 1, which the header names; label float32 [K] of 0 and 1, NaN where
    a cell of the columns is empty or NaN, that is unknown. `values`: columns of numbers, which the header names; label
    float32 [K]. Without `kind=` the table says which: one column of names is `class`; several columns of 0 and 1 are
    `class` where each row has exactly one 1, else `tags`. A table that can be read in two ways is refused. The tables
    of classes and of tags that `predict --out` writes are read as what they are.

    `delimiter=` is between cells, `sep=` between the tags in a cell (`none`: a cell is one tag, whatever it holds);
    `image=`, `label=` and `group=` name columns; `suffix=` is appended to each path.

    Whether an image exists is seen when it is read, not at the start. The table takes the bytes of the paths and 8
    more a row, 4 for each class, tag and value, and 8 more a row of tags.

    Attributes:
      groups: int32 [N], only with `group=`: rows of one number have the same cell in that column.
    """

    groups: np.ndarray

    def __init__(self, rest: str) -> None:
        self.uri = f"csv:{rest}"
        path, query = parse_query(self.uri, rest, KEYS)
        path = os.path.expanduser(path)
        self.kind = query.get("kind", "")
        if self.kind and self.kind not in LABELLED:
            raise UserError(f"unknown kind in {self.uri!r}: {nearest(self.kind, list(LABELLED))}")
        if HOLDS[self.kind].numbers and "classes" in query:
            raise UserError(f"{self.uri!r}: the header names the values: remove classes=")
        if "sep" in query:
            if self.kind not in ("", "tags"):
                raise UserError(f"{self.uri!r}: sep is between tags, and kind is {self.kind}: remove one of them")
            self.kind = "tags"
        self.root = os.path.expanduser(query["root"]) if "root" in query else os.path.dirname(path)
        rows = _rows(path, _sign(self.uri, "delimiter", query.get("delimiter", ",")))
        columns = _columns(self.uri, path, next(rows, (1, []))[1], query, self.kind)
        self.kind = self.kind or columns.kind
        table = _Table(self.uri, path, columns, self.kind, self.root, query.get("suffix", ""))
        table.read(rows)
        self._names = Names(table.names)
        self._tag_ends: np.ndarray | None = None  # of tags by name: those of row i are _labels[ends[i] : ends[i + 1]]
        if table.groups:
            self.groups = np.array(table.groups, np.int32)
        if HOLDS[self.kind].numbers:
            self.classes: tuple[str, ...] = columns.names
            self._labels: np.ndarray = np.array(table.values, np.float32).reshape(len(table.names), -1)
            return
        wanted = read_classes(os.path.expanduser(query["classes"])) if "classes" in query else None
        sep = _sign(self.uri, "sep", query["sep"]) if "sep" in query else columns.sep
        told = "sep" in query or bool(columns.kind)  # that cells hold names, and how
        zero_one = None if told else table.zero_one()
        if zero_one is not None:
            self.kind = self.kind or ("class" if _not_one_hot(zero_one) is None else "tags")
            self._read_columns(table, zero_one, wanted, query.get("classes", ""))
            return
        if not told and not HOLDS[self.kind].one:
            table.check_names()
        self.kind = self.kind or "class"
        self._read_names(table, sep, wanted, query.get("classes", ""))

    def _read_names(self, table: _Table, sep: str, wanted: tuple[str, ...] | None, listing: str) -> None:
        """Labels of cells that hold names."""
        numbers: dict[str, int] = {name: k for k, name in enumerate(wanted or ())}  # without a list, as they come
        found: list[set[int]] = []  # of each text that a cell may hold
        for text, line in table.texts.items():
            names = _split(f"{table.path}, line {line}", text, sep) if HOLDS[self.kind].several else [text]
            for name in names:
                if wanted is not None and name not in numbers:
                    raise UserError(f"{table.path}, line {line}: {name!r} is not in {listing}: {nearest(name, wanted)}")
                numbers.setdefault(name, len(numbers))
            found.append({numbers[name] for name in names})
        if not numbers:
            raise UserError(f"{table.path} has no tag in any row: write the tags after the path")
        if wanted is None:
            check_case(numbers, table.path, "a file, classes=FILE")
        self.classes = wanted or class_order(numbers)
        labels, counts = array.array("i"), array.array("i")
        ends = np.cumsum([0, *table.widths])
        for start, stop in itertools.pairwise(ends):
            tags: set[int] = set().union(*(found[code] for code in table.codes[start:stop]))
            labels.extend(tags)
            counts.append(len(tags))
        if HOLDS[self.kind].several:
            self._tag_ends = np.cumsum([0, *counts])
        places = {name: k for k, name in enumerate(self.classes)}
        self._labels = np.array([places[name] for name in numbers], np.int32)[np.array(labels, np.int32)]

    def _read_columns(self, table: _Table, zero_one: np.ndarray, wanted: tuple[str, ...] | None, listing: str) -> None:
        """Labels of columns of 0 and 1, float32 [N, K]."""
        names = table.columns.names
        if HOLDS[self.kind].one:
            row = _not_one_hot(zero_one)
            if row is not None:
                raise UserError(
                    f"{table.path}, line {table.lines[row]}: {_ones(zero_one[row])} in the columns of 0 and 1, and a "
                    f"class needs exactly one 1: correct it, or take kind=tags"
                )
        order = np.arange(len(names))
        if wanted is not None:
            for name in names:
                if name not in wanted:
                    raise UserError(f"{table.path} has a column {name!r}, not in {listing}: {nearest(name, wanted)}")
            absent = [name for name in wanted if name not in names]
            if absent and HOLDS[self.kind].several:
                raise UserError(f"{table.path} has no column {absent[0]!r}, which {listing} names: add it")
            order = np.array([wanted.index(name) for name in names])
        self.classes = wanted or names
        if HOLDS[self.kind].one:
            self._labels = order[zero_one.argmax(1)].astype(np.int32)
        else:
            self._labels = np.ascontiguousarray(zero_one[:, np.argsort(order)])

    def __len__(self) -> int:
        return len(self._names)

    @property
    def labels(self) -> np.ndarray:
        """int32 [N] (class) or float32 [N, K]. Those of tags by name are made anew at each use, since most are 0."""
        if self._tag_ends is None:
            return self._labels
        table = np.zeros((len(self), len(self.classes)), np.float32)
        table[np.repeat(np.arange(len(self)), np.diff(self._tag_ends)), self._labels] = 1
        return table

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        image = read_image(
            self.where(i), f"; {self.uri} lists it, paths begin at {self.root or '.'} (root= in the URI)"
        )
        return {"image": image, "label": self._label(i), "index": i}

    def _label(self, i: int) -> int | np.ndarray:
        if HOLDS[self.kind].one:
            return int(self._labels[i])
        if self._tag_ends is None:
            return self._labels[i].copy()  # a sample is the caller's own
        row = np.zeros(len(self.classes), np.float32)
        row[self._labels[self._tag_ends[i] : self._tag_ends[i + 1]]] = 1
        return row

    def where(self, i: int) -> str:
        return os.path.join(self.root, self._names[range(len(self))[i]])


# --------------------------------------------------------------------------- the columns


class _Columns(NamedTuple):
    """Roles of the columns of a table."""

    header: tuple[str, ...]
    image: int
    labels: tuple[int, ...]
    names: tuple[str, ...]  # of the labels
    group: int | None
    ragged: bool  # a row may have any number of cells: what is after the path are names
    kind: str = ""  # where the header tells
    sep: str = ""  # in a cell of tags, where the header tells


def _columns(uri: str, path: str, row: list[str], query: dict[str, str], kind: str) -> _Columns:
    """The columns that the header and the URI name."""
    header = [unguarded(cell.strip()) for cell in row]

    def column(key: str, name: str) -> int:
        if header.count(name) != 1:
            what = f"{header.count(name)} columns {name!r}" if name in header else f"no column {name!r}"
            raise UserError(f"{uri}: {key}={name}, but {path} has {what}: {nearest(name, header)}")
        return header.index(name)

    if "image" in query:
        image = column("image", query["image"])
    elif header and header[0].lower() in FIRST:
        image = 0
    else:
        sign = next((name for name, sign in SIGNS.items() if len(row) == 1 and name != "space" and sign in row[0]), "")
        raise UserError(
            f"the first line of {path} is {','.join(row)!r}, wanted a header, separated by commas, "
            f"whose first column is called {' or '.join(FIRST)}"
            + (f": add delimiter={sign} to the URI" if sign else " (or add image=COLUMN to the URI)")
        )
    group = column("group", query["group"]) if "group" in query else None
    if "label" in query:
        chosen = [query["label"]] if query["label"] in header else query["label"].split(",")
        labels = tuple(column("label", name) for name in chosen)
    else:
        labels = tuple(k for k in range(len(header)) if k not in (image, group))
    for place in (image, group):
        if place in labels:
            raise UserError(f"{uri}: the column {header[place]!r} cannot be a label, too: correct label=")
    names = tuple(header[k] for k in labels)
    told = {}
    if "label" not in query and not HOLDS[kind].numbers:
        lower = [name.lower() for name in names]
        if lower[:1] == ["time"] and _predicted(lower[1:]):
            raise UserError(f"{path} has what predict says of the frames of videos, which are no image files")
        if _predicted(lower):
            labels, names = labels[:1], names[:1]
            told = {"kind": "tags", "sep": ","} if lower[0] == "tags" else {"kind": "class"}
    if not HOLDS[kind].several and not labels:
        raise UserError(f"{path} has no label column, only {header[image]!r}: add one")
    if HOLDS[kind].numbers:
        _check_headings(path, header, labels)
    ragged = HOLDS[kind].several and not told and "label" not in query
    return _Columns(tuple(header), image, labels, names, group, ragged, **told)


def _predicted(header: list[str]) -> bool:
    """Whether these are the columns that `predict --out` writes of classes or tags, after the image."""
    pairs = [f"{what}_{k}" for k in range(1, len(header) // 2 + 1) for what in ("class", "probability")]
    return header in (["class", "probability"], ["tags", "probabilities"]) or (len(header) > 2 and header == pairs)


def _check_headings(path: str, header: Sequence[str], labels: tuple[int, ...]) -> None:
    """Raises UserError unless each of these columns has a name of its own."""
    for k in labels:
        if not header[k] or header.count(header[k]) > 1:
            last = max(j for j, name in enumerate(header) if name == header[k])
            raise UserError(f"the header of {path} has {header[k]!r} as column {last + 1}: give each its own name")


def _sign(uri: str, key: str, text: str) -> str:
    """The character that delimiter= or sep= names; "" of sep=none."""
    if key == "sep" and text == "none":
        return ""
    sign = SIGNS.get(text, text)
    if len(sign) != 1 or sign in '"\r\n':
        words = ", ".join(name for name in SIGNS if name.isalpha())
        raise UserError(f"{uri!r}: {key} must be one character or one of {words}, got {text!r}")
    return sign


# --------------------------------------------------------------------------- the rows


class _Table:
    """The rows of a table while they are read. Equal cells are kept once."""

    def __init__(self, uri: str, path: str, columns: _Columns, kind: str, root: str, suffix: str) -> None:
        self.uri, self.path, self.columns, self.kind, self.root, self.suffix = uri, path, columns, kind, root, suffix
        self.names: list[bytes] = []
        self.lines = array.array("i")  # of each row
        self.groups = array.array("i")
        self.values = array.array("f")
        self.texts: dict[str, int] = {}  # the line of each text that came first
        self.codes = array.array("i")  # of each cell, the place of its text
        self.widths = array.array("i")  # how many cells each row has

    def read(self, rows: Iterable[tuple[int, list[str]]]) -> None:
        columns, seen, places, groups = self.columns, dict[str, int](), dict[str, int](), dict[str, int]()
        for line, row in rows:
            place = f"{self.path}, line {line}"
            if not columns.ragged and len(row) != len(columns.header):
                hint = "" if self.kind else ", or add kind=tags to the URI if the last cells are any number of names"
                raise UserError(
                    f"{place}: {_cells(len(row))}, but the header has {_cells(len(columns.header))}: correct it{hint}"
                )
            if len(row) <= max(columns.image, columns.group or 0):
                raise UserError(f"{place}: {_cells(len(row))}, too few: correct it")
            image = unguarded(row[columns.image])
            if not "".join(row).isascii():
                _check_text(place, row, os.path.join(self.root, image + self.suffix))
            self.names.append(_name(place, image, self.suffix, line, seen))
            self.lines.append(line)
            if columns.group is not None:
                text = row[columns.group].strip()
                if not text:
                    raise UserError(f"{place}: the group is empty: write one or remove the line")
                self.groups.append(groups.setdefault(text, len(groups)))
            if columns.ragged:
                chosen = [cell for k, cell in enumerate(row) if k not in (columns.image, columns.group)]
            else:
                chosen = [row[k] for k in columns.labels]
            cells = [unguarded(cell.strip()) for cell in chosen]
            if HOLDS[self.kind].numbers:
                self.values.extend(_number(place, *pair) for pair in zip(columns.names, cells))
                continue
            if not HOLDS[self.kind].several and cells == [""]:
                raise UserError(f"{place}: {row[columns.image]!r} has no class: write one or remove the line")
            for text in cells:
                self.codes.append(places.setdefault(text, len(places)))
                self.texts.setdefault(text, line)
            self.widths.append(len(cells))
        if not self.names:
            raise UserError(f"{self.path} has a header but no rows: write one line an image")

    def zero_one(self) -> np.ndarray | None:
        """float32 [N, K] of 0, 1 and NaN, if that is all that the columns hold; None if they hold names.

        One column is that only for tags. Raises UserError for several columns of something else.
        """
        columns, rectangular = self.columns, bool((np.array(self.widths) == len(self.columns.labels)).all())
        states = [_state(text) for text in self.texts]
        some = any(state in (0, 1) for state in states)
        if rectangular and some and None not in states and (len(columns.labels) > 1 or HOLDS[self.kind].several):
            _check_headings(self.path, columns.header, columns.labels)
            return np.array(states, np.float32)[np.array(self.codes)].reshape(len(self.names), -1)
        if not HOLDS[self.kind].several and len(columns.labels) > 1:
            raise UserError(
                f"{self.path} has {len(columns.labels)} label columns ({', '.join(columns.names)}): "
                f"add {self._key('kind=tags')} (names of any number of classes) or {self._key('kind=values')} (numbers)"
                f" to the URI, or {self._key('label=COLUMN')} if one of them is the class. Columns of 0 and 1 need "
                f"neither, but {self._first(lambda text: _state(text) is None)}"
            )
        numbers = [text for text in self.texts if text]
        if HOLDS[self.kind].several and rectangular and numbers and all(map(_is_number, numbers)):
            self._two_ways(
                f"{self._first(lambda text: _is_number(text) and _state(text) is None)}, and all labels are numbers, "
                "but not only 0, 1 and, for unknown, an empty cell or NaN",
                {"kind=values": "numbers to be predicted", "sep=none": "numbers that are names of tags"},
            )
        return None

    def check_names(self) -> None:
        """Raises UserError where cells that are taken for one name each look like something else."""
        texts = [text for text in self.texts if text]
        fraction = next((text for text in texts if not text.lstrip("+-").isdecimal()), "")
        if not self.kind and fraction and all(map(_is_number, texts)):
            zero_one = {"kind=tags": "whether it has what the header names"}
            self._two_ways(
                f"line {self.texts[fraction]} has {fraction!r}, and all labels are numbers",
                {"kind=values": "numbers to be predicted", "kind=class": "names of classes"}
                | ({} if None in map(_state, texts) else zero_one),
            )
        for word in ("comma", "semicolon", "pipe", "space"):
            found = {text: _split("", text, SIGNS[word]) for text in texts}
            several = next((text for text in texts if len(found[text]) > 1), None)
            if several is None:
                continue
            parts = [part for names in found.values() for part in names]
            if word == "space":  # "polar bear" is one tag, "cat dog" beside "cat" and "dog" is two
                suspicious = len(set(parts)) < len(texts) and bool(set(parts) & set(texts))
            else:
                suspicious = bool(self.kind) or len(set(parts)) < len(parts)
            if suspicious:
                one = {"sep=none": "one tag a cell"} if self.kind else {"kind=class": "one class a cell"}
                tags = " and ".join(map(repr, found[several]))
                self._two_ways(
                    f"line {self.texts[several]} has {several!r}", {f"kind=tags&sep={word}": f"the tags {tags}", **one}
                )

    def _first(self, wanted: Callable[[str], bool]) -> str:
        text, line = next(((t, line) for t, line in self.texts.items() if wanted(t)), ("", 0))
        return f"line {line} has {text!r}"

    def _key(self, key: str) -> str:
        return f"{'&' if '?' in self.uri else '?'}{key}"

    def _two_ways(self, what: str, readings: dict[str, str]) -> NoReturn:
        """Raises UserError. `readings`: what the URI must have for each, and what it means."""
        given = self.uri.partition("?")[2].split("&")
        ways = []
        for keys, meaning in readings.items():
            new = "&".join(key for key in keys.split("&") if key not in given)
            ways.append(f"{new}{' instead of kind=' + self.kind if self.kind and 'kind=' in new else ''} ({meaning})")
        raise UserError(
            f"{self.path} can be read in more ways than one: {what}. Add to the URI, after {self._key('')}, "
            f"{' or '.join(ways)}"
        )


def _rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not blank. Of a row of several lines, the last one counts."""
    try:
        check_ends(path)
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}: correct the quotes") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{sibling(path, files=True)}") from error


def _cells(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def _check_text(place: str, row: list[str], image: str) -> None:
    """Raises UserError if a row is no UTF-8, but for the name of a file that exists: those may be any bytes."""
    if not paths.is_utf8("".join(row)) and (paths.is_utf8(image) or not os.path.exists(image)):
        raise UserError(f"{place}: no UTF-8 text: save the table as UTF-8")


def _name(place: str, name: str, suffix: str, line: int, seen: dict[str, int]) -> bytes:
    if not name.strip():
        raise UserError(f"{place}: the path is empty: write one or remove the line")
    if "\0" in name:
        raise UserError(f"{place}: the path {name!r} holds a zero byte, which no file's name has: correct it")
    first = seen.setdefault(os.path.normpath(name), line)
    if first != line:
        raise UserError(f"{place}: {name!r} is already in line {first}: remove one of the lines")
    return (name + suffix).encode("utf-8", "surrogateescape")


# --------------------------------------------------------------------------- cells


def _number(place: str, column: str, cell: str) -> float:
    number = float(cell) if _is_number(cell) else np.nan
    if not abs(number) <= float(np.finfo(np.float32).max):  # so that NaN does not pass either
        raise UserError(f"{place}: {column} is {cell!r}, wanted a finite number: correct it or remove the line")
    return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _state(text: str) -> float | None:
    """0, 1 or, for a cell that says that nobody knows, NaN; None for any other text."""
    text = {"true": "1", "false": "0"}.get(text.lower(), text.lower())  # as pandas writes them
    if text in UNKNOWN:
        return np.nan
    return float(text) if _is_number(text) and float(text) in (0, 1) else None


def _split(place: str, text: str, sep: str) -> list[str]:
    """The names in a cell. One that holds `sep` itself is in quotes, as in a row of a table."""
    if sep in ("", " "):
        names = text.split() if sep else [text]
    else:
        try:
            names = next(csv.reader([text], delimiter=sep, skipinitialspace=True), [])
        except csv.Error as error:
            raise UserError(f"{place}: {text!r}: {error}: correct the quotes") from error
    return [name for name in map(str.strip, names) if name]


def _not_one_hot(zero_one: np.ndarray) -> int | None:
    """The first row that is not one 1 and else 0; None if there is none."""
    wrong = np.isnan(zero_one).any(1) | (np.nansum(zero_one, 1) != 1)
    return int(np.argmax(wrong)) if wrong.any() else None


def _ones(row: np.ndarray) -> str:
    unknown = int(np.isnan(row).sum())
    return f"{unknown} unknown" if unknown else f"{int(row.sum())} ones"
