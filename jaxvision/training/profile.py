"""XLA's profiler around a few steps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable

import jax
from etils import epath

from jaxvision.runtime.clock import Clock
from jaxvision.runtime.paths import write_whole

AFTER = 3  # steps of a session before the profiler starts: the first are slower


class Profiler:
    """Traces some steps of a session into the workdir's profile/, where xprof looks; all hosts in one folder."""

    def __init__(
        self, steps: int, start: int, workdir: epath.Path, clock: Clock, drain: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        """steps: how many, 0 for none; start: the session's first step; drain: waits for the steps under way."""
        self._steps, self._start, self._folder = steps, start, workdir / "profile"
        self._clock, self._drain, self._tell = clock, drain, tell
        self._tracing = ""  # a folder on a disk: the profiler writes to no bucket

    def before(self, step: int) -> None:
        """Starts after the first steps of the session, ends so many steps later."""
        done = step - self._start
        if self._steps and done == AFTER:
            self._drain()
            self._tracing = tempfile.mkdtemp()
            jax.profiler.start_trace(self._tracing)
        elif self._tracing and done == AFTER + self._steps:
            self._write(step)

    def end(self, step: int) -> None:
        """Ends a trace that runs after the last step, or warns that nothing was profiled."""
        if self._tracing:
            self._write(step)
        elif self._steps:
            self._tell(f"warning: nothing was profiled, it begins after {AFTER} steps of a session")

    def _write(self, step: int) -> None:
        self._drain()
        with self._clock("log"):
            jax.profiler.stop_trace()
            target = self._folder / "plugins" / "profile" / f"until_step_{step}"
            for file in epath.Path(self._tracing).glob("plugins/profile/*/*.xplane.pb"):
                write_whole(target / f"process_{jax.process_index()}.xplane.pb", file.read_bytes())
            shutil.rmtree(self._tracing)
            self._tracing, self._steps = "", 0
        self._tell(
            f"profile of {step - self._start - AFTER} steps: xprof {self._folder}, or tensorboard --logdir "
            f"{self._folder}"
        )
