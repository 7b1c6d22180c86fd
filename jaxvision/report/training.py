"""The section on the training data: how many samples each class has, and images as training saw them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxvision import config as config_lib
from jaxvision import targets
from jaxvision.data import reader
from jaxvision.errors import UserError
from jaxvision.report.draw import Html, join, picture, tag
from jaxvision.report.evaluation import last_part

SHOWN = 8  # samples of the first batch


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
    if getattr(source, "reads_for_labels", False) and "labels" not in vars(source):
        return [tag("p", "Classes are not counted: TFDS keeps labels in the records only.", cls="note")]
    target = targets.find(source.kind)
    return target.counts(source) if target else []


def _augmented(config: Mapping[str, Any], source: Any) -> list[Html]:
    """Cards of the first samples, from the same order, generators and transforms as training."""
    tree = config_lib.from_json(json.dumps(config))
    order, skips = reader.order(tree, source), reader.skips(tree)
    rows = range(min(SHOWN, tree.batch_size))
    (batch,) = reader.train(tree, source, start=0, stop=1, rows=rows, order=order, skips=skips, threads=0, processes=0)
    replaced = skips and skips.seen
    views = [batch[key] for key in ("image", "local") if key in batch]
    cards, target = [], targets.find(source.kind)
    for row in range(len(batch["index"])):
        shown = [picture(one) for view in views for one in (view[row] if view.ndim == 5 else view[row : row + 1])]
        where = "" if replaced else source.where(order(row))
        sample = {name: values[row] for name, values in batch.items()}
        told = target.words(source.classes, sample) if target else ""
        caption = tag("div", told), tag("div", last_part(where), cls="file")
        cards.append(tag("div", join(shown), *caption, cls="card", title=where or None))
    note = f"The first {len(cards)} of step 1, after data.transforms."
    if {"mixup", "cutmix"} & {name for name, _ in config["wrap"]}:
        note += " Mixing of images comes later, within the step."
    return [tag("h3", "As training saw them"), tag("p", note, cls="note"), tag("div", join(cards), cls="cards")]
