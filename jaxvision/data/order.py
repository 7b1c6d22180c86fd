"""Order and randomness of training samples, computed from (seed, n), so that nothing is saved.

Row i of global batch `step` is sample n = step * batch_size + i. With a source of N samples and nothing else asked
for, that is the endless sequence permutation(seed, 0), permutation(seed, 1), ...
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data.sample import VALUE, label_field
from jaxvision.errors import UserError, nearest

# Positions whose streams no transform has: they order an epoch, draw its samples, replace one that is unreadable.
_ORDER, _DRAW, _REPLACE, _PARTNER = 2**64 - 1, 2**64 - 2, 2**64 - 3, 2**64 - 4
SAMPLING = ("uniform", "balanced", "weighted")


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
    """Index, among the source's `length` samples, of the n-th sample that training sees; each comes once an epoch."""
    epoch, place = divmod(n, length)
    return int(permutation(seed, epoch, length)[place])


def generator(seed: int, n: int, position: int) -> np.random.Generator:
    """The generator of the transform at `position` for the n-th sample that training sees."""
    return np.random.Generator(_philox(seed, n, position))


class Generators:
    """One generator whose state is moved: gives the same draws as `generator` at a tenth of its price."""

    def __init__(self) -> None:
        self._bits = _philox(0, 0, 0)
        self._state = self._bits.state
        self._rng = np.random.Generator(self._bits)

    def at(self, seed: int, n: int, position: int, partner: int = 0) -> np.random.Generator:
        """The generator of the transform at `position` for the n-th sample.

        partner: 0 for the sample itself, j + 1 for its j-th partner.
        """
        self._state["state"]["key"][:] = (seed % 2**64, n)
        self._state["state"]["counter"][2:] = (partner, position)
        self._bits.state = self._state
        return self._rng


class Weights(NamedTuple):
    """How often each sample comes relative to the others, float [length], and its class, int [length]."""

    samples: np.ndarray
    classes: np.ndarray


class Order:
    """The law of a run: `order(n)` is the source's index of the n-th sample.

    Args:
      seed: of the run.
      length: samples in the source.
      weights: float [length], how often a sample comes relative to the others; None: each once an epoch. An epoch
        still has `length` samples: each comes as often as its share of the weights says, rounded down or up
        (systematic sampling), in an order as random as without weights. With `Weights` the same holds of each class.
      repeats: each sample comes so many times in a row, with other augmentations (repeated augmentation, Hoffer et
        al. 2020); an epoch then sees `length / repeats` samples.
    """

    def __init__(self, seed: int, length: int, weights: np.ndarray | Weights | None = None, repeats: int = 1) -> None:
        if repeats < 1:
            raise UserError(f"data.repeats is {repeats}: it must be at least 1")
        self.seed, self.length, self.repeats = seed, length, repeats
        # Samples lie side by side on a line that is `length` long, those of a class together: see _draw.
        self._line = np.zeros(0, np.int64) if weights is None else np.arange(length)
        if isinstance(weights, Weights):
            self._line = np.argsort(weights.classes, kind="stable")
            weights = np.asarray(weights.samples)[self._line]
        self._ends = np.zeros(0) if weights is None or not length else _ends(weights, length)
        self._drawn: dict[int, np.ndarray] = {}  # of the last epochs asked for

    def __call__(self, n: int) -> int:
        epoch, place = divmod(n // self.repeats, self.length)
        place = int(permutation(self.seed, epoch, self.length)[place])
        return int(self._draw(epoch)[place]) if len(self._ends) else place

    def replacement(self, n: int, attempt: int) -> int:
        """Index of the sample that replaces the n-th one, or its earlier replacement, if that cannot be read.

        Any sample may come, each as likely as its weight says.
        """
        word = _philox(self.seed, n, _REPLACE).random_raw(attempt + 1)[attempt]
        return int(self._at(word / 2**64 * self.length)) if len(self._ends) else int(word % self.length)

    def partner(self, n: int, j: int) -> int:
        """Number, counted as n is, of the j-th partner of the n-th sample.

        The partner is any sample of the same epoch, whose order is known already.
        """
        epoch = self.length * self.repeats
        word = int(_philox(self.seed, n, _PARTNER).random_raw(j + 1)[j])
        return n // epoch * epoch + word % epoch

    def _at(self, points: Any) -> np.ndarray:
        """Indices of the samples that lie at the given points of the line."""
        return self._line[np.searchsorted(self._ends, points, side="right")]

    def _draw(self, epoch: int) -> np.ndarray:
        drawn = self._drawn.get(epoch)
        if drawn is None:
            start = _philox(self.seed, epoch, _DRAW).random_raw() / 2**64
            drawn = self._at(np.arange(self.length) + start)
            # New dictionary instead of a change: other threads may be reading the old one.
            self._drawn = {**{e: d for e, d in self._drawn.items() if abs(e - epoch) < 2}, epoch: drawn}
        return drawn


def _ends(weights: np.ndarray, length: int) -> np.ndarray:
    """Cumulative ends, float64 [length], of the samples' shares of [0, length)."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (length,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(f"sampling weights must be {length} finite numbers, none negative, not all 0")
    ends = np.cumsum(weights / weights.max())  # divided first: the sum of large weights would be infinite
    ends *= length / ends[-1]
    ends[np.flatnonzero(weights)[-1] :] = np.inf  # rounding must not leave the last draw without a sample
    return ends


def class_weights(source: Any, sampling: str, weights: Mapping[str, float] | None = None) -> Weights | None:
    """The `weights` of `Order` for a name in SAMPLING; None for "uniform".

    "balanced": every class as often as any other. "weighted": a sample of class c counts weights[c], 1 if c is not
    named. Raises UserError for an unknown name or class, or a source whose labels are not classes.
    """
    weights = dict(weights or {})
    if sampling not in SAMPLING:
        raise UserError(f'data.sampling is "{sampling}": {nearest(sampling, SAMPLING)}')
    if bool(weights) != (sampling == "weighted"):
        raise UserError('data.weights, like (("rare", 5.0),), goes with data.sampling="weighted", and only with it')
    if sampling == "uniform":
        return None
    field = label_field(source)
    if field is None or field.classes != VALUE:
        raise UserError(f'data.sampling="{sampling}" needs classes, and the labels of {source.uri} are {source.kind}')
    for name, value in weights.items():
        if name not in source.classes:
            raise UserError(f"data.weights names {name!r}, no class of {source.uri}: {nearest(name, source.classes)}")
        if not value >= 0:
            raise UserError(f"data.weights gives {name!r} {value}: it must be at least 0")
    counts = np.bincount(source.labels, minlength=len(source.classes))
    if sampling == "balanced":
        return Weights((1 / np.maximum(counts, 1))[source.labels], source.labels)
    return Weights(np.array([weights.get(name, 1.0) for name in source.classes])[source.labels], source.labels)
