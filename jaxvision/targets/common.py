"""Common parts of several kinds of labels: classes with probabilities, most probable first."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxvision.errors import UserError
from jaxvision.report.draw import Html, share, table, tag, text

EXAMPLES = 16  # pictures of the worst, and of the best, in a report


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scored:
    """Classes of one image, each with its probability.

    Attributes:
      classes: names of the classes.
      scores: float32 [len(classes)], probabilities.
    """

    classes: tuple[str, ...]
    scores: np.ndarray
    kind: ClassVar[str] = ""

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(f'{name} {p:.4g}' for name, p in self.top(3))}>"

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes with their probabilities, the most probable first. Raises UserError for k < 1."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k is {k!r}: it must be a whole number of at least 1")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.classes[i], float(self.scores[i])) for i in order]


def listed(shown: list[tuple[str, float]]) -> dict[str, list[dict[str, str | float]]]:
    """Classes and probabilities as JSON has them."""
    return {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in shown]}


def in_line(shown: list[tuple[str, float]]) -> str:
    """Classes and probabilities as people read them."""
    return "  ".join(f"{name} {p:.4f}" for name, p in shown)


def counted(head: str, names: tuple[str, ...], count: np.ndarray, of: np.ndarray | int) -> Html:
    """A table of a report: how many samples each class has, int [K], and its share `of` so many."""
    rows = [[text(name), f"{n:,}", share(part)] for name, n, part in zip(names, count, count / of, strict=True)]
    return tall(table((head, "samples", "share"), rows, sort=True), len(rows))


def tall(table: Html, rows: int) -> Html:
    """A table in a box of its own height, where it has many rows."""
    return tag("div", table, cls="tall" if rows > 24 else None)


def of_logits(logits: Any, scores: str) -> dict[str, Any]:
    """The outputs "logits" and "probabilities" of logits [B, C]; `scores`: "softmax" or "sigmoid"."""
    import jax  # here: a report is written without JAX

    return {"logits": logits, "probabilities": getattr(jax.nn, scores)(logits)}
