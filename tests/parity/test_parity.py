"""Weights of torchvision and timm give the same logits here, and go back byte for byte.

pip install -e ".[test,parity]" && pytest -m "parity and not slow" tests/parity  one variant a family
pytest -m parity tests/parity                                                    all, hours of CPU time
"""

import importlib
import json

import numpy as np
import pytest

from jaxvision import models
from jaxvision.weights import torch

pytestmark = pytest.mark.parity
# The smallest of each family and library; all others are slow.
FIRST = {
    *("resnet18", "resnet50d", "resnext50_32x4d", "vit_b_32", "deit_tiny_patch16_224", "mixer_s32_224"),
    *("convnext_tiny", "swin_t", "alexnet", "vgg11", "vgg11_bn", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "resnetv2_50x1_bit"),
}
# Of a family or a family and library: sizes in pixels, if 224 and 160 are not both legal.
SIZES = {"mixer": (224,), "timm swin": (224,)}
# Of a family that is built for one size: what that argument is called.
SIZE_ARGUMENT = {"vit": {"torchvision": "image_size", "timm": "img_size"}}


def cases():
    for name in models.__all__:
        family = models.family(name)
        for library in models.origins(name):
            sizes = SIZES.get(f"{library} {family}", SIZES.get(family, (224, 160)))
            for size in sizes:
                marks = () if name in FIRST and size == sizes[-1] else pytest.mark.slow
                yield pytest.param(library, name, size, marks=marks, id=f"{library}-{name}-{size}")


@pytest.mark.parametrize(("library", "name", "size"), cases())
def test_same_logits_and_stages(library, name, size, record_property):
    from tests.parity import compare

    argument = SIZE_ARGUMENT.get(models.family(name), {}).get(library)
    difference = compare.check(library, name, size, {argument: size} if argument else None)
    record_property("logit_difference", difference)  # pytest --junitxml=FILE keeps it
    assert difference <= 1e-4


@pytest.mark.parametrize(
    ("library", "name"),
    [
        pytest.param(library, name, marks=() if name in FIRST else pytest.mark.slow)
        for name in models.__all__
        for library in models.origins(name)
    ],
)
def test_round_trip_is_byte_equal(library, name):
    from tests.parity import compare, torch_side

    origin = models.origins(name)[library]
    theirs = torch_side.make(library, origin.names[name])
    model = getattr(models, name)(classes=1000)
    before = torch_side.state(theirs)
    after = torch.to_state_dict(compare.convert(theirs, model, origin, 224), origin, model)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if not key.endswith("num_batches_tracked"):
            assert (tensor.dtype, tensor.shape) == (after[key].dtype, after[key].shape), key
            assert tensor.tobytes() == after[key].tobytes(), key
        assert np.asarray(tensor).dtype == after[key].dtype


def test_the_table_of_contracts_is_what_the_libraries_say():
    from jaxvision.weights import published
    from tests.parity import tables

    assert json.loads(json.dumps(tables.tables())) == published.table()


def test_imagenets_classes_are_what_the_libraries_say():
    import gzip

    from jaxvision.weights import published
    from tests.parity import tables, torch_side

    assert gzip.decompress(published._CLASSES.read_bytes()).decode() == tables.imagenet()
    torch_side.import_torchvision()
    weights = importlib.import_module("torchvision.models").ResNet50_Weights.IMAGENET1K_V1
    assert published.imagenet(1000)[0] == tuple(weights.meta["categories"])
    info = importlib.import_module("timm.data").ImageNetInfo
    for count, name in importlib.import_module("timm.data.imagenet_info")._NUM_CLASSES_TO_SUBSET.items():
        if count in tables.TIMM_SETS:
            assert published.imagenet(count)[1] == tuple(info(name).label_names())


@pytest.mark.parametrize("name", [n for n in models.__all__ if "timm" in models.origins(n)])
def test_every_tag_of_timm_has_the_pixels_of_its_own_transform(name):
    from jaxvision.weights import published
    from tests.parity import torch_side

    torch_side.import_torchvision()
    timm, data = importlib.import_module("timm.models"), importlib.import_module("timm.data")
    theirs = models.origins(name)["timm"].names[name]
    tags = published.table()["timm"][theirs]
    configs = {full.partition(".")[2]: c for full, c in timm.get_arch_pretrained_cfgs(theirs).items() if c.has_weights}
    assert tags.keys() == configs.keys()
    for tag, config in configs.items():
        made = published.contract_of(tags[tag])
        resize, crop, *_, norm = data.create_transform(**data.resolve_data_config(config.to_dict())).transforms
        side = resize.size if isinstance(resize.size, int) else max(resize.size)
        assert (side, made.filter) == (made.resize, str(resize.interpolation.value)), tag
        assert tuple(norm.mean.tolist()) == pytest.approx(made.mean), tag
        assert tuple(norm.std.tolist()) == pytest.approx(made.std), tag
        if "squash" in tags[tag]:
            assert tuple(resize.size) == (made.size, made.size), tag
        else:
            assert tuple(crop.size) == (made.size, made.size), tag
        assert config.num_classes in (0, 640, 115217) or published.imagenet(config.num_classes)[0], tag
