"""Origin of a family's published weights, and what its leaves are called there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


class Origin(NamedTuple):
    """A library that publishes weights of a family, with its names.

    The name of a leaf, "layer1_0/conv1/kernel", becomes "layer1_0.conv1.weight" (kernel and scale are torch's weight,
    mean and var its running_mean and running_var), and then each of `rules`, (pattern, replacement), is applied by
    `re.sub` in turn. Kernels are transposed: [h, w, in, out] to [out, in, h, w], [in, out] to [out, in].
    """

    names: dict[str, str]  # our variant: theirs
    rules: Rules = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (pattern of their name, its shape there, one -1 allowed)
    # our output: the module there that makes it, for tests; or a function of the model that says so
    stages: dict[str, str] | Callable[[Any], dict[str, str]] = {}  # noqa: RUF012
    channels_last: bool = False  # whether those modules give [B, H, W, C]
    buffers: Callable[[Any], dict[str, np.ndarray]] | None = None  # of a model: what else its state dict holds
