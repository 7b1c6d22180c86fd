"""Eight emulated devices, and one compilation cache for this process and all that it starts, of small functions too."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from tests import flags

ROOT = pathlib.Path(__file__).parent.parent
CACHE = pathlib.Path(tempfile.gettempdir()) / f"jaxvision-test-cache-{os.getuid()}"

if sys.dont_write_bytecode:  # the tests start many processes: what they import is compiled once, but not into the tree
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(CACHE.with_name(f"{CACHE.name}-python"))
    sys.dont_write_bytecode = False

os.environ["XLA_FLAGS"] = flags.on(8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Programs do not say which lines of Python they come from: lowering one takes a tenth less.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

# A shell that starts pytest in the background has it ignore these, and all that it starts.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

gc.set_threshold(50_000, 20, 100)  # a fifth of the time of tracing a large network is collecting what it keeps anyway

import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from jaxvision import cli  # noqa: E402
from tests import forks  # noqa: E402

# As the commands do. With YNNPACK's reductions, on by default, the gradient of the largest standardised kernels
# (resnetv2_50x3_bit) takes 233 s instead of 19 s.
cli.without_ynnpack()


class Groups(LoadScopeScheduling):
    """What runs in one process, which makes its fixtures and compiles its functions once: the tests of a file, or of
    one case of a test_contract.py. Not by marks: pytest-xdist 3.8 under pytest 9.2 does not see them."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        _, _, case = test.partition("[")
        return f"{file}[{case}" if file.endswith("test_contract.py") else file


# Files of few tests that take long: they come first, so that no worker is left alone with one at the end.
LONG = ("test_elastic.py", "test_hosts.py", "test_loop.py", "test_bucket.py", "test_doctor.py", "test_hub.py",
        "test_transfer.py", "test_survival.py", "test_npz.py", "test_published.py")  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish():
    """What was imported and collected stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


@pytest.fixture(scope="session")
def command():
    """Runs `python -m MODULE ARGS...` on `devices` emulated devices; by `process`, in a new process as a user does.

    Keywords are variables of the environment; None removes one. `end`: see `forks.run`.
    """

    def run(
        module: str,
        *arguments,
        devices: int = 1,
        timeout: float = 240,
        cwd=ROOT,
        process: bool = False,
        end=None,
        **env,
    ):
        words = ["-m", module, *map(str, arguments)]
        environment = {**os.environ, "XLA_FLAGS": flags.on(devices), **env}
        how = dict(env={k: v for k, v in environment.items() if v is not None}, cwd=cwd, timeout=timeout)
        if process:
            return subprocess.run([sys.executable, *words], capture_output=True, text=True, **how)
        return forks.run(words, **how, end=end)

    return run
