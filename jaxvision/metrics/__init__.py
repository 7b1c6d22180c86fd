"""Metrics: factories that make a `Metric`, one file a family."""

from jaxvision.metrics.classification import topk
from jaxvision.metrics.representation import knn, probe

__all__ = ["knn", "probe", "topk"]
