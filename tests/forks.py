"""Commands without the seconds that each takes to import JAX: one process imports it and forks for each command.

A fork differs from a command of a user by what is imported already, nothing else: arguments, environment, standard
streams, exit code and exit handlers are its own. What commands do before they import, what the environment tells Python
and JAX while they are imported, and what becomes of closed streams is tested on processes of their own. JAX's backends
start after the fork, with the flags of that command.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvision import cli

ROOT = pathlib.Path(__file__).parent.parent
IMPORTED = (
    "jaxvision.training.build", "jaxvision.training.loop", "jaxvision.weights", "jaxlib.mlir.dialects.builtin",
    "jaxlib.mlir.dialects.mhlo", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "sklearn.datasets",
)  # fmt: skip


@functools.cache
def python() -> tuple[str, ...]:
    """What to write instead of `sys.executable`: its processes are forks, see forked.py."""
    folder = tempfile.TemporaryDirectory()
    ours, theirs = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", f"{folder.name}/socket", str(theirs.fileno())],
        pass_fds=[theirs.fileno()], cwd=ROOT,
    )  # fmt: skip
    theirs.close()
    ours.recv(1)  # it listens

    def end() -> None:
        ours.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return sys.executable, "-IS", str(ROOT / "tests" / "forked.py"), f"{folder.name}/socket"


class Fork(subprocess.Popen):
    """`subprocess.Popen([sys.executable, *words], ...)` as a fork, which ends with it."""

    def __init__(self, words: Sequence[Any], **options: Any) -> None:
        super().__init__([*python(), *map(str, words)], **options)

    def send_signal(self, number: int) -> None:
        super().send_signal(signal.SIGUSR1 if number == signal.SIGKILL else number)


def run(
    words: Sequence[Any], *, timeout: float, end: tuple[str, str, float] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run([sys.executable, *words], capture_output=True, text=True, ...)` as a fork.

    end: (name of a signal, or "close" for its standard output; words; seconds): so long after these words were in its
    output, it is sent the signal, or nobody reads any more.
    """
    with tempfile.TemporaryFile("w+") as err:
        with Fork(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, **options) as process:
            try:
                out = bring_about(process, *end) if end else process.communicate(timeout=timeout)[0]
                process.wait(timeout)
            except BaseException:
                process.kill()
                raise
        err.seek(0)
        # killed before the fork was there
        code = -signal.SIGKILL if process.returncode == -signal.SIGUSR1 else process.returncode
        return subprocess.CompletedProcess(process.args, code, out.decode(), err.read())


def bring_about(process: Fork, how: str, words: str, seconds: float) -> bytes:
    """The end that `run` names; what was read of the output."""
    said, due, read = b"", None, process.stdout.fileno()
    while True:
        if due is None and words.encode() in said:
            due = time.monotonic() + seconds
        if due is not None and time.monotonic() >= due:
            if how == "close":
                break
            process.send_signal(signal.Signals[how])
            due = float("inf")
        left = 1.0 if due is None else min(max(due - time.monotonic(), 0), 1.0)
        if select.select([read], [], [], left)[0]:
            part = os.read(read, 1 << 16)
            if not part:
                break
            said += part
    process.stdout.close()
    return said


# --------------------------------------------------------------------------- the process that forks


def serve(path: str, ready: int) -> None:
    cli.quiet_libraries()
    for name in IMPORTED:
        importlib.import_module(name)
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX's, of threads that it has not started yet
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(fileno=ready) as parent,
        selectors.DefaultSelector() as selector,
    ):
        listening.bind(path)
        listening.listen()
        woken, wakes = socket.socketpair()  # by the end of a fork
        woken.setblocking(False)
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno())
        for one in (listening, parent, woken):
            selector.register(one, selectors.EVENT_READ)
        children: dict[int, socket.socket] = {}
        parent.send(b"!")
        while True:
            for key, _ in selector.select():
                if key.fileobj is listening:
                    asked, _ = listening.accept()
                    _, streams, _, _ = socket.recv_fds(asked, 1, 3)
                    with asked.makefile() as file:
                        request = json.loads(file.readline())
                    child = os.fork()
                    if child == 0:
                        for one in (listening, parent, woken, wakes, asked, *children.values()):
                            one.close()
                        selector.close()
                        become(streams, **request)
                    for stream in streams:
                        os.close(stream)
                    asked.sendall(b"%d\n" % child)
                    children[child] = asked
                    selector.register(asked, selectors.EVENT_READ)
                elif key.fileobj is parent:  # the tests are over
                    for child in children:
                        os.kill(child, signal.SIGKILL)
                    return
                elif key.fileobj is woken:
                    woken.recv(1 << 10)
                else:  # who asked for it was killed
                    selector.unregister(key.fileobj)
                    for child, asked in children.items():
                        if asked is key.fileobj:
                            os.kill(child, signal.SIGKILL)
            for child in list(children):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    asked = children.pop(child)
                    with contextlib.suppress(KeyError):
                        selector.unregister(asked)
                    with asked, contextlib.suppress(OSError):
                        asked.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(streams: Sequence[int], words: list[str], env: Mapping[str, str], cwd: str) -> None:
    """Runs what was asked for in this process, and ends it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    lines = env.get("PYTHONUNBUFFERED") or os.isatty(1)
    sys.stdout = open(1, "w", 1 if lines else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    cli.STARTED = time.perf_counter()
    how, what, *arguments = words
    if how == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        assert how == "-m", words
        sys.path.insert(0, cwd)
        sys.modules.pop(what, None)
        sys.argv[1:] = arguments
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
