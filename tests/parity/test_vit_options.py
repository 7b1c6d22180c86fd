"""Options of ViT against timm's VisionTransformer, built by its class: a small one, random weights, the same logits."""

import numpy as np
import pytest

from jaxvision import models
from jaxvision.weights.plan import Source, match

pytestmark = pytest.mark.parity
SIDE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 24, 2, 3
CASES = {
    "plain": ({}, {}),
    "registers": (dict(registers=3), dict(reg_tokens=3, no_embed_class=True)),
    "qk_norm": (dict(qk_norm=True), dict(qk_norm=True)),
    "layer_scale": (dict(layer_scale=0.1), dict(init_values=0.1)),
    "mean": (dict(pooling="mean"), dict(class_token=False, global_pool="avg", fc_norm=False)),
    "mean, registers": (
        dict(pooling="mean", registers=2),
        dict(class_token=False, global_pool="avg", fc_norm=False, reg_tokens=2, no_embed_class=True),
    ),
    "as DeiT III": (dict(layer_scale=0.1), dict(init_values=0.1, no_embed_class=True)),
    "all": (
        dict(pooling="mean", registers=2, qk_norm=True, layer_scale=0.1, mlp=40),
        dict(class_token=False, global_pool="avg", fc_norm=False, reg_tokens=2, no_embed_class=True, qk_norm=True,
             init_values=0.1, mlp_ratio=40 / 24),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_tokens(name):
    """Their state dict crosses as `config.init` does it: names by the rules, then the load plan."""
    import jax
    from flax import traverse_util

    from jaxvision.weights import torch
    from tests.parity import compare, torch_side

    torch_side.import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    options, their_options = CASES[name]
    theirs = torch_side.randomised(
        VisionTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
                          num_classes=5, **their_options)
    ).eval()  # fmt: skip
    model = models.vit_small_patch16_224(classes=5, patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, **options)
    origin = models.origins("vit_small_patch16_224")["timm"]
    want = compare.leaves_of(model, SIDE)
    found = torch.from_state_dict(torch_side.state(theirs), want, origin, model)
    plan = match(traverse_util.unflatten_dict(want, sep="/"), Source(found.leaves, found.unused), set(), True)
    assert not plan.dropped
    unplaced = their_options.get("no_embed_class") and their_options.get("class_token", True)
    assert bool(plan.resized) == bool(unplaced)
    image = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    expected = torch_side.outputs(theirs, image, ["norm"])
    got = jax.jit(lambda v, x: model.apply(v, x, train=False))(plan.given, image)
    assert compare.difference(np.asarray(got["logits"]), expected["logits"]) <= 1e-4
    assert compare.difference(np.asarray(got["tokens"]), expected["norm"]) <= 1e-4
