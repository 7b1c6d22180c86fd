"""A trained network, or a file exported of one, as something that is given images and says what they show."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxvision import pretrained
from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import decode
from jaxvision.deploy import artefact
from jaxvision.errors import UserError
from jaxvision.tasks import LABELS

# scores of the classes, probabilities of the tags or the values: what `Prediction` holds
Scores = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one image shows.

    Attributes:
      kind: "class", "tags" or "values".
      classes: the names of classes, tags or values.
      scores: float32 [len(classes)]: probabilities, or the values themselves.
    """

    kind: str
    classes: tuple[str, ...]
    scores: np.ndarray

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes or tags with their probabilities, the most probable first."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.classes[i], float(self.scores[i])) for i in order]

    def tags(self, threshold: float = 0.5) -> list[tuple[str, float]]:
        """Those whose probability is at least the threshold, the most probable first."""
        return [(name, p) for name, p in self.top(len(self.classes)) if p >= threshold]

    @property
    def values(self) -> dict[str, float]:
        return {name: float(f"{v:.6g}") for name, v in zip(self.classes, self.scores)}


class Predictor:
    """What `load` gives.

    Attributes:
      source: where it came from.
      contract: how an image becomes its pixels.
      classes: the names of its classes, tags or values.
      kind: "class", "tags" or "values".
      certificate: of an exported file, else None.
    """

    def __init__(
        self, source: str, contract: InputContract, classes: tuple[str, ...], kind: str, scores: Scores, *,
        whole: bool = False, certificate: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.contract, self.classes, self.kind = source, contract, classes, kind
        self.certificate = certificate
        self.scores = scores
        # what resizes by itself gets what is resized already: then all images have one size, and one program does
        self.prepare = transforms.square(contract) if whole else transforms.preprocess(contract)

    def __repr__(self) -> str:
        return f"<{self.source}: {len(self.classes)} {self.kind}, {self.contract}>"

    def predict(self, images: Any, *, batch_size: int = 64) -> list[Prediction]:
        """A Prediction for each image, in their order.

        Args:
          images: one or a sequence of files (str or Path), encoded bytes, PIL images, or pixels uint8 [H, W] or
            [H, W, 1 or 3]; or an array uint8 [N, H, W, C].
          batch_size: how many go through the network at once; a smaller last batch is padded.

        Raises UserError for the first image that cannot be read.
        """
        one = isinstance(images, str | pathlib.Path | bytes | Image.Image) or getattr(images, "ndim", 4) < 4
        listed: Sequence[Any] = [images] if one else list(images)
        found = []
        for _, row in self.stream(listed, min(batch_size, len(listed))):
            if isinstance(row, Exception):
                raise row
            found.append(row)
        return found

    def stream(
        self, images: Iterable[Any], batch_size: int, threads: int = 2
    ) -> Iterator[tuple[Any, Prediction | UserError | OSError]]:
        """(image, its Prediction, or why it could not be read), in order; the next batch is decoded meanwhile."""

        def ready(image: Any) -> Any:
            try:
                return image, self.prepare(self.pixels(image))
            except (UserError, OSError) as error:
                return image, error

        pending = iter(images)
        with ThreadPoolExecutor(threads) as pool:

            def begin() -> list[Any]:
                return [pool.submit(ready, image) for _, image in zip(range(batch_size), pending)]

            coming = begin()
            while coming:
                current, coming = [job.result() for job in coming], begin()
                good = [made for _, made in current if isinstance(made, np.ndarray)]
                rows = iter(self.batch(good, batch_size) if good else ())
                for image, made in current:
                    yield image, next(rows) if isinstance(made, np.ndarray) else made

    def batch(self, good: Sequence[np.ndarray], size: int) -> list[Prediction]:
        """Of images that were prepared, at most `size`; padded to it, so that one program does for all."""
        images = np.zeros((size, *good[0].shape), np.uint8)
        images[: len(good)] = good
        return [Prediction(self.kind, self.classes, row) for row in self.scores(images)[: len(good)]]

    def pixels(self, image: Any) -> np.ndarray:
        """uint8 [H, W, C] of what `predict` takes."""
        if isinstance(image, str | pathlib.Path):
            return decode(pathlib.Path(image).read_bytes(), self.contract.channels, str(image))
        if isinstance(image, Image.Image):
            file = io.BytesIO()  # through a format without loss: one place knows what to do with each mode
            image.save(file, "PNG" if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else "TIFF")
            return decode(file.getvalue(), self.contract.channels, "a PIL image")
        if hasattr(image, "pixels"):  # with a name of its own
            return decode(image.pixels, self.contract.channels, image.name)
        if isinstance(image, bytes):
            return decode(image, self.contract.channels, "an image given as bytes")
        return decode(np.asarray(image), self.contract.channels, "an image given as an array")


def load(path: str | pathlib.Path, checkpoint: str = "") -> Predictor:
    """A Predictor from a workdir, a checkpoint, published weights, or an exported file with its certificate beside it.

    `checkpoint`: of a workdir: "best", "last" (default) or a step. Raises UserError.
    """
    name = str(path)
    if artefact.is_one(name):
        if checkpoint:
            raise UserError(f"{name} is one network: leave out --checkpoint {checkpoint}")
        file = pathlib.Path(name).expanduser()
        return of_file(file, artefact.read_certificate(file))
    return of_trained(pretrained.load(name, checkpoint))


def of_file(path: pathlib.Path, about: dict[str, Any]) -> Predictor:
    """Of an exported file and its certificate. Raises UserError."""
    contract, classes = InputContract.from_dict(about["contract"]), tuple(about["classes"])
    key = "values" if about["kind"] == "values" else "probabilities"
    run = run_of(path, about)
    return Predictor(
        str(path), contract, classes, about["kind"], lambda images: run(images)[key],
        whole=about["input"]["pixels"] == "images", certificate=about,
    )  # fmt: skip


def run_of(path: pathlib.Path, about: dict[str, Any]) -> artefact.Run:
    """What an exported file computes: uint8 [B, H, W, C] to its outputs. Raises UserError."""
    if about["format"] != "safetensors":
        return artefact.runner(path, about["format"])
    return run_weights(pretrained.load(f"{about['library']}:{about['architecture']}={path}"), about["scores"])


def run_weights(loaded: pretrained.Trained, scores: str) -> artefact.Run:
    """Of weights that were read back as a classifier's: what their logits mean is "softmax", "sigmoid" or "values"."""

    @jax.jit
    def program(params: Any, extra: Any, images: jax.Array) -> dict[str, jax.Array]:
        logits = loaded.task.predict(params, extra, {"image": images})["logits"]
        if scores == "values":
            return {"values": logits}
        return {"logits": logits, "probabilities": getattr(jax.nn, scores)(logits)}

    return lambda images: {k: np.asarray(v) for k, v in program(loaded.params, loaded.extra, images).items()}


def of_trained(trained: pretrained.Trained) -> Predictor:
    kind = kind_of(trained)
    program = jax.jit(lambda params, extra, images: scores_of(trained.task.predict(params, extra, {"image": images})))

    def scores(images: np.ndarray) -> np.ndarray:
        return np.asarray(program(trained.params, trained.extra, images))

    return Predictor(trained.source, trained.contract, trained.classes, kind, scores)


def kind_of(trained: pretrained.Trained) -> str:
    """ "class", "tags" or "values". Raises UserError where it learned without labels."""
    kind = LABELS.get(trained.config.task.name, "")
    if not kind:
        raise UserError(
            f"{trained.source} learned by task {trained.config.task.name}, without labels, so it says nothing of an "
            f"image: fine-tune it first, as python -m jaxvision.train ... --config.init={trained.workdir}"
        )
    return kind


def scores_of(predicted: dict[str, jax.Array]) -> jax.Array:
    """Of what a task predicts: the values, or float32 probabilities."""
    if "values" in predicted:
        return predicted["values"]
    return predicted["probabilities"] if "probabilities" in predicted else jax.nn.softmax(predicted["logits"])
