"""Values that make sense: ranges for the table of the config, and as annotations of what a factory takes.

    def ema(task: Task, *, decay: Rate = 0.9999) -> Task: ...

Whatever a config names is held to the annotations of its arguments before any data is read (`check_arguments`).
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from jaxvision.errors import UserError, nearest


class Range(NamedTuple):
    """What values make sense: a test, and words that follow "it must be", or "expected" if it is of a tuple's parts."""

    test: Callable[[Any], bool]
    words: str
    names: tuple[str, ...] | None = None  # all values there are, where they are names
    parts: bool = False  # whether the test is of each value in a tuple

    def check(self, key: str, value: Any) -> None:
        """Raises UserError, which names key and value, unless the value is in the range."""
        if self.parts:
            for part in value:
                if not self.test(part):
                    raise UserError(f"{key} holds {part!r}: expected {self.words}")
        elif not self.test(value):
            what = nearest(value, self.names) if self.names is not None else f"it must be {self.words}"
            raise UserError(f"{key} is {value!r}: {what}")


def between(low: float, high: float) -> Range:
    """Numbers of `low` to `high`, both included."""
    return Range(lambda v: low <= v <= high, f"at least {low:,}, at most {high:,}")


def at_least(low: float, more: str = "") -> Range:
    """Numbers of `low` and above; the words end with `more`."""
    return Range(lambda v: v >= low, f"at least {low:,}{more}")


def one_of(*names: str) -> Range:
    """Some names; to another one the nearest is offered."""
    return Range(lambda v: v in names, "one of " + ", ".join(map(repr, names)), names)


def each(test: Callable[[Any], bool], words: str) -> Range:
    """Tuples in which each value passes the test."""
    return Range(test, words, parts=True)


def pairs(test: Callable[[Any], bool], words: str) -> Range:
    """Tuples of pairs of a text and a number that passes the test."""

    def good(pair: Any) -> bool:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            return False
        return is_number(pair[1]) and test(pair[1])

    return each(good, words)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_pattern(text: Any) -> bool:
    """Whether it is a regular expression."""
    try:
        re.compile(text)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def is_name(text: str) -> bool:
    """Whether a text may name a file in a folder of ours: letters, digits, "_", "-" and ".", not "." first."""
    return bool(re.fullmatch(r"[\w-][\w.-]*", text)) and len(text) <= 100


SHARE = Range(lambda v: 0 <= v <= 1, "between 0 and 1")
RATE = Range(lambda v: 0 <= v < 1, "in [0, 1)")
POSITIVE = Range(lambda v: v > 0, "above 0")
NOT_NEGATIVE = at_least(0)
COUNT = between(1, 2**20)
SOME = Range(lambda v: len(v) > 0, "with at least one value")
LEVELS = Range(
    lambda v: v == () or (len(v) == 2 and all(map(is_number, v)) and v[0] < v[1]),
    "the lowest and the highest level of grey, as (0, 4095) for 12 bits, or () for all of the file's type",
)
COLOUR = Range(
    lambda v: v == () or (len(v) == 3 and all(type(c) is int and 0 <= c <= 255 for c in v)),
    "red, green and blue from 0 to 255, as (255, 255, 255), or () to drop alpha",
)


def _side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**14


SIDES = Range(
    lambda v: _side(v) or (isinstance(v, tuple | list) and len(v) == 2 and all(map(_side, v))),
    "a side in pixels, at least 1, at most 16,384, or (height, width)",
)

# For annotations: the type for type checkers, the range for `check_arguments`.
Share = Annotated[float, SHARE]
Rate = Annotated[float, RATE]  # of dropping, averaging, smoothing: 1 would leave nothing
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Count = Annotated[int, COUNT]
Steps = Annotated[float, Range(lambda v: 0 <= v < 2**31 and v == int(v), "a whole number of steps")]
CountOrNone = Annotated[int, between(0, 2**20)]  # 0 is none
Depth = Annotated[int, between(1, 300)]  # of blocks that are traced one by one
Counts = Annotated[tuple[Count, ...], SOME]
Depths = Annotated[tuple[Depth, ...], SOME]
Level = Annotated[int, Range(lambda v: 0 <= v <= 255, "in 0..255")]
Fill = Level | Annotated[Sequence[Level], Range(lambda v: len(v) == 3, "three of them")]
Epsilon = Annotated[float, Range(lambda v: 0 < v <= 255, "in 255ths of the pixel range, in (0, 255]")]
Angle = Annotated[float, between(0, 360)]
Slant = Annotated[float, Range(lambda v: 0 <= v < 90, "at least 0 and below 90 degrees")]
Side = Annotated[int, between(1, 2**14)]  # of an image, in pixels
Canvas = Side | Annotated[Sequence[Side], Range(lambda v: len(v) == 2, "(height, width)")]
Times = Annotated[int, between(0, 1000)]
Temperature = Annotated[float, Range(lambda v: 0 < v <= 1000, "above 0, at most 1,000")]
Tiny = Annotated[float, Range(lambda v: 0 < v <= 1, "above 0, at most 1")]  # beside a divisor, so that it is not 0
Exponent = Annotated[float, between(0, 100)]
Norm = Annotated[str, one_of("batch", "none")]
Strength = Annotated[float, between(0, 1000)]


def finite(value: Any, key: str) -> None:
    """Raises UserError for a number in a value, at any depth, that is infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} is {value!r}: it must be a finite number")
    if isinstance(value, Mapping):
        for name, part in value.items():
            finite(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            finite(part, f"{key}[{place}]")


def check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless each argument fits its annotation in the signature of `make`.

    `where` stands before the argument's name in the message: "model." makes "model.width is 0: it must be ...".
    """
    for name, value in arguments.items():
        annotation = annotation_of(make, name)
        if not fits(value, annotation):
            raise UserError(f"{where}{name} is {value!r}: it must be {words(annotation)}")


def annotation_of(make: Callable[..., Any], name: str) -> Any:
    """The annotation of an argument of a function, a flax module or a partial of either, evaluated."""
    while isinstance(make, functools.partial):
        make = make.func
    annotation = inspect.signature(make).parameters[name].annotation
    while isinstance(annotation, str):  # of `from __future__ import annotations`; a dataclass quotes it once more
        annotation = eval(annotation, sys.modules[make.__module__].__dict__)
    return annotation


def is_real(annotation: Any) -> bool:
    """Whether an annotation takes numbers that are no whole ones: a float, or one of several types."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return is_real(parts[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(is_real, parts))
    return annotation is float


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of a config is of an annotation's type, and in its ranges. Types that no config has fit all."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, parts[0]) and all(p.test(value) for p in parts[1:] if isinstance(p, Range))
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin in (tuple, Sequence) or annotation is tuple:
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and parts[-1] is not Ellipsis:
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(fits(v, parts[0]) for v in value) if parts else True
    if annotation is float:
        return is_number(value)
    if annotation is int:
        return is_number(value) and isinstance(value, int)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    return True


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}


def words(annotation: Any) -> str:
    """What `fits` asks for, in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return ", ".join([words(parts[0]), *(p.words for p in parts[1:] if isinstance(p, Range))])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(words, parts))
    if origin in (tuple, Sequence):
        inner = [words(p) for p in parts if p is not Ellipsis]
        if origin is tuple and parts[-1] is not Ellipsis:
            return f"({'; '.join(inner)})"
        return f"a tuple, of each value {inner[0]}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
