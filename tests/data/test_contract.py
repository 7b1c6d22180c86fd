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


def test_a_contract_that_an_older_program_could_read_is_written_as_before():
    assert list(InputContract(size=(8, 8), resize=9).to_dict().items()) == [
        ("size", 8), ("resize", 9), ("filter", "bilinear"), ("decoder", "pillow"), ("channels", 3),
        ("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)), ("range", ()), ("background", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "contract",
    [
        InputContract(size=(8, 12), resize=12),
        InputContract(size=(8, 12), fit="stretch", filter="linear"),
        InputContract(size=12, fit="pad"),
        InputContract(size=(1344, 1344), resize=800, fit="shortest", longest=1333),
    ],
)
def test_fits_travel(contract):
    again = InputContract.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract
    assert again.differences(contract) == {}
    assert again.fit in contract.to_dict().get("fit", "crop")
    assert f"{contract.height} x {contract.width}" in str(again)


def test_equal_sides_are_one_and_a_size_without_use_is_none():
    assert InputContract(size=(8, 8), resize=9) == InputContract(size=8, resize=9)
    assert InputContract(size=8, fit="pad", resize=100) == InputContract(size=8, fit="pad")
    assert InputContract(size=8, fit="pad").differences(InputContract(8, 9)) == {
        "fit": ("pad", "crop"),
        "resize": (0, 9),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(size=(8, 0)), r"data\.size is \(8, 0\): it must be a side"),
        (dict(size=(8, 8, 3)), r"data\.size is .*height, width"),
        (dict(size=True), r"data\.size is True"),
        (dict(size=(8, 300)), r"centre crop of 8 x 300 px does not fit .* at least the longer of data\.size"),
        (dict(fit="pda"), r"unknown data\.fit 'pda': did you mean 'pad'"),
        (dict(fit="pad", longest=9), r"data\.longest is 9: it is of data\.fit = 'shortest', and that is 'pad'"),
        (dict(fit="shortest", resize=80, longest=79), r"data\.resize 80 and data\.longest 79"),
        (dict(fit="shortest", resize=0), r"data\.resize 0"),
        (dict(filter="box"), r"unknown resize filter 'box'"),
    ],
)
def test_senseless_fits(values, message):
    with pytest.raises(UserError, match=message):
        InputContract(**values)
