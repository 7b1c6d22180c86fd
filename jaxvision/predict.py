"""python -m jaxvision.predict: class names, tags or values for images and folders."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from jaxvision import cli, paths
from jaxvision.data.sources import EXTENSIONS
from jaxvision.errors import UserError


def predict(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.predict",
        "Name what images show.",
        [
            "python -m jaxvision.predict --from runs/a photo.jpg other.png",
            "python -m jaxvision.predict --from runs/a --checkpoint best --top 3 --json /my/photos",
        ],
    )
    parser.add_from()
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes shown for each image")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="multilabel: classes at or above it are shown (0.5)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    arguments, _ = parser.parse(argv)
    if arguments.top < 1 or arguments.batch_size < 1:
        raise UserError("--top and --batch-size must be at least 1")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is {arguments.threshold}: it is a probability, in 0..1")
    say = cli.sayer(arguments)
    files = list(find_images(arguments.images))

    import jax
    import numpy as np

    from jaxvision import pretrained
    from jaxvision.data import transforms
    from jaxvision.data.decode import decode
    from jaxvision.tasks import LABELS

    trained = pretrained.load(arguments.source, arguments.checkpoint)
    preprocess = transforms.preprocess(trained.contract)
    kind = LABELS.get(trained.config.task.name, "")
    if not kind:
        raise UserError(
            f"{arguments.source} learned by task {trained.config.task.name}, without labels, so it says nothing of an "
            f"image: fine-tune it first, as python -m jaxvision.train ... --config.init={arguments.source}"
        )
    size = min(arguments.batch_size, len(files))

    @jax.jit
    def scores(params: Any, extra: Any, images: jax.Array) -> jax.Array:
        predicted = trained.task.predict(params, extra, {"image": images})
        if kind == "values":
            return predicted["values"]
        return predicted["probabilities"] if "probabilities" in predicted else jax.nn.softmax(predicted["logits"])

    def described(row: np.ndarray) -> tuple[dict[str, Any], str]:
        """For scripts, and for people."""
        if kind == "values":
            values = {name: float(f"{v:.6g}") for name, v in zip(trained.classes, row)}
            return {"values": values}, "  ".join(f"{name} {v:g}" for name, v in values.items())
        order = np.argsort(-row, kind="stable")
        shown = [i for i in order if row[i] >= arguments.threshold] if kind == "tags" else order[: arguments.top]
        named = [{"class": trained.classes[i], "probability": round(float(row[i]), 6)} for i in shown]
        text = "  ".join(f"{n['class']} {n['probability']:.4f}" for n in named)
        return {"predictions": named}, text or f"none at or above {arguments.threshold:g}"

    width = max(len(str(f)) for f in files)
    rows, failed = [], []
    for start in range(0, len(files), size):
        batch, good = [], []
        for file in files[start : start + size]:
            try:
                pixels = decode(file.read_bytes(), trained.contract.channels, str(file))
                batch.append(preprocess(pixels))
                good.append(file)
            except (UserError, OSError) as error:
                failed.append(str(error))
        if not good:
            continue
        images = np.zeros((size, *batch[0].shape), np.uint8)
        images[: len(batch)] = batch
        for file, row in zip(good, np.asarray(scores(trained.params, trained.extra, images)), strict=False):
            found, text = described(row)
            rows.append({"image": str(file), **found})
            say(f"{file!s:<{width}}  {text}")
    result: dict[str, object] = {"checkpoint": trained.source, "predictions": rows, "failed": failed}
    if failed:
        refusal = UserError(f"{len(failed)} of {len(files)} images could not be read: " + "; ".join(failed[:5]))
        refusal.result = result
        raise refusal
    return result


def find_images(names: list[str]) -> Iterator[pathlib.Path]:
    """Files as named, folders recursively and in order. Raises UserError if one is absent or holds no image."""
    for name in names:
        path = paths.on_disk(name, "images of")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise UserError(f"no image in folder {name!r} (looked for {', '.join(EXTENSIONS)})")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise UserError(f"no such image or folder: {name!r}")


if __name__ == "__main__":
    cli.main(predict)
