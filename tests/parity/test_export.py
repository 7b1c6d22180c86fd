"""What jaxvision.export writes, timm and torchvision load, strictly, and compute the same logits with it."""

import numpy as np
import pytest

from tests.deploy.test_torch_names import exported, workdir_of

pytestmark = pytest.mark.parity


def ours(name, leaves, image):
    import jax
    from flax import traverse_util

    from jaxvision import models

    model = getattr(models, name)(classes=3)
    variables = traverse_util.unflatten_dict(leaves, sep="/")
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])(variables, image))


def check(network, name, leaves, size, channels=3):
    from tests.parity import compare, torch_side

    image = np.random.default_rng(0).normal(size=(2, size, size, channels)).astype(np.float32)
    want = ours(name, leaves, image)
    assert compare.difference(torch_side.outputs(network.eval(), image, [])["logits"], want) <= 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", dict(size=64, channels=1)),
        ("efficientnet_b0", dict(size=64, wrap=(("ema", dict(decay=0.9)),))),
        ("resnet18", dict(size=64)),
    ],
)
def test_timm_loads_the_folder(tmp_path, name, options):
    """`local-dir:` reads config.json; and load_state_dict(strict=True) into a network that is built by name."""
    import safetensors.torch

    from tests.parity import torch_side

    torch_side.import_torchvision()
    import timm

    workdir, leaves = workdir_of(tmp_path / "run", name, **options)
    out = tmp_path / "out" / "model.safetensors"
    assert exported(workdir, out) == 0
    channels = options.get("channels", 3)
    network = timm.create_model(f"local-dir:{out.parent}", pretrained=True)
    check(network, name, leaves, 64, channels)
    cfg = network.pretrained_cfg
    assert tuple(cfg["input_size"]) == (channels, 64, 64)
    assert tuple(cfg["mean"]) == (0.25,) * channels
    assert list(cfg["label_names"]) == ["class 0", "class 1", "class 2"]
    size = {"img_size": 64} if name.startswith("vit") else {}
    by_name = timm.create_model(name, num_classes=3, in_chans=channels, **size)
    by_name.load_state_dict(safetensors.torch.load_file(out), strict=True)
    check(by_name, name, leaves, 64, channels)


def test_timm_gives_it_another_last_layer(tmp_path):
    """config.json names the classifier: fine-tuning there to other classes needs it."""
    from tests.parity import torch_side

    torch_side.import_torchvision()
    import timm

    workdir, leaves = workdir_of(tmp_path / "run", "vit_tiny_patch16_224")
    assert exported(workdir, tmp_path / "out" / "model.safetensors") == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=9)
    assert network.head.weight.shape == (9, 192)
    np.testing.assert_array_equal(network.norm.weight.detach().numpy(), leaves["params/ln/scale"])


def test_torchvision_loads_the_file(tmp_path):
    import importlib

    import safetensors.torch

    from tests.parity import torch_side

    torch_side.import_torchvision()
    workdir, leaves = workdir_of(tmp_path / "run", "efficientnet_b0", size=64)
    out = tmp_path / "model.safetensors"
    assert exported(workdir, out, "--names", "torchvision") == 0
    network = importlib.import_module("torchvision.models").get_model("efficientnet_b0", num_classes=3)
    network.load_state_dict(safetensors.torch.load_file(out), strict=True)
    check(network, "efficientnet_b0", leaves, 64)
