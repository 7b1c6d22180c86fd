"""XLA's flags for the tests and for the commands that they start."""


def on(devices: int) -> str:
    """So many emulated devices. Most of the time of the tests is compiling: without LLVM's optimisation and MLIR's
    fusion emitters it takes 0.3 of the time (jax 0.10.2). Numbers differ by rounding from other instructions'."""
    return (
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        f"--xla_force_host_platform_device_count={devices}"
    )


# `compiler_options` of a test whose tolerance is for XLA's defaults: sums in other orders flip a ReLU more often.
DEFAULTS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
