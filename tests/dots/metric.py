"""How far dots are from where they should be, in the pixels of the file."""

import numpy as np

from jaxvision.task import Metric
from tests.dots.target import dots, in_file


def distance(*, classes, largest: float = 3.0):
    """`recall`: share of the true dots with a prediction within `largest` pixels; `error`: the mean distance of those.

    The truth is the source's own, float64; predictions come back to the file by the inverse warp.
    """

    def update(predictions, batch):
        return {"dots": predictions["dots"], "scores": predictions["scores"]}

    def compact(rows, samples):
        made = []
        for k, sample in enumerate(samples):
            found = in_file({name: values[k] for name, values in rows.items()}, sample["warp"])
            apart = np.linalg.norm(sample["dots"][:, None] - found[None], axis=-1)
            nearest = apart.min(1) if len(found) else np.full(len(sample["dots"]), np.inf)
            made.append({"nearest": nearest, "found": len(found)})
        return made

    def finish(rows):
        nearest = np.concatenate([row["nearest"] for row in rows])
        near = nearest[nearest <= largest]
        return {
            "recall": len(near) / max(len(nearest), 1),
            "error": float(near.mean()) if len(near) else float("nan"),
            "found": float(sum(row["found"] for row in rows)),
        }

    return Metric(update, finish, gather=True, compact=compact, compares=dots, names=("recall", "error", "found"))
