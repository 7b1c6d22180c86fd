"""The table that `python -m jaxvision.models` prints, and what it says to a newcomer."""

import json
import time

import pytest

from jaxvision import models
from jaxvision.errors import UserError
from jaxvision.weights.catalogue import SIZES, matching, measure
from tests.models import sizes
from tests.models.published import PUBLISHED
from tests.weights.test_published import run_module

FIRST = ("alexnet", "resnet18", "vgg11", "mobilenet_v2", "mixer_s32_224", "vit_tiny_patch16_224")
ROWS = json.loads(SIZES.read_text())


def test_the_table_has_every_network_and_its_published_size():
    """Add a network: python -m tests.models.sizes NAME."""
    assert {name: parameters for name, (parameters, _, _) in ROWS.items()} == PUBLISHED
    assert all(side >= 224 and flops > 0 for _, flops, side in ROWS.values())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.slow) for n in models.__all__]
)
def test_counted_again(name):
    """XLA of another version may count a little otherwise."""
    parameters, flops, size = sizes.row(name)
    assert [parameters, size] == [ROWS[name][0], ROWS[name][2]]
    assert flops == pytest.approx(ROWS[name][1], rel=0.02)


def test_flops_are_two_a_multiplication():
    """AlexNet's dense layers alone: 9,216 x 4,096 + 4,096 x 4,096 + 4,096 x 1,000, and the papers' 0.71 G in all."""
    dense = 2 * (9216 * 4096 + 4096 * 4096 + 4096 * 1000)
    assert dense < measure("alexnet", 224)[1] < 2 * 0.75e9


def test_the_whole_table_comes_at_once(command):
    start = time.perf_counter()
    done = command("jaxvision.models")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert len(lines) == len(models.__all__) + 1
    assert len(json.loads(last)["models"]) == len(models.__all__)
    # a second or two on a free core; counting takes minutes
    assert time.perf_counter() - start < 60


def test_weights_are_lines_for_the_command_line(capsys):
    assert run_module("jaxvision.models.__main__", "models", "--filter", "ViT_B_16", "--weights") == 0
    said = capsys.readouterr().out
    assert "timm:vit_base_patch16_224.augreg_in21k_ft_in1k " in said
    assert "augreg:vit_b_16" in said
    assert "256 px bilinear, centre 224, mean 0.485 0.456 0.406" in said


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--filter", "rens*"), "no network matches 'rens*'"),
        (("--filter", "renset50"), "did you mean 'resnet50'?"),
        (
            ("--filter", "vit_b_16", "--size", "100"),
            "vit_b_16 at 100 px: VisionTransformer: 100 x 100 px are no multiple",
        ),
        (("--size", "0"), "--size is 0"),
        (("--size", "99999999"), "--size is 99999999: it must be at most 16384"),
        (("--filter", ""), "--filter is empty"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_printed(capsys, arguments, wanted):
    assert run_module("jaxvision.models.__main__", "models", *arguments) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert said.out == ""


def test_patterns():
    names = ["resnet18", "resnet50", "vit_b_16"]
    assert matching("ResNet*", names) == names[:2]
    assert matching("ResNet", names) == names[:2]
    assert matching("vitb", names) == matching("b_16", names) == names[2:]
    assert matching("resnet50", [*names, "resnet50d"]) == ["resnet50"]
    for nothing in ("resnet?", "net*", "x"):
        with pytest.raises(UserError, match="no network matches"):
            matching(nothing, names)
