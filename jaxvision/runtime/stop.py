"""Signals: Ctrl-C that no library swallows, and a polite request to stop, answered at the same step on all hosts."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from jaxvision.errors import Interrupted
from jaxvision.runtime import hosts

T = TypeVar("T")

REPEAT = 2.0  # seconds after which a Ctrl-C that was not caught is raised again
_interrupted = _caught = False


def end_at_ctrl_c() -> None:
    """Makes a Ctrl-C end the command, whatever is under way; called before the heavy imports.

    A library may swallow KeyboardInterrupt: an import that tries, a destructor, a callback from C. So it is raised
    again every REPEAT seconds until `catch` is called, and `interrupted` tells that it came.
    """
    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def interrupted() -> bool:
    """Whether a Ctrl-C came that ends the command."""
    return _interrupted


def catch() -> None:
    """Tells that KeyboardInterrupt has arrived where it ends the command."""
    global _caught
    _caught = True


def _interrupt(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    global _interrupted
    if not _interrupted:
        _interrupted = True
        # not threading.Thread: the signal may have come while the main thread holds a lock of that module
        _thread.start_new_thread(_repeat, ())
    raise KeyboardInterrupt


def _repeat() -> None:
    while True:
        time.sleep(REPEAT)
        if _caught:
            return
        os.kill(os.getpid(), signal.SIGINT)


class Stop:
    """SIGTERM, SIGHUP and Ctrl-C ask once, politely; a second Ctrl-C ends at once, as Python does.

    SIGHUP comes when the terminal is lost; where nohup had it ignored it stays so. Several hosts find the step that
    none has passed yet by JAX's preemption service, which catches SIGTERM below Python: a handler of Python's would
    take it away from it. What else asks becomes a SIGTERM there.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._checks = 0
        self._before: dict[int, Any] = {}
        self._end, self._why = float("inf"), ""

    def __enter__(self) -> Stop:
        if interrupted():
            raise KeyboardInterrupt
        if threading.current_thread() is threading.main_thread():
            ours = [signal.SIGINT] if hosts.several() else [signal.SIGINT, signal.SIGTERM]
            ours += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
            for number in ours:
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:  # as whoever had it before: a command, or a notebook that goes on
            before = self._before[number]
            (before if callable(before) else signal.default_int_handler)(number, frame)
        self._ask(signal.Signals(number).name)

    def _ask(self, why: str) -> None:
        self.asked = self.asked or why
        if hosts.several():
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, end: float, why: str) -> None:
        """Asks by itself once time.perf_counter() is past `end`; on several hosts the first one's counts."""
        self._end, self._why = end, why

    def check(self) -> None:
        """Raises Interrupted if someone asked; with several hosts on all in the same call, so all make as many."""
        if not self.asked and time.perf_counter() >= self._end and hosts.index() == 0:
            self._ask(self._why)
        if hosts.several():
            from jax.experimental import multihost_utils

            self._checks += 1
            if multihost_utils.reached_preemption_sync_point(self._checks):
                raise Interrupted(f"{self.asked or 'SIGTERM, here or on another host'}: saved")
        elif self.asked:
            raise Interrupted(f"{self.asked}: saved")

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        for batch in batches:
            self.check()
            yield batch
