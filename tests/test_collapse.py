"""Every self-supervised task for 200 steps on the digits: embeddings stay apart; where they must not, the run says so.

Minutes: `pytest -m slow tests/test_collapse.py`.
"""

import json
import pathlib

import pytest

from jaxvision import config as config_lib
from jaxvision.training import loop

pytestmark = pytest.mark.slow
SIMCLR = pathlib.Path(__file__).parent.parent / "configs" / "digits_simclr.py"
METHODS = {
    "byol": dict(hidden=128, width=64, momentum=0.98),
    "dino": dict(outputs=128, hidden=128, bottleneck=64, norm="batch", momentum=0.95,
                 teacher_temperature=0.02, teacher_temperature_start=0.02),
    "mae": dict(decoder_width=32, decoder_depth=1, decoder_heads=2),
    "moco": dict(widths=(128, 64), temperature=0.2, momentum=0.98),
    "rotation": dict(),
    "simclr": dict(widths=(128, 64), temperature=0.2),
    "simsiam": dict(width=128, bottleneck=32),
}  # fmt: skip
FORCED = {"byol": dict(stop_gradient=False), "simsiam": dict(stop_gradient=False), "dino": dict(centre_momentum=1.0)}


def run(workdir, name, steps, **options):
    config = config_lib.load(str(SIMCLR))
    config.update(batch_size=128, epochs=0.0, steps=steps, evals=dict())
    config.task = dict(name=name, **METHODS[name], **options)
    config.optim.update(lr=0.002, clip=1.0)
    config.log.update(every_steps=10, tensorboard=False)
    config.checkpoint.every_epochs = 0.0
    if name in ("mae", "rotation"):
        config.data.transforms = config.data.transforms[0][1]["views"][0]
    if name == "mae":
        config.model = dict(name="vit_tiny_patch16_224", patch=2, width=32, depth=2, heads=2, positions="sincos")
    said = []
    loop.fit(config, workdir, say=said.append)
    return json.loads((workdir / "summary.json").read_text())["alarms"], said


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_collapse_in_200_steps(tmp_path, name):
    alarms, said = run(tmp_path, name, 200)
    assert alarms == {}
    assert not any("warning" in line for line in said)


@pytest.mark.parametrize("name", sorted(FORCED))
def test_a_forced_collapse_raises_the_alarm_within_100_steps(tmp_path, name):
    alarms, said = run(tmp_path, name, 100, **FORCED[name])
    assert alarms["collapse"] <= 100
    assert any(line.startswith(f"warning: collapse at step {alarms['collapse']}: ") for line in said)
