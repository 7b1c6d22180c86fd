"""csv: a table of image files and what is on them."""

from __future__ import annotations

import array
import csv
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvision.data.sources.common import class_order, parse_query, read_classes, read_image, sibling
from jaxvision.data.sources.folder import check_case
from jaxvision.errors import UserError, nearest

LABELLED = ("class", "tags", "values")
FIRST = ("path", "file", "filename", "image")  # what the header may call the column of paths


class Csv:
    """Images that a csv file lists: a header line, then a path and its labels in each row, in this order.

    `class`: one column, the name of a class; label int. `tags`: any number of names in a row, also none; label
    float32 [K] of 0 and 1. `values`: columns of numbers, which the header names; label float32 [K].

    Whether an image exists is seen when it is read, not at the start. The table takes the bytes of the paths and 8
    more a row, 4 for each class, tag and value, and 8 more a row of tags.
    """

    def __init__(self, rest: str) -> None:
        self.uri = f"csv:{rest}"
        path, query = parse_query(self.uri, rest, ("kind", "root", "classes"))
        path = os.path.expanduser(path)
        self.kind = query.get("kind", "class")
        if self.kind not in LABELLED:
            raise UserError(f"unknown kind in {self.uri!r}: {nearest(self.kind, LABELLED)}")
        if self.kind == "values" and "classes" in query:
            raise UserError(f"{self.uri!r}: the header names the values: remove classes=")
        self.root = os.path.expanduser(query["root"]) if "root" in query else os.path.dirname(path)
        wanted = read_classes(os.path.expanduser(query["classes"])) if "classes" in query else None

        rows = _rows(path)
        header = _header(path, next(rows, (1, []))[1], self.kind)
        names: list[bytes] = []
        seen: dict[str, int] = {}  # the line of each path
        numbers = {name: k for k, name in enumerate(wanted or ())}  # without a list, as they come
        labels: Any = array.array("f" if self.kind == "values" else "i")
        counts = array.array("i")
        for line, row in rows:
            place = f"{path}, line {line}"
            if self.kind != "tags" and len(row) != len(header):
                raise UserError(
                    f"{place}: {_columns(len(row))}, but the header has {_columns(len(header))}: correct it"
                )
            names.append(_name(place, row[0], line, seen))
            if self.kind == "values":
                labels.extend(_number(place, *pair) for pair in zip(header[1:], row[1:]))
            else:
                found = {cell.strip() for cell in row[1:]} - {""}
                if self.kind == "class" and not found:
                    raise UserError(f"{place}: {row[0]!r} has no class: write one or remove the line")
                for name in found:
                    if wanted is not None and name not in numbers:
                        raise UserError(f"{place}: {name!r} is not in {query['classes']}: {nearest(name, wanted)}")
                    labels.append(numbers.setdefault(name, len(numbers)))
                counts.append(len(found))
        if not names:
            raise UserError(f"{path} has a header but no rows: write one line an image")

        self._ends = np.cumsum([0, *map(len, names)])  # path i is bytes ends[i] to ends[i + 1]
        self._names = b"".join(names)
        self._tag_ends = np.cumsum([0, *counts]) if self.kind == "tags" else None
        if self.kind == "values":
            self.classes = tuple(header[1:])
            self._labels: np.ndarray = np.array(labels, np.float32).reshape(len(names), -1)
            return
        if not numbers:
            raise UserError(f"{path} has no tag in any row: write the tags after the path")
        if wanted is None:
            check_case(numbers, path, "a file, classes=FILE")
        self.classes = wanted or class_order(numbers)
        places = {name: k for k, name in enumerate(self.classes)}
        self._labels = np.array([places[name] for name in numbers], np.int32)[np.array(labels, np.int32)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def labels(self) -> np.ndarray:
        """int32 [N] (class) or float32 [N, K]. Those of tags are made anew at each use, since most are 0."""
        if self._tag_ends is None:
            return self._labels
        table = np.zeros((len(self), len(self.classes)), np.float32)
        table[np.repeat(np.arange(len(self)), np.diff(self._tag_ends)), self._labels] = 1
        return table

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        image = read_image(self.where(i), f"; {self.uri} lists it")
        return {"image": image, "label": self._label(i), "index": i}

    def _label(self, i: int) -> int | np.ndarray:
        if self.kind == "class":
            return int(self._labels[i])
        if self._tag_ends is None:
            return self._labels[i].copy()  # a sample is the caller's own
        row = np.zeros(len(self.classes), np.float32)
        row[self._labels[self._tag_ends[i] : self._tag_ends[i + 1]]] = 1
        return row

    def where(self, i: int) -> str:
        i = range(len(self))[i]
        name = self._names[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")
        return os.path.join(self.root, name)


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not blank. Of a row of several lines, the last one counts."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}: correct the quotes") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, after line {reader.line_num}: no UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{sibling(path, files=True)}") from error


def _header(path: str, row: list[str], kind: str) -> list[str]:
    """The names of the columns."""
    header = [cell.strip() for cell in row]
    if not header or header[0].lower() not in FIRST:
        raise UserError(
            f"the first line of {path} is {','.join(row)!r}, wanted a header, separated by commas, "
            f"whose first column is called {' or '.join(FIRST)}"
        )
    if kind == "class" and len(header) > 2:
        raise UserError(
            f"{path} has {len(header) - 1} label columns ({', '.join(header[1:])}): "
            "add ?kind=tags (names of any number of classes) or ?kind=values (numbers) to the URI"
        )
    if kind != "tags" and len(header) < 2:
        raise UserError(f"{path} has no label column, only {header[0]!r}: add one")
    if kind == "values":
        for k, name in enumerate(header):
            if not name or name in header[:k]:
                raise UserError(f"the header of {path} has {name!r} as column {k + 1}: give each value its own name")
    return header


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def _name(place: str, name: str, line: int, seen: dict[str, int]) -> bytes:
    if not name.strip():
        raise UserError(f"{place}: the path is empty: write one or remove the line")
    first = seen.setdefault(os.path.normpath(name), line)
    if first != line:
        raise UserError(f"{place}: {name!r} is already in line {first}: remove one of the lines")
    return name.encode("utf-8", "surrogateescape")


def _number(place: str, column: str, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = np.nan
    if not abs(number) <= float(np.finfo(np.float32).max):  # so that NaN does not pass either
        raise UserError(f"{place}: {column} is {cell!r}, wanted a finite number: correct it or remove the line")
    return number
