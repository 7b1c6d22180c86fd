"""Kinds of labels and predictions, one file a kind. Outside of here nothing branches on a kind.

No target is given to a worker process: what a worker must know of labels is a tuple of `data.sample.Field`.
"""

import sys
from collections.abc import Iterable

from jaxvision.targets.class_ import class_
from jaxvision.targets.tags import tags
from jaxvision.targets.values import values
from jaxvision.task import Target

__all__ = ["class_", "tags", "values"]


def every() -> list[Target]:
    """All kinds of labels."""
    return [getattr(sys.modules[__name__], name) for name in __all__]


def find(kind: str) -> Target | None:
    """The kind that a source or a certificate names; None for "none", data without labels."""
    return next((target for target in every() if target.name == kind), None)


def of_rows(arrays: Iterable[str]) -> Target | None:
    """The kind whose rows have arrays of these names; None where no kind has."""
    names = set(arrays)
    return next((target for target in every() if target.rows <= names), None)
