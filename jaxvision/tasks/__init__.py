"""Tasks (factories that make a `Task`) and wrappers (functions from task to task)."""

from jaxvision.tasks.adversarial import adversarial
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
from jaxvision.tasks.rotation import rotation
from jaxvision.tasks.simclr import simclr
from jaxvision.tasks.simsiam import simsiam

__all__ = [
    "adversarial",
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
    "rotation",
    "simclr",
    "simsiam",
]
TASKS = (
    "byol", "classification", "dino", "distillation", "linear_probe", "mae", "moco", "rotation", "simclr", "simsiam",
)  # fmt: skip
WRAPPERS = ("adversarial", "cutmix", "ema", "l2_sp", "mixup")
