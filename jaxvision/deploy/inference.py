"""A trained network, or a file exported of one, as something that is given images and says what they show."""

from __future__ import annotations

import itertools
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxvision import targets
from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import MAX_PIXELS, decode
from jaxvision.data.sources.common import read_file
from jaxvision.data.warp import Warp
from jaxvision.deploy import exported
from jaxvision.errors import UserError
from jaxvision.runtime import machine, sharding
from jaxvision.runtime.records import Say
from jaxvision.task import Target, Task
from jaxvision.training import restore

Outputs = Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
Key = TypeVar("Key")
LONGEST = 200  # times the shorter side


class Predictor:
    """What `load` gives.

    Attributes:
      source: where it came from.
      contract: how an image becomes its pixels.
      classes: the names of its classes, tags or values.
      kind: of its predictions: "class", "tags", "values" or another of `jaxvision.targets`.
      target: all that there is to know of the kind.
      certificate: of an exported file, else None.
      max_pixels: an image of more cannot be read; may be set.
    """

    max_pixels = MAX_PIXELS

    def __init__(
        self, source: str, contract: InputContract, classes: tuple[str, ...], target: Target, run: exported.Run, *,
        whole: bool = False, certificate: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.contract, self.classes = source, contract, classes
        self.target, self.kind = target, target.name
        self.certificate = certificate
        self.run = run
        self._reading = threading.Lock()
        # what resizes by itself gets what is resized already: then all images have one size, and one program does
        self.prepare = transforms.square(contract) if whole else transforms.preprocess(contract)
        self._one_by_one = whole and contract.fit == "shortest"  # there each keeps its shape

    def __repr__(self) -> str:
        return f"<{self.source}: {len(self.classes)} {self.kind}, {self.contract}>"

    def predict(self, images: Any, *, batch_size: int = 64) -> list[Any]:
        """A prediction for each image, in their order, of the class that the kind has: `targets.class_.Classes`,
        `targets.tags.Tags`, `targets.values.Values`.

        Args:
          images: one or a sequence of files (str or Path), encoded bytes, PIL images, or pixels uint8 [H, W] or
            [H, W, 1 or 3]; or an array uint8 [N, H, W, C].
          batch_size: how many go through the network at once; a smaller last batch is padded.

        Raises UserError or OSError for the first image that cannot be read.
        """
        _need_count("batch_size", batch_size)
        one = isinstance(images, str | os.PathLike | bytes | bytearray | Image.Image) or getattr(images, "ndim", 4) < 4
        if not one and (isinstance(images, dict | set) or not isinstance(images, Iterable)):
            raise UserError(f"{images!r} is no image: give a file, bytes, a PIL image or uint8 pixels, or several")
        listed: Sequence[Any] = [images] if one else list(images)
        found = []
        named = ((str(x) if isinstance(x, str | os.PathLike) else f"image {k}", x) for k, x in enumerate(listed))
        for _, row in self.stream(named, batch_size, len(listed)):
            if isinstance(row, Exception):
                raise row
            found.append(row)
        return found

    def stream(
        self, images: Iterable[tuple[Key, Any]], batch_size: int, count: int | None = None
    ) -> Iterator[tuple[Key, Any]]:
        """Gives for each (key, image) in order (key, its prediction), or (key, the UserError or OSError that says why
        it could not be read).

        The next batch is decoded meanwhile, by as many threads as there are cores, at most 16. str(key) is the image's
        name in errors. `count`: how many there are, where that is known.
        """

        def ready(key: Key, image: Any) -> tuple[Key, tuple[np.ndarray, Warp] | UserError | OSError]:
            try:
                pixels = _compact(self.pixels(image, str(key)), str(key))
                return key, (self.prepare(pixels), transforms.warp(self.contract, *pixels.shape[:2]))
            except (UserError, OSError) as error:
                return key, error

        size = batch_size if count is None else max(1, min(batch_size, count))
        size = 1 if self._one_by_one else size
        pending = iter(images)
        pool = ThreadPoolExecutor(min(16, machine.cores()))
        try:

            def begin() -> list[Any]:
                return [pool.submit(ready, *pair) for pair in itertools.islice(pending, size)]

            coming = begin()
            while coming:
                current, coming = [job.result() for job in coming], begin()
                good = [made for _, made in current if isinstance(made, tuple)]
                rows = iter(self.batch(good, size) if good else ())
                for key, made in current:
                    yield key, next(rows) if isinstance(made, tuple) else made
        finally:
            pool.shutdown(cancel_futures=True)  # who stops early does not wait for a batch to be decoded

    def batch(self, good: Sequence[tuple[np.ndarray, Warp]], size: int) -> list[Any]:
        """Predictions of at most `size` prepared images; padded to it, so that one program does for all."""
        images = np.zeros((size, *good[0][0].shape), np.uint8)
        images[: len(good)] = [pixels for pixels, _ in good]
        found = self.run(images)
        return [
            self.target.prediction(self.classes, {name: values[k] for name, values in found.items()}, warp)
            for k, (_, warp) in enumerate(good)
        ]

    def pixels(self, image: Any, where: str) -> np.ndarray:
        """uint8 [H, W, C] of what `predict` takes. Raises UserError, which names `where`, or OSError."""
        how = {**self.contract.decoding, "where": where, "max_pixels": self.max_pixels}
        if isinstance(image, str | os.PathLike):
            return decode(_bytes_of(image), **how)
        if isinstance(image, bytes | bytearray | memoryview):
            return decode(bytes(image), **how)
        if isinstance(image, Image.Image):
            with self._reading:  # Pillow reads a file when its pixels are asked for, and the same may be listed twice
                return decode(image, **how)
        return decode(_pixels(_array(image, where), where), **how)


def _need_count(name: str, value: Any) -> None:
    """Raises UserError unless an argument is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} is {value!r}: it must be a whole number of at least 1")
    if value < 1:
        raise UserError(f"{name} is {value}: it must be at least 1")


def _compact(pixels: np.ndarray, where: str) -> np.ndarray:
    """Raises UserError for a line of pixels, which would take gigabytes where its shorter side is made longer."""
    sides = sorted(pixels.shape[:2])
    if sides[1] > LONGEST * sides[0]:
        raise UserError(f"{where} has {pixels.shape[1]} x {pixels.shape[0]} pixels, a line: cut it into images")
    return pixels


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    """Raises OSError with the name."""
    try:
        return read_file(os.path.expanduser(path))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from None


def _array(image: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(image)
    except Exception as error:  # any library: lists of uneven lengths, tensors on other devices
        raise UserError(f"{where} is no array ({error}): give uint8 pixels [H, W], [H, W, 1] or [H, W, 3]") from error
    if array.ndim == 0:
        raise UserError(
            f"{where} is {array.dtype}[], {image!r:.80}: give a file, bytes, a PIL image or uint8 pixels [H, W], "
            "[H, W, 1] or [H, W, 3]"
        )
    return array


def _pixels(array: np.ndarray, where: str) -> np.ndarray:
    """Raises UserError if it is no image, with what to do for the usual ones."""
    shape = array.shape
    if array.dtype == np.uint8 and array.size and (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3))):
        return array
    hint = ""
    if np.issubdtype(array.dtype, np.floating):
        hint = "; of numbers in 0..1: (255 * pixels).round().astype(numpy.uint8)"
    elif array.dtype == np.uint16 or (array.ndim == 3 and shape[2] in (2, 4)):
        hint = "; as a Pillow image its levels and alpha are treated as in training: PIL.Image.fromarray(pixels)"
    elif array.ndim == 3 and shape[0] in (1, 3):
        hint = "; with the channels last: pixels.transpose(1, 2, 0)"
    raise UserError(f"{where} is {array.dtype}{list(shape)}: give uint8 pixels [H, W], [H, W, 1] or [H, W, 3]{hint}")


def load(
    path: str | os.PathLike[str],
    checkpoint: str | int = "",
    *,
    max_pixels: int = MAX_PIXELS,
    say: Say = lambda text: None,
) -> Predictor:
    """A Predictor from a workdir, a checkpoint, published weights, or an exported file with its certificate beside it.

    `checkpoint`: of a workdir: "best", "last" (default) or a step. `max_pixels`: an image of more cannot be read.
    `say` is told of a later checkpoint that is half-written, and so not used. Raises UserError.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"load was given {path!r:.80}: give the name of a workdir, of published weights or of an exported file"
        )
    predictor = _load(str(path), str(checkpoint), say)
    predictor.max_pixels = max_pixels
    return predictor


def _load(name: str, checkpoint: str, say: Say) -> Predictor:
    if exported.is_one(name):
        if checkpoint:
            raise UserError(f"{name} is one network: leave out --checkpoint {checkpoint}")
        file = pathlib.Path(name).expanduser()
        return of_file(file, exported.read_certificate(file))
    return of_trained(restore.load(name, checkpoint, say))


def of_file(path: pathlib.Path, about: dict[str, Any]) -> Predictor:
    """A Predictor of an exported file and its certificate. Raises UserError."""
    try:
        contract, classes = InputContract.from_dict(about["contract"]), tuple(about["classes"])
        target = target_of(about)
        whole, _ = about["input"]["pixels"] == "images", about["format"]
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{exported.certificate_of(path)} is no certificate of this version of jaxvision ({error!r}): export again"
        ) from error
    return Predictor(str(path), contract, classes, target, run_of(path, about), whole=whole, certificate=about)


def target_of(about: dict[str, Any]) -> Target:
    """The kind of a certificate. Raises KeyError for one that there is not."""
    target = targets.find(about["kind"])
    if target is None:
        raise KeyError(about["kind"])
    return target


def run_of(path: pathlib.Path, about: dict[str, Any]) -> exported.Run:
    """What an exported file computes: uint8 [B, H, W, C] to its outputs.

    Raises UserError if it cannot be read, or says something else of itself than its certificate.
    """
    exported.agree(path, about)
    if about["format"] != "safetensors":
        return exported.runner(path, about["format"])
    of_logits = target_of(about).of_logits
    assert of_logits is not None, about["kind"]  # or it would not have been exported
    weights = restore.load(f"{about['library']}:{about['architecture']}={path}")
    return run_trained(weights, lambda predicted: of_logits(predicted["logits"], about["scores"]))


def run_trained(trained: restore.Trained, outputs: Outputs) -> exported.Run:
    """uint8 crops to `outputs` of what the task predicts, over all devices; in the dtype that it was trained in."""
    task = trained.task
    program = jax.jit(lambda params, extra, images: outputs(task.predict(params, extra, {"image": images})))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = program(trained.params, trained.extra, _split(images, trained.mesh))
        return {k: np.asarray(v, np.float32)[: len(images)] for k, v in found.items()}

    return run


def of_trained(trained: restore.Trained) -> Predictor:
    """A Predictor of a trained network. Raises UserError where it predicts features alone."""
    target = predicted_by(trained)
    run = run_trained(trained, lambda predicted: outputs_of(trained.task, predicted))
    return Predictor(trained.source, trained.contract, trained.classes, target, run)


def outputs_of(task: Task, predicted: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """All outputs that a task's kind of predictions has, made of what the task predicts."""
    assert task.predicts is not None
    complete = task.predicts.complete({name: rows for name, rows in predicted.items() if name != "features"})
    return {name: complete[name] for name in task.predicts.outputs(0)}


def _split(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """Over the devices that hold the network, each of which would compute all otherwise; zeros fill up the last."""
    more = np.zeros((-len(images) % mesh.size, *images.shape[1:]), np.uint8)
    return jax.device_put(np.concatenate([images, more]), sharding.batch_sharding(mesh))


def predicted_by(trained: restore.Trained) -> Target:
    """The kind of what it predicts. Raises UserError where that is features alone."""
    target = trained.task.predicts
    if target is None:
        raise UserError(
            f"{trained.source} learned by task {trained.config.task.name}, without labels, so it says nothing of an "
            f"image: fine-tune it first, as python -m jaxvision.train ... --config.init={trained.workdir}"
        )
    return target
