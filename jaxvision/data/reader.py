"""How a config has its data read: through which pixels, in which order, by how many readers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxvision.data import transforms
from jaxvision.data.contract import InputContract, default_resize
from jaxvision.data.order import Order, class_weights
from jaxvision.data.pipeline import Skips, train_batches
from jaxvision.data.sample import Field
from jaxvision.data.sources import Source
from jaxvision.errors import UserError
from jaxvision.runtime import machine


def contract(config: ConfigDict) -> InputContract:
    """The input contract that the config asks for. Raises UserError."""
    data = config.data
    made = InputContract(
        size=data.size,
        resize=data.resize or default_resize(data.size, data.fit),
        filter=data.filter,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        range=data.range,
        background=data.background,
        fit=data.fit,
        longest=data.longest,
    )
    if data.resize and not made.resize:
        raise UserError(f"data.resize is {data.resize}, and data.fit = {data.fit!r} has no use for it: set it to 0")
    return made


def options(config: ConfigDict) -> dict[str, int]:
    """The readers on this machine: `threads`, `processes` and `max_pixels` of `train_batches` and `eval_batches`."""
    data = config.data
    threads = data.threads or min(16, machine.cores())
    return {"threads": threads, "processes": data.processes, "max_pixels": data.max_pixels}


def skips(config: ConfigDict, seen: dict[int, str] | None = None) -> Skips | None:
    """A new count of unreadable images, going on from those `seen`; None where the first one ends the run."""
    if config.data.on_error == "stop":
        return None
    return Skips(config.data.skip_at_most, seen)


def order(config: ConfigDict, source: Source) -> Order:
    """The order in which samples of the training data come."""
    weights = class_weights(source, config.data.sampling, dict(config.data.weights))
    return Order(config.seed, len(source), weights, config.data.repeats)


def slots(config: ConfigDict, source: Source) -> int:
    """Slots for the objects of a training sample; 0 where the source has none. Raises UserError for too few."""
    objects = getattr(source, "objects", None)
    most = int(objects.max()) if objects is not None and len(objects) else 0
    if config.data.slots and most > config.data.slots:
        place = source.where(int(objects.argmax()))  # type: ignore[union-attr]
        raise UserError(
            f"data.slots is {config.data.slots}, and {place} has {most} objects: set config.data.slots = {most}, or 0 "
            "for as many as the data need"
        )
    return (config.data.slots or most) if objects is not None else 0


def train(
    config: ConfigDict,
    source: Source,
    *,
    start: int,
    stop: int,
    rows: Sequence[int],
    order: Order,
    fields: Sequence[Field] | None = None,
    skips: Skips | None = None,
    **readers: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields the given rows of the training batches of steps start .. stop - 1.

    Closing the generator ends its threads.

    fields: those of the source that batches hold; by default all. readers: in place of those of `options`.
    """
    pixels = contract(config)
    return train_batches(
        source,
        transforms.build(config.data.transforms, pixels),
        pixels,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=stop,
        rows=rows,
        order=order,
        skips=skips,
        fields=fields,
        slots=slots(config, source),
        keep=config.data.min_visible,
        prefetch=config.data.prefetch,
        **{**options(config), **readers},
    )
