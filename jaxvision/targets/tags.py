"""Tags: any number of classes an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.data.sample import LABEL
from jaxvision.errors import UserError
from jaxvision.report.analysis import extremes, tag_loss
from jaxvision.report.draw import Html, join, number, share, table, tag, text
from jaxvision.targets.common import EXAMPLES, Scored, counted, in_line, listed, of_logits, tall
from jaxvision.task import Batch, Metric, Target

MOST = 10**8  # labels that are counted: 400 MB


class Tags(Scored):
    """The tags of one image: each is there or not, whatever the others are."""

    kind = "tags"

    def tags(self, threshold: float = 0.5) -> list[tuple[str, float]]:
        """The tags whose probability is at least the threshold, the most probable first."""
        if not isinstance(threshold, int | float | np.number) or not 0 <= threshold <= 1:
            raise UserError(f"threshold is {threshold!r}: it is a probability, in 0..1")
        return [(name, p) for name, p in self.top(len(self.classes)) if p >= threshold]

    def to_dict(self, *, threshold: float = 0.5) -> dict[str, Any]:
        """{"predictions": [{"class": ..., "probability": ...}]} of those at or above the threshold."""
        return listed(self.tags(threshold))

    def text(self, *, threshold: float = 0.5) -> str:
        """Tags at or above the threshold, in a line for people."""
        return in_line(self.tags(threshold)) or f"none at or above {threshold:g}"


# --------------------------------------------------------------------------- labels and predictions


def objective(predictions: dict[str, Any], batch: Batch) -> Any:
    """The binary cross-entropy of the logits, mean over the known tags, f32[B]."""
    import jax.numpy as jnp  # here: a report is written without JAX

    from jaxvision.losses import sigmoid_cross_entropy

    known = jnp.sum(~jnp.isnan(batch["label"]), -1)
    return jnp.sum(sigmoid_cross_entropy(predictions["logits"], batch["label"]), -1) / jnp.maximum(known, 1)


def per_sample(classes: int) -> Metric:
    """Rows of a tag evaluation.

    `label` bool [K]; `known` bool [K], false where the label is unknown (then `label` is, too); `scores` float16 [K],
    the probabilities.
    """
    import jax.numpy as jnp

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        label = batch["label"]
        scores = predictions["probabilities"].astype(jnp.float16)
        return {"label": label > 0.5, "known": ~jnp.isnan(label), "scores": scores}

    return Metric(update, lambda rows: {}, gather=True)


def columns(classes: Sequence[str], **options: Any) -> list[str]:
    return ["tags", "probabilities"]


def cells(answer: dict[str, Any]) -> list[Any]:
    return [_joined([p[key] for p in answer["predictions"]]) for key in ("class", "probability")]


def _joined(values: list[Any]) -> str:
    """Values in one cell, separated by commas and quoted where that is needed: csv: reads them as it reads a row."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def same(trained: Mapping[str, Any], exported: Mapping[str, Any], scale: float) -> tuple[np.ndarray, int]:
    """Marks rows in which both networks find the same tags at a probability of 1/2."""
    return ((trained["probabilities"] >= 0.5) == (exported["probabilities"] >= 0.5)).all(-1), 0


def score(found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`accuracy` over all known tags, at a probability of 1/2."""
    labels = np.stack([sample["label"] for sample in samples])
    known = ~np.isnan(labels)
    right = (found["probabilities"] >= 0.5) == (labels >= 0.5)
    return {"accuracy": float(right[known].mean()) if known.any() else float("nan")}


def lacking(absent: int, count: int) -> str:
    return f": {absent} of the {count} tags have no known yes, or no known no, and are in no mean"


# --------------------------------------------------------------------------- of a report


def counts(source: Any) -> list[Html]:
    """Number of samples with each tag."""
    if len(source) * len(source.classes) > MOST:
        return [tag("p", "Tags are not counted: as a table they would fill the memory.", cls="note")]
    labels = source.labels
    unknown = np.isnan(labels)
    told = f"{int((labels == 0).all(1).sum()):,} of them have no tag."
    if unknown.any():
        told += f" {int(unknown.sum()):,} tags are unknown; shares are of those that are known."
    known = np.maximum((~unknown).sum(0), 1)
    return [tag("p", told), counted("tag", source.classes, np.nansum(labels, 0).astype(int), known)]


def words(classes: Sequence[str], sample: Mapping[str, Any]) -> str:
    """The sample's tags, and those that are unknown."""
    label = sample["label"]
    unknown = ", ".join(classes[k] for k in np.flatnonzero(np.isnan(label)).tolist())
    known = ", ".join(classes[k] for k in np.flatnonzero(label > 0.5).tolist()) or "no tag"
    return known + (f" (unknown: {unknown})" if unknown else "")


def section(certificate: Mapping[str, Any], outcomes: Mapping[str, np.ndarray], show: Any) -> list[Html]:
    names, label, scores = certificate["classes"], outcomes["label"], outcomes["scores"].astype(np.float32)
    known = outcomes.get("known", np.ones_like(label))  # older files have none
    metrics = certificate["metrics"]
    said = scores >= 0.5
    with np.errstate(invalid="ignore"):
        hits = (said & label).sum(0).astype(float)
        recall, precision = hits / label.sum(0), hits / (said & known).sum(0)
    rows = [
        [text(name), f"{label[:, k].sum():,}", *(number(metrics.get(f"{m}/{name}")) for m in
         ("ap", "f1", "threshold")), share(recall[k]), share(precision[k])]
        for k, name in enumerate(names)
    ]  # fmt: skip
    head = ("tag", "positives", "average precision", "best F1", "its threshold", "recall at 1/2", "precision at 1/2")
    worst, best = extremes(-tag_loss(scores, label, known), EXAMPLES)

    def caption(row: int) -> Html:
        """Tag by tag: one that is wrong does not make the others wrong."""
        truth = label[row].astype(bool)
        kinds = (
            ("found", "right", said[row] & truth),
            ("wrongly said", "wrong", said[row] & ~truth & known[row]),
            ("missed", "wrong", ~said[row] & truth),
            ("said, not known", None, said[row] & ~known[row]),
        )
        listed = [
            tag("div", tag("small", f"{what}: "),
                tag("span", ", ".join(f"{names[k]} {scores[row, k]:.2f}" for k in np.flatnonzero(which)), cls=cls))
            for what, cls, which in kinds if which.any()
        ]  # fmt: skip
        return join(listed or [tag("span", "no tag, rightly", cls="right")])

    return [
        *show.both("by the binary cross-entropy of their tags", worst, best, caption),
        tag("h3", "Tags"),
        tall(table(head, rows, sort=True), len(rows)),
    ]


tags = Target(
    name="tags",
    fields=(LABEL["tags"],),
    outputs=lambda classes: {"logits": (classes,), "probabilities": (classes,)},
    main="logits",
    per_sample=per_sample,
    rows=frozenset({"label", "scores"}),  # older files have no "known"
    prediction=lambda classes, row, warp: Tags(classes, row["probabilities"]),
    options={"threshold": 0.5},
    columns=columns,
    cells=cells,
    same=same,
    score=score,
    counts=counts,
    words=words,
    section=section,
    lacking=lacking,
    objective=objective,
    soft=lambda label, classes: label,
    scores=lambda predicted: "sigmoid",
    of_logits=of_logits,
)
