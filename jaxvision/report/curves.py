"""The curves of a run: a panel for each quantity, training and evaluations over the steps."""

from __future__ import annotations

from typing import Any

from etils import epath

from jaxvision.report.draw import limits, named
from jaxvision.report.figures import save
from jaxvision.task import ALARM

_NOT_DRAWN = ("step", "kind", "of", "count", "grad_norm", "param_norm", "images_per_s", "time", "mfu", "goodput")


def curves(records: list[dict[str, Any]]) -> dict[str, dict[str, tuple[list, list]]]:
    """Quantity -> kind of record, as in metrics.jsonl -> (steps, values): the loss first, the learning rate last.

    In each quantity training comes first. Kinds stay as they are recorded, "train" and "eval:NAME", so that an
    evaluation of whatever name is not training; `named` says what people read. Of an evaluation that measured something
    else before, the older values are a curve of their own.
    """
    found: dict[str, dict[str, tuple[list, list]]] = {}
    for kind, record in sorted(zip(_kinds(records), records), key=lambda pair: pair[0] != "train"):
        for key, value in record.items():
            if key in _NOT_DRAWN or key.startswith(ALARM) or "/" in key or value is None:
                continue
            xs, ys = found.setdefault(key, {}).setdefault(kind, ([], []))
            xs.append(record["step"])
            ys.append(value)
    return {key: found[key] for key in sorted(found, key=lambda k: (k != "loss", k == "lr", k))}


def colours(records: list[dict[str, Any]]) -> dict[str, int]:
    """Kind of record -> number of its colour: training has 0 in every run, evaluations follow as they first come."""
    return {kind: k for k, kind in enumerate(dict.fromkeys(["train", *_kinds(records)]))}


def _kinds(records: list[dict[str, Any]]) -> list[str]:
    """Name of each record's kind, as charts show it.

    Values of an evaluation that has measured something else since then are marked.
    """
    latest = {r["kind"]: r.get("of") for r in records}
    return [r["kind"] + (", as before" if r.get("of") != latest[r["kind"]] else "") for r in records]


def plot(records: list[dict[str, Any]], path: epath.Path) -> None:
    """One panel a quantity: training loss beside each evaluation's loss, the other metrics, the learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    panels = curves(records)
    if not panels:
        return
    colour = colours(records)
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width, height = 4.2 * columns, 3.4 * rows  # inches
    figure = Figure(figsize=(width, height))
    places = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    # Margins by hand: layout="constrained" draws everything twice, and this is drawn again and again during a run.
    left, right, top, bottom = 0.7, 0.15, 0.35, 0.55
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height,
        wspace=(left + right) / (4.2 - left - right), hspace=(top + bottom) / (3.4 - top - bottom),
    )  # fmt: skip
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, key in zip(places, panels):
        for kind, (xs, ys) in panels[key].items():
            marker = "." if len(xs) < 40 else None
            axes.plot(xs, ys, label=named(kind), color=f"C{colour[kind] % 10}", linewidth=1.4, marker=marker)
        axes.set(title=key, xlabel="step")
        values = [y for _, ys in panels[key].values() for y in ys]
        if limits(values) != (min(values), max(values)):
            axes.set_ylim(*limits(values))
        elif key == "loss" and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # 0.1, not a power of ten, which is wider
            axes.yaxis.set_minor_formatter("{x:g}" if max(values) < 10 * min(values) else NullFormatter())
        axes.grid(alpha=0.3)
        if key != "lr":
            axes.legend(fontsize=8)
    save(figure, path)
