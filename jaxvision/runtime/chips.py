"""Peak figures of accelerators: the denominators of a roofline and of MFU."""

from __future__ import annotations

import dataclasses
import math
import os
import re

from jaxvision.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip.

    Bytes of memory, bytes/s of memory, FLOP/s in bfloat16, bytes/s between chips over all its links.
    """

    memory: float
    bandwidth: float
    flops: float
    links: float


# Google's pages "TPU v4", "v5e", "v5p" and "v6e" (cloud.google.com/tpu/docs), read in November 2026.
TPUS = {
    "v4": Chip(32 * 2**30, 1228e9, 275e12, 300e9),
    "v5e": Chip(16 * 2**30, 819e9, 197e12, 200e9),
    "v5p": Chip(95 * 2**30, 2765e9, 459e12, 600e9),
    "v6e": Chip(32 * 2**30, 1640e9, 918e12, 448e9),
}
# What JAX calls a device (`device_kind`); of a v4 or v5p both cores of a chip are one device.
# NVIDIA's data sheets of A100, H100, H200 and L4 (without sparsity; links: NVLink, of the L4 PCIe), and of T4 and V100,
# which have no bfloat16: float16.
KINDS = {
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "NVIDIA A100-SXM4-40GB": Chip(40e9, 1555e9, 312e12, 600e9),
    "NVIDIA A100-SXM4-80GB": Chip(80e9, 2039e9, 312e12, 600e9),
    "NVIDIA H100 80GB HBM3": Chip(80e9, 3350e9, 989.4e12, 900e9),
    "NVIDIA H200": Chip(141e9, 4800e9, 989.4e12, 900e9),
    "NVIDIA L4": Chip(24e9, 300e9, 121e12, 64e9),
    "Tesla T4": Chip(16e9, 320e9, 65e12, 32e9),
    "Tesla V100-SXM2-16GB": Chip(16e9, 900e9, 125e12, 300e9),
}


def slice_of(topology: str) -> tuple[Chip, int]:
    """(chip, number of chips) of "v5e:4x4". Raises UserError."""
    name, _, sides = topology.partition(":")
    if name not in TPUS:
        raise UserError(f"topology {topology!r}: {nearest(name, tuple(TPUS))}, followed by a grid, like v5e:4x4")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
        raise UserError(f"topology {topology!r}: expected a grid of chips after {name}:, like v5e:4x4 or v4:4x4x4")
    return TPUS[name], math.prod(map(int, sides.split("x")))


def only_described() -> None:
    """Tells JAX, before it starts, to look for no TPU, and libtpu not to ask what machine this is."""
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is compiled without a device cannot be read back
    }.items():
        os.environ.setdefault(name, value)
