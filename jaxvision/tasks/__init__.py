"""Tasks (factories that make a `Task`) and wrappers (functions from task to task)."""

from jaxvision.tasks.adversarial import adversarial
from jaxvision.tasks.classification import classification
from jaxvision.tasks.ema import ema
from jaxvision.tasks.mixing import cutmix, mixup

__all__ = ["adversarial", "classification", "cutmix", "ema", "mixup"]
TASKS = ("classification",)
WRAPPERS = ("adversarial", "cutmix", "ema", "mixup")
