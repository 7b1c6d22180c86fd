"""Tasks (factories that make a `Task`) and wrappers (functions from task to task)."""

from jaxvision.tasks.adversarial import adversarial
from jaxvision.tasks.binary import binary
from jaxvision.tasks.byol import byol
from jaxvision.tasks.classification import classification
from jaxvision.tasks.dino import dino
from jaxvision.tasks.distillation import distillation
from jaxvision.tasks.ema import ema
from jaxvision.tasks.l2_sp import l2_sp
from jaxvision.tasks.linear_probe import linear_probe
from jaxvision.tasks.mae import mae
from jaxvision.tasks.mixing import cutmix, mixup
from jaxvision.tasks.moco import moco
from jaxvision.tasks.multilabel import multilabel
from jaxvision.tasks.ordinal import ordinal
from jaxvision.tasks.regression import regression
from jaxvision.tasks.rotation import rotation
from jaxvision.tasks.simclr import simclr
from jaxvision.tasks.simsiam import simsiam

__all__ = [
    "adversarial",
    "binary",
    "byol",
    "classification",
    "cutmix",
    "dino",
    "distillation",
    "ema",
    "l2_sp",
    "linear_probe",
    "mae",
    "mixup",
    "moco",
    "multilabel",
    "ordinal",
    "regression",
    "rotation",
    "simclr",
    "simsiam",
]
SELF_SUPERVISED = ("byol", "dino", "mae", "moco", "rotation", "simclr", "simsiam")
TASKS = (
    "binary",
    "classification",
    "distillation",
    "linear_probe",
    "multilabel",
    "ordinal",
    "regression",
    *SELF_SUPERVISED,
)
WRAPPERS = ("adversarial", "cutmix", "ema", "l2_sp", "mixup")
# The kind of labels that a task learns, as sources have it (data.sources.common.KINDS). One that is not here takes any.
LABELS = {
    "classification": "class",
    "distillation": "class",
    "linear_probe": "class",
    "binary": "class",
    "ordinal": "class",
    "multilabel": "tags",
    "regression": "values",
}
# What a wrapper does that not every task can go with: the kinds of labels that the task must learn, and what is done
# with them. One that is not here takes any task.
NEEDS = {
    "adversarial": (("class",), "attacks the cross-entropy of classes"),
    "cutmix": (("class", "tags", "values"), "mixes images and their labels"),
    "mixup": (("class", "tags", "values"), "mixes images and their labels"),
}
# Tasks that keep averaged weights of their own in extra["ema"] and predict with them, as the wrapper ema does.
AVERAGING = ("dino",)
# Outputs of the network, for tasks whose network does not have one for each class.
OUTPUTS = {"binary": 1, "ordinal": 1}
