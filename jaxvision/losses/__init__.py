"""Unreduced losses: formula, shapes and source in each docstring."""

from jaxvision.losses.classification import softmax_cross_entropy
from jaxvision.losses.distillation import soft_target_divergence
from jaxvision.losses.self_supervised import (
    dino_cross_entropy,
    info_nce,
    masked_patch_error,
    negative_cosine,
    normalised,
    nt_xent,
)

__all__ = [
    "dino_cross_entropy",
    "info_nce",
    "masked_patch_error",
    "negative_cosine",
    "normalised",
    "nt_xent",
    "soft_target_divergence",
    "softmax_cross_entropy",
]
