"""Weights of torchvision and timm give the same logits here, and go back byte for byte.

pip install -e ".[test,parity]" && pytest -m parity tests/parity                 one variant a family
pytest -m "parity or slow" tests/parity                                          all, hours of CPU time
"""

import numpy as np
import pytest

from jaxvision import models, statedict

pytestmark = pytest.mark.parity
# The smallest of each family and library; all others are slow.
FIRST = {"resnet18", "resnet50d", "resnext50_32x4d"}
# Sizes in pixels other than 224 and a second one that the architecture allows.
SIZES: dict[str, tuple[int, ...]] = {}


def cases():
    for name in models.__all__:
        for library in models.origins(name):
            for size in SIZES.get(name, (224, 160)):
                marks = () if name in FIRST and size == SIZES.get(name, (224, 160))[-1] else pytest.mark.slow
                yield pytest.param(library, name, size, marks=marks, id=f"{library}-{name}-{size}")


@pytest.mark.parametrize(("library", "name", "size"), cases())
def test_same_logits_and_stages(library, name, size):
    from tests.parity import compare

    assert compare.check(library, name, size) <= 1e-4


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
    after = statedict.to_state_dict(compare.convert(theirs, model, origin, 224), origin, model)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if not key.endswith("num_batches_tracked"):
            assert (tensor.dtype, tensor.shape) == (after[key].dtype, after[key].shape), key
            assert tensor.tobytes() == after[key].tobytes(), key
        assert np.asarray(tensor).dtype == after[key].dtype
