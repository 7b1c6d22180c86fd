"""Tasks (factories that make a `Task`) and wrappers (functions from task to task)."""

import inspect

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
# By the first argument of a factory: a task takes a model, a wrapper a task.
TASKS, WRAPPERS = (
    tuple(name for name in __all__ if next(iter(inspect.signature(globals()[name]).parameters)) == first)
    for first in ("model", "task")
)
