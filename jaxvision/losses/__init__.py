"""Unreduced losses: formula, shapes and source in each docstring."""

from jaxvision.losses.classification import (
    sigmoid_cross_entropy,
    sigmoid_focal,
    softmax_cross_entropy,
    softmax_focal,
)
from jaxvision.losses.distillation import soft_target_divergence
from jaxvision.losses.ordinal import ordinal_cross_entropy, ordinal_log_probabilities
from jaxvision.losses.regression import absolute_error, huber, squared_error
from jaxvision.losses.self_supervised import (
    dino_cross_entropy,
    info_nce,
    masked_patch_error,
    negative_cosine,
    normalised,
    nt_xent,
)

__all__ = [
    "absolute_error",
    "dino_cross_entropy",
    "huber",
    "info_nce",
    "masked_patch_error",
    "negative_cosine",
    "normalised",
    "nt_xent",
    "ordinal_cross_entropy",
    "ordinal_log_probabilities",
    "sigmoid_cross_entropy",
    "sigmoid_focal",
    "soft_target_divergence",
    "softmax_cross_entropy",
    "softmax_focal",
    "squared_error",
]
