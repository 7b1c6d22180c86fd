"""Metrics: factories that make a `Metric`, one file a family."""

from jaxvision.metrics.classification import per_class, topk
from jaxvision.metrics.ordinal import ordinal
from jaxvision.metrics.ranking import auroc, binary, multilabel
from jaxvision.metrics.regression import regression
from jaxvision.metrics.representation import knn, probe

__all__ = ["auroc", "binary", "knn", "multilabel", "ordinal", "per_class", "probe", "regression", "topk"]
