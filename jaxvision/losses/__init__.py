"""Unreduced losses: formula, shapes and source in each docstring."""

from jaxvision.losses.classification import softmax_cross_entropy
from jaxvision.losses.distillation import soft_target_divergence

__all__ = ["soft_target_divergence", "softmax_cross_entropy"]
