"""XLA's flags for the tests and for the commands that they start."""

import importlib.metadata

# XLA aborts at a flag that it does not know, and newer ones know some of these no more.
_TRIED = importlib.metadata.version("jaxlib").startswith("0.10.")


def on(devices: int) -> str:
    """So many emulated devices. Most of the time of the tests is compiling: without LLVM's optimisation and MLIR's
    fusion emitters it takes 0.3 of the time, and 0.2 less of that where a program is not split among threads
    (jax 0.10.2). Numbers differ by rounding from other instructions'."""
    flags = ["--xla_backend_optimization_level=0", f"--xla_force_host_platform_device_count={devices}"]
    quick = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    return " ".join([*flags, *(quick if _TRIED else ())])


# `compiler_options` of a test whose tolerance is for XLA's defaults: sums in other orders flip a ReLU more often.
DEFAULTS = {"xla_backend_optimization_level": 3, **({"xla_cpu_use_fusion_emitters": True} if _TRIED else {})}
