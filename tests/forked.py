"""Stands for a Python that has imported JAX: `python -IS tests/forked.py SOCKET -m MODULE ...`, or `-c CODE ...`.

The server behind the socket, see forks.py, forks a process that runs it, on the standard streams, with the environment
and in the folder of this one. This one passes signals on and ends as the fork ends; it starts in 30 ms.
"""

import json
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they can be passed on
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        request = dict(words=sys.argv[2:], env=dict(os.environ), cwd=os.getcwd())
        socket.send_fds(server, [b"?"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        answers = server.makefile()
        child = int(answers.readline())
        for number in SIGNALS:
            passed = signal.SIGKILL if number == signal.SIGUSR1 else number  # so that this one ends after it
            signal.signal(number, lambda _, frame, passed=passed: os.kill(child, passed))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
