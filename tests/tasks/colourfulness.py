"""A task in one file, as somebody would add it: how colourful an image is, learned without labels."""

import jax
import jax.numpy as jnp

from jaxvision import targets
from jaxvision.losses import squared_error
from jaxvision.ops import at_least_float32
from jaxvision.task import declares
from jaxvision.tasks.common import supervised


@declares(predicts=targets.values, names=("colourfulness",))
def colourfulness(model, contract):
    """The network's one output, in levels. Hasler and Suesstrunk 2003, https://doi.org/10.1117/12.477378, section 5."""

    def objective(params, extra, outputs, label):
        return jnp.mean(squared_error(outputs["logits"], label / 255), -1), {}

    def predictions(params, extra, outputs):
        return {"values": at_least_float32(outputs["logits"]) * 255}

    def truth(batch):
        red, green, blue = (batch["image"][..., c].astype(jnp.float32) for c in range(3))
        first, second = red - green, (red + green) / 2 - blue
        axes = (1, 2)
        spread = jnp.sqrt(first.var(axes) + second.var(axes))
        offset = jnp.sqrt(first.mean(axes) ** 2 + second.mean(axes) ** 2)
        return {**batch, "label": (spread + 0.3 * offset)[:, None]}

    task = supervised(model.clone(classes=1), contract, objective, predictions)

    def loss(params, extra, batch, *, key, step):
        return task.loss(params, extra, jax.lax.stop_gradient(truth(batch)), key=key, step=step)

    return task._replace(loss=loss, truth=truth)
