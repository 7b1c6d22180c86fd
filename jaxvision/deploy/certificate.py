"""What proves that an exported file is the trained network: both are given the same images, and this is what came."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvision import targets
from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import MAX_PIXELS, decode
from jaxvision.data.sample import without_image
from jaxvision.data.sources import Source
from jaxvision.deploy.exported import Run
from jaxvision.errors import UserError
from jaxvision.task import Target

BATCH = 25
# A compiled program is for one size of image, and compiling one can take longer than all else.
SIZES = {"stablehlo": 10, "onnx": 1 << 30}
PROBES = 4

Show = Callable[[Iterator[Any], int, str], Iterator[Any]]


class Images(NamedTuple):
    """Images of a source that both are shown.

    source: None for pictures of noise; crops: uint8 [N, height, width, C]; squares: of each what `transforms.square`
    makes, whose pixels the crops are, uint8 [resize, resize, C] where the contract crops; samples: what is known of
    each, or None; places: in the source; sizes: (H, W) of each file; skipped: what could not be read; max_pixels: an
    image of more cannot.
    """

    source: Source | None
    contract: InputContract
    crops: np.ndarray
    squares: list[np.ndarray]
    samples: list[dict[str, Any]] | None
    places: list[int]
    sizes: list[tuple[int, int]]
    skipped: list[str]
    max_pixels: int = MAX_PIXELS

    def file(self, k: int) -> np.ndarray:
        """uint8 [1, H, W, C], as decoded."""
        assert self.source is not None
        place = self.places[k]
        image, where = self.source[place]["image"], self.source.where(place)
        return decode(image, where=where, max_pixels=self.max_pixels, **self.contract.decoding)[None]


def choose(source: Source, contract: InputContract, count: int, show: Show, max_pixels: int = MAX_PIXELS) -> Images:
    """`count` images, or all if there are fewer, spread evenly over the source; UserError if none is readable."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)).tolist()
    crop, square = transforms.preprocess(contract), transforms.square(contract)
    crops, squares, samples, places, sizes, skipped = [], [], [], [], [], []
    for place in show(iter(chosen), len(chosen), "reading"):
        sample = source[place]
        try:
            pixels = decode(sample["image"], where=source.where(place), max_pixels=max_pixels, **contract.decoding)
            made = crop(pixels), square(pixels)
        except UserError as error:
            skipped.append(str(error))
            continue
        crops.append(made[0])
        squares.append(made[1])
        samples.append({**without_image(sample), "warp": transforms.warp(contract, *pixels.shape[:2])})
        places.append(place)
        sizes.append(pixels.shape[:2])
    if not places:
        raise UserError(f"none of {len(chosen)} images of {source.uri} could be read: {skipped[0]}")
    labelled = samples if targets.find(source.kind) else None
    return Images(source, contract, np.stack(crops), squares, labelled, places, sizes, skipped, max_pixels)


def batched(run: Run, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Runs all images, BATCH at a time; the last batch is padded, so that one program does. Images of several sizes go
    one by one."""
    one_size = len({image.shape for image in images}) == 1
    size, parts = min(BATCH if one_size else 1, len(images)), []
    for start in range(0, len(images), size):
        rows = np.stack(images[start : start + size])
        padded = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), np.uint8)])
        parts.append({name: value[: len(rows)] for name, value in run(padded).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compared(target: Target, trained: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far two networks say the same of the same images, in the same order.

    `agreement` is the share of images of which both say the same, as the kind of predictions has it: the class (ties
    aside, which `ties` counts), all tags at 0.5, values that differ by at most 1e-3 of their scale.
    `largest_difference` is that of the logits or values, as a share of their scale, the largest of them.
    """
    a, b = (np.asarray(found[target.main], np.float64) for found in (trained, exported))
    scale = float(np.abs(a).max()) or 1.0
    same, ties = target.same(trained, exported, scale)
    same &= np.isfinite(b).reshape(len(b), -1).all(-1)
    largest = float(np.abs(a - b).max()) / scale if np.isfinite(b).all() else float("inf")
    return {
        "images": len(a),
        "agreement": float(same.mean()),
        "ties": ties,
        "largest_difference": largest,
        "scale": scale,
    }


def accuracy(target: Target, found: dict[str, np.ndarray], images: Images) -> dict[str, float] | None:
    """How good predictions are, by the figures of their kind; None where the images have no labels."""
    return None if images.samples is None else target.score(found, images.samples)


def from_files(format: str, run: Run, images: Images, show: Show) -> tuple[list[int], dict[str, np.ndarray]]:
    """(which images, what the file made of them), each whole and by itself, as it comes out of a decoder.

    A StableHLO program is compiled for each size of image: there, of the most frequent SIZES.
    """
    frequent = {size for size, _ in Counter(images.sizes).most_common(SIZES[format])}
    which = [k for k, size in enumerate(images.sizes) if size in frequent]
    rows = [run(images.file(k)) for k in show(iter(which), len(which), "from files")]
    return which, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def latency(run: Run, shape: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of 1 and of 8 images of this shape, medians of up to 10 runs in 3 s, the first left out."""
    made = {}
    for count in (1, 8):
        images = np.zeros((count, *shape), np.uint8)
        run(images)
        seconds: list[float] = []
        while len(seconds) < 10 and sum(seconds) < 3:
            start = time.perf_counter()
            run(images)
            seconds.append(time.perf_counter() - start)
        made[str(count)] = round(1e3 * statistics.median(seconds), 3)
    return made


def probes(contract: InputContract) -> np.ndarray:
    """uint8 [PROBES, H, W, C]: noise of four grains, the same on every machine, resized already as `Images.squares`."""
    rng, sized = np.random.default_rng(0), transforms.square(contract)
    height, width = (contract.resize,) * 2 if contract.fit == "crop" else contract.shape[:2]
    made = []
    for k in range(PROBES):
        coarse = rng.integers(0, 256, (-(-height >> k), -(-width >> k), contract.channels), np.uint8)
        made.append(sized(coarse.repeat(1 << k, 0).repeat(1 << k, 1)[:height, :width]))
    return np.stack(made)


def centre(contract: InputContract, squares: np.ndarray) -> np.ndarray:
    """The crops of `Images.squares`."""
    crop = transforms.preprocess(contract)
    return np.stack([crop(square) for square in squares])


def check(path: pathlib.Path, agreement: dict[str, Any], bound: float, where: str) -> None:
    """Raises UserError if fewer than `bound` agree."""
    if not agreement["agreement"] >= bound:
        raise UserError(
            f"{path} does not agree with the trained network: {where}, {agreement['agreement']:.2%} of "
            f"{agreement['images']} images are told the same, the bound is {bound:.2%} (the largest difference is "
            f"{agreement['largest_difference']:.1e} of the logits' scale)"
        )
