"""Makes torchvision_eval.npz: torchvision's evaluation pixels of pictures of several shapes.

    python make_torchvision_eval.py

It needs torch, torchvision and Pillow; the versions are in the file. A key is backend/filter/HEIGHTxWIDTHxCHANNELS; the
pixels are Resize(RESIZE) and CenterCrop(SIZE) of a Pillow image, or of a uint8 tensor (antialiased).
"""

import json
import pathlib

import numpy as np
from PIL import Image

RESIZE, SIZE = 40, 32
SHAPES = ((60, 80, 3), (80, 61, 3), (41, 39, 3), (40, 57, 3), (24, 31, 3), (9, 7, 3), (5, 44, 3), (301, 200, 3))
SHAPES += ((77, 90, 1), (13, 20, 1))


def picture(height: int, width: int, channels: int) -> np.ndarray:
    """Slopes, a bright disc, a checkerboard and noise; whole numbers only, so the same everywhere."""
    y, x, c = np.mgrid[:height, :width, :channels].astype(np.int64)
    noise = ((x * 7919 + y * 104729 + c * 1299709 + 12345) * 2654435761 >> 16) % 50
    disc = (3 * y - height) ** 2 + (3 * x - width) ** 2 < min(height, width) ** 2
    board = ((y // 3 + x // 3) % 2) * (2 * x > width)
    slopes = 150 * x // width + 60 * y * (c + 1) // (3 * height)
    return np.clip(slopes + 120 * disc * (2 - c) + 90 * board + noise - 20, 0, 255).astype(np.uint8)


def main() -> None:
    import PIL
    import torch
    import torchvision
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    made: dict[str, np.ndarray] = {}
    for height, width, channels in SHAPES:
        pixels = picture(height, width, channels)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
            key = f"{mode.value}/{height}x{width}x{channels}"
            small = F.center_crop(F.resize(image, RESIZE, mode), SIZE)
            made[f"pillow/{key}"] = np.asarray(small).reshape(SIZE, SIZE, channels)
            small = F.center_crop(F.resize(tensor, RESIZE, mode, antialias=True), SIZE)
            made[f"tensor/{key}"] = small.numpy().transpose(1, 2, 0)
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, PIL, np)}
    here = pathlib.Path(__file__).with_name("torchvision_eval.npz")
    np.savez_compressed(here, versions=json.dumps(versions), **made)


if __name__ == "__main__":
    main()
