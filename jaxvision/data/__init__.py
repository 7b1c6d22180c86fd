"""From files to batches of uint8 pixels: numpy, Pillow and grain. Nothing here imports jax.

grain itself is imported by the first batch, since it takes over a second (and imports jax, harmlessly).
"""

from jaxvision.data.contract import InputContract
from jaxvision.data.decode import decode
from jaxvision.data.pipeline import eval_batches, generator, permutation, sample_index, train_batches
from jaxvision.data.sources import Source, open_source
from jaxvision.data.transforms import build, preprocess

__all__ = [
    "InputContract",
    "Source",
    "build",
    "decode",
    "eval_batches",
    "generator",
    "open_source",
    "permutation",
    "preprocess",
    "sample_index",
    "train_batches",
]
