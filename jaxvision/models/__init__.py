"""Networks: flax.linen modules, one family a file.

`model(image f32[B, H, W, C], *, train)` returns a dict: "c2".."c5" (or "tokens"), "features" f32[B, D] and
"logits" f32[B, classes]. Names resolve by `getattr(jaxvision.models, name)`.
"""

from jaxvision.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
