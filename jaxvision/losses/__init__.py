"""Unreduced losses: formula, shapes and source in each docstring."""

from jaxvision.losses.classification import softmax_cross_entropy

__all__ = ["softmax_cross_entropy"]
