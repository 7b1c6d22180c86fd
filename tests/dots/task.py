"""A task that learns dots: their places are the brightest spots, whether a spot is a dot is learned."""

import jax
import jax.numpy as jnp

from jaxvision.ops import masked_mean
from jaxvision.task import Task, declares
from jaxvision.tasks.common import network
from tests.dots.target import SLOTS, dots

WINDOW = 6


def spots(image):
    """(places f32[B, SLOTS, 2], brightness f32[B, SLOTS] in 0..1) of the brightest spots, each around its middle."""
    grey = image.astype(jnp.float32).mean(-1) / 255
    height, width = grey.shape[1:]
    y, x = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
    places, bright = [], []
    for _ in range(SLOTS):
        flat = grey.reshape(grey.shape[0], -1)
        top = jnp.argmax(flat, -1)
        at_y, at_x = top // width + 0.5, top % width + 0.5
        near = (jnp.abs(y[None, :, None] - at_y[:, None, None]) <= WINDOW) & (
            jnp.abs(x[None, None, :] - at_x[:, None, None]) <= WINDOW
        )
        weight = jnp.where(near, jnp.maximum(grey - 0.15, 0), 0)
        total = jnp.maximum(weight.sum((1, 2)), 1e-6)
        middle = (weight * x).sum((1, 2)) / total, (weight * y[:, None]).sum((1, 2)) / total
        places.append(jnp.stack(middle, -1))
        bright.append(flat.max(-1))
        grey = jnp.where(near, 0, grey)
    return jnp.stack(places, 1), jnp.stack(bright, 1)


@declares(dots)
def spotting(model, contract):
    """Predicts "dots" f32[B, SLOTS, 2] in pixels of the canvas, "scores" f32[B, SLOTS] and "features"."""
    net = network(model.clone(classes=0), contract)

    def init(key, batch, given=None):
        params, extra = net.init(key, batch["image"])
        params, extra = {"model": params, "head": {"scale": jnp.ones(()), "offset": jnp.zeros(())}}, {"model": extra}
        return (given or {}).get("params") or params, (given or {}).get("extra") or extra

    def scored(params, image):
        places, bright = spots(image)
        return places, jax.nn.sigmoid(params["head"]["scale"] * (bright - 0.5) * 20 + params["head"]["offset"])

    def loss(params, extra, batch, *, key, step):
        places, scores = scored(params, batch["image"])
        apart = jnp.linalg.norm(places[:, :, None] - batch["dots"][:, None], axis=-1)
        near = jnp.where(batch["valid"][:, None], apart, jnp.inf).min(-1) < 4
        value = jnp.mean(jnp.square(scores - near), -1)
        return masked_mean(value, batch["mask"]), (extra, {"near": masked_mean(near.mean(-1), batch["mask"])})

    def predict(params, extra, batch):
        places, scores = scored(params, batch["image"])
        features = net.apply(params["model"], extra["model"], batch["image"])["features"]
        return {"dots": places, "scores": scores, "features": features}

    return Task(init, loss, predict)
