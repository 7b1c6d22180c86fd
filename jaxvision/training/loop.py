"""fit(): the one train loop."""

from __future__ import annotations

import math
import sys
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.errors import Diverged, Interrupted, UserError
from jaxvision.report import page
from jaxvision.runtime import hosts, paths, sharding
from jaxvision.runtime import stop as stop_lib
from jaxvision.runtime.clock import Clock
from jaxvision.runtime.records import Say, plain
from jaxvision.runtime.stop import Stop
from jaxvision.training.accounts import Accounts
from jaxvision.training.evaluations import Evaluations, due
from jaxvision.training.log import Log
from jaxvision.training.profile import Profiler
from jaxvision.training.saver import Saver
from jaxvision.training.session import Session, open_session
from jaxvision.training.step import TrainState
from jaxvision.weights import checkpoint

MAX_PENDING = 2  # steps dispatched ahead: enough to hide the host's work, few enough to notice NaN at once


def fit(
    config: ConfigDict,
    workdir: str | epath.Path,
    *,
    say: Say = print,
    clock: Clock | None = None,
    resume: str = "",
    profile: int = 0,
    stop_after: float = 0.0,
) -> TrainState:
    """Trains as `config` says, in `workdir`; goes on from its last whole checkpoint if there is one.

    Writes everything that the workdir holds. Raises UserError (bad config, data, workdir), Diverged (a loss or
    a parameter is no longer finite; the last good checkpoint stays) or Interrupted (SIGTERM, SIGHUP or Ctrl-C, after
    saving at the step that was reached). `resume`: the command that goes on, for people to see; `profile`: so many
    steps are traced by XLA's profiler, into the workdir's profile/; `stop_after`: minutes after which it saves and
    raises Interrupted, at the earliest after one step, 0 for never.
    """
    clock = clock or Clock()
    with Stop() as stop, ExitStack() as held:
        session, state = open_session(config, paths.path(workdir), say, clock, held)
        loop = Loop(session, state, say, clock, stop, resume=resume, profile=profile, stop_after=stop_after)
        loop.log.tell(f"workdir {session.workdir}" + (f"\nto resume: {resume}" if resume else ""))
        loop.write_summary("running")  # what a SIGKILL leaves
        status = "failed"
        try:
            try:
                loop.run()
                status = "done"
            except Interrupted:
                loop.save()
                loop.saver.wait()  # "saved" is said of what is whole
                status = "interrupted"
                raise
        except KeyboardInterrupt:  # a second Ctrl-C, perhaps during the save that the first one asked for
            stop_lib.catch()  # what closes below may take its time
            raise
        except Diverged as error:
            status = "diverged"
            with suppress(UserError):  # a save that failed is none that could be named
                loop.saver.wait()
            good = checkpoint.newest(session.workdir / "checkpoints").path
            raise Diverged(f"{error}. Last good checkpoint: {good or 'none yet'}. A lower optim.lr, a longer "
                           "optim.warmup_steps or optim.clip=1.0 often helps") from error  # fmt: skip
        finally:
            loop.close(status)
    return loop.state


class Loop:
    """The steps of a session: `run`, then `close`. What moves is `state`, `step` and what their helpers count."""

    def __init__(
        self, session: Session, state: TrainState, say: Say, clock: Clock, stop: Stop, *, resume: str = "",
        profile: int = 0, stop_after: float = 0.0,
    ) -> None:  # fmt: skip
        """The arguments are those of `fit`, opened."""
        self.session, self.config, self.clock, self.stop = session, session.setup.config, clock, stop
        self.state, self.step, self.stopped_early = state, session.start, False
        self.resume, self.stop_after = resume, stop_after
        self.first_step: dict[str, float] = {}  # seconds until the first step of the session was done
        self.log = Log(
            session.workdir, self.config, step=self.step, total=session.setup.total_steps, say=say,
            writes=session.leader, of=session.identities, before=session.identities_before, run=session.run,
        )  # fmt: skip
        self.saver = Saver(session, clock, self.log.flush)
        self.pending = Pending(clock)
        self.evaluations = Evaluations(session, self.log, clock, stop.watch)
        self.accounts = Accounts(session, clock, self.log)
        self.profiler = Profiler(profile, self.step, session.workdir, clock, self.pending.drain, self.log.tell)
        if session.leader:  # only now: by the config before is known what older records of the log measured
            paths.write_whole(session.workdir / "config.json", config_lib.to_json(self.config))
        self.evaluations.write_scores(self.step)
        clock.begin()

    def run(self) -> None:
        """Steps until the end, or until someone asks to stop. What is due is done in plain view."""
        c, setup, clock = self.config, self.session.setup, self.clock
        self.evaluate()  # what an interruption cut off; nothing at step 0
        self.log.progress(self.step)
        while not self.ended:
            self.stop.check()
            self.profiler.before(self.step)
            with clock("data"):
                rows = self._next_batch()
            with clock("copy"):
                batch = sharding.put_batch(rows, setup.batch_sharding, c.batch_size)
            with clock("step"), jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                self.state, logs = self.session.step(self.state, batch)
            self.step += 1
            self.pending.add(self.step, logs)
            if self.first_step:
                self.pending.drain(MAX_PENDING)
            else:
                self.pending.drain()
                self._after_first_step()
            if self.step % c.log.every_steps == 0 or self.ended:
                self.pending.drain()
                self.accounts.line(self.step, self.pending.means())
            if self.saver.due_by_the_clock(self.step):
                self.save()
            self.log.progress(self.step)
            every = c.checkpoint.every_steps, c.checkpoint.every_epochs
            if self.ended or due(self.step, *every, setup.steps_per_epoch):
                self.save()  # before the evaluation, whose failure must not cost the steps since the last one
            self.evaluate()
        self.save()
        self.profiler.end(self.step)

    @property
    def ended(self) -> bool:
        return self.step == self.session.setup.total_steps or self.stopped_early

    def _next_batch(self) -> dict[str, np.ndarray]:
        try:
            return next(self.session.batches)
        except (UserError, RuntimeError):
            if not hosts.several():  # the others are in steps that wait for this one, and cannot save
                self.save()  # a bad file, or a dead worker, must not cost the steps since the last checkpoint
            raise

    def _after_first_step(self) -> None:
        wall, parts = self.clock.read()
        self.first_step = {"seconds": wall, **{k: parts[k] for k in ("start", "restore", "compile", "data")}}
        spent = ", ".join(f"{k} {v:.1f} s" for k, v in self.first_step.items() if k != "seconds" and v)
        kept = "{kept} of {asked} programs were compiled before".format(**self.session.programs)
        what = f"step {self.step}, the first after the interruption," if self.session.start else "first step"
        self.log.tell(f"{what} after {wall:.1f} s ({spent}; {kept})")
        with self.clock("compile"):
            self.saver.prepare(self.state)
        if self.stop_after:  # from here on, so that each session comes forward
            self.stop.at(self.clock.started + 60 * self.stop_after, f"{self.stop_after:g} minutes are over")

    def save(self) -> None:
        """Saves the state of the current step, once."""
        self.pending.drain()
        self.saver.save(self.step, self.state)

    def evaluate(self) -> None:
        """Does each evaluation that is due at this step and was not done by an earlier session.

        Where one fails, this step is saved: at the next start only the evaluation is done again. One host of several
        cannot save alone, so there it is saved before.
        """
        names = self.evaluations.due(self.step, self.ended)
        if not names:
            return
        missing = self.evaluations.not_done(names, self.step)
        if hosts.several() and missing:
            self.save()
        try:
            for name in missing:
                self.pending.drain()
                self.evaluations.measure(name, self.step, self.state)
        except Diverged:
            raise
        except Exception:
            self.save()
            raise
        if not self.ended and self.evaluations.no_longer_better(self.step):
            self.stopped_early = True
            if self.pending.logs:
                self.accounts.line(self.step, self.pending.means())  # the last step has a line, as that of any run
            self.evaluate()

    def close(self, status: str) -> None:
        """Ends the reader, the saver and the log, whatever happened; writes summary.json."""
        failed = sys.exc_info()[0] is not None
        self.session.reader.close()
        try:
            with self.clock("checkpoint"):
                self.saver.close()
        except UserError:
            status = "failed"
            if not failed:
                raise
        finally:
            with self.clock("log"):
                self.log.close()
            self.accounts.publish(last=True)
            if self.log.there():  # else they would make a new folder, with nothing else in it
                with suppress(*((UserError,) if sys.exc_info()[0] else ())):  # the first error is what is told
                    self.write_summary(status)
                self._write_report()

    def write_summary(self, status: str) -> None:
        if self.session.leader:
            paths.write_json(self.session.workdir / "summary.json", plain(self.summary(status)))

    def summary(self, status: str) -> dict[str, Any]:
        """Contents of summary.json."""
        return {
            "status": status,
            "command": self.resume,
            "run": self.session.run,
            "step": self.step,
            "stopped_early": self.stopped_early,
            "first_step": {k: round(v, 3) for k, v in self.first_step.items()},
            "evals": self.evaluations.results,
            "best": self.log.best(),
            "alarms": self.log.alarms(),
            **self.accounts.summary(self.step, self.saver.seconds, wait=status == "done"),
        }

    def _write_report(self) -> None:
        """Writes the report, after the summary, which the report shows.

        Whatever goes wrong with it must not spoil a run that is saved.
        """
        if not self.session.leader:
            return
        setup = self.session.setup
        sources = {entry.data: setup.eval_sources[name] for name, entry in self.config.evals.items()}
        sources[self.config.data.train] = setup.source
        try:
            page.write(self.session.workdir, sources=sources)
        except Exception as error:
            self.log.tell(f"warning: no report was written ({type(error).__name__}: {error})")


class Pending:
    """Steps that were dispatched, and whose logs have not come back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._steps: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.logs: list[dict[str, float]] = []  # of steps that are done, since the last means

    def add(self, step: int, logs: dict[str, jax.Array]) -> None:
        self._steps.append((step, logs))

    def drain(self, most: int = 0) -> None:
        """Waits until at most `most` steps are pending. Raises Diverged if one was not finite."""
        while len(self._steps) > most:
            step, logs = self._steps.popleft()
            with self._clock("step"):
                values = {k: float(v) for k, v in jax.device_get(logs).items()}
            self.logs.append(values)
            bad = [f"{k} is {values[k]}" for k in ("loss", "grad_norm", "param_norm") if not math.isfinite(values[k])]
            if bad:
                raise Diverged(f"training diverged at step {step}: {', '.join(bad)}")

    def means(self) -> dict[str, float]:
        """Means of the logs since the last call."""
        logs, self.logs = self.logs, []
        return {k: float(np.mean([values[k] for values in logs])) for k in logs[0]}
