"""Our train step on one GPU, turn by turn with torch's of the same network where torch is installed.

    python benchmarks/gpu_step.py [resnet50 | vit_small_patch16_224] [--batch 256] [--turns 5] [--steps 20]

In one process: jaxvision.training.step.make_step as the commands run it (bfloat16, cross entropy), then the network of
torchvision or timm under torch's autocast to bfloat16: convolutional ones in channels_last, attention by torch's own
fused kernels; the optimiser is fused, too. Networks with BatchNorm learn by SGD with momentum, others by AdamW. On both
sides uint8 pixels lie on the device and the step normalises them. A turn is some steps without a wait between them.
Memory is taken as it is needed (XLA_PYTHON_CLIENT_PREALLOCATE=false), so that both have room.

Prints a line of JSON for torch as it comes, and one for torch.compile unless that takes longer than a minute: images/s
of both, medians over the turns after steps of warming up, and the ratios turn by turn. `flops_per_image` are those
that the loop counts (jaxvision/runtime/hlo.py), `compiled_flops_per_image` the compiler's, `torch_flops_per_image`
torch's of its products; `mfu` is of the first, `mfu_of_products` of the last. --size and a CPU are for trying it out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from jaxvision import config as config_lib
from jaxvision import models
from jaxvision.runtime import chips, hlo
from jaxvision.training import build, optim
from jaxvision.training.step import init_state, make_step

CLASSES, WARM, LIMIT, RATE = 1000, 3, 60, 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(name, batch, size):
    """(a function that does so many steps, what is known of the step)."""
    config = config_lib.default()
    config.model = dict(name=name)
    config.dtype = "bfloat16"
    config.data.update(train=f"fake:1x{size}", size=size, mean=MEAN, std=STD)
    config.steps = 100_000
    config.batch_size = batch
    task = build.task(config, CLASSES)
    params, extra = build.abstract_init(task, config)
    batch_norm = "batch_stats" in extra["model"]
    config.optim.update(
        dict(name="sgd", lr=RATE, momentum=0.9) if batch_norm else dict(name="adamw", lr=RATE, weight_decay=0.1)
    )
    tx, _ = optim.make(config.optim, config.steps, params)
    rows = {k: jax.device_put(v) for k, v in pixels(batch, size).items()}
    rows |= {"index": jax.device_put(np.arange(batch, dtype=np.int32)), "mask": jax.device_put(np.ones(batch, bool))}
    state = build.jit_once(lambda key, rows: init_state(task, tx, key, rows, None))(jax.random.key(0), rows)
    jax.block_until_ready(state)
    start = time.perf_counter()
    lowered = jax.jit(make_step(task, tx, seed=0), donate_argnums=0).lower(state, rows)
    compiled = lowered.compile()
    known = {
        "compile_s": round(time.perf_counter() - start, 1),
        "compiled_memory_bytes": hlo.memory_bytes(compiled),
        "flops_per_image": hlo.flops(lowered, compiled, jax.devices()) / batch,
        "compiled_flops_per_image": (compiled.cost_analysis() or {}).get("flops", 0.0) / batch,
        "optimiser": config.optim.name,
    }

    def steps(count):
        nonlocal state
        for _ in range(count):
            state, logs = compiled(state, rows)
        jax.block_until_ready((state, logs))
        return float(logs["loss"])

    return steps, known


def pixels(batch, size):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, batch, dtype=np.int32),
    }


def theirs(name, batch, size):
    """(a function of `compile` that makes one like ours, FLOPs of an image); None without torch or the network."""
    try:
        import torch

        model = _network(name, size)
    except (ImportError, ValueError, RuntimeError) as error:
        print(f"without torch: {error}", file=sys.stderr)
        return None
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu" and jax.default_backend() != "cpu":
        print("without torch: it sees no GPU", file=sys.stderr)
        return None
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # as XLA does by itself
    model = model.to(device=kind, memory_format=torch.channels_last).train()
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    else:
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, fused=True)
    arrays = pixels(batch, size)
    image, label = torch.from_numpy(arrays["image"]).to(kind), torch.from_numpy(arrays["label"]).long().to(kind)
    mean, std = (torch.tensor(value, device=kind).reshape(1, 3, 1, 1) for value in (MEAN, STD))

    def loss_of(image, label):
        with torch.autocast(kind, torch.bfloat16):
            x = (image.permute(0, 3, 1, 2).float() / 255 - mean) / std  # channels_last, as it lay
            return torch.nn.functional.cross_entropy(model(x), label)

    def make(compile):
        forward = torch.compile(loss_of) if compile else loss_of

        def steps(count):
            for _ in range(count):
                optimiser.zero_grad()
                loss = forward(image, label)
                loss.backward()
                optimiser.step()
            if kind == "cuda":
                torch.cuda.synchronize()
            return loss.item()

        return steps

    return make, lambda: _torch_flops(make(False)) / batch


def _network(name, size):
    """torchvision's where it has one of that name, else timm's. Raises ImportError, ValueError or RuntimeError."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from tests.parity import torch_side

    torch_side.import_torchvision()
    import torchvision

    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None)
    import timm

    options = {"img_size": size} if name.startswith(("vit", "deit")) else {}
    return timm.create_model(name, num_classes=CLASSES, **options)


def _torch_flops(steps):
    """Of a step: products of matrices and convolutions, forwards and backwards."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        steps(1)
    return counter.get_total_flops()


@contextlib.contextmanager
def at_most(seconds):
    """Raises _Late inside when so many seconds are over."""

    def late(*_):
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _Late(BaseException):  # so that nothing that catches an Exception goes on
    pass


def compare(contestants, batch, turns, count):
    """Images/s of each contestant, a list over the turns, and its last loss; who begins changes."""
    rates, losses = {who: [] for who in contestants}, {}
    for steps in contestants.values():
        steps(WARM)
    for turn in range(turns):
        for who in sorted(contestants, reverse=turn % 2 == 1):
            start = time.perf_counter()
            losses[who] = contestants[who](count)
            rates[who].append(count * batch / (time.perf_counter() - start))
        print({who: round(rate[-1], 1) for who, rate in rates.items()}, file=sys.stderr, flush=True)
    return rates, losses


def report(shared, measured, flops, products):
    rates, losses = measured
    chip = chips.KINDS.get(jax.devices()[0].device_kind)
    row = {**shared, **{f"{who}_images_per_s": round(statistics.median(rate), 1) for who, rate in rates.items()}}
    row.update({f"{who}_loss": round(loss, 3) for who, loss in losses.items()})
    for who, rate in rates.items():
        if chip and who == "ours":
            row["mfu"] = round(statistics.median(rate) * flops / chip.flops, 4)
        if chip and products:
            row[f"{who}_mfu_of_products"] = round(statistics.median(rate) * products / chip.flops, 4)
    if len(rates) > 1:
        (theirs,) = rates.keys() - {"ours"}
        ratios = [a / b for a, b in zip(rates["ours"], rates[theirs])]
        row.update(ratio=round(statistics.median(ratios), 3), ratios=[round(r, 3) for r in ratios])
    print(json.dumps({**row, "xla_flags": os.environ.get("XLA_FLAGS", ""), "versions": versions()}), flush=True)


def versions():
    found = versions.of_figures()
    for name in ("torch", "torchvision", "timm"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    return found


def peak(name):
    """Bytes that were taken at once."""
    if name == "ours":
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50", choices=models.__all__, metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--alone", action="store_true", help="without torch")
    arguments = parser.parse_args()
    batch, size = arguments.batch, arguments.size
    mine, known = ours(arguments.network, batch, size)
    mine(WARM)
    shared = {
        "benchmark": "gpu_step", "network": arguments.network, "batch": batch, "size": size, "turns": arguments.turns,
        "steps": arguments.steps, **known, "peak_bytes": peak("ours"),
    }  # fmt: skip
    found = None if arguments.alone else theirs(arguments.network, batch, size)
    flops, products = known["flops_per_image"], 0.0
    if found is None:
        report(shared, compare({"ours": mine}, batch, arguments.turns, arguments.steps), flops, products)
        return
    make, count = found
    try:
        products = shared["torch_flops_per_image"] = count()
    except Exception as error:  # of torch's counter; the times do not need it
        print(f"torch counts no FLOPs: {error!r}", file=sys.stderr)
    for compile in (False,) if arguments.eager else (False, True):
        who, other = "torch_compile" if compile else "torch", make(compile)
        start = time.perf_counter()
        try:
            with at_most(LIMIT) if compile else contextlib.nullcontext():
                other(1)
        except _Late:
            print(json.dumps({**shared, "torch_compile": f"not done in {LIMIT} s"}), flush=True)
            return
        more = {"torch_compile_s": round(time.perf_counter() - start, 1)} if compile else {}
        measured = compare({"ours": mine, who: other}, batch, arguments.turns, arguments.steps)
        report({**shared, **more, "torch_peak_bytes": peak("torch")}, measured, flops, products)


if __name__ == "__main__":
    main()
