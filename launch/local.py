"""Several processes of one command on this machine, connected as the hosts of a pod are; for tests and rehearsals.

    python launch/local.py 4 -- python -m jaxvision.train --config configs/digits.py --workdir runs/four
    python launch/local.py 2 --devices 4 -- python -m jaxvision.evaluate --from runs/four

Each process gets --devices emulated CPU devices. The lines of process 0 are shown as they are, those of the others with
their number. Ctrl-C and SIGTERM go to all. Once one has failed the others have --grace seconds to end by themselves;
the exit code is that of the first that failed, else 0.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time


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
    processes = start(arguments.processes, arguments.devices, command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: to_all(processes, number))
    readers = [threading.Thread(target=show, args=(p.stdout, f"[{k}] " if k else "")) for k, p in enumerate(processes)]
    for reader in readers:
        reader.start()
    code = wait(processes, arguments.grace)
    for reader in readers:
        reader.join()
    return code


def start(count: int, devices: int, command: list[str]) -> list[subprocess.Popen]:
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
    return [
        subprocess.Popen(
            command,
            env={**common, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for index in range(count)
    ]


def free_port() -> int:
    """One that nobody listens on, and that the system gives nobody before process 0 listens: it is below those that it
    hands out by itself, on Linux from 32768 on."""
    while True:
        port = random.SystemRandom().randint(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def show(lines, prefix: str) -> None:
    for line in lines:
        if "[Gloo]" in line or "peer ranks" in line:  # the CPU's collectives tell of each connection
            continue
        print(prefix + line, end="", flush=True)


def to_all(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def wait(processes: list[subprocess.Popen], grace: float) -> int:
    """The code of the first that failed, else 0."""
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        if not code and any(codes):
            code, deadline = next(filter(None, codes)), time.monotonic() + grace
        if time.monotonic() > deadline:
            to_all(processes, signal.SIGKILL)
        time.sleep(0.05)
    code = code or next(filter(None, codes), 0)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
