"""The section on the training data: how many samples each class has, and images as training saw them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvision import config as config_lib
from jaxvision.data import reader
from jaxvision.errors import UserError
from jaxvision.report.draw import Html, join, number, picture, share, table, tag, text
from jaxvision.report.evaluation import last_part

SHOWN = 8  # samples of the first batch
MOST = 10**8  # labels of tags that are counted: 400 MB


def section(config: Mapping[str, Any], sources: Mapping[str, Any]) -> Html:
    """Counts and pictures of data.train, or why there are none.

    config: what config.json holds. sources: data that is open already, by URI; else it is opened.
    """
    uri = config["data"]["train"]
    title = tag("h2", "Training data")
    try:
        source = sources[uri] if uri in sources else _open(uri)
        return join([title, tag("p", f"{uri}, {len(source):,} samples", cls="note"), *_labels(source),
                     *_augmented(config, source)])  # fmt: skip
    except (UserError, OSError, IndexError, ImportError, RuntimeError, ValueError) as error:
        return join([title, tag("p", f"{uri} is not what was trained on, or not there any more ({error})", cls="note")])


def _open(uri: str) -> Any:
    from jaxvision.data.sources import open_source

    return open_source(uri)


def _labels(source: Any) -> list[Html]:
    if not source.classes:
        return []
    if getattr(source, "reads_for_labels", False) and "labels" not in vars(source):
        return [tag("p", "Classes are not counted: TFDS keeps labels in the records only.", cls="note")]
    if source.kind == "tags" and len(source) * len(source.classes) > MOST:
        return [tag("p", "Tags are not counted: as a table they would fill the memory.", cls="note")]
    names, labels = source.classes, source.labels
    of: Any = len(labels)
    if source.kind == "values":
        head = ("value", "mean", "standard deviation", "smallest", "largest")
        each = [(c.mean(), c.std(), c.min(), c.max()) for c in np.asarray(labels, np.float64).T]
        return [_listed(head, [[text(name), *map(number, row)] for name, row in zip(names, each, strict=True)])]
    if source.kind == "tags":
        unknown = np.isnan(labels)
        count, what, of = np.nansum(labels, 0).astype(int), "tag", np.maximum((~unknown).sum(0), 1)
        told = f"{int((labels == 0).all(1).sum()):,} of them have no tag."
        if unknown.any():
            told += f" {int(unknown.sum()):,} tags are unknown; shares are of those that are known."
    else:
        count, what = np.bincount(labels, minlength=len(names)), "class"
        most, least = int(count.argmax()), int(count.argmin())
        told = (
            f"{names[most]} has the most, {count[most]:,}, and {names[least]} the fewest, {count[least]:,}."
            if count[most] > count[least]
            else f"{count[most]:,} of each class."
        )
    rows = [[text(name), f"{n:,}", share(part)] for name, n, part in zip(names, count, count / of, strict=True)]
    return [tag("p", told), _listed((what, "samples", "share"), rows)]


def _listed(head: tuple[str, ...], rows: list[list[Any]]) -> Html:
    return tag("div", table(head, rows, sort=True), cls="tall" if len(rows) > 24 else None)


def _augmented(config: Mapping[str, Any], source: Any) -> list[Html]:
    """Cards of the first samples, from the same order, generators and transforms as training."""
    tree = config_lib.from_json(json.dumps(config))
    order, skips = reader.order(tree, source), reader.skips(tree)
    rows = range(min(SHOWN, tree.batch_size))
    (batch,) = reader.train(tree, source, start=0, stop=1, rows=rows, order=order, skips=skips, threads=0, processes=0)
    replaced = skips and skips.seen
    views = [batch[key] for key in ("image", "local") if key in batch]
    cards = []
    for row in range(len(batch["index"])):
        shown = [picture(one) for view in views for one in (view[row] if view.ndim == 5 else view[row : row + 1])]
        where = "" if replaced else source.where(order(row))
        told = tag("div", _told(source, batch["label"][row])), tag("div", last_part(where), cls="file")
        cards.append(tag("div", join(shown), *told, cls="card", title=where or None))
    note = f"The first {len(cards)} of step 1, after data.transforms."
    if {"mixup", "cutmix"} & {name for name, _ in config["wrap"]}:
        note += " Mixing of images comes later, within the step."
    return [tag("h3", "As training saw them"), tag("p", note, cls="note"), tag("div", join(cards), cls="cards")]


def _told(source: Any, label: Any) -> str:
    """A sample's label in words."""
    names = source.classes
    if not names:
        return ""
    if source.kind == "class":
        return names[int(label)]
    if source.kind == "tags":
        unknown = ", ".join(names[k] for k in np.flatnonzero(np.isnan(label)))
        known = ", ".join(names[k] for k in np.flatnonzero(label > 0.5)) or "no tag"
        return known + (f" (unknown: {unknown})" if unknown else "")
    return ", ".join(f"{name} {number(float(v))}" for name, v in zip(names, label, strict=True))
