"""Batches: read, decoded, transformed by threads or processes that work ahead, in an order that none of them changes.

What a batch holds is a function of (seed, step), see order.py; so a run resumes at any step at once, and any number
of hosts, threads and processes sees the same global batches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data import workers
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import MAX_PIXELS, decode, open_image
from jaxvision.data.order import Generators, Order
from jaxvision.data.sample import VALUE, batch_spec, fields_of
from jaxvision.data.sources import Source
from jaxvision.data.sources.common import check_label
from jaxvision.data.transforms import Transform, preprocess
from jaxvision.errors import Unreadable, UserError

Batch = dict[str, np.ndarray]

_ATTEMPTS = 100  # replacements in a row before it is the data set that is bad, not an image


class Skip(NamedTuple):
    """An image that could not be read: the sample that should have come, its place in the source, the reason."""

    n: int
    place: int
    reason: str


class Skips:
    """Unreadable images are replaced instead of ending the run, up to a share of the source.

    `seen` holds those of the batches that were delivered: place in the source -> reason.
    """

    def __init__(self, share: float, seen: dict[int, str] | None = None) -> None:
        if not 0 < share <= 1:
            raise UserError(f"data.skip_at_most is {share}: it is a share of the samples, above 0 and at most 1")
        self.share = share
        self.seen = dict(seen or {})

    def rows(self) -> list[dict[str, Any]]:
        """For a report."""
        return [{"sample": place, "reason": reason} for place, reason in sorted(self.seen.items())]

    def add(self, skips: Iterable[Skip], source: Source) -> None:
        """Raises UserError once there are too many."""
        self.seen.update((s.place, s.reason) for s in skips)
        most = int(self.share * len(source))
        if len(self.seen) > most:
            listed = "\n  ".join(list(self.seen.values())[:5])
            raise UserError(
                f"{len(self.seen)} of the {len(source)} samples of {source.uri} cannot be read, more than the {most} "
                f"that data.skip_at_most={self.share} allows; repair them or raise it:\n  {listed}"
            )


def train_batches(
    source: Source,
    transforms: Sequence[Transform],
    contract: InputContract,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rows: Sequence[int] | None = None,
    order: Order | None = None,
    skips: Skips | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    processes: int = 0,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """The batches of steps start .. stop - 1, the same for any `threads` and `processes`.

    Args:
      source: what `open_source` gives.
      transforms: what `build` gives; after the last an image must be [size, size, channels] of the contract, or a
        dict of arrays (views), which become entries of the batch.
      contract: size and channels of the images.
      batch_size: global, over all hosts.
      seed: of the transforms, and of the order if none is given.
      start, stop: steps; starting late costs nothing.
      rows: the rows of the global batch to load, in the order wanted; all by default.
      order: which sample is the n-th; each once an epoch by default.
      skips: replaces unreadable images and counts them; None: the first one raises.
      max_pixels: an image of more is unreadable, see `decode`.
      threads: readers, each making whole batches; 0 loads in the caller's thread.
      processes: as many worker processes instead, for machines where threads wait for Python's lock (docs/data.md).
      prefetch: batches loaded ahead.

    Yields:
      {"image": uint8 [R, size, size, C], "label": int32 [R] (float32 [R, K] for tags and values), "index": int64 [R],
      "mask": bool [R], all True}, in memory of their own. Closing the iterator (or dropping it) ends the readers.

    Raises:
      UserError: at once for an empty source or bad rows; from the iterator, at its batch, for an unreadable image, a
        label outside the classes, an image of another size, a worker process that died.
    """
    chosen = _rows(source, batch_size, rows)
    order = order or Order(seed, len(source))
    load = _Train(source, contract, batch_size, chosen, max_pixels, tuple(transforms), seed, order, skips is not None)
    return _ahead(load, start, stop, skips, threads, processes, prefetch)


def eval_batches(
    source: Source,
    contract: InputContract,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    skips: Skips | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    processes: int = 0,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """Every sample once, in the source's order, through `preprocess(contract)`.

    As `train_batches`, but the last global batch is filled up to `batch_size` with rows of zeros, label 0,
    index -1 and mask False. So every host yields the same number of batches, whatever rows it loads. With `skips` an
    unreadable image becomes such a row, too.
    """
    load = _Evaluate(source, contract, batch_size, _rows(source, batch_size, rows), max_pixels, skips is not None)
    return _ahead(load, 0, -(-len(source) // batch_size), skips, threads, processes, prefetch)


def _rows(source: Source, batch_size: int, rows: Sequence[int] | None) -> list[int]:
    """The rows to load, after the checks that need no image."""
    if len(source) == 0:
        raise UserError(f"{source.uri} holds no samples: check the path and the split")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    chosen = list(range(batch_size)) if rows is None else [int(row) for row in rows]
    if any(not 0 <= row < batch_size for row in chosen):
        raise UserError(f"rows {chosen} do not all lie in a global batch of {batch_size}")
    return chosen


# --------------------------------------------------------------------------- one batch


@dataclasses.dataclass
class _Load:
    """A step's batch, and what was skipped for it. Pickles, so that a process can be given one."""

    source: Source
    contract: InputContract
    batch_size: int
    rows: list[int]
    max_pixels: int

    def writer(self) -> _Writer:
        return _Writer(self.source, self.contract, len(self.rows), self.max_pixels)


@dataclasses.dataclass
class _Train(_Load):
    transforms: tuple[Transform, ...]
    seed: int
    order: Order
    skip: bool

    def __call__(self, step: int) -> tuple[Batch, list[Skip]]:
        writer = self.writer()
        generators = Generators()
        for k, row in enumerate(self.rows):
            self._row(writer, k, step * self.batch_size + row, generators)
        return writer.batch(), writer.skipped

    def _row(self, writer: _Writer, k: int, n: int, generators: Generators) -> None:
        i = self.order(n)
        for attempt in range(_ATTEMPTS):
            try:
                return writer.write(k, i, lambda image: self._transformed(image, n, generators), self._opens)
            except Unreadable as error:
                if not self.skip:
                    raise
                reason = str(error)
                writer.skipped.append(Skip(n, i, reason))
                i = self.order.replacement(n, attempt)
        raise UserError(f"{self.source.uri}: {_ATTEMPTS} images in a row cannot be read, the last: {reason}")

    @functools.cached_property
    def _opens(self) -> bool:
        return bool(self.transforms) and getattr(self.transforms[0], "decodes", False)

    def _transformed(self, image: Any, n: int, generators: Generators) -> Any:
        for position, transform in enumerate(self.transforms):
            image = transform(image, generators.at(self.seed, n, position))
        return image


@dataclasses.dataclass
class _Evaluate(_Load):
    skip: bool

    def __call__(self, step: int) -> tuple[Batch, list[Skip]]:
        writer = self.writer()
        evaluation = preprocess(self.contract)
        for k, row in enumerate(self.rows):
            i = step * self.batch_size + row
            if i >= len(self.source):
                continue
            try:
                writer.write(k, i, evaluation)
            except Unreadable as error:
                if not self.skip:
                    raise
                writer.skipped.append(Skip(i, i, str(error)))
        return writer.batch(), writer.skipped


class _Writer:
    """Fills a batch row by row; a row never written is padding."""

    def __init__(self, source: Source, contract: InputContract, count: int, max_pixels: int) -> None:
        self.source, self.contract, self.count, self.max_pixels = source, contract, count, max_pixels
        self.shape = (contract.size, contract.size, contract.channels)
        self.images: Batch = {}
        self.skipped: list[Skip] = []
        self.fields = fields_of(source)
        spec = batch_spec({}, self.fields, count, classes=len(source.classes))
        self.arrays = {name: np.zeros(array.shape, array.dtype) for name, array in spec.items()}
        self.index = self.arrays["index"]
        self.index[:] = -1

    def write(self, k: int, i: int, pixels: Callable[[Any], Any], opens: bool = False) -> None:
        """Row k becomes the source's sample i, its image through `pixels`, which may take it encoded if `opens`."""
        source, where = self.source, self.source.where(i)
        workers.reading(i)
        sample = source[i]
        for field in self.fields:
            if field.classes == VALUE:
                check_label(source, sample[field.name], where)
        opened = open_image if opens else decode
        image = opened(sample["image"], where=where, max_pixels=self.max_pixels, **self.contract.decoding)
        try:
            image = pixels(image)
        except UserError as error:
            if str(error).startswith(where):  # of an image that was decoded only now
                raise
            raise type(error)(f"{where}: {error}") from None
        except MemoryError:
            height, width = image.shape[:2]
            raise UserError(
                f"{where}: no memory for the transforms of {width} x {height} pixels: lower data.max_pixels or "
                "data.threads"
            ) from None
        images = image if isinstance(image, dict) else {"image": image}
        for name, value in images.items():
            if name == "image" and value.shape[-3:] != self.shape:
                raise UserError(_wrong_shape(value, self.contract, where))
            if name not in self.images:
                # New arrays every time: jax may use their memory in place. Not zeroed, `batch` does what is needed.
                self.images[name] = np.empty((self.count, *value.shape), np.uint8)
            self.images[name][k] = value
        for name in ("index", *(field.name for field in self.fields)):
            self.arrays[name][k] = sample[name]

    def batch(self) -> Batch:
        mask = self.index >= 0
        images = self.images or {"image": np.zeros((self.count, *self.shape), np.uint8)}
        if not mask.all():
            for array in images.values():
                array[~mask] = 0
        return {**images, **self.arrays, "mask": mask}


def _wrong_shape(image: np.ndarray, contract: InputContract, where: str) -> str:
    height, width, size = image.shape[-3], image.shape[-2], contract.size
    if min(height, width) == size:
        advice = 'end the transforms with ("center_crop", {})'
    elif height == width:
        advice = 'add ("resize", {}) to the transforms'
    else:
        advice = 'add ("random_resized_crop", {}), or ("resize", {}) and ("center_crop", {})'
    return (
        f"{where}: the transforms leave {width} x {height} pixels and {image.shape[-1]} channels, the network "
        f"takes {size} x {size} and {contract.channels}: {advice}"
    )


# --------------------------------------------------------------------------- ahead


def _ahead(
    load: Callable[[int], tuple[Batch, list[Skip]]],
    start: int,
    stop: int,
    skips: Skips | None,
    threads: int,
    processes: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """load(start) .. load(stop - 1), in order, by readers that work ahead.

    An error in a reader comes out of `next` as it was raised, after the batches before it.
    """
    source: Source = load.source  # type: ignore[attr-defined]
    if processes or threads:
        results = _read(load, start, stop, threads, processes, max(prefetch, threads, processes))
    else:
        results = (load(step) for step in range(start, stop))
    try:
        for batch, skipped in results:
            if skips is not None:
                skips.add(skipped, source)
            yield batch
    finally:
        results.close()


def _read(
    load: Callable[[int], Any], start: int, stop: int, threads: int, processes: int, prefetch: int
) -> Generator[Any, None, None]:
    readers = workers.Processes(load, processes) if processes else workers.Threads(load, threads)
    results: deque[Callable[[], Any]] = deque()
    try:
        for step in range(start, stop):
            results.append(readers.submit(step))
            if len(results) == prefetch:
                yield results.popleft()()
        while results:
            yield results.popleft()()
    finally:
        readers.close()
