"""Saves of a training's state: when they are due, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable

from jaxvision.runtime import hosts, versions
from jaxvision.runtime.clock import Clock
from jaxvision.training.session import Session
from jaxvision.training.step import TrainState
from jaxvision.weights import checkpoint


class Saver:
    """Saves each step at most once, in the background."""

    def __init__(self, session: Session, clock: Clock, flush: Callable[[], None]) -> None:
        """flush: is called before anything of a checkpoint is written."""
        setup = session.setup
        self._clock, self._flush = clock, flush
        self._every = setup.config.checkpoint.every_minutes
        self._writer = checkpoint.Writer(session.workdir / "checkpoints", setup.config.checkpoint.keep, session.broken)
        self._about = {
            "contract": setup.contract.to_dict(),
            "classes": list(setup.source.classes),
            "samples": len(setup.source),
            "task": setup.config.task.name,
            "config": setup.config.to_dict(),
            "run": session.run,
            "versions": versions.of_figures(),
        }
        self._saved_at = session.start if session.resumed else -1
        self._saved_after = 0.0  # minutes: the last save that every_minutes asked for
        self._looked, self._look_at = (0.0, session.start), session.start  # (minutes, step) of the last look; the next
        self.seconds: list[float] = []  # that each save blocked

    def prepare(self, state: TrainState) -> None:
        """Compiles what a save needs; see `checkpoint.Writer.prepare`."""
        self._writer.prepare(state)

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state of this step, unless it is saved. Raises UserError if the save before failed."""
        if self._saved_at == step:
            return
        with self._clock("checkpoint"):
            before = self._clock.read()[1]["checkpoint"]
            self._writer.save(step, state, self._about, self._flush)
            self.seconds.append(self._clock.read()[1]["checkpoint"] - before)
            self._saved_at = step

    def due_by_the_clock(self, step: int) -> bool:
        """Whether checkpoint.every_minutes asks for a save at this step.

        Process 0's clock decides, so that all hosts save at the same step. Several hosts, for which asking is a
        collective, ask again half-way to the next save.
        """
        if not self._every or step < self._look_at:
            return False
        minutes = hosts.of_first(self._clock.read()[0]) / 60
        due = self._every <= minutes - self._saved_after
        if due:
            self._saved_after = minutes
        if hosts.several():
            pace = (minutes - self._looked[0]) / (step - self._looked[1])  # minutes a step since then
            left = self._saved_after + self._every - minutes
            self._look_at, self._looked = step + max(1, int(left / pace / 2)), (minutes, step)
        return due

    def wait(self) -> None:
        """Waits until the last save is whole.

        Raises UserError if it could not be written.
        """
        self._writer.wait()

    def close(self) -> None:
        """Waits until the last save is whole, and ends the saver. Raises UserError as `wait` does."""
        self._writer.close()
