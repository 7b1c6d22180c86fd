"""Image files to batches of uint8 pixels: numpy, Pillow, OpenCV, libjpeg-turbo.

Nothing here imports jax.
"""

from jaxvision.data.contract import InputContract
from jaxvision.data.decode import decode
from jaxvision.data.order import Order, class_weights, generator, permutation, sample_index
from jaxvision.data.pipeline import Skips, eval_batches, train_batches
from jaxvision.data.sources import Source, open_source
from jaxvision.data.transforms import build, preprocess

__all__ = [
    "InputContract",
    "Order",
    "Skips",
    "Source",
    "build",
    "class_weights",
    "decode",
    "eval_batches",
    "generator",
    "open_source",
    "permutation",
    "preprocess",
    "sample_index",
    "train_batches",
]
