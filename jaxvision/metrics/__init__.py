"""Metrics: factories that make a `Metric`, one file a family."""

from jaxvision.metrics.classification import per_class, topk
from jaxvision.metrics.ordinal import ordinal
from jaxvision.metrics.ranking import binary, multilabel
from jaxvision.metrics.regression import regression

__all__ = ["binary", "multilabel", "ordinal", "per_class", "regression", "topk"]
# The kind of labels that a metric compares with, as in tasks.LABELS. One that is not here takes any.
LABELS = {
    "topk": "class",
    "per_class": "class",
    "binary": "class",
    "ordinal": "class",
    "multilabel": "tags",
    "regression": "values",
}
