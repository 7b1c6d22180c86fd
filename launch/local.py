"""Several processes of one command on this machine, connected as the hosts of a pod are; for tests and rehearsals.

    python launch/local.py 4 -- python -m jaxvision.train --config configs/digits.py --workdir runs/four
    python launch/local.py 2 --devices 4 -- python -m jaxvision.evaluate --from runs/four

Each process gets --devices emulated CPU devices. The lines of process 0 are shown as they are, those of the others with
their number. Ctrl-C, SIGTERM and SIGHUP go to all, and where nobody reads the lines all go on. Once one has failed the
others have --grace seconds to end by themselves; the exit code is that of the first that failed, else 0. However this
one ends, SIGKILL included, nothing that it started goes on.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

GLOO = re.compile(
    r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number of connected peer ranks is : )*\n?"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", type=int, metavar="N")
    parser.add_argument("--devices", type=int, default=1, metavar="D", help="emulated ones of each; default 1")
    parser.add_argument("--grace", type=float, default=60, metavar="SECONDS", help="default %(default)g")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    arguments, command = parser.parse_args(words[:at]), words[at + 1 :]
    if arguments.processes < 1 or arguments.devices < 1 or not command:
        parser.error("name a number of processes, and after -- the command that each runs")
    guard = start_guard()
    asked: list[
        int
    ] = []  # signals to pass on; from before the first process is there, so that none ends this one alone
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: asked.append(number))
    processes = start(arguments.processes, arguments.devices, command, guard)
    readers = [threading.Thread(target=show, args=(p.stdout, f"[{k}] " if k else "")) for k, p in enumerate(processes)]
    for reader in readers:
        reader.start()
    code = wait(processes, arguments.grace, asked)
    for reader in readers:
        reader.join()
    os.write(guard, b"end")
    return code


def start_guard() -> int:
    """Starts the process that kills, once this one is gone, the sessions whose numbers were written here, a line each.

    It waits for the end of a pipe, which comes however this process ends. "end", as the last words, lets it go. The
    end of a pipe that it gives back is this process's alone: Python gives no child more than it is told to.
    """
    read, write = os.pipe()
    if os.fork():
        os.close(read)
        os.wait()
        return write
    os.setsid()  # a Ctrl-C of the terminal is not for it
    if os.fork():
        os._exit(0)  # so that it is no child of the launcher, which waits for its own
    os.close(write)
    for number in (0, 1, 2):  # who reads the launcher's lines must see their end
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    words = b""
    while part := os.read(read, 1 << 16):
        words += part
    if not words.endswith(b"end"):
        for session in words.split():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(session), signal.SIGKILL)
    os._exit(0)


def start(count: int, devices: int, command: list[str], guard: int) -> list[subprocess.Popen]:
    """In sessions of their own, so that a Ctrl-C of the terminal comes to each once, from here."""
    flags = os.environ.get("XLA_FLAGS", "")
    common = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "PYTHONUNBUFFERED": "1",
    }

    def announce() -> None:
        """Tells the guard of a process before its command begins: whenever the launcher dies, the guard knows it."""
        os.write(guard, f"{os.getpid()}\n".encode())

    processes = []
    for index in range(count):
        process = subprocess.Popen(
            command,
            env={**common, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=announce,
        )
        processes.append(process)
    return processes


def free_port() -> int:
    """One that nobody listens on, and that the system gives nobody before process 0 listens: it is below those that it
    hands out by itself, on Linux from 32768 on."""
    while True:
        port = random.SystemRandom().randint(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def show(lines, prefix: str) -> None:
    """Prints lines as they come, but for what the CPU's collectives (Gloo) tell of each connection.

    Threads write those sentences into each other, so that a line with two beginnings is followed by one that holds the
    end of a sentence alone, as "3".
    """
    open_ = 0  # sentences that have begun and not ended
    for line in lines:
        open_ += line.count("[Gloo]")
        if "[Gloo]" in line or "peer ranks" in line or (open_ and GLOO.fullmatch(line)):
            open_ = max(open_ - 1, 0)
            continue
        with contextlib.suppress(OSError):  # nobody reads it; who writes must not wait for that
            print(prefix + line, end="", flush=True)


def to_all(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def wait(processes: list[subprocess.Popen], grace: float, asked: list[int]) -> int:
    """The code of the first that failed, else 0. Passes on the signals that come into `asked`."""
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        while asked:
            to_all(processes, asked.pop(0))
        if not code and any(codes):
            code, deadline = next(filter(None, codes)), time.monotonic() + grace
        if time.monotonic() > deadline:
            to_all(processes, signal.SIGKILL)
        time.sleep(0.05)
    code = code or next(filter(None, codes), 0)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
