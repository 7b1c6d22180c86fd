"""XLA's flags for the tests and for the commands that they start."""


def on(devices: int) -> str:
    """So many emulated devices. Compiled without LLVM's optimisation: most of the time of the tests is compiling, and
    that takes 0.6 of the time without. Numbers differ by rounding from those of other instructions."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
