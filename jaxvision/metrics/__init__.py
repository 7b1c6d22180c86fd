"""Metrics: factories that make a `Metric`, one file a family."""

from jaxvision.metrics.classification import topk

__all__ = ["topk"]
