"""Google's .npz files: timm's own loader of that format makes the network that ours makes.

The files are written from the shapes that the format has (tests/weights/npz_files.py), not by `npz.to_npz`, but for its
test.
"""

import numpy as np
import pytest

from jaxvision import models
from jaxvision.weights import npz
from tests.weights.npz_files import CLASSES, DEPTH, HEADS, PATCH, SIDE, SMALL, WIDTH, scanned, vit_file

pytestmark = pytest.mark.parity


def theirs(path, pooling: str, spelling: str, image: np.ndarray) -> np.ndarray:
    """The logits of timm's network with timm's reading of the file."""
    import torch

    from tests.parity import torch_side

    torch_side.import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES,
        class_token=pooling == "token", global_pool="token" if pooling == "token" else "avg", fc_norm=False,
        no_embed_class=spelling != "augreg",
    ).eval()  # fmt: skip
    with torch.no_grad():
        network.load_pretrained(str(path))
    return torch_side.outputs(network, image, [])["logits"]


def ours(path, pooling: str, image: np.ndarray) -> np.ndarray:
    """The logits of ours, through everything that config.init goes through."""
    import jax

    import jaxvision.config
    from jaxvision.training import build, restore

    config = jaxvision.config.default()
    config.model = dict(name="vit_small_patch16_224", pooling=pooling, **SMALL)
    config.data.update(train="fake:16x32", size=SIDE, resize=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3, filter="bicubic")
    config.steps = 1
    source = restore.find(f"augreg:vit_small_patch16_224={path}")
    task = build.task(config, CLASSES)
    plan = restore.load_plan(source, task, config, tuple(map(str, range(CLASSES))))
    assert not [*plan.dropped, *plan.reinitialised]
    params, _ = task.init(jax.random.key(0), build.zeros(config), plan.given)
    model = build.model(config, CLASSES)
    return np.asarray(
        jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params["model"], image)["logits"]
    )


# timm takes the prefix for the spelling, so that it reads only these pairs
@pytest.mark.parametrize(
    ("spelling", "prefix"),
    [
        *(("augreg", prefix) for prefix in ("", "opt/target/")),
        *((spelling, prefix) for spelling in ("big_vision", "big_vision, scanned") for prefix in ("", "params/")),
    ],
)
@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_same_logits_as_timm_reads_it(tmp_path, spelling, pooling, prefix):
    state = vit_file(spelling.partition(",")[0], pooling)
    if "scanned" in spelling:
        state = scanned(state)
    path = tmp_path / "weights.npz"
    np.savez(path, **{prefix + name: array for name, array in state.items()})
    image = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    want, got = theirs(path, pooling, spelling, image), ours(path, pooling, image)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    assert np.abs(want).max() > 0.1


def test_the_way_back_is_what_timm_reads(tmp_path):
    """`to_npz` of ViT-Ti/16 with random leaves; its network in timm is built by name."""
    import jax
    import torch

    from tests.parity import compare, torch_side

    model = models.vit_tiny_patch16_224(classes=1000)
    rng = np.random.default_rng(0)
    leaves = {n: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for n, leaf in compare.leaves_of(model, 224).items()}
    path = tmp_path / "weights.npz"
    np.savez(path, **npz.to_npz(leaves, model, "vit"))
    network = torch_side.make("timm", "vit_tiny_patch16_224")
    with torch.no_grad():
        network.load_pretrained(str(path))
    image = rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
    want = torch_side.outputs(network, image, [])["logits"]
    got = jax.jit(lambda v, x: model.apply(v, x, train=False))(compare.variables_of(leaves), image)["logits"]
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
