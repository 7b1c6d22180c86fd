"""Order, randomness, batches, padding: all a function of (seed, step), so nothing about them is saved.

Row i of global batch `step` is sample n = step * batch_size + i of the endless sequence
permutation(seed, 0), permutation(seed, 1), ...; a host loads the rows it owns. A transform's random generator
depends on (seed, n, position of the transform) alone. So a run resumes at any step at once, and any number of
hosts and threads sees the same global batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence

import numpy as np

from jaxvision.data.contract import InputContract
from jaxvision.data.decode import decode
from jaxvision.data.sources import Source
from jaxvision.data.transforms import Transform, preprocess
from jaxvision.errors import UserError

Batch = dict[str, np.ndarray]

_ORDER = 2**64 - 1  # the position whose stream orders the epoch: no transform has it


# --------------------------------------------------------------------------- order and randomness


def _philox(seed: int, n: int, position: int) -> np.random.Philox:
    """Streams that never overlap: the key is (seed, n), the position is the counter's highest word."""
    key = np.array((seed % 2**64, n), np.uint64)
    return np.random.Philox(key=key, counter=np.array((0, 0, 0, position), np.uint64))


@functools.lru_cache(maxsize=3)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of an epoch: int64 [length], read-only.

    It sorts raw Philox words, which numpy promises to keep from version to version (NEP 19), unlike the
    methods of `Generator`, `permutation` among them.
    """
    words = _philox(seed, epoch, _ORDER).random_raw(length)
    order = np.argsort(words, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def sample_index(seed: int, n: int, length: int) -> int:
    """Which of the source's `length` samples is the n-th that training sees."""
    epoch, place = divmod(n, length)
    return int(permutation(seed, epoch, length)[place])


def generator(seed: int, n: int, position: int) -> np.random.Generator:
    """The generator of the transform at `position` for the n-th sample that training sees."""
    return np.random.Generator(_philox(seed, n, position))


class _Generators:
    """What `generator` gives, at a tenth of its price: one generator, whose state is moved."""

    def __init__(self) -> None:
        self._bits = _philox(0, 0, 0)
        self._state = self._bits.state
        self._rng = np.random.Generator(self._bits)

    def at(self, seed: int, n: int, position: int) -> np.random.Generator:
        self._state["state"]["key"][:] = (seed % 2**64, n)
        self._state["state"]["counter"][3] = position
        self._bits.state = self._state
        return self._rng


# --------------------------------------------------------------------------- batches


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
    threads: int = 2,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """The batches of steps start .. stop - 1, the same for any `threads`.

    Args:
      source: what `open_source` gives.
      transforms: what `build` gives; after the last an image must be [size, size, channels] of the contract.
      contract: size and channels of the images.
      batch_size: global, over all hosts.
      seed: orders the samples and seeds the transforms.
      start, stop: steps; starting late costs nothing.
      rows: the rows of the global batch to load, in the order wanted; all by default.
      threads: readers; 0 loads in the caller's thread.
      prefetch: batches loaded ahead.

    Yields:
      {"image": uint8 [R, size, size, C], "label": int32 [R], "index": int64 [R], "mask": bool [R], all True},
      in memory of their own. Closing the iterator (or dropping it) ends the threads.

    Raises:
      UserError: at once for an empty source or bad rows; from the iterator, at its batch, for an unreadable
        image, a label outside the classes, an image of another size.
    """
    chosen = _rows(source, batch_size, rows)
    length = len(source)

    def load(step: int) -> Batch:
        generators = _Generators()
        numbers = [step * batch_size + row for row in chosen]

        def pixels(image: np.ndarray, k: int) -> np.ndarray:
            for position, transform in enumerate(transforms):
                image = transform(image, generators.at(seed, numbers[k], position))
            return image

        return _batch(source, contract, [sample_index(seed, n, length) for n in numbers], pixels)

    return _ahead(load, start, stop, threads, prefetch)


def eval_batches(
    source: Source,
    contract: InputContract,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    threads: int = 2,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """Every sample once, in the source's order, through `preprocess(contract)`.

    As `train_batches`, but the last global batch is filled up to `batch_size` with rows of zeros, label 0,
    index -1 and mask False. So every host yields the same number of batches, whatever rows it loads.
    """
    chosen = _rows(source, batch_size, rows)
    length = len(source)
    evaluation = preprocess(contract)

    def load(step: int) -> Batch:
        numbers = [step * batch_size + row for row in chosen]
        places = [n if n < length else -1 for n in numbers]
        return _batch(source, contract, places, lambda image, k: evaluation(image))

    return _ahead(load, 0, -(-length // batch_size), threads, prefetch)


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


def _batch(
    source: Source,
    contract: InputContract,
    places: Sequence[int],
    pixels: Callable[[np.ndarray, int], np.ndarray],
) -> Batch:
    """The samples at `places` of the source (-1: padding), row k through `pixels(image, k)`."""
    count, shape = len(places), (contract.size, contract.size, contract.channels)
    # New arrays every time: jax may use their memory in place.
    batch: Batch = {
        "image": np.zeros((count, *shape), np.uint8),
        "label": np.zeros(count, np.int32),
        "index": np.full(count, -1, np.int64),
        "mask": np.array([i >= 0 for i in places], bool),
    }
    for k, i in enumerate(places):
        if i < 0:
            continue
        sample = source[i]
        label = int(sample["label"])
        if not 0 <= label < len(source.classes):
            raise UserError(
                f"{source.where(i)}: label {label} is outside 0..{len(source.classes) - 1}, the "
                f"{len(source.classes)} classes of {source.uri}: correct the label or the class list"
            )
        image = decode(sample["image"], contract.channels, source.where(i))
        try:
            image = pixels(image, k)
        except UserError as error:
            raise UserError(f"{source.where(i)}: {error}") from None
        if image.shape != shape:
            raise UserError(_wrong_shape(image, contract, source.where(i)))
        batch["image"][k], batch["label"][k], batch["index"][k] = image, label, sample["index"]
    return batch


def _wrong_shape(image: np.ndarray, contract: InputContract, where: str) -> str:
    height, width, size = image.shape[0], image.shape[1], contract.size
    if min(height, width) == size:
        advice = 'end the transforms with ("center_crop", {})'
    elif height == width:
        advice = 'add ("resize", {}) to the transforms'
    else:
        advice = 'add ("random_resized_crop", {}), or ("resize", {}) and ("center_crop", {})'
    return (
        f"{where}: the transforms leave {width} x {height} pixels and {image.shape[2]} channels, the network "
        f"takes {size} x {size} and {contract.channels}: {advice}"
    )


def _ahead(
    load: Callable[[int], Batch], start: int, stop: int, threads: int, prefetch: int
) -> Generator[Batch, None, None]:
    """load(start) .. load(stop - 1), in order, by threads that work ahead.

    One element of grain is a whole batch, so its cost an element (tens of microseconds) is paid once a batch.
    An error in a thread comes out of `next` as it was raised, after the batches before it.
    """
    if stop <= start:
        return
    import grain  # here: over a second, and imports jax (but starts no backend)

    # With fewer places than threads, some threads would wait for ever.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    batches = iter(grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
