"""What became of every sample: not a number but the rows that a report of the run is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvision.task import Batch, Metric

OUTCOMES = "/outcomes"  # the name by which the evaluator knows this metric; an evaluation, a file's name, has no slash


def outcomes(*, classes: int, kind: str, k: int = 5) -> Metric:
    """A Metric that measures nothing and gathers a row a sample, for labels of `kind` (data.sources.common.KINDS).

    "class": `label` int32, `top` int32 [min(k, C)] and `top_p` float32 [min(k, C)], the likeliest classes and their
    probabilities, falling; `p` float32, the probability of the label. Probabilities are those of the predictions, else
    the softmax of their logits. "tags": `label` bool [K], `known` bool [K], false where the label is unknown (then
    `label` is, too), and `scores` float16 [K], the probabilities. "values": `label` and `values` float32 [K].

    Raises ValueError for another kind.
    """
    if kind not in ("class", "tags", "values"):
        raise ValueError(f"outcomes: labels of kind {kind!r} have none")

    def update(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
        label = batch["label"]
        if kind == "values":
            return {"label": label, "values": predictions["values"].astype(jnp.float32)}
        if kind == "tags":
            scores = predictions["probabilities"].astype(jnp.float16)
            return {"label": label > 0.5, "known": ~jnp.isnan(label), "scores": scores}
        p = predictions.get("probabilities")
        p = jax.nn.softmax(predictions["logits"].astype(jnp.float32)) if p is None else p.astype(jnp.float32)
        top_p, top = jax.lax.top_k(p, min(k, classes))
        return {"label": label, "top": top, "top_p": top_p, "p": jnp.take_along_axis(p, label[:, None], 1)[:, 0]}

    return Metric(update, lambda rows: {}, gather=True)
