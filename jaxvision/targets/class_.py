"""One class an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.data.sample import LABEL
from jaxvision.report.analysis import PerClass, calibration, coarse, confusion, confusions, extremes, per_class
from jaxvision.report.draw import (
    Html,
    figure,
    heat,
    join,
    matrix,
    reliability,
    share,
    table,
    tag,
    text,
)  # fmt: skip
from jaxvision.targets.common import EXAMPLES, Scored, counted, in_line, listed, of_logits, tall
from jaxvision.task import Batch, Metric, Target

FULL_MATRIX = 30  # classes up to which a confusion matrix has its numbers
CELLS = 100  # of a side of the coarse one
CONFUSIONS = 30  # listed, where the matrix is coarse
# Of the largest logit: two classes so close in the trained network are equal in float32, and either is right.
TIE = 1e-5


class Classes(Scored):
    """The classes of one image: one of them is right."""

    kind = "class"

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    def to_dict(self, *, top: int = 1) -> dict[str, Any]:
        """{"predictions": [{"class": ..., "probability": ...}]} of the `top` most probable ones."""
        return listed(self.top(top))

    def text(self, *, top: int = 1) -> str:
        """The `top` most probable ones in a line for people."""
        return in_line(self.top(top))


# --------------------------------------------------------------------------- labels and predictions


def objective(predictions: dict[str, Any], batch: Batch) -> Any:
    """The cross-entropy of the logits, f32[B]."""
    from jaxvision.losses import softmax_cross_entropy  # here: a report is written without JAX

    return softmax_cross_entropy(predictions["logits"], batch["label"])


def soft(label: Any, classes: int) -> Any:
    """Probabilities f32[B, C] of labels int32[B]; of probabilities themselves."""
    import jax

    return jax.nn.one_hot(label, classes) if label.ndim == 1 else label


def complete(predicted: dict[str, Any]) -> dict[str, Any]:
    """Adds "probabilities", the softmax of the logits, where the task gives none."""
    return predicted if "probabilities" in predicted else {**predicted, **of_logits(predicted["logits"], "softmax")}


def per_sample(classes: int, k: int = 5) -> Metric:
    """Rows of a class evaluation.

    `label` int32, `top` int32 [min(k, C)] and `top_p` float32 [min(k, C)], the likeliest classes and their
    probabilities, falling; `p` float32, the probability of the label.
    """
    import jax
    import jax.numpy as jnp

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        label, p = batch["label"], predictions.get("probabilities")
        p = jax.nn.softmax(predictions["logits"].astype(jnp.float32)) if p is None else p.astype(jnp.float32)
        top_p, top = jax.lax.top_k(p, min(k, classes))
        return {"label": label, "top": top, "top_p": top_p, "p": jnp.take_along_axis(p, label[:, None], 1)[:, 0]}

    return Metric(update, lambda rows: {}, gather=True)


def columns(classes: Sequence[str], *, top: int = 1) -> list[str]:
    pair = ("class", "probability")
    count = min(top, len(classes))
    return list(pair) if count == 1 else [f"{what}_{k}" for k in range(1, count + 1) for what in pair]


def cells(answer: dict[str, Any]) -> list[Any]:
    return [p[key] for p in answer["predictions"] for key in ("class", "probability")]


def same(trained: Mapping[str, Any], exported: Mapping[str, Any], scale: float) -> tuple[np.ndarray, int]:
    """Marks rows in which both networks say one class, or classes that the trained network cannot tell apart."""
    a, chosen = np.asarray(trained["logits"], np.float64), exported["logits"].argmax(-1)
    behind = a.max(-1) - np.take_along_axis(a, chosen[:, None], -1)[:, 0]
    return behind <= TIE * scale, int(((behind > 0) & (behind <= TIE * scale)).sum())


def score(found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`top1`."""
    return {"top1": float((found["logits"].argmax(-1) == [sample["label"] for sample in samples]).mean())}


def lacking(absent: int, count: int) -> str:
    return f" has {count - absent} of the {count} classes, and no sample of the other {absent}"


# --------------------------------------------------------------------------- of a report


def counts(source: Any) -> list[Html]:
    """Number of samples of each class."""
    names, count = source.classes, np.bincount(source.labels, minlength=len(source.classes))
    most, least = int(count.argmax()), int(count.argmin())
    told = (
        f"{names[most]} has the most, {count[most]:,}, and {names[least]} the fewest, {count[least]:,}."
        if count[most] > count[least]
        else f"{count[most]:,} of each class."
    )
    return [tag("p", told), counted("class", names, count, len(source))]


def words(classes: Sequence[str], sample: Mapping[str, Any]) -> str:
    """The sample's class."""
    return classes[int(sample["label"])]


def section(certificate: Mapping[str, Any], outcomes: Mapping[str, np.ndarray], show: Any) -> list[Html]:
    names, label = certificate["classes"], outcomes["label"]
    predicted, p = outcomes["top"][:, 0], outcomes["p"]
    counts = confusion(label, predicted, len(names))
    each = per_class(counts)
    rows = [
        [text(names[c]), f"{each.samples[c]:,}", share(each.recall[c]), share(each.precision[c]), share(each.f1[c]),
         _taken_for(names, each, c)]
        for c in range(len(names)) if each.samples[c]
    ]  # fmt: skip
    head = ("class", "samples", "recall", "precision", "F1", "most confused with")
    worst, best = extremes(p, EXAMPLES)

    def caption(row: int) -> Html:
        right = predicted[row] == label[row]
        told = tag("span", names[predicted[row]], cls="right" if right else "wrong")
        if right:
            return join([told, Html("<br>"), tag("small", f"probability {p[row]:.3f}")])
        first = tag("small", "true: "), names[label[row]], f" ({p[row]:.3f})"
        return join([*first, Html("<br>"), tag("small", "predicted: "), told, f" ({outcomes['top_p'][row, 0]:.3f})"])

    return [
        tag("h3", "Confusion"),
        *_confusion(counts, names),
        tag("h3", "Calibration"),
        _calibration(outcomes["top_p"][:, 0], predicted == label),
        *show.both("by the probability of the true class", worst, best, caption),
        tag("h3", "Classes"),
        tag("p", f"Of {len(names)} classes the data has {len(rows)}.", cls="note"),
        tall(table(head, rows, sort=True), len(rows)),
    ]


def _taken_for(names: Sequence[str], each: PerClass, c: int) -> Html:
    return text(f"{names[each.other[c]]} ({each.mistaken[c]:,})" if each.other[c] >= 0 else "-")


def _confusion(counts: np.ndarray, names: Sequence[str]) -> list[Html]:
    if len(names) <= FULL_MATRIX:
        return [matrix(counts, names)]
    listed = [
        [text(names[i]), text(names[j]), f"{n:,}", share(n / counts[i].sum())]
        for i, j, n in confusions(counts, CONFUSIONS)
    ]
    together = -(-len(names) // CELLS)
    told = "Rows are true classes, columns predicted ones, in their order" + (
        f", {together} of them to a cell. " if together > 1 else ". "
    )
    told += "The darker the larger a cell's share of its row, on a logarithmic scale from one in 1,000 on."
    left = tag("div", heat(coarse(counts, CELLS)), tag("p", told, cls="note"))
    return [tag("div", left, table(("class", "taken for", "samples", "of the class"), listed, sort=True), cls="two")]


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Html:
    found = calibration(confidence, right)
    gap = float(np.nanmean(confidence)) - float(right.mean()) if len(right) > found.left_out else float("nan")
    direction = "more" if gap > 0 else "less"
    told = [
        tag("div", tag("b", share(found.ece)), tag("span", "ECE, 15 bins"), cls="tile"),
        tag("p", f"Expected calibration error: how far, on average, the probability of the predicted class is from "
                 f"how often it is right (Guo et al. 2017). On the whole the network is {direction} confident than "
                 f"right, by {share(abs(gap))}."),
        tag("p", "Bars are how often the predictions of a bin are right, numbers how many they are; on the dashed line "
                 "they would be right as often as they say.", cls="note"),
    ]  # fmt: skip
    if found.left_out:
        told.append(tag("p", f"{found.left_out:,} samples whose probabilities are NaN are left out.", cls="wrong"))
    diagram = figure("", reliability(found.samples, found.accuracy, found.confidence))
    return tag("div", diagram, tag("div", join(told)), cls="two")


class_ = Target(
    name="class",
    fields=(LABEL["class"],),
    outputs=lambda classes: {"logits": (classes,), "probabilities": (classes,)},
    main="logits",
    per_sample=per_sample,
    rows=frozenset({"label", "top", "top_p", "p"}),
    prediction=lambda classes, row, warp: Classes(classes, row["probabilities"]),
    options={"top": 1},
    columns=columns,
    cells=cells,
    same=same,
    score=score,
    counts=counts,
    words=words,
    section=section,
    complete=complete,
    lacking=lacking,
    objective=objective,
    soft=soft,
    scores=lambda predicted: "sigmoid" if "probabilities" in predicted else "softmax",
    of_logits=of_logits,
)
