"""Metrics: factories that make a `Metric`, one file a family."""

from jaxvision.metrics.classification import per_class, topk
from jaxvision.metrics.ordinal import ordinal
from jaxvision.metrics.ranking import auroc, binary, multilabel
from jaxvision.metrics.regression import regression
from jaxvision.metrics.representation import knn, probe

__all__ = ["auroc", "binary", "knn", "multilabel", "ordinal", "per_class", "probe", "regression", "topk"]
# The kind of labels that a metric compares with, as in tasks.LABELS. One that is not here takes any.
LABELS = {
    "topk": "class",
    "per_class": "class",
    "auroc": "class",
    "binary": "class",
    "knn": "class",
    "probe": "class",
    "ordinal": "class",
    "multilabel": "tags",
    "regression": "values",
}
# Metrics of the features alone, for tasks that predict nothing else (those that are not in tasks.LABELS).
OF_FEATURES = ("knn", "probe")
