"""Pure jax on arrays."""

from jaxvision.ops.attention import attention, attention_branch
from jaxvision.ops.batch_norm import batch_statistics, folded, pointwise, relu, scale_shift, shift
from jaxvision.ops.bottleneck import Tail, finish, finish_and_narrow
from jaxvision.ops.convolution import conv, max_pool
from jaxvision.ops.mixing import cutmix_images, mixup_images
from jaxvision.ops.mlp import gelu, mlp_branch
from jaxvision.ops.reduce import at_least_float32, at_temperature, masked_mean

__all__ = [
    "Tail",
    "at_least_float32",
    "at_temperature",
    "attention",
    "attention_branch",
    "batch_statistics",
    "conv",
    "cutmix_images",
    "finish",
    "finish_and_narrow",
    "folded",
    "gelu",
    "masked_mean",
    "max_pool",
    "mixup_images",
    "mlp_branch",
    "pointwise",
    "relu",
    "scale_shift",
    "shift",
]
