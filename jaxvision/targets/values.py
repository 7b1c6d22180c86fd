"""Numbers of an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxvision.data.sample import LABEL
from jaxvision.report.analysis import extremes
from jaxvision.report.draw import Html, cloud, histogram, join, number, table, tag, text
from jaxvision.targets.common import EXAMPLES, tall
from jaxvision.task import Batch, Metric, Target

VALUES = 8  # numbers that are drawn


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Values:
    """The numbers of one image.

    Attributes:
      classes: names of the numbers.
      scores: float32 [len(classes)], the numbers, in the labels' units.
    """

    classes: tuple[str, ...]
    scores: np.ndarray
    kind: ClassVar[str] = "values"

    def __repr__(self) -> str:
        return f"<values: {', '.join(f'{name} {v:.4g}' for name, v in self.values.items())}>"

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name, to six significant figures."""
        return {name: float(f"{v:.6g}") for name, v in zip(self.classes, self.scores)}

    def to_dict(self) -> dict[str, Any]:
        """{"values": {name: number}}."""
        return {"values": self.values}

    def text(self) -> str:
        """The numbers in a line for people."""
        return "  ".join(f"{name} {v:g}" for name, v in self.values.items())


# --------------------------------------------------------------------------- labels and predictions


def objective(predictions: dict[str, Any], batch: Batch) -> Any:
    """The squared error, mean over the numbers, f32[B]."""
    import jax.numpy as jnp  # here: a report is written without JAX

    return jnp.mean(jnp.square(predictions["values"] - batch["label"]), -1)


def per_sample(classes: int) -> Metric:
    """`label` and `values` float32 [K]."""
    import jax.numpy as jnp

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        return {"label": batch["label"], "values": predictions["values"].astype(jnp.float32)}

    return Metric(update, lambda rows: {}, gather=True)


def same(trained: Mapping[str, Any], exported: Mapping[str, Any], scale: float) -> tuple[np.ndarray, int]:
    """Marks rows in which the numbers differ by at most 1e-3 of their scale."""
    a, b = (np.asarray(found["values"], np.float64) for found in (trained, exported))
    return np.asarray((np.abs(a - b) <= 1e-3 * scale).all(-1)), 0


def score(found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`mae`."""
    return {"mae": float(np.abs(found["values"] - np.stack([sample["label"] for sample in samples])).mean())}


# --------------------------------------------------------------------------- of a report


def counts(source: Any) -> list[Html]:
    """How the numbers are spread."""
    head = ("value", "mean", "standard deviation", "smallest", "largest")
    each = [(c.mean(), c.std(), c.min(), c.max()) for c in np.asarray(source.labels, np.float64).T]
    rows = [[text(name), *map(number, row)] for name, row in zip(source.classes, each, strict=True)]
    return [tall(table(head, rows, sort=True), len(rows))]


def words(classes: Sequence[str], sample: Mapping[str, Any]) -> str:
    """The sample's numbers."""
    return ", ".join(f"{name} {number(float(v))}" for name, v in zip(classes, sample["label"], strict=True))


def section(certificate: Mapping[str, Any], outcomes: Mapping[str, np.ndarray], show: Any) -> list[Html]:
    names = certificate["classes"]
    truth, predicted = (np.asarray(outcomes[key], np.float64) for key in ("label", "values"))
    error = predicted - truth
    rows = [
        [text(name), number(truth[:, k].mean()), number(truth[:, k].std()), number(np.abs(error[:, k]).mean()),
         number(np.sqrt(np.square(error[:, k]).mean())), number(error[:, k].mean())]
        for k, name in enumerate(names)
    ]  # fmt: skip
    head = ("value", "mean", "standard deviation", "mean absolute error", "root mean square error", "mean error")
    spread = np.where(truth.std(0) > 0, truth.std(0), 1.0)
    worst, best = extremes(-np.abs(error / spread).mean(1), EXAMPLES)
    drawn = [join([cloud(names[k], truth[:, k], predicted[:, k]), histogram(f"{names[k]}: residuals", error[:, k])])
             for k in range(min(len(names), VALUES))]  # fmt: skip
    more = tag("p", f"{len(names) - VALUES} more are not drawn.", cls="note") if len(names) > VALUES else Html("")

    def caption(row: int) -> Html:
        shown = range(min(len(names), 3))
        return join(
            tag("div", tag("small", f"{names[k]}: " if len(names) > 1 else ""),
                f"{number(predicted[row, k])} ", tag("small", f"true {number(truth[row, k])}"))
            for k in shown
        )  # fmt: skip

    return [
        tag("h3", "Predicted against true, and residuals"),
        tag("div", join(drawn), cls="two"),
        more,
        tall(table(head, rows, sort=True), len(rows)),
        *show.both("by their error in standard deviations of the labels", worst, best, caption),
    ]


values = Target(
    name="values",
    fields=(LABEL["values"],),
    outputs=lambda classes: {"values": (classes,)},
    main="values",
    per_sample=per_sample,
    rows=frozenset({"label", "values"}),
    prediction=lambda classes, row, warp: Values(classes, row["values"]),
    options={},
    columns=lambda classes: list(classes),
    cells=lambda answer: list(answer["values"].values()),
    same=same,
    score=score,
    counts=counts,
    words=words,
    section=section,
    objective=objective,
    soft=lambda label, classes: label,
    scores=lambda predicted: "values",
    of_logits=lambda logits, scores: {"values": logits},
)
