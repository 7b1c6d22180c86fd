"""Our train steps through the TPU compiler, with no TPU: memory traffic, FLOPs and memory a chip.

    pip install libtpu                       (x86-64 Linux; it compiles for a slice that is only described)
    python benchmarks/tpu_step.py resnet50 vit_small_patch16_224
    python benchmarks/tpu_step.py resnet50 --set stem=imagenet --chips v5e:2x2 --batch 128

Prints a line of JSON a network: `bytes_per_image` is the compiler's count of the memory traffic of one whole step of
`training.step.make_step` (uint8 pixels in, bfloat16 compute, 224 px; SGD with momentum for networks with BatchNorm,
else AdamW), over the images of a chip. `kernel_bytes_per_image` is the part of it that our own kernels state, of which
the compiler knows no more. That count has what moves within the chip too; `device_memory_bytes_per_image` has not
(jaxvision/runtime/hlo.py; benchmarks/hlo_traffic.py counts programs of others). On a v5e (819 GB/s, 197 TFLOP/s) these
networks are bound by it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
from jax.experimental import topologies

from jaxvision import config as config_lib
from jaxvision import models
from jaxvision.runtime import sharding
from jaxvision.runtime.hlo import device_memory_bytes
from jaxvision.training import build, capacity


def kernel_bytes(program: str) -> int:
    """What the custom kernels of a compiled program state that they read and write; the compiler's count has it."""
    stated = [
        re.search(r'"bytes_accessed":"(\d+)"', line) for line in program.splitlines() if "tpu_custom_call" in line
    ]
    assert all(stated), "a custom kernel without a pl.CostEstimate: its traffic is not counted"
    return sum(int(found[1]) for found in stated if found)


def measure(name: str, options: dict, chips: str, batch: int, dump: str = "", fsdp: int = 1) -> dict:
    config = config_lib.default()
    config.model = dict(name=name, **options)
    config.dtype = "bfloat16"
    config.data.train = "fake:1x224"
    config.steps = 1000
    devices = topologies.get_topology_desc(platform="tpu", topology_name=chips).devices
    config.batch_size = batch * len(devices)
    _, extra = build.abstract_init(build.task(config, 1000), config)
    if "batch_stats" in extra["model"]:
        config.optim.update(name="sgd", momentum=0.9, nesterov=True)
    else:
        config.optim.update(name="adamw", lr=1e-3)
    start = time.time()
    compiled = capacity.compile_step(config, sharding.make_mesh(-1, fsdp, list(devices)), 1000, "class")
    if dump:
        with open(dump, "w") as file:
            file.write(compiled.as_text())
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    program = compiled.as_text()
    kernels = kernel_bytes(program)
    return {
        "network": name, **options, "chips": chips, "fsdp": fsdp, "images_per_chip": batch,
        "bytes_per_image": round(cost["bytes accessed"] / batch),
        "kernel_bytes_per_image": round(kernels / batch),
        "device_memory_bytes_per_image": round(device_memory_bytes(program) / batch),
        "flops_per_image": round(cost["flops"] / batch),
        "temporary_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes,
        "compile_s": round(time.time() - start, 1), "jax": jax.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=models.__all__, metavar="NETWORK")
    parser.add_argument("--chips", default="v5e:2x2")
    parser.add_argument("--fsdp", type=int, default=1, help="parts that the parameters are split into")
    parser.add_argument("--batch", type=int, default=128, help="images a chip")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of the network")
    parser.add_argument("--dump", default="", metavar="FILE", help="the compiled program, as text")
    arguments = parser.parse_args()
    options = {}
    for pair in arguments.set:
        key, _, value = pair.partition("=")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    for name in arguments.networks:
        row = measure(name, options, arguments.chips, arguments.batch, arguments.dump, arguments.fsdp)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
