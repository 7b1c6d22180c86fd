"""Networks: flax.linen modules, one family a file, its variants in the file's `__all__`.

`model(image f32[B, H, W, C], *, train)` returns a dict: "c2".."c5" (or "tokens"), "features" f32[B, D] and
"logits" f32[B, classes]. Names resolve by `getattr(jaxvision.models, name)`.
"""

import functools
import sys

from jaxvision.models import resnet
from jaxvision.models.origin import Origin
from jaxvision.models.resnet import *

FAMILIES = (resnet,)
__all__ = [name for family in FAMILIES for name in family.__all__]


def origins(name: str) -> dict[str, Origin]:
    """Library ("timm", "torchvision") to where it has a network's weights; see `Origin`."""
    variant = globals()[name]
    module = variant.func if isinstance(variant, functools.partial) else variant
    found: dict[str, Origin] = sys.modules[module.__module__].ORIGINS
    return {library: origin for library, origin in found.items() if name in origin.names}
