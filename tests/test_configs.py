"""Every shipped config trains two steps, on data and at a size that fit a laptop."""

import json
import pathlib

import pytest

from jaxvision import build
from jaxvision import config as config_lib

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def small(config):
    """What makes two steps cheap; everything that the recipe is about stays."""
    overrides = {"epochs": "0", "steps": "2", "batch_size": "8", "data.threads": "1", "log.every_steps": "1"}
    if config.data.train.startswith("tfds:"):
        overrides |= {"data.train": "fake:64x40?classes=10", "data.size": "32", "data.resize": "36"}
        overrides |= {f"evals.{name}.data": "fake:8x40?classes=10" for name in config.evals}
    return [f"--config.{k}={v}" for k, v in overrides.items()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_two_steps(command, tmp_path, path):
    config = config_lib.load(str(path))
    done = command("jaxvision.train", "--config", path, "--workdir", tmp_path / "w", "--json", *small(config))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_reads_as_one_screen(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python -m jaxvision.train --config configs/{path.name}" in text
    for word in ("Expected", "Source"):
        assert word in text, f"{path.name}: the docstring says no {word}"
    build.check(config_lib.load(str(path)))


def test_missing_imagenet_is_told_in_seconds(command, tmp_path):
    import time

    start = time.perf_counter()
    done = command("jaxvision.train", "--config", "configs/resnet50.py", TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert time.perf_counter() - start < 10
    for words in ("imagenet2012/train is not prepared", "download_and_prepare", "ILSVRC2012_img_train.tar",
                  "--config.data.train=fake:1024x224", "--config.evals.val.data=fake:"):  # fmt: skip
        assert words in done.stderr
