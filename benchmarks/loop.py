"""What the train loop costs: its images/s over those of the bare compiled step on a resident batch.

    python benchmarks/loop.py [digits] [fake] [--turns 5]
    python benchmarks/loop.py resnet50 --turns 3            (on an accelerator)

In one process, turn by turn: the compiled step alone, the batch already on the device; then the whole loop with
its loader, augmentation, logging and saving (evaluation is left out on both sides). Prints a line of JSON each.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack

import jax
from etils import epath

from jaxvision import config as config_lib
from jaxvision.runtime import sharding, versions
from jaxvision.runtime.clock import Clock
from jaxvision.runtime.stop import Stop
from jaxvision.training import loop, session

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


def resnet50():
    """ResNet-50 in bfloat16 at 224 px, batch 256: what one accelerator holds. Nothing is decoded here, either."""
    config = config_lib.default()
    config.data.update(train="fake:16384x224?classes=1000", transforms=(("flip", {}),), prefetch=8)
    config.model = dict(name="resnet50")
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.steps = 60
    config.checkpoint.update(every_epochs=0.0)
    return config


def turn(config, workdir):
    """Images/s of the bare step and of the loop."""
    clock, quiet = Clock(), lambda text: None
    with Stop() as stop, ExitStack() as held:
        opened, state = session.open_session(config, epath.Path(workdir), quiet, clock, held)
        setup, steps = opened.setup, opened.setup.total_steps
        batch = sharding.put_batch(next(setup.reader(0, 1, None)), setup.batch_sharding, config.batch_size)
        copy, _ = opened.step(jax.tree.map(lambda x: x.copy(), state), batch)
        jax.block_until_ready(copy)
        start = time.perf_counter()
        for _ in range(steps):
            copy, logs = opened.step(copy, batch)
            jax.block_until_ready(logs)
        jax.block_until_ready(copy)
        bare = steps * config.batch_size / (time.perf_counter() - start)
        del copy
        run = loop.Loop(opened, state, quiet, clock, stop)
        before = run.accounts.training_seconds()
        run.run()
        seconds = run.accounts.training_seconds() - before
        loop_rate = steps * config.batch_size / seconds
        run.close("done")
    return bare, loop_rate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {f.__name__: f for f in (digits, fake, resnet50)}
    parser.add_argument("names", nargs="*", metavar="digits | fake | resnet50")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # so that only the first turn compiles
        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    for name in arguments.names or ["digits", "fake"]:
        config = known[name]()
        pairs: list[tuple[float, float]] = []
        for _ in range(arguments.turns):
            with tempfile.TemporaryDirectory() as workdir:
                pairs.append(turn(config, workdir))
            print(f"{name}: {pairs[-1][1]:.0f} of {pairs[-1][0]:.0f} images/s", file=sys.stderr, flush=True)
        ratios = [rate / bare for bare, rate in pairs]
        print(json.dumps({
            "benchmark": "loop", "config": name, "turns": arguments.turns,
            "bare_images_per_s": round(statistics.median(b for b, _ in pairs), 1),
            "loop_images_per_s": round(statistics.median(r for _, r in pairs), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios],
            "versions": versions.of_figures(),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
