"""Networks: flax.linen modules, one family a file, its variants in the file's `__all__`.

`model(image f32[B, H, W, C], *, train)` returns a dict: "c2".."c5" (or "tokens"), "features" f32[B, D] and
"logits" f32[B, classes]. Names resolve by `getattr(jaxvision.models, name)`.
"""

import functools

from jaxvision.models import alex_net, bit, convnext, densenet, efficientnet, mixer, mobilenet, resnet, swin, vgg, vit
from jaxvision.models.alex_net import *
from jaxvision.models.bit import *
from jaxvision.models.convnext import *
from jaxvision.models.densenet import *
from jaxvision.models.efficientnet import *
from jaxvision.models.mixer import *
from jaxvision.models.mobilenet import *
from jaxvision.models.origin import Origin
from jaxvision.models.resnet import *
from jaxvision.models.swin import *
from jaxvision.models.vgg import *
from jaxvision.models.vit import *

FAMILIES = (alex_net, bit, convnext, densenet, efficientnet, mixer, mobilenet, resnet, swin, vgg, vit)
__all__ = [name for family in FAMILIES for name in family.__all__]


def family(name: str) -> str:
    """The file that a network is in: "resnet"."""
    variant = globals()[name]
    return (variant.func if isinstance(variant, functools.partial) else variant).__module__.rpartition(".")[2]


def origins(name: str) -> dict[str, Origin]:
    """Library ("timm", "torchvision") to where it has a network's weights; see `Origin`."""
    found: dict[str, list[Origin]] = globals()[family(name)].ORIGINS
    return {library: origin for library, several in found.items() for origin in several if name in origin.names}
