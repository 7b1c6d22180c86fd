"""The evaluations of a training: which is due when, what each gave, whether they still get better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.errors import UserError, nearest
from jaxvision.runtime.clock import Clock
from jaxvision.task import LOWER, Batch
from jaxvision.training import build, evals
from jaxvision.training.log import Log
from jaxvision.training.session import Session
from jaxvision.training.step import TrainState
from jaxvision.weights import checkpoint


def due(step: int, every_steps: int, every_epochs: float, steps_per_epoch: float) -> bool:
    """Whether this step ends a period of so many steps, or of so many epochs; step 0 ends none."""
    if step and every_steps and step % every_steps == 0:
        return True
    period = every_epochs * steps_per_epoch
    return bool(step and period) and math.floor(step / period) > math.floor((step - 1) / period)


class Evaluations:
    """Evaluations of this session and of those before it."""

    def __init__(
        self, session: Session, log: Log, clock: Clock, watch: Callable[[Iterator[Batch]], Iterator[Batch]]
    ) -> None:
        """watch: stands between the batches and the devices, and may raise to end an evaluation."""
        self._session, self._log, self._clock, self._watch = session, log, clock, watch
        self._config = session.setup.config
        self.results: dict[str, dict[str, float]] = {}  # the last of each

    def due(self, step: int, ended: bool) -> list[str]:
        """Names of the evaluations that come after this step; all where the training has ended."""
        names = []
        for name, entry in self._config.evals.items():
            options = config_lib.eval_options(entry)
            every = options["every_steps"], options["every_epochs"]
            if ended or due(step, *every, self._session.setup.steps_per_epoch):
                names.append(name)
        return names

    def not_done(self, names: list[str], step: int) -> list[str]:
        """Names of the evaluations that no session has done at this step; takes the results of the others."""
        done = {name: self._log.evaluations(name).get(step) for name in names}
        self.results |= {name: values for name, values in done.items() if values is not None}
        return [name for name in names if done[name] is None]

    def measure(self, name: str, step: int, state: TrainState) -> None:
        """Evaluates, and writes what came."""
        session, setup, log = self._session, self._session.setup, self._log
        options, source = config_lib.eval_options(self._config.evals[name]), setup.eval_sources[name]
        with self._clock("evaluate"):
            result = evals.measure(
                self._config, setup.task, state, setup.metrics[name], source, setup.banks.get(name), setup.contract,
                setup.mesh, update=session.updates[name], watch=self._watch,
            )  # fmt: skip
        with self._clock("log"):
            if session.leader:
                _, warning = evals.write(
                    session.workdir, name, result, options=options, step=step, contract=setup.contract,
                    classes=build.among(self._config, source.classes, setup.names), run=session.run,
                )  # fmt: skip
                if warning:
                    log.tell(warning)
            self.results[name] = result.metrics
            log.evaluation(step, name, result.metrics)
            self.write_scores(step)
        if result.skipped:
            log.tell(f"warning: {name} leaves out {len(result.skipped)} unreadable images, see eval/{name}.json")

    def write_scores(self, step: int) -> None:
        """Writes the scores of the checkpoints, by what the config says now.

        The log knows the values of all steps, also of sessions before.
        """
        name, key = best_by(self._config, self._log)
        scores = self._scores(name, key)
        if self._session.leader and name and step:  # also where nothing is scored yet: that is no lost file
            folder = self._session.workdir / "checkpoints"
            checkpoint.write_scores(folder, f"{name}/{key}", scores, self._session.run, self._log.of[name])

    def _scores(self, name: str, key: str) -> dict[int, float]:
        """Step -> how good, higher is better."""
        sign = -1 if key.partition("/")[0] in LOWER else 1
        values = {step: metrics.get(key) for step, metrics in self._log.evaluations(name).items()}
        return {step: sign * value for step, value in values.items() if value is not None}

    def no_longer_better(self, step: int) -> bool:
        """Whether the last `stop.patience` evaluations brought no better value; said once."""
        stop = self._config.stop
        if not stop.patience:
            return False
        name, key = best_by(self._config, self._log, stop.evaluation, stop.metric)
        scores = self._scores(name, key)
        best = max(scores, key=lambda step: (scores[step], -step), default=0)
        since = sum(step > best for step in scores)
        if since < stop.patience:
            return False
        value = self._log.evaluations(name)[best][key]
        self._log.tell(
            f"stops early at step {step}: {name}/{key} was best at step {best} ({value:.4f}), and "
            f"{since} evaluations since then gave nothing better"
        )
        return True


def best_by(config: ConfigDict, log: Log, evaluation: str = "", metric: str = "") -> tuple[str, str]:
    """(evaluation, metric) that decide what is best: those given, else `checkpoint.best`, else the only evaluation and
    its first metric.

    Which metric is first is known once there was an evaluation, "" before. Raises UserError where there is no such one.
    """
    if not config.evals:
        return "", ""
    decides, key = config_lib.deciding(config), config.checkpoint.best.partition("/")[2]
    name = evaluation or decides
    key = metric or (key if name == decides else "")
    done = list(log.evaluations(name).values())
    if done:
        key = key or next((k for k in done[-1] if k != "loss"), "loss")
        if key not in done[-1]:
            known = [f"{name}/{k}" for k in done[-1]]
            said = "stop.metric" if metric else "checkpoint.best"
            raise UserError(f"{said} is {metric or config.checkpoint.best!r}: {nearest(f'{name}/{key}', known)}")
    return name, key
