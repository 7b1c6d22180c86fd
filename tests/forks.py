"""Commands without the seconds that each takes to import JAX: one process imports it and forks for each command.

A fork differs from a command of a user by what is imported already, nothing else: arguments, environment, standard
streams, exit code and exit handlers are its own. What commands do before they import, and what signals do to them, is
tested on processes of their own. JAX's backends start after the fork, with the flags of that command.
"""

import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence

from jaxvision import cli

ROOT = pathlib.Path(__file__).parent.parent
IMPORTED = ("jaxvision.build", "jaxvision.loop", "jaxvision.weights", "matplotlib.pyplot", "sklearn.datasets")


class Forks:
    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run(
        self, module: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: os.PathLike, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE ARGUMENTS`. Raises subprocess.TimeoutExpired, when nothing of the command runs any more."""
        words = [sys.executable, "-m", module, *arguments]
        with tempfile.TemporaryDirectory() as folder:
            request = dict(
                module=module, arguments=arguments, env=dict(env), cwd=str(cwd), folder=folder, timeout=timeout
            )
            print(json.dumps(request), file=self.server.stdin, flush=True)
            code = json.loads(self.server.stdout.readline())
            out, err = ((pathlib.Path(folder) / name).read_text() for name in ("stdout", "stderr"))
        if code is None:
            raise subprocess.TimeoutExpired(words, timeout, out, err)
        return subprocess.CompletedProcess(words, code, out, err)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


def serve() -> None:
    cli.quiet_libraries()
    for name in IMPORTED:
        importlib.import_module(name)
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX's, of threads that it has not started yet
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**request)
        print(json.dumps(wait(child, request["timeout"])), flush=True)


def wait(child: int, timeout: float) -> int | None:
    """The exit code as subprocess gives it, None after killing the child's whole group for running longer."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def become(module: str, arguments: list[str], env: dict[str, str], cwd: str, folder: str, timeout: float) -> None:
    """Runs the command in this process and ends it."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, cwd)
    sys.modules.pop(module, None)
    cli.STARTED = time.perf_counter()
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve()
