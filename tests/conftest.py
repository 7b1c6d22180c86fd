"""Eight emulated devices, and one compilation cache for this process and all that it starts, of small functions too."""

import os
import pathlib
import subprocess
import sys
import tempfile

from tests import flags

ROOT = pathlib.Path(__file__).parent.parent
CACHE = pathlib.Path(tempfile.gettempdir()) / f"jaxvision-test-cache-{os.getuid()}"

os.environ["XLA_FLAGS"] = flags.on(8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest  # noqa: E402

from jaxvision import cli  # noqa: E402

# As the commands do. The rest of what YNNPACK does by default includes reductions that take the gradient of the largest
# standardised kernels (resnetv2_50x3_bit) from 19 s to 233 s.
cli.fast_cpu_products()


@pytest.fixture(scope="session")
def command():
    """Runs `python -m MODULE ARGS...` as a user would, on `devices` emulated devices."""

    def run(module: str, *arguments: str, devices: int = 1, timeout: float = 240, cwd=ROOT, **env: str):
        environment = {**os.environ, "XLA_FLAGS": flags.on(devices), **env}
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment,
        )  # fmt: skip

    return run
