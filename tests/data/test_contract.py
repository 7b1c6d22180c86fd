"""The input contract: what it refuses, how it reads as text, and that those of before mean what they meant."""

import json

import pytest

from jaxvision.data import InputContract
from jaxvision.errors import UserError


def test_a_contract_of_before_reads_as_before():
    old = {"size": 8, "resize": 9, "filter": "bicubic", "decoder": "pillow", "channels": 1, "mean": [0.5], "std": [0.2]}
    contract = InputContract.from_dict(old)
    assert (contract.range, contract.background) == ((), ())
    assert "levels" not in str(contract)
    assert "colour" not in str(contract)


def test_range_and_background_travel():
    contract = InputContract(range=(0, 4095), background=(255, 255, 255))
    again = InputContract.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract
    assert "levels 0 to 4095" in str(again)
    assert "on the colour (255, 255, 255)" in str(again)
    assert again.decoding == {"channels": 3, "range": (0, 4095), "background": (255, 255, 255)}


@pytest.mark.parametrize(
    "values", [(0,), (1, 1), (4095, 0), (0, float("inf")), (float("nan"), 1), ("0", "1"), (True, 3), (0, 1, 2)]
)
def test_senseless_ranges(values):
    with pytest.raises(UserError, match=r"data\.range is .*the lowest and the highest"):
        InputContract(range=values)


@pytest.mark.parametrize("values", [(0,), (255, 255), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0), ("a", 0, 0), (0, 0, 0, 0)])
def test_senseless_backgrounds(values):
    with pytest.raises(UserError, match=r"data\.background is .*red, green and blue"):
        InputContract(background=values)
