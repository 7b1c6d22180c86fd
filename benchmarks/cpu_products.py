"""A train step on a CPU with and without the library for products that the commands ask XLA for, in turn.

    python benchmarks/cpu_products.py [resnet50 vit_small_patch16_224 digits] [--batch 8] [--turns 9]

Two processes, one with the flag and one without, each with its compiled step; one waits while the other does a turn.
`digits` is configs/digits.py at its own batch, 20 steps a turn; the others are cpu_step's steps at 224 px, one a turn.
Prints a line of JSON: seconds a step of both (medians), and the ratios without : with, turn by turn.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WITHOUT = "--xla_cpu_experimental_ynn_fusion_type="  # the commands leave a flag alone that is there


def digits():
    """A function that does a step of configs/digits.py on one batch."""
    import jax

    from jaxvision import config as config_lib
    from jaxvision import sharding
    from jaxvision.prepare import Setup

    setup = Setup(config_lib.load(str(ROOT / "configs" / "digits.py"), {}))
    state = setup.fresh_state(setup.abstract_state(), None)
    compiled = setup.lower_step(state).compile()
    rows = next(setup.reader(0, 10**9, None))
    batch = sharding.put_batch(rows, setup.split, setup.config.batch_size)

    def step():
        nonlocal state
        for _ in range(20):
            state, logs = compiled(state, batch)
        jax.block_until_ready((state, logs))

    return step


def serve(network, batch):
    """Does a turn for each line of standard input, and says how many seconds it took."""
    sys.path.insert(0, str(ROOT))
    if network == "digits":
        from jaxvision import cli

        cli.fast_cpu_products()
        step, steps = digits(), 20
    else:
        from benchmarks import cpu_step

        (step, _), steps = cpu_step.ours(network, batch), 1
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print((time.perf_counter() - start) / steps, flush=True)


def compare(network, batch, turns):
    flags = {"with": os.environ.get("XLA_FLAGS", ""), "without": f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT}"}
    sides = {}
    for side, value in flags.items():
        words = [sys.executable, __file__, network, "--batch", str(batch), "--serve"]
        sides[side] = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "XLA_FLAGS": value, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while sides[side].stdout.readline() != "ready\n":
            if sides[side].poll() is not None:
                sys.exit(f"{network} {side} the library did not start")
    seconds = {side: [] for side in sides}
    for _ in range(turns):
        for side, process in sides.items():
            print(file=process.stdin, flush=True)
            seconds[side].append(float(process.stdout.readline()))
        print(network, {side: round(values[-1], 4) for side, values in seconds.items()}, file=sys.stderr, flush=True)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    ratios = sorted(b / a for a, b in zip(seconds["with"], seconds["without"]))
    return {
        **{f"{side}_s": round(statistics.median(values), 4) for side, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet50", "vit_small_patch16_224", "digits"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.networks[0], arguments.batch)
    found = {name: compare(name, arguments.batch, arguments.turns) for name in arguments.networks}
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"benchmark": "cpu_products", "batch": arguments.batch, "cores": cores, **found}))


if __name__ == "__main__":
    main()
