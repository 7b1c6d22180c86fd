"""Pure jax on arrays."""

from jaxvision.ops.attention import attention, attention_branch
from jaxvision.ops.batch_norm import batch_statistics, conv_batch_norm, normalise, relu
from jaxvision.ops.convolution import conv, max_pool, pixel_product, pixel_sums
from jaxvision.ops.mixing import cutmix_images, mixup_images
from jaxvision.ops.mlp import gelu, mlp_branch
from jaxvision.ops.reduce import at_least_float32, masked_mean

__all__ = [
    "at_least_float32",
    "attention",
    "attention_branch",
    "batch_statistics",
    "conv",
    "conv_batch_norm",
    "cutmix_images",
    "gelu",
    "masked_mean",
    "max_pool",
    "mixup_images",
    "mlp_branch",
    "normalise",
    "pixel_product",
    "pixel_sums",
    "relu",
]
