"""A train step on a CPU as the commands have it compiled, as XLA does by itself, and with YNNPACK's products, in turn.

    python benchmarks/cpu_products.py [resnet50 vit_small_patch16_224 digits] [--batch 8] [--turns 9]

`ours` is the flag of the commands (without YNNPACK), `xla` no flag at all, `dot` YNNPACK for products alone, one by
one. Three processes, each with its compiled step; two wait while the third does a turn. `digits` is configs/digits.py
at its own batch, 20 steps a turn; the others are cpu_step's steps at 224 px, one a turn. Prints a line of JSON: seconds
a step (medians), and the ratios of `xla` and `dot` to `ours`, turn by turn.
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
SIDES = ("ours", "xla", "dot")
DOT = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def digits():
    """A function that does a step of configs/digits.py on one batch."""
    import jax

    from jaxvision import config as config_lib
    from jaxvision.runtime import sharding
    from jaxvision.training.setup import Setup

    setup = Setup(config_lib.load(str(ROOT / "configs" / "digits.py"), {}))
    state = setup.fresh_state(setup.abstract_state(), None)
    lowered, hyper = setup.lower_step(state)
    compiled = lowered.compile()
    rows = next(setup.reader(0, 10**9, None))
    batch = sharding.put_batch(rows, setup.batch_sharding, setup.config.batch_size)

    def step():
        nonlocal state
        for _ in range(20):
            state, logs = compiled(state, batch, hyper)
        jax.block_until_ready((state, logs))

    return step


def serve(network, batch, side):
    """Does a turn for each line of standard input, and says how many seconds it took."""
    sys.path.insert(0, str(ROOT))
    from jaxvision import cli

    flags = os.environ.get("XLA_FLAGS", "")
    cli.without_ynnpack()
    os.environ["XLA_FLAGS"] = {"ours": os.environ.get("XLA_FLAGS", ""), "xla": flags, "dot": f"{flags} {DOT}"}[side]
    if network == "digits":
        step, steps = digits(), 20
    else:
        cli.without_ynnpack = lambda: None  # cpu_step asks for it, too
        from benchmarks import cpu_step

        (step, _), steps = cpu_step.ours(network, batch), 1
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print((time.perf_counter() - start) / steps, flush=True)


def compare(network, batch, turns):
    processes = {}
    for side in SIDES:
        words = [sys.executable, __file__, network, "--batch", str(batch), "--serve", side]
        processes[side] = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while processes[side].stdout.readline() != "ready\n":
            if processes[side].poll() is not None:
                sys.exit(f"{network}, {side}: the process did not start")
    seconds = {side: [] for side in SIDES}
    for _ in range(turns):
        for side, process in processes.items():
            print(file=process.stdin, flush=True)
            seconds[side].append(float(process.stdout.readline()))
        print(network, {side: round(values[-1], 4) for side, values in seconds.items()}, file=sys.stderr, flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    found = {f"{side}_s": round(statistics.median(values), 4) for side, values in seconds.items()}
    for side in SIDES[1:]:
        ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds[side]))
        found |= {f"{side}_ratio": round(statistics.median(ratios), 3), f"{side}_ratios": [round(r, 3) for r in ratios]}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet50", "vit_small_patch16_224", "digits"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.networks[0], arguments.batch, arguments.serve)
    found = {name: compare(name, arguments.batch, arguments.turns) for name in arguments.networks}
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"benchmark": "cpu_products", "batch": arguments.batch, "cores": cores, **found}))


if __name__ == "__main__":
    main()
