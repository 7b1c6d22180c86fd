"""SIGTERM and Ctrl-C as a question that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from jaxvision.errors import Interrupted

T = TypeVar("T")


class Stop:
    """SIGTERM and Ctrl-C ask once, politely; a second Ctrl-C ends at once, as Python does."""

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if someone asked."""
        if self.asked:
            raise Interrupted(f"{self.asked}: saved")

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        for batch in batches:
            self.check()
            yield batch
