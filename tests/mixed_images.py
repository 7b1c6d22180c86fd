"""Real photos in many sizes and kinds of file: what people put into folders."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIZES = (
    (320, 240),
    (240, 320),
    (500, 375),
    (375, 500),
    (256, 256),
    (224, 224),
    (640, 427),
    (120, 90),
    (61, 200),
    (800, 600),
)


def photos() -> dict[str, Image.Image]:
    """Two photos that come with scikit-learn, and one with matplotlib."""
    import matplotlib.cbook
    from sklearn.datasets import load_sample_image

    hopper = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")} | {
        "hopper": hopper
    }


def _saved(format: str, mode: str = "RGB", **options: object) -> Callable[[Image.Image], bytes]:
    def save(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.convert(mode).save(file, format, **options)
        return file.getvalue()

    return save


def _turned(image: Image.Image) -> bytes:
    """Stored on its side, with the EXIF orientation that says so."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def _sixteen_bits(image: Image.Image) -> bytes:
    file = io.BytesIO()
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(file, "PNG")
    return file.getvalue()


KINDS: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
    (".jpg", _saved("JPEG", quality=90)),
    (".jpeg", _saved("JPEG", quality=60, progressive=True)),
    (".png", _saved("PNG")),
    (".jpg", _saved("JPEG", "L", quality=85)),
    (".jpg", _saved("JPEG", "CMYK", quality=90)),
    (".webp", _saved("WEBP", quality=80)),
    (".png", _saved("PNG", "RGBA")),
    (".png", _saved("PNG", "P")),
    (".gif", _saved("GIF", "P")),
    (".bmp", _saved("BMP")),
    (".tiff", _saved("TIFF")),
    (".jpg", _turned),
    (".png", _sixteen_bits),
)


def write(folder: pathlib.Path, count: int, *, seed: int = 0) -> None:
    """folder/CLASS/NUMBER.SUFFIX: parts of the photos, mirrored by chance, every kind and size after the other."""
    rng = np.random.default_rng(seed)
    sources = list(photos().items())
    for k in range(count):
        name, photo = sources[k % len(sources)]
        width, height = SIZES[rng.integers(len(SIZES))]
        share = rng.uniform(0.4, 1.0) * min(photo.width / width, photo.height / height)
        box = (width * share, height * share)
        left, top = rng.uniform(0, photo.width - box[0]), rng.uniform(0, photo.height - box[1])
        part = photo.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + box[0], top + box[1]))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
        suffix, save = KINDS[k % len(KINDS)]
        target = folder / name / f"{k:04}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(save(part))
