"""Commands without the seconds that each takes to import JAX: one process imports it and forks for each command.

A fork differs from a command of a user by what is imported already, nothing else: arguments, environment, standard
streams, exit code and exit handlers are its own. What commands do before they import, and what signals do to them, is
tested on processes of their own. JAX's backends start after the fork, with the flags of that command.
"""

import contextlib
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence

from jaxvision import cli

ROOT = pathlib.Path(__file__).parent.parent
IMPORTED = (
    "jaxvision.training.build", "jaxvision.training.loop", "jaxvision.weights", "jaxlib.mlir.dialects.builtin",
    "jaxlib.mlir.dialects.mhlo", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "sklearn.datasets",
)  # fmt: skip


class Forks:
    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: os.PathLike,
        timeout: float,
        end: tuple[str, str, float] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE ARGUMENTS`. Raises subprocess.TimeoutExpired, when nothing of the command runs any more.

        end: (name of a signal, or "close" for its standard output; words; seconds): so long after these words were in
        its output, it is sent the signal, or nobody reads any more.
        """
        words = [sys.executable, "-m", module, *arguments]
        with tempfile.TemporaryDirectory() as folder:
            request = dict(
                module=module, arguments=arguments, env=dict(env), cwd=str(cwd), folder=folder, timeout=timeout, end=end
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
        end = request.pop("end")
        read, write = os.pipe() if end else (-1, -1)
        child = os.fork()
        if child == 0:
            become(**request, stdout=write)
        if end:
            os.close(write)
            ending = threading.Thread(target=bring_about, args=(child, read, request["folder"], *end))
            ending.start()
        code = wait(child, request["timeout"])
        if end:
            ending.join()
        print(json.dumps(code), flush=True)


def bring_about(child: int, read: int, folder: str, how: str, words: str, seconds: float) -> None:
    """The end that `Forks.run` names; keeps what was read."""
    said, due = b"", None
    with contextlib.suppress(ProcessLookupError):
        while True:
            if due is None and words.encode() in said:
                due = time.monotonic() + seconds
            if due is not None and time.monotonic() >= due:
                if how == "close":
                    break
                os.kill(child, signal.Signals[how])
                due = float("inf")
            left = 1.0 if due is None else min(max(due - time.monotonic(), 0), 1.0)
            if select.select([read], [], [], left)[0]:
                part = os.read(read, 1 << 16)
                if not part:
                    break
                said += part
    os.close(read)
    pathlib.Path(folder, "stdout").write_bytes(said)


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


def become(
    module: str, arguments: list[str], env: dict[str, str], cwd: str, folder: str, timeout: float, stdout: int = -1
) -> None:
    """Runs the command in this process and ends it."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    if stdout >= 0:
        os.dup2(stdout, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, cwd)
    sys.modules.pop(module, None)
    cli.STARTED = time.perf_counter()
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve()
