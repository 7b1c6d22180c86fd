"""SIGTERM and Ctrl-C as a question that the loop answers between two steps, at the same step on all hosts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from jaxvision import hosts
from jaxvision.errors import Interrupted

T = TypeVar("T")


class Stop:
    """SIGTERM and Ctrl-C ask once, politely; a second Ctrl-C ends at once, as Python does.

    Several hosts find the step that none has passed yet by JAX's preemption service, which catches SIGTERM below
    Python: a handler of Python's would take it away from it. Ctrl-C becomes a SIGTERM there.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._checks = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if hosts.several() else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        if hosts.several():
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if someone asked; with several hosts on all in the same call, so all make as many."""
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
