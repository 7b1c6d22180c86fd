"""Pure jax on arrays."""

from jaxvision.ops.mixing import cutmix_images, mixup_images
from jaxvision.ops.reduce import masked_mean

__all__ = ["cutmix_images", "masked_mean", "mixup_images"]
