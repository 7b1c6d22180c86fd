"""fit(): the one train loop."""

from __future__ import annotations

import json
import math
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxvision import config as config_lib
from jaxvision.config import Config
from jaxvision.data import reader
from jaxvision.data.sources.common import left_out, notes
from jaxvision.errors import Damaged, Diverged, Interrupted, UserError, nearest
from jaxvision.report import page
from jaxvision.runtime import goodput, hlo, hosts, paths, sharding
from jaxvision.runtime import stop as stop_lib
from jaxvision.runtime.chips import KINDS
from jaxvision.runtime.clock import Clock
from jaxvision.runtime.paths import write_whole
from jaxvision.runtime.records import Say, plain, read_records, read_summary
from jaxvision.runtime.stop import Stop
from jaxvision.task import LOWER
from jaxvision.training import build, evals, restore
from jaxvision.training.log import Log
from jaxvision.training.setup import Setup, check_checkpoint, open_workdir, stored_classes
from jaxvision.training.step import TrainState
from jaxvision.weights import checkpoint
from jaxvision.weights.plan import count

PROFILE_AFTER = 3  # steps of a session before the profiler starts: the first are slower
IN_FLIGHT = 2  # steps dispatched ahead: enough to hide the host's work, few enough to notice NaN at once


def fit(
    config: Config,
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
    with Stop() as stop, ExitStack() as held:
        run = Run(config, paths.path(workdir), say, clock or Clock(), stop, held)
        run.profile, run.stop_after, run.command = profile, stop_after, resume
        run.log.tell(f"workdir {run.workdir}" + (f"\nto resume: {resume}" if resume else ""))
        run.write_summary("running")  # what a SIGKILL leaves
        status = "failed"
        try:
            try:
                run.train()
                status = "done"
            except Interrupted:
                run.save()
                run.writer.wait()  # "saved" is said of what is whole
                status = "interrupted"
                raise
        except KeyboardInterrupt:  # a second Ctrl-C, perhaps during the save that the first one asked for
            stop_lib.catch()  # what closes below may take its time
            raise
        except Diverged as error:
            status = "diverged"
            with suppress(UserError):  # a save that failed is none that could be named
                run.writer.wait()
            good = checkpoint.newest(run.workdir / "checkpoints").path
            raise Diverged(f"{error}. Last good checkpoint: {good or 'none yet'}. A lower optim.lr, a longer "
                           "optim.warmup or optim.clip=1.0 often helps") from error  # fmt: skip
        finally:
            run.close(status)
    return run.state


class Run(Setup):
    """One session of a training: everything built and compiled by the constructor, then `train`, then `close`.

    What must be let go of at the end even if the constructor fails goes into `held`.
    """

    def __init__(
        self, config: Config, workdir: epath.Path, say: Say, clock: Clock, stop: Stop, held: ExitStack
    ) -> None:
        self.programs = held.enter_context(_count_programs())
        self.first_step: dict[str, float] = {}
        super().__init__(config, stored_classes(workdir))
        config = self.config
        self.workdir, self.say, self.clock, self.stop = workdir, say, clock, stop
        self.leader = jax.process_index() == 0

        if self.leader:
            busy = f"another process is training in {workdir}: stop it, or name another --workdir"
            held.enter_context(paths.lock(workdir, busy))
        hosts.require_shared(workdir)
        found, before_config = open_workdir(workdir, config, say)
        if found.path is not None:
            check_checkpoint(found.path, config, self.source, say)
        self.run = (checkpoint.about(found.path).get("run") if found.path else "") or config_lib.run_of(config)
        before = self._summary_before()
        self.sessions = goodput.earlier_sessions(before, read_records(workdir, self.run))
        self.state = self._initial(found)
        self.teacher = None  # its weights are in the state: the host's copy can go
        self.first = self.step = int(self.state.step)
        self.saved_at = self.step if found.path is not None else -1
        if self.step > self.total:
            raise UserError(f"{workdir} is at step {self.step}, past the {self.total} that this config asks for")
        if self.leader:  # before all that takes long: it may not be written
            write_whole(workdir / "config.json", config_lib.to_json(before_config or config))
        device = jax.devices()[0].device_kind
        names = self.source.classes
        listed = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])  # their order has a meaning, too
        classes = f"{len(names)} classes ({listed})" if names else "no labels"
        say(
            f"{config.model.name}: {self.parameters:,} parameters, {classes} | "
            f"{len(self.source):,} training images | batch {config.batch_size} on {self.mesh.size} x {device}, "
            f"{config.dtype} | {self.total} steps, {self.total / self.epoch:.4g} epochs"
            + (self.learns and f"\n{self.learns}")
        )
        for line in notes(self.sources()):
            say(line)
        if self.epoch < 1:
            say(
                f"warning: batch_size is {config.batch_size:,}, and there are {len(self.source):,} training images: a "
                f"step sees each about {1 / self.epoch:.3g} times, and the run has {self.total:,} of them. A smaller "
                "batch_size makes more steps of an epoch"
            )
        if self.task.frozen and not config.init:
            say(
                f"warning: task {config.task.name} never moves {', '.join(self.task.frozen)}, and config.init is "
                "empty: what it learns from are random features"
            )
        for line in self.told_of_data() if self.leader else ():
            say(line)
        for name, data in self.eval_sources.items():
            for line in build.eval_lines(config, name, data, self.banks.get(name), names):
                say(line)
        for name in self.held_out:
            say(
                f"evals.{name} names no data: {len(self.eval_sources[name]):,} images of {self.whole} are held out "
                "for it, the same in every run"
            )
        self.results: dict[str, dict[str, float]] = {}
        self.stopped_early = False
        self.flight: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.landed: list[dict[str, float]] = []
        self.pace = (0.0, self.step)  # seconds spent on training at the last log line, and its step
        self.saved_after = 0.0  # minutes: the last save that every_minutes asked for
        self.looked, self.look_at = (0.0, self.step), self.step  # when it was looked at, in minutes and steps; the next
        self.saves: list[float] = []  # seconds that each blocked
        self.seen: tuple[dict[int, dict[str, float]], int] = ({}, -1)  # the hosts' time at the last line; who was named
        self.profile, self.stop_after, self.tracing, self.command = 0, 0.0, "", ""
        # what earlier sessions skipped
        skipped = {row["sample"]: row["reason"] for row in before.get("skipped", [])}
        self.skips = reader.skips(config, skipped if found.path is not None else None)
        self.batches = self.reader(self.step, self.total, self.skips)
        # The reader starts up while XLA compiles.
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, self.batches, None)
            self._compile()
            with clock("data"):
                self.first_batch = first.result()
        broken = [path for path, _ in found.broken]
        self.writer = checkpoint.Writer(workdir / "checkpoints", config.checkpoint.keep, broken)
        of, of_before = self._identities(config), self._identities(before_config or config)
        self.log = Log(
            workdir, config, step=self.step, total=self.total, say=say, writes=self.leader, of=of, before=of_before,
            run=self.run,
        )  # fmt: skip
        if self.leader:  # only now: by the config before is known what older records of the log measured
            write_whole(workdir / "config.json", config_lib.to_json(config))
        self._write_scores()
        clock.begin()

    def _summary_before(self) -> dict[str, Any]:
        """summary.json of the session before; {} where it is lost, which costs no training."""
        try:
            return read_summary(self.workdir, self.run)
        except Damaged as error:
            self.say(f"warning: {error}: earlier sessions are counted from metrics.jsonl, skipped images anew")
            return {}

    def _identities(self, config: Config) -> dict[str, str]:
        """Evaluation -> what it measures, as `config` has it on the data that are there now."""
        return {
            name: evals.identity(config_lib.eval_options(config.evals[name]), source)
            for name, source in self.eval_sources.items()
            if name in config.evals
        }

    def _initial(self, found: checkpoint.Found) -> TrainState:
        """From the checkpoint, from `config.init`, or fresh; a fresh one with the teacher's weights."""
        config, abstract = self.config, self.abstract_state()
        if self.mesh.size > 1:
            line, listing = sharding.table(abstract)
            self.say(f"{line}; see sharding.txt")
            if self.leader:
                write_whole(self.workdir / "sharding.txt", listing)
        if found.path is not None:
            with self.clock("restore"):
                state = jax.block_until_ready(checkpoint.restore(found.path, abstract))
            self.say(f"resuming at step {int(state.step)} from {found.path}")
            return state
        given = None
        if config.init:
            origin = restore.find(config.init, say=self.say)
            plan = restore.load_plan(origin, self.task, config, self.source.classes)
            self.say(f"init: from {origin}\n  made for        {origin.contract}\n{plan.table()}")
            if self.leader:
                content = {"from": config.init, "contract": origin.contract.to_dict(), **plan.to_dict()}
                write_whole(self.workdir / "load_plan.json", json.dumps(content, indent=1))
            given = plan.given
        if self.teacher is not None:
            parameters = count(self.teacher.leaves["params"])
            self.say(f"teacher: {parameters:,} parameters, from {self.teacher.source}")
        with self.clock("compile"):
            return self.fresh_state(abstract, given)

    def _compile(self) -> None:
        config = self.config
        self.updates = {}
        with self.clock("compile"):
            lowered = self.lower_step(self.state)
            self.compiled = lowered.compile()
            self.chip = KINDS.get(self.mesh.devices.flat[0].device_kind)
            counted = hlo.flops(lowered, self.compiled, list(self.mesh.devices.flat))
            # of an image: what was counted is of one device, and of one micro-batch
            self.flops = counted * config.accumulate * self.mesh.size / config.batch_size
            self.rate = jax.jit(self.rate)
            self.rate(0)
            padded = evals.padded_size(config.batch_size, self.mesh)
            for name, metrics in self.metrics.items():
                kind, classes = self.eval_sources[name].kind, len(self.eval_sources[name].classes)
                batch = build.abstract_batch(config, self.mesh, padded, kind=kind, classes=classes)
                self.updates[name] = evals.compile_update(self.task, metrics, self.state, batch)

    def train(self) -> None:
        """Steps until the end, or until someone asks to stop. What is due is done in plain view."""
        c = self.config
        self.evaluate()  # what an interruption cut off; nothing at step 0
        self.log.progress(self.step)
        while not self.ended:
            self.stop.check()
            self._trace()
            with self.clock("data"):
                rows = self._next_batch()
            with self.clock("copy"):
                batch = sharding.put_batch(rows, self.split, c.batch_size)
            with self.clock("step"), jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                self.state, logs = self.compiled(self.state, batch)
            self.step += 1
            self.flight.append((self.step, logs))
            if self.first_step:
                self.land(IN_FLIGHT)
            else:
                self.land()
                self._after_first_step()
            if self.step % c.log.every_steps == 0 or self.ended:
                self.land()
                self._log_train()
            self._save_by_the_clock()
            self.log.progress(self.step)
            if self.due(c.checkpoint.every_steps, c.checkpoint.every_epochs):
                self.save()  # before the evaluation, whose failure must not cost the steps since the last one
            self.evaluate()
        self.save()
        self._trace(end=True)

    def _save_by_the_clock(self) -> None:
        """Saves where checkpoint.every_minutes says so, within a step: by process 0's clock, so that all hosts do it at
        the same step. Several hosts, for which asking is a collective, ask again half-way to the next save."""
        every = self.config.checkpoint.every_minutes
        if not every or self.step < self.look_at:
            return
        minutes = hosts.of_first(self.clock.read()[0]) / 60
        if every <= minutes - self.saved_after:
            self.saved_after = minutes
            self.save()
        if hosts.several():
            pace = (minutes - self.looked[0]) / (self.step - self.looked[1])  # minutes a step since then
            left = self.saved_after + every - minutes
            self.look_at, self.looked = self.step + max(1, int(left / pace / 2)), (minutes, self.step)

    def _after_first_step(self) -> None:
        wall, parts = self.clock.read()
        self.first_step = {"seconds": wall, **{k: parts[k] for k in ("start", "restore", "compile", "data")}}
        spent = ", ".join(f"{k} {v:.1f} s" for k, v in self.first_step.items() if k != "seconds" and v)
        kept = "{kept} of {asked} programs were compiled before".format(**self.programs)
        what = f"step {self.step}, the first after the interruption," if self.first else "first step"
        self.log.tell(f"{what} after {wall:.1f} s ({spent}; {kept})")
        with self.clock("compile"):
            self.writer.prepare(self.state)
        if self.stop_after:  # from here on, so that each session comes forward
            self.stop.at(self.clock.started + 60 * self.stop_after, f"{self.stop_after:g} minutes are over")

    def _trace(self, *, end: bool = False) -> None:
        """Starts XLA's profiler after the first steps of the session, ends it `profile` steps later."""
        done = self.step - self.first
        if self.profile and done == PROFILE_AFTER and not end:
            self.land()
            # the profiler writes to no bucket
            self.tracing = tempfile.mkdtemp()
            jax.profiler.start_trace(self.tracing)
        elif self.tracing and (end or done == PROFILE_AFTER + self.profile):
            self.land()
            with self.clock("log"):
                jax.profiler.stop_trace()
                # where xprof looks, all hosts in one folder
                target = self.workdir / "profile" / "plugins" / "profile" / f"until_step_{self.step}"
                for file in epath.Path(self.tracing).glob("plugins/profile/*/*.xplane.pb"):
                    write_whole(target / f"process_{jax.process_index()}.xplane.pb", file.read_bytes())
                shutil.rmtree(self.tracing)
                self.tracing, self.profile = "", 0
            folder = self.workdir / "profile"
            self.log.tell(f"profile of {done - PROFILE_AFTER} steps: xprof {folder}, or tensorboard --logdir {folder}")
        elif self.profile and end:
            self.log.tell(f"warning: nothing was profiled, it begins after {PROFILE_AFTER} steps of a session")

    def _next_batch(self) -> dict[str, np.ndarray]:
        try:
            first, self.first_batch = self.first_batch, None
            return first or next(self.batches)
        except (UserError, RuntimeError):
            if not hosts.several():  # the others are in steps that wait for this one, and cannot save
                self.save()  # a bad file, or a dead worker, must not cost the steps since the last checkpoint
            raise

    @property
    def ended(self) -> bool:
        return self.step == self.total or self.stopped_early

    def due(self, every_steps: int, every_epochs: float) -> bool:
        """Whether this step ends such a period; the last step ends all. Step 0 ends none."""
        if self.step == 0 or self.ended:
            return self.ended
        if every_steps and self.step % every_steps == 0:
            return True
        period = every_epochs * self.epoch
        return bool(period) and math.floor(self.step / period) > math.floor((self.step - 1) / period)

    def land(self, most: int = 0) -> None:
        """Waits until at most `most` steps are in flight. Raises Diverged if one was not finite."""
        while len(self.flight) > most:
            at, logs = self.flight.popleft()
            with self.clock("step"):
                values = {k: float(v) for k, v in jax.device_get(logs).items()}
            self.landed.append(values)
            bad = [f"{k} is {values[k]}" for k in ("loss", "grad_norm", "param_norm") if not math.isfinite(values[k])]
            if bad:
                raise Diverged(f"training diverged at step {at}: {', '.join(bad)}")

    def _log_train(self) -> None:
        """The means since the last line."""
        with self.clock("log"):
            values = {k: float(np.mean([v[k] for v in self.landed])) for k in self.landed[0]}
            values["lr"] = float(self.rate(self.step - 1))
            spent = self.training_seconds()
            rate = (self.step - self.pace[1]) * self.config.batch_size / max(spent - self.pace[0], 1e-9)
            more: dict[str, Any] = {"goodput": round(goodput.fraction(self.all_sessions()), 4)}
            if self.chip and self.flops:
                more["mfu"] = round(rate * self.flops / (self.chip.flops * self.mesh.size), 4)
            more["time"] = {k: round(v, 3) for k, v in self.clock.read()[1].items()}
            self.log.train(self.step, values, rate, **more)
            self.landed, self.pace = [], (spent, self.step)
            hosts.tell("time", self._mine())
            self._name_straggler()

    def _mine(self, *, last: bool = False) -> dict[str, Any]:
        """What this host tells the others of itself."""
        return {"machine": platform.node(), "time": self.clock.read()[1], "last": last}

    def _name_straggler(self) -> None:
        """Says, once, who holds the others up."""
        now = {k: host["time"] for k, host in hosts.told("time").items()} if self.leader else {}
        before, named = self.seen
        found = goodput.behind(now, before)
        self.seen = (now, named)
        if found and found[0] != named:
            host, part, share = found
            self.seen = (now, host)
            self.log.tell(f"warning: process {host} holds the others up: {share:.0%} of its time is {part}")

    def all_sessions(self) -> list[dict[str, Any]]:
        """The sessions before and this one, see runtime/goodput.py."""
        wall, parts = self.clock.read()
        session = {"first": self.first, "last": self.step, "wall_s": round(wall, 3), "step_s": round(parts["step"], 3)}
        return [*self.sessions, session]

    def training_seconds(self) -> float:
        """Everything since the start but start-up, compiling and evaluating."""
        wall, parts = self.clock.read()
        return wall - sum(parts[k] for k in ("start", "restore", "compile", "evaluate"))

    def evaluate(self) -> None:
        """Does each evaluation that is due at this step and was not done by an earlier session.

        Where one fails, this step is saved: at the next start only the evaluation is done again. One host of several
        cannot save alone, so there it is saved before.
        """
        due = [name for name, entry in self.config.evals.items() if self._due_by(entry)]
        if not due:
            return
        done = {name: self.log.evaluations(name).get(self.step) for name in due}
        self.results |= {name: values for name, values in done.items() if values is not None}
        if hosts.several() and None in done.values():
            self.save()
        try:
            for name in (name for name in due if done[name] is None):
                self._evaluate(name)
        except Diverged:
            raise
        except Exception:
            self.save()
            raise
        if not self.ended and self._no_longer_better():
            self.stopped_early = True
            if self.landed:
                self._log_train()  # the last step has a line, as that of any run
            self.evaluate()

    def _due_by(self, entry: Config) -> bool:
        options = config_lib.eval_options(entry)
        return self.due(options["every_steps"], options["every_epochs"])

    def _evaluate(self, name: str) -> None:
        self.land()
        options, source = config_lib.eval_options(self.config.evals[name]), self.eval_sources[name]
        with self.clock("evaluate"):
            result = evals.measure(
                self.config, self.task, self.state, self.metrics[name], source, self.banks.get(name), self.contract,
                self.mesh, update=self.updates[name], watch=self.stop.watch,
            )  # fmt: skip
        with self.clock("log"):
            if self.leader:
                _, warning = evals.write(
                    self.workdir, name, result, options=options, step=self.step, contract=self.contract,
                    classes=source.classes, run=self.run,
                )  # fmt: skip
                if warning:
                    self.log.tell(warning)
            self.results[name] = result.metrics
            self.log.evaluation(self.step, name, result.metrics)
            self._write_scores()
        if result.skipped:
            self.log.tell(f"warning: {name} leaves out {len(result.skipped)} unreadable images, see eval/{name}.json")

    def _write_scores(self) -> None:
        """By what the config says now; the log knows the values of all steps, also of sessions before."""
        name, key = best_by(self.config, self.log)
        scores = self._scores(name, key)
        if self.leader and name and self.step:  # also where nothing is scored yet: that is no lost file
            of = self.log.of[name]
            checkpoint.write_scores(self.workdir / "checkpoints", f"{name}/{key}", scores, self.run, of)

    def _scores(self, name: str, key: str) -> dict[int, float]:
        """Step -> how good, higher is better."""
        sign = -1 if key.partition("/")[0] in LOWER else 1
        values = {step: metrics.get(key) for step, metrics in self.log.evaluations(name).items()}
        return {step: sign * value for step, value in values.items() if value is not None}

    def _no_longer_better(self) -> bool:
        """Whether the last `stop.patience` evaluations brought no better value; said once."""
        stop = self.config.stop
        if not stop.patience:
            return False
        name, key = best_by(self.config, self.log, stop.evaluation, stop.metric)
        scores = self._scores(name, key)
        best = max(scores, key=lambda step: (scores[step], -step), default=0)
        since = sum(step > best for step in scores)
        if since < stop.patience:
            return False
        value = self.log.evaluations(name)[best][key]
        self.log.tell(
            f"stops early at step {self.step}: {name}/{key} was best at step {best} ({value:.4f}), and "
            f"{since} evaluations since then gave nothing better"
        )
        return True

    def save(self) -> None:
        """This step's state, once."""
        self.land()
        if self.saved_at == self.step:
            return
        with self.clock("checkpoint"):
            about = {
                "contract": self.contract.to_dict(),
                "classes": list(self.source.classes),
                "samples": len(self.source),
                "task": self.config.task.name,
                "config": self.config.to_dict(),
                "run": self.run,
                "versions": evals.versions(),
            }
            before = self.clock.read()[1]["checkpoint"]
            self.writer.save(self.step, self.state, about, self.log.flush)
            self.saves.append(self.clock.read()[1]["checkpoint"] - before)
            self.saved_at = self.step

    def close(self, status: str) -> None:
        """Ends the reader, the saver and the log, whatever happened; writes summary.json."""
        failed = sys.exc_info()[0] is not None
        self.batches.close()
        try:
            with self.clock("checkpoint"):
                self.writer.close()
        except UserError:
            status = "failed"
            if not failed:
                raise
        finally:
            with self.clock("log"):
                self.log.close()
            hosts.tell("time", self._mine(last=True))
            if self.log.there():  # else they would make a new folder, with nothing else in it
                with suppress(*((UserError,) if sys.exc_info()[0] else ())):  # the first error is what is told
                    self.write_summary(status)
                self._write_report()

    def write_summary(self, status: str) -> None:
        if self.leader:
            paths.write_json(self.workdir / "summary.json", plain(self.summary(status)))

    def _write_report(self) -> None:
        """After the summary, which it shows. Whatever goes wrong with it must not spoil a run that is saved."""
        if not self.leader:
            return
        sources = {entry.data: self.eval_sources[name] for name, entry in self.config.evals.items()}
        sources[self.config.data.train] = self.source
        try:
            page.write(self.workdir, sources=sources)
        except Exception as error:
            self.log.tell(f"warning: no report was written ({type(error).__name__}: {error})")

    def summary(self, status: str) -> dict[str, Any]:
        seconds = self.training_seconds()
        wall, parts = self.clock.read()
        done = (self.step - self.first) * self.config.batch_size
        memory = jax.local_devices()[0].memory_stats() or {}
        return {
            "status": status,
            "command": self.command,
            "run": self.run,
            "step": self.step,
            "steps": self.total,
            "stopped_early": self.stopped_early,
            "resumed_at": self.first,
            "parameters": self.parameters,
            "wall_s": round(wall, 3),
            "examples_per_s": round(done / seconds, 1) if done else 0.0,
            "first_step": {k: round(v, 3) for k, v in self.first_step.items()},
            "programs": dict(self.programs),
            "time": {k: round(v, 3) for k, v in parts.items()},
            "hosts": self._hosts(wait=status == "done"),
            "goodput": round(goodput.fraction(self.all_sessions()), 4),
            "sessions": self.all_sessions(),
            "saves": {
                "count": len(self.saves),
                "blocked_s": round(sum(self.saves), 3),
                "longest_s": round(max(self.saves, default=0.0), 3),
            },
            "flops_per_image": self.flops if self.chip else None,
            "evals": self.results,
            "best": self.log.best(),
            "alarms": self.log.alarms(),
            "skipped": self.skips.rows() if self.skips else [],
            "left_out": left_out(self.sources()),
            "devices": self.mesh.size,
            "versions": evals.versions(),
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": memory.get("peak_bytes_in_use"),
        }

    def _hosts(self, *, wait: bool) -> list[dict[str, Any]]:
        """The time of each, where there are several; at the end after a moment for all to have told theirs."""
        deadline = time.monotonic() + (5.0 if wait else 0.0)
        found = hosts.told("time")
        while not all(host["last"] for host in found.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
            found = hosts.told("time")
        return [
            {"process": k, "machine": host["machine"], "time": {p: round(v, 3) for p, v in host["time"].items()}}
            for k, host in sorted(found.items())
        ]


@contextmanager
def _count_programs() -> Iterator[dict[str, int]]:
    """How many programs JAX was asked for meanwhile, and how many of them it had compiled in an earlier process."""
    counts = {"asked": 0, "kept": 0}

    def count(event: str, **_: Any) -> None:
        if event.startswith("/jax/compilation_cache/"):
            name = {"compile_requests_use_cache": "asked", "cache_hits": "kept"}.get(event.rpartition("/")[2])
            if name:
                counts[name] += 1

    jax.monitoring.register_event_listener(count)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_listener(count)


def best_by(config: Config, log: Log, evaluation: str = "", metric: str = "") -> tuple[str, str]:
    """(evaluation, metric) that decide what is best: those given, else `checkpoint.best`, else the first of each.

    Which metric is first is known once there was an evaluation, "" before. Raises UserError where there is no such one.
    """
    if not config.evals:
        return "", ""
    wanted, _, key = config.checkpoint.best.partition("/")
    name = evaluation or wanted or next(iter(config.evals))
    key = metric or (key if name == (wanted or name) else "")
    done = list(log.evaluations(name).values())
    if done:
        key = key or next((k for k in done[-1] if k != "loss"), "loss")
        if key not in done[-1]:
            known = [f"{name}/{k}" for k in done[-1]]
            said = "stop.metric" if metric else "checkpoint.best"
            raise UserError(f"{said} is {metric or config.checkpoint.best!r}: {nearest(f'{name}/{key}', known)}")
    return name, key
