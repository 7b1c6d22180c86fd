"""Our train step on a CPU, turn by turn with torchvision's where torch is installed.

    python benchmarks/cpu_step.py [resnet50] [--batch 16] [--turns 7]

In one process: `training.step.make_step` as the commands run it (uint8 pixels, cross entropy, SGD with momentum,
float32, 224 px), then the same network of torchvision in channels_last with as many threads as there are cores. Prints
a line of JSON: images/s of both, medians over the turns after one of warming up, and the ratios turn by turn.
"""

import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxvision import cli

cli.without_ynnpack()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxvision import config as config_lib  # noqa: E402
from jaxvision import models  # noqa: E402
from jaxvision.runtime import versions  # noqa: E402
from jaxvision.training import build, optim  # noqa: E402
from jaxvision.training.step import init_state, make_step  # noqa: E402

SIZE, CLASSES, CORES = 224, 1000, len(os.sched_getaffinity(0))


def ours(name, batch):
    """(a function that does a step, seconds of compilation)."""
    config = config_lib.default()
    config.model = dict(name=name)
    config.data.train = f"fake:1x{SIZE}"
    config.steps = 1000
    config.batch_size = batch
    config.optim.update(name="sgd", momentum=0.9)
    task = build.task(config, CLASSES)
    tx, _ = optim.make(config.optim, config.steps, build.abstract_init(task, config)[0])
    rng = np.random.default_rng(0)
    rows = {
        "image": rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, batch, dtype=np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "mask": np.ones(batch, bool),
    }
    rows = jax.device_put(rows)
    state = jax.jit(lambda key, rows: init_state(task, tx, key, rows, None))(jax.random.key(0), rows)
    start = time.perf_counter()
    compiled = jax.jit(make_step(task, tx, seed=0), donate_argnums=0).lower(state, rows).compile()
    seconds = time.perf_counter() - start

    def step():
        nonlocal state
        state, logs = compiled(state, rows)
        jax.block_until_ready((state, logs))

    return step, seconds


def theirs(name, batch):
    """torchvision's step; None where it is not installed or has no such network."""
    try:
        import torch

        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        from tests.parity import torch_side

        torch_side.import_torchvision()
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    except (ImportError, ValueError) as error:
        print(f"without torchvision: {error}", file=sys.stderr)
        return None
    torch.set_num_threads(CORES)
    model = model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    image = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, CLASSES, (batch,))

    def step():
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(image), label).backward()
        optimiser.step()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50", choices=models.__all__, metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    step, compile_s = ours(arguments.network, arguments.batch)
    steps = {"ours": step, "torchvision": theirs(arguments.network, arguments.batch)}
    rates: dict[str, list[float]] = {who: [] for who, step in steps.items() if step}
    for turn in range(arguments.turns + 1):
        for who in rates:
            start = time.perf_counter()
            steps[who]()
            if turn:
                rates[who].append(arguments.batch / (time.perf_counter() - start))
        print({who: [round(r, 2) for r in rate[-1:]] for who, rate in rates.items()}, file=sys.stderr, flush=True)
    result = {
        "benchmark": "cpu_step", "network": arguments.network, "batch": arguments.batch, "cores": CORES,
        "turns": arguments.turns, "compile_s": round(compile_s, 1),
        **{f"{who}_images_per_s": round(statistics.median(rate), 2) for who, rate in rates.items()},
    }  # fmt: skip
    if "torchvision" in rates:
        ratios = [a / b for a, b in zip(rates["ours"], rates["torchvision"])]
        result.update(ratio=round(statistics.median(ratios), 3), ratios=[round(r, 3) for r in ratios])
    print(json.dumps({**result, "xla_flags": os.environ.get("XLA_FLAGS", ""), "versions": versions.of_figures()}))


if __name__ == "__main__":
    main()
