"""A section of the page for each evaluation: what it got right and wrong, and pictures of the worst and the best."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.errors import UserError
from jaxvision.report import analysis
from jaxvision.report.draw import (
    Html,
    cloud,
    figure,
    heat,
    histogram,
    join,
    matrix,
    number,
    picture,
    reliability,
    share,
    table,
    tag,
    text,
)  # fmt: skip

EXAMPLES = 16  # pictures of the worst, and of the best
FULL_MATRIX = 30  # classes up to which a confusion matrix has its numbers
CELLS = 100  # of a side of the coarse one
CONFUSIONS = 30  # listed, where the matrix is coarse
VALUES = 8  # numbers of a regression that are drawn

Outcomes = Mapping[str, np.ndarray]


def section(
    name: str,
    certificate: dict[str, Any],
    outcomes: Outcomes | str,
    drawn: bytes,
    sources: Mapping[str, Any],
) -> Html:
    """outcomes: the arrays of eval/NAME.npz, or why they cannot be read, "" if there are none. drawn: the PNG of the
    evaluation's metric, if it has one. sources: data that is open already, by URI."""
    title = tag("h2", f"Evaluation {name}")
    about = f"{certificate['data']}, {certificate['count']:,} samples, step {certificate['step']:,}"
    parts: list[Any] = [title, tag("p", about, cls="note")]
    if drawn:
        uri = f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
        parts.append(tag("img", src=uri, alt="", cls="drawn"))
    if isinstance(outcomes, str):
        parts.append(tag("p", outcomes, cls="note") if outcomes else "")
        return join(parts)
    if int(outcomes["step"]) != certificate["step"] or str(outcomes["digest"]) != certificate["digest_of_sample_ids"]:
        parts.append(tag("p", f"eval/{name}.npz is of another evaluation than eval/{name}.json: evaluate again, as "
                              "python -m jaxvision.evaluate --from WORKDIR", cls="note"))  # fmt: skip
        return join(parts)
    show = _Pictures(certificate, outcomes, sources)
    if "values" in outcomes:
        parts += _values(certificate, outcomes, show)
    elif "scores" in outcomes:
        parts += _tags(certificate, outcomes, show)
    else:
        parts += _classes(certificate, outcomes, show)
    return join(parts)


def _classes(certificate: dict[str, Any], outcomes: Outcomes, show: _Pictures) -> list[Html]:
    names, label = certificate["classes"], outcomes["label"]
    predicted, p = outcomes["top"][:, 0], outcomes["p"]
    counts = analysis.confusion(label, predicted, len(names))
    each = analysis.per_class(counts)
    rows = [
        [text(names[c]), f"{each.samples[c]:,}", share(each.recall[c]), share(each.precision[c]), share(each.f1[c]),
         _taken_for(names, each, c)]
        for c in range(len(names)) if each.samples[c]
    ]  # fmt: skip
    head = ("class", "samples", "recall", "precision", "F1", "most confused with")
    worst, best = analysis.extremes(p, EXAMPLES)

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
        tag("div", table(head, rows, sort=True), cls="tall" if len(rows) > 24 else None),
    ]


def _taken_for(names: Sequence[str], each: analysis.PerClass, c: int) -> Html:
    return text(f"{names[each.other[c]]} ({each.mistaken[c]:,})" if each.other[c] >= 0 else "-")


def _confusion(counts: np.ndarray, names: Sequence[str]) -> list[Html]:
    if len(names) <= FULL_MATRIX:
        return [matrix(counts, names)]
    listed = [
        [text(names[i]), text(names[j]), f"{n:,}", share(n / counts[i].sum())]
        for i, j, n in analysis.confusions(counts, CONFUSIONS)
    ]
    together = -(-len(names) // CELLS)
    told = "Rows are true classes, columns predicted ones, in their order" + (
        f", {together} of them to a cell. " if together > 1 else ". "
    )
    told += "The darker the larger a cell's share of its row, on a logarithmic scale from one in 1,000 on."
    left = tag("div", heat(analysis.coarse(counts, CELLS)), tag("p", told, cls="note"))
    return [tag("div", left, table(("class", "taken for", "samples", "of the class"), listed, sort=True), cls="two")]


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Html:
    found = analysis.calibration(confidence, right)
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


def _tags(certificate: dict[str, Any], outcomes: Outcomes, show: _Pictures) -> list[Html]:
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
    worst, best = analysis.extremes(-analysis.tag_loss(scores, label, known), EXAMPLES)

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
        tag("div", table(head, rows, sort=True), cls="tall" if len(rows) > 24 else None),
    ]


def _values(certificate: dict[str, Any], outcomes: Outcomes, show: _Pictures) -> list[Html]:
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
    worst, best = analysis.extremes(-np.abs(error / spread).mean(1), EXAMPLES)
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
        tag("div", table(head, rows, sort=True), cls="tall" if len(rows) > 24 else None),
        *show.both("by their error in standard deviations of the labels", worst, best, caption),
    ]


class _Pictures:
    """Samples of an evaluation, as the network saw them."""

    def __init__(self, certificate: dict[str, Any], outcomes: Outcomes, sources: Mapping[str, Any]) -> None:
        self.certificate, self.outcomes, self.sources = certificate, outcomes, sources

    def both(self, by: str, worst: np.ndarray, best: np.ndarray, caption: Callable[[int], Html]) -> list[Html]:
        """The worst and the best, with their captions; why not, where the data is not there any more."""
        uri = self.certificate["data"]
        try:
            self._open(uri)
            cards = [join(self._card(int(row), caption) for row in rows) for rows in (worst, best)]
        except (UserError, OSError, IndexError, ImportError) as error:
            told = f"No pictures: {uri} is not what was evaluated, or not there any more ({error})"
            return [tag("h3", "Worst and best"), tag("p", told, cls="note")]
        parts = []
        for what, rows, content in (("Worst", worst, cards[0]), ("Best", best, cards[1])):
            if len(rows):
                parts += [tag("h3", f"{what} {len(rows)}, {by}"), tag("div", content, cls="cards")]
        return parts

    def _open(self, uri: str) -> None:
        from jaxvision.data.contract import InputContract
        from jaxvision.data.sources import open_source
        from jaxvision.data.transforms import preprocess

        self.source = self.sources[uri] if uri in self.sources else open_source(uri)
        self.contract = InputContract.from_dict(self.certificate["contract"])
        self.pixels = preprocess(self.contract)

    def _card(self, row: int, caption: Callable[[int], Html]) -> Html:
        """Raises UserError if another sample is in its place now."""
        from jaxvision.data.decode import decode
        from jaxvision.errors import Unreadable

        place = int(self.outcomes["place"][row])
        where = self.source.where(place)
        try:
            sample = self.source[place]
            if sample["index"] != self.outcomes["index"][row]:
                raise UserError(f"sample {place} has another id now")
            image = picture(self.pixels(decode(sample["image"], where=where, **self.contract.decoding)))
        except Unreadable as error:
            image = tag("p", f"cannot be read: {error}", cls="wrong")
        return tag("div", image, caption(row), tag("div", last_part(where), cls="file"), cls="card", title=where)


def last_part(where: str) -> str:
    """What a card shows of a sample's place: the file's name, or whatever follows the last slash."""
    return where.rpartition("/")[2] or where
