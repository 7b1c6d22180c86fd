"""Tasks (factories that make a `Task`) and wrappers (functions from task to task)."""

from jaxvision.tasks.adversarial import adversarial
from jaxvision.tasks.classification import classification
from jaxvision.tasks.distillation import distillation
from jaxvision.tasks.ema import ema
from jaxvision.tasks.l2_sp import l2_sp
from jaxvision.tasks.linear_probe import linear_probe
from jaxvision.tasks.mixing import cutmix, mixup

__all__ = ["adversarial", "classification", "cutmix", "distillation", "ema", "l2_sp", "linear_probe", "mixup"]
TASKS = ("classification", "distillation", "linear_probe")
WRAPPERS = ("adversarial", "cutmix", "ema", "l2_sp", "mixup")
