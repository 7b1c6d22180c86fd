"""What accelerators can do at most: the denominators of a roofline and of MFU."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip: bytes of memory, bytes/s of memory, FLOP/s in bfloat16, bytes/s between chips over all its links."""

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
