"""The kind "dots": the places of bright dots, in the pixels of the file."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxvision.data.sample import OBJECTS, Field
from jaxvision.report.draw import number, table, tag
from jaxvision.task import Metric, Target

SLOTS = 4  # dots that are predicted, the brightest first
SURE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Dots:
    """dots: float64 [N, 2], x and y in the pixels of the file."""

    dots: np.ndarray

    def to_dict(self):
        return {"dots": [[round(x, 4), round(y, 4)] for x, y in self.dots.tolist()]}

    def text(self):
        return "  ".join(f"({x:.1f}, {y:.1f})" for x, y in self.dots.tolist()) or "no dot"

    def __repr__(self):
        return f"<dots: {self.text()}>"


def in_file(row, warp):
    """The dots that the network is sure of, in the file's pixels."""
    return warp.points_back(np.asarray(row["dots"], np.float64)[np.asarray(row["scores"]) > SURE])


def per_sample(classes):
    def update(predictions, batch):
        return {"dots": predictions["dots"], "dot_scores": predictions["scores"]}

    return Metric(update, lambda rows: {}, gather=True)


def same(trained, exported, scale):
    sure = [found["scores"] > SURE for found in (trained, exported)]
    near = (np.abs(trained["dots"] - exported["dots"]).max(-1) <= 1e-3 * scale) | ~sure[0]
    return (sure[0] == sure[1]).all(-1) & near.all(-1), 0


def score(found, samples):
    rows = [{name: values[k] for name, values in found.items()} for k in range(len(samples))]
    right = [len(in_file(row, s["warp"])) == len(s["dots"]) for row, s in zip(rows, samples, strict=True)]
    return {"count_right": float(np.mean(right))}


def objective(predictions, batch):
    valid = batch["valid"].astype(jnp.float32)
    return jnp.square(predictions["scores"].sum(-1) - valid.sum(-1))


dots = Target(
    name="dots",
    fields=(Field("dots", (OBJECTS, 2), "float32", geometry="points", per_object=True),),
    outputs=lambda classes: {"dots": (SLOTS, 2), "scores": (SLOTS,)},
    main="dots",
    per_sample=per_sample,
    rows=frozenset({"dots", "dot_scores"}),
    prediction=lambda classes, row, warp: Dots(in_file(row, warp)),
    options={},
    columns=lambda classes: ["dots"],
    cells=lambda answer: [" ".join(f"{x}:{y}" for x, y in answer["dots"])],
    same=same,
    score=score,
    counts=lambda source: [tag("p", f"{int(source.objects.sum())} dots.")],
    words=lambda classes, sample: f"{int(sample['valid'].sum())} dots",
    section=lambda certificate, rows, show: [
        table(("measure", "value"), [(name, number(value)) for name, value in certificate["metrics"].items()])
    ],
    objective=objective,
)
