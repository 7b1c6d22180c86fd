"""Batches: read, decoded, transformed by threads or processes that work ahead, in an order that none of them changes.

What a batch holds is a function of (seed, step), see order.py; so a run resumes at any step at once, and any number
of hosts, threads and processes sees the same global batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data import workers
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import MAX_PIXELS, decode, open_image
from jaxvision.data.order import Generators, Order
from jaxvision.data.sample import VALUE, Field, batch_spec, fields_of, placed, settled
from jaxvision.data.sources import Source
from jaxvision.data.sources.common import check_label
from jaxvision.data.transforms import applied, check_fields, preprocess
from jaxvision.data.warp import Warp
from jaxvision.errors import Unreadable, UserError

Batch = dict[str, np.ndarray]

_ATTEMPTS = 100  # replacements in a row before it is the data set that is bad, not an image


class Skip(NamedTuple):
    """An image that could not be read: the sample that should have come, its place in the source, the reason."""

    n: int
    place: int
    reason: str


class Skips:
    """Count of unreadable images, which are replaced instead of ending the run, up to a share of the source.

    `seen` holds those of the batches that were delivered: place in the source -> reason.
    """

    def __init__(self, share: float, seen: dict[int, str] | None = None) -> None:
        if not 0 < share <= 1:
            raise UserError(f"data.skip_at_most is {share}: it is a share of the samples, above 0 and at most 1")
        self.share = share
        self.seen = dict(seen or {})

    def rows(self) -> list[dict[str, Any]]:
        """Skipped samples for a report: a row of {"sample": place, "reason"} each, by place."""
        return [{"sample": place, "reason": reason} for place, reason in sorted(self.seen.items())]

    def add(self, skips: Iterable[Skip], source: Source) -> None:
        """Adds skipped images; raises UserError once there are too many."""
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
    transforms: Sequence[Any],
    contract: InputContract,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rows: Sequence[int] | None = None,
    order: Order | None = None,
    skips: Skips | None = None,
    fields: Sequence[Field] | None = None,
    slots: int = 0,
    keep: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    processes: int = 0,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """The batches of steps start .. stop - 1, the same for any `threads` and `processes`.

    Args:
      source: what `open_source` gives.
      transforms: what `build` gives; after the last an image must be [height, width, channels] of the contract, or a
        dict of arrays (views), which become entries of the batch.
      contract: size and channels of the images.
      batch_size: global, over all hosts.
      seed: of the transforms, and of the order if none is given.
      start, stop: steps; starting late costs nothing.
      rows: the rows of the global batch to load, in the order wanted; all by default.
      order: which sample is the n-th; each once an epoch by default.
      skips: replaces unreadable images and counts them; None: the first one raises.
      fields: of the source, those that batches hold; all by default.
      slots: for the objects of a sample; keep: the share of its box that an object must keep, see `sample.placed`.
      max_pixels: an image of more is unreadable, see `decode`.
      threads: readers, each making whole batches; 0 loads in the caller's thread.
      processes: as many worker processes instead, for machines where threads wait for Python's lock (docs/data.md).
      prefetch: batches loaded ahead.

    Yields:
      What `sample.batch_spec` says, for a class {"image": uint8 [R, height, width, C], "label": int32 [R], "index":
      int64 [R], "mask": bool [R], all True}, in memory of their own. Closing the iterator (or dropping it) ends the
      readers.

    Raises:
      UserError: at once for an empty source or bad rows; from the iterator, at its batch, for an unreadable image, a
        label outside the classes, an image of another size, a worker process that died.
    """
    chosen = _rows(source, batch_size, rows)
    order = order or Order(seed, len(source))
    fields = tuple(fields_of(source) if fields is None else fields)
    check_fields(transforms, fields)
    load = _Train(
        source, contract, batch_size, chosen, max_pixels, fields, slots, skips is not None,
        tuple(transforms), seed, order, keep,
    )  # fmt: skip
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

    As `train_batches`, but without the fields that are told in the file's pixels, see `sample.batch_spec`. The last
    global batch is filled up to `batch_size` with rows of zeros, label 0,
    index -1 and mask False. So every host yields the same number of batches, whatever rows it loads. With `skips` an
    unreadable image becomes such a row, too.
    """
    chosen, fields = _rows(source, batch_size, rows), fields_of(source)
    load = _Evaluate(source, contract, batch_size, chosen, max_pixels, fields, 0, skips is not None)
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
    fields: tuple[Field, ...]
    slots: int
    skip: bool

    def read(self, i: int, opens: bool = False) -> dict[str, Any]:
        """The source's sample i, its image decoded, or as `open_image` has it if `opens`."""
        source, where = self.source, self.source.where(i)
        workers.reading(i)
        sample = source[i]
        for field in self.fields:
            for value in np.ravel(sample[field.name]) if field.classes == VALUE else ():
                check_label(source, value, where)
        opened = open_image if opens else decode
        image = opened(sample["image"], where=where, max_pixels=self.max_pixels, **self.contract.decoding)
        return {**sample, "image": image}


@dataclasses.dataclass
class _Train(_Load):
    transforms: tuple[Any, ...]
    seed: int
    order: Order
    keep: float

    def __call__(self, step: int) -> tuple[Batch, list[Skip]]:
        writer, generators = _Writer(self, train=True), Generators()
        for k, row in enumerate(self.rows):
            n = step * self.batch_size + row
            i, sample = self._made(n, len(self.transforms), (n, 0), generators, writer.skipped)
            writer.write(k, i, sample, self.images, self.keep)
        return writer.batch(), writer.skipped

    def _made(
        self, n: int, stop: int, stream: tuple[int, int], generators: Generators, skipped: list[Skip]
    ) -> tuple[int, dict[str, Any]]:
        """(place in the source, sample) of the n-th sample, after the first `stop` transforms.

        stream: whose random numbers they draw: (number of a sample, 0), or of its j-th partner (that number, j + 1).
        """
        i = self.order(n)
        for attempt in range(_ATTEMPTS):
            try:
                return i, self._transformed(i, n, stop, stream, generators, skipped)
            except Unreadable as error:
                if not self.skip:
                    raise
                reason = str(error)
                skipped.append(Skip(n, i, reason))
                i = self.order.replacement(n, attempt)
        raise UserError(f"{self.source.uri}: {_ATTEMPTS} images in a row cannot be read, the last: {reason}")

    def _transformed(
        self, i: int, n: int, stop: int, stream: tuple[int, int], generators: Generators, skipped: list[Skip]
    ) -> dict[str, Any]:
        sample = self.read(i, self._opens)
        with _named(self.source.where(i), sample["image"]):
            if self._follows:
                sample |= _rounded(sample, self.fields)
                sample |= {"fields": self.fields, "warp": Warp.identity(*sample["image"].shape[:2])}
            for position, transform in enumerate(self.transforms[:stop]):
                partners = []
                for j in range(getattr(transform, "partners", 0)):
                    _, made = self._made(self.order.partner(n, j), position, (n, j + 1), generators, skipped)
                    partners.append(settled(made) if self._follows else made)
                sample = settled(sample) if partners and self._follows else sample
                number, place = stream
                rng = generators.at(self.seed, number, position, place)
                sample = applied(transform, sample, rng, partners)
        return sample

    @functools.cached_property
    def _opens(self) -> bool:
        return bool(self.transforms) and getattr(self.transforms[0], "decodes", False)

    @functools.cached_property
    def _follows(self) -> bool:
        """Whether there are fields that follow the pixels."""
        return any(field.in_file for field in self.fields)

    @functools.cached_property
    def images(self) -> tuple[str, ...]:
        """The names of the arrays of pixels."""
        makes = getattr(self.transforms[-1], "makes", None) if self.transforms else None
        return ("image",) if makes is None else tuple(name for name, _, _ in makes)


def _rounded(sample: dict[str, Any], fields: Sequence[Field]) -> dict[str, np.ndarray]:
    """Boxes and points of a sample to 1/256 pixel, float64: then W - x is exact, and mirroring twice the identity."""
    found = {field.name: sample[field.name] for field in fields if field.geometry in ("boxes", "points")}
    return {name: np.round(np.asarray(values, np.float64) * 256) / 256 for name, values in found.items()}


@contextlib.contextmanager
def _named(where: str, image: Any) -> Iterator[None]:
    """Names, in errors of transforms, the image that was transformed."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(where):  # of an image that was decoded only now
            raise
        raise type(error)(f"{where}: {error}") from None
    except MemoryError:
        height, width = image.shape[:2]
        raise UserError(
            f"{where}: no memory for the transforms of {width} x {height} pixels: lower data.max_pixels or data.threads"
        ) from None


@dataclasses.dataclass
class _Evaluate(_Load):
    def __call__(self, step: int) -> tuple[Batch, list[Skip]]:
        writer = _Writer(self, train=False)
        evaluation = preprocess(self.contract)
        for k, row in enumerate(self.rows):
            i = step * self.batch_size + row
            if i >= len(self.source):
                continue
            try:
                sample = self.read(i)
                size = np.array(sample["image"].shape[:2], np.int32)
                with _named(self.source.where(i), sample["image"]):
                    sample["image"] = evaluation(sample["image"])
                writer.write(k, i, {**sample, "size": size})
            except Unreadable as error:
                if not self.skip:
                    raise
                writer.skipped.append(Skip(i, i, str(error)))
        return writer.batch(), writer.skipped


class _Writer:
    """Fills a batch row by row; a row never written is padding."""

    def __init__(self, load: _Load, train: bool) -> None:
        self.load, contract, count = load, load.contract, len(load.rows)
        self.count, self.shape = count, contract.shape
        self.images: Batch = {}
        self.skipped: list[Skip] = []
        classes = len(load.source.classes)
        spec = batch_spec({}, load.fields, count, classes=classes, slots=load.slots, train=train)
        self.arrays = {name: np.zeros(array.shape, array.dtype) for name, array in spec.items()}
        self.index = self.arrays["index"]
        self.index[:] = -1
        told = ("index", "size", *(field.name for field in load.fields if not field.in_file))
        self.plain = [name for name in told if name in spec]  # what a sample has as the batch has it

    def write(
        self, k: int, i: int, sample: dict[str, Any], images: Sequence[str] = ("image",), keep: float = 0.0
    ) -> None:
        """Writes a sample, the source's i-th, into row k; `images`: the names of its pixels."""
        for name in images:
            value = sample[name]
            if name == "image" and value.shape[-3:] != self.shape:
                raise UserError(_wrong_shape(value, self.load.contract, self.load.source.where(i)))
            if name not in self.images:
                # New arrays every time: jax may use their memory in place. Not zeroed, `batch` does what is needed.
                self.images[name] = np.empty((self.count, *value.shape), np.uint8)
            self.images[name][k] = value
        for name in self.plain:
            self.arrays[name][k] = sample[name]
        if "warp" in sample:
            self._place(k, i, sample, keep)

    def _place(self, k: int, i: int, sample: dict[str, Any], keep: float) -> None:
        """Writes the fields that follow the pixels."""
        values, dropped = placed(sample, keep)
        for field in (field for field in sample["fields"] if field.in_file):
            value, row = values[field.name], self.arrays[field.name]
            if not field.per_object:
                row[k] = value
                continue
            if len(value) > self.load.slots:
                raise UserError(
                    f"{self.load.source.where(i)} has {len(value)} objects, and a training sample {self.load.slots} "
                    f"slots: set config.data.slots = {len(value)}, or 0 for as many as the data need"
                )
            row[k] = field.pad
            row[k, : len(value)] = value
            self.arrays["valid"][k] = np.arange(self.load.slots) < len(value)
        if "dropped" in self.arrays:
            self.arrays["dropped"][k] = dropped

    def batch(self) -> Batch:
        mask = self.index >= 0
        images = self.images or {"image": np.zeros((self.count, *self.shape), np.uint8)}
        if not mask.all():
            for array in images.values():
                array[~mask] = 0
        return {**images, **self.arrays, "mask": mask}


def _wrong_shape(image: np.ndarray, contract: InputContract, where: str) -> str:
    height, width, sides = image.shape[-3], image.shape[-2], (contract.height, contract.width)
    if min(height - sides[0], width - sides[1]) == 0:
        advice = 'end the transforms with ("center_crop", {})'
    elif height == width and sides[0] == sides[1]:
        advice = 'add ("resize", {}) to the transforms'
    else:
        advice = 'add ("random_resized_crop", {}), or ("resize", {}) and ("center_crop", {})'
    return (
        f"{where}: the transforms leave {width} x {height} pixels and {image.shape[-1]} channels, the network "
        f"takes {contract.width} x {contract.height} and {contract.channels}: {advice}"
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
