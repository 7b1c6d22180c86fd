"""What the train loop costs: its images/s over those of the bare compiled step on a resident batch.

    python benchmarks/loop.py [digits] [fake]

In one process, turn by turn: the compiled step alone, the batch already on the device; then the whole loop with
its loader, augmentation, logging and saving (evaluation is left out on both sides). Prints a line of JSON each.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack

import jax
from etils import epath

from jaxvision import config as config_lib
from jaxvision import evals, loop, sharding
from jaxvision.log import Clock
from jaxvision.stop import Stop

TURNS = 5
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def digits():
    """configs/digits.py as shipped, for ten epochs a turn."""
    config = config_lib.load(str(CONFIGS / "digits.py"))
    config.epochs = 10.0
    config.evals = {}
    return config


def fake():
    """ResNet-18 with torchvision's stem at 64 px: the loader has nothing to decode."""
    config = config_lib.default()
    config.data.update(train="fake:4096x64?classes=100", size=64, transforms=(("flip", {}),), threads=1)
    config.model = dict(name="resnet18")
    config.batch_size = 32
    config.steps = 12
    config.checkpoint.update(every_epochs=0.0)
    return config


def turn(config, workdir):
    """Images/s of the bare step and of the loop."""
    with Stop() as stop, ExitStack() as held:
        run = loop.Run(config, epath.Path(workdir), lambda text: None, Clock(), stop, held)
        batch = sharding.put_batch(next(run.reader(0, 1, None)), run.split, config.batch_size)
        state, _ = run.compiled(jax.tree.map(lambda x: x.copy(), run.state), batch)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(run.total):
            state, logs = run.compiled(state, batch)
            jax.block_until_ready(logs)
        jax.block_until_ready(state)
        bare = run.total * config.batch_size / (time.perf_counter() - start)
        del state
        run.clock.begin()
        before = run.training_seconds()
        run.train()
        seconds = run.training_seconds() - before
        loop_rate = run.total * config.batch_size / seconds
        run.close("done")
    return bare, loop_rate


def main(names):
    # so that only the first turn compiles
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    for name in names or ["digits", "fake"]:
        config = {"digits": digits, "fake": fake}[name]()
        pairs: list[tuple[float, float]] = []
        for _ in range(TURNS):
            with tempfile.TemporaryDirectory() as workdir:
                pairs.append(turn(config, workdir))
            print(f"{name}: {pairs[-1][1]:.0f} of {pairs[-1][0]:.0f} images/s", file=sys.stderr, flush=True)
        ratios = [rate / bare for bare, rate in pairs]
        print(json.dumps({
            "benchmark": "loop", "config": name, "turns": TURNS,
            "bare_images_per_s": round(statistics.median(b for b, _ in pairs), 1),
            "loop_images_per_s": round(statistics.median(r for _, r in pairs), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios],
            "versions": evals.versions(),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
