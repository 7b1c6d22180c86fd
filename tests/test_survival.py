"""A training that is killed, asked to stop or no longer listened to at random moments, with an evaluation that fails.

What comes out in the end is bit-equal to what an undisturbed run gives, and no session loses more than the steps since
the last save that was due. Its sibling for several hosts is test_chaos.py.
"""

import json
import os
import pathlib
import random
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxvision.data.sources import open_source
from jaxvision.weights import checkpoint
from tests.conftest import ROOT

SEED = int(os.environ.get("SURVIVAL_SEED", "0"))
STEPS, SAVE, EVALUATE = 60, 6, 10
CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.steps = {steps}
config.model.width = 4
config.evals = dict(test=dict(metric="topk", data="folder:{data}", every_epochs=0, every_steps={evaluate}))
config.checkpoint.update(every_steps={save}, keep=2)
config.log.every_steps = 1
"""


def write_images(folder):
    """Two of each digit."""
    source = open_source("digits:test")
    labels = list(source.labels)
    for name in range(10):
        (folder / str(name)).mkdir(parents=True)
        for i in [k for k, label in enumerate(labels) if label == name][:2]:
            Image.fromarray(source[i]["image"][..., 0]).save(folder / str(name) / f"{i}.png")


def state(workdir):
    tree = checkpoint.read(epath.Path(workdir) / "checkpoints" / str(STEPS), ("params", "extra", "opt_state"))
    return jax.tree.leaves(tree)


def records(workdir):
    """What was logged, without times."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["kind"], r["loss"], r.get("top1")) for r in found]


def newest(workdir):
    folder = pathlib.Path(workdir) / "checkpoints"
    return max((int(p.parent.name) for p in folder.glob("*/digests.json")), default=0)


@pytest.mark.parametrize("moments", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_what_bad_luck_leaves_is_bit_equal_in_the_end(command, tmp_path, moments):
    write_images(tmp_path / "images")
    bad = next((tmp_path / "images" / "7").iterdir())
    good = bad.read_bytes()
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(steps=STEPS, data=tmp_path / "images", save=SAVE, evaluate=EVALUATE))

    def train(workdir, end=None):
        return command("jaxvision.train", "--config", config, "--workdir", workdir, end=end, PYTHONPATH=str(ROOT))

    assert train(tmp_path / "undisturbed").returncode == 0
    want = state(tmp_path / "undisturbed")
    rng, left, lost, failures, runs = random.Random(SEED), moments, [], 0, 0
    hows = (["close", "SIGKILL", "SIGTERM", "SIGHUP"] * 10)[:moments]  # from the end
    rng.shuffle(hows)
    while hows:
        workdir = tmp_path / f"run {runs}"
        failing = runs % 2 == 0  # an image that cannot be read, until that was told once
        bad.write_bytes(b"no image" if failing else good)
        reached = 0
        for _ in range(100):
            how = hows.pop() if hows else None
            # while it starts, or at a step from here on
            words = rng.choice(["", f"step {min(reached + rng.randint(1, 20), STEPS - 2):>2}/"])
            seconds = rng.uniform(0, 0.1) if words else rng.uniform(0, 2)
            done = train(workdir, end=how and (how, words, seconds))
            where = (runs, how, words, seconds, done.returncode, done.stdout[-500:], done.stderr)
            resumed = re.search(r"resuming at step (\d+)", done.stdout)
            if resumed or "first step" in done.stdout:
                assert int(resumed[1] if resumed else 0) == reached, where
            printed = [int(n) for n in re.findall(r"step +(\d+)/", done.stdout)] or [reached]
            reached = newest(workdir)
            if done.returncode == 0:
                break
            if done.returncode == 2:  # the evaluation failed
                assert failing, where
                assert str(bad) in done.stderr, where
                assert reached >= max(printed), where  # more where nobody read the last lines
                assert reached % EVALUATE == 0, where
                failing, failures = False, failures + 1
                bad.write_bytes(good)
            elif done.returncode == 75:
                assert how in ("SIGTERM", "SIGHUP"), where
                assert json.loads((workdir / "summary.json").read_text())["step"] == reached, where
                assert reached >= max(printed), where
            else:
                assert done.returncode == {"SIGKILL": -9, "SIGTERM": -15, "SIGHUP": -1}[how], where
                # at the kill, the last save that was due was whole or under way
                assert reached >= (max(printed) // SAVE - 1) * SAVE, where
                lost.append(max(printed) - reached)
            assert "Traceback" not in done.stderr, where
        else:
            raise AssertionError("it never ends")
        found = state(workdir)
        assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True)), where
        assert records(workdir) == records(tmp_path / "undisturbed")
        shutil.rmtree(workdir)
        runs += 1
    print(
        f"\n{left} moments in {runs} runs, {failures} failed evaluations; SIGKILL lost {lost} steps; the rest none; "
        "all bit-equal"
    )
