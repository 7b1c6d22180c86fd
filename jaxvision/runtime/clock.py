"""Wall-clock time of a run by part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

PARTS = ("start", "restore", "compile", "data", "copy", "step", "evaluate", "checkpoint", "log", "other")


class Clock:
    """Clock of the main thread's wall-clock time: one hand, always on exactly one part.

    `with clock("data"):` moves the hand there and back again; outside any such block it stands on "other".
    Every part is therefore measured, none is computed from the others.
    """

    def __init__(self, started: float | None = None, begun: Callable[[], None] = lambda: None) -> None:
        """`begun` is called when start-up is over."""
        self._begun = begun
        self.started = self._since = time.perf_counter() if started is None else started
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.part = "start"  # until `begin`: imports, opening data, building

    def _turn(self, part: str) -> str:
        now = time.perf_counter()
        self.parts[self.part] += now - self._since
        before, self.part, self._since = self.part, part, now
        return before

    def begin(self) -> None:
        """Start-up is over."""
        self._turn("other")
        self._begun()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before = self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the start, and of each part."""
        self._turn(self.part)
        return time.perf_counter() - self.started, dict(self.parts)
