"""What a config names, opened, checked and built on this host: what a training and the doctor begin with."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.data import reader, survey
from jaxvision.data.pipeline import Skips
from jaxvision.data.sources import Source, open_source, with_classes
from jaxvision.data.sources.classes import Renumbered
from jaxvision.errors import Damaged, UserError
from jaxvision.runtime import machine, paths, sharding
from jaxvision.runtime.records import Say
from jaxvision.task import Batch
from jaxvision.training import build, check, restore
from jaxvision.training.step import TrainState, init_state
from jaxvision.weights import checkpoint


class Setup:
    """What a config names, opened, checked and built on this host, and what is made of it.

    Its constructor writes nothing, compiles nothing and waits for no other host, but where a teacher is restored.

    classes: those of a checkpoint to go on from, see `stored_classes`. Where the training data have the same ones in
    another order, their labels count in that of the checkpoint.
    """

    def __init__(self, config: ConfigDict, classes: tuple[str, ...] = ()) -> None:
        check.check(config)
        self.held_out, self.undivided = build.without_data(config), config.data.train
        self.config = config = build.resolve(config)
        if config.deterministic:
            _require_deterministic()
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.batch_sharding = sharding.batch_sharding(self.mesh)
        _check_divisible(config, self.mesh.size)
        _check_batch_fits(config)

        self.source, self.eval_sources, self.banks = _open_sources(config)
        check.kind(config, self.source)
        if set(classes) == set(self.source.classes):
            self.source = with_classes(self.source, classes, "the checkpoint")
        training = self.source.classes
        self.names = build.names(config, training)
        for name, source in self.eval_sources.items():
            self.eval_sources[name], bank = check.eval_data(config, name, source, self.banks.get(name), training)
            self.banks |= {name: bank} if bank is not None else {}
        check.every_class(self.source)
        self.contract = reader.contract(config)
        self.data = build.data(config, self.source)
        self.steps_per_epoch = len(self.source) / config.batch_size  # in steps
        self.total_steps = config.steps or max(1, round(config.epochs * self.steps_per_epoch))
        if self.total_steps >= 2**31:
            size = f"epochs={config.epochs:g} of {len(self.source):,} images"
            raise UserError(f"{size} are {self.total_steps:,} steps: the most are {2**31 - 1:,}")
        self.length = config_lib.Length(self.total_steps, self.steps_per_epoch)
        self.teacher = restore.teacher(config, self.source.classes)
        self.parts = build.parts(
            config,
            len(training),
            lambda: self.source.labels,
            teaching=self.teacher and self.teacher.task,
            length=self.length,
        )
        self.task, self.tx, self.optimiser_table, self.parameters, _ = self.parts
        self.order = reader.order(config, self.source)
        self.metrics = {
            n: build.measures(config, n, source.classes, self.names) for n, source in self.eval_sources.items()
        }
        check.figures(config, {name: metrics[name] for name, metrics in self.metrics.items()})
        if self.mesh.devices.flat[0].platform == "cpu":  # elsewhere XLA says what does not fit
            options = ", ".join(f"{key}={value!r}" for key, value in config.model.items())
            _require_memory(4 * self.parameters, f"the {self.parameters:,} parameters of model {options} need")

    def sources(self) -> list[Source]:
        """Training data, the data of the evaluations, and what those compare with."""
        return [self.source, *self.eval_sources.values(), *self.banks.values()]

    def data_lines(self) -> list[str]:
        """Lines for people: levels and transparency that are not used, images on both sides. Looks at some files."""
        lines: list[str] = []
        for source in self.sources():
            # of parts of one data set the first tells enough
            lines = lines or survey.levels_told(source.uri, survey.encoded(source), self.contract)
        pairs = {(s.uri, ""): (self.source, s) for s in self.eval_sources.values()}
        pairs |= {(self.eval_sources[n].uri, b.uri): (b, self.eval_sources[n]) for n, b in self.banks.items()}
        pairs = {key: pair for key, pair in pairs.items() if key[1] != self.source.uri}
        return lines + [line for pair in pairs.values() if (line := survey.shared(*pair))]

    def rows(self) -> list[int]:
        """Rows of a global batch that this host reads."""
        return sharding.local_rows(self.batch_sharding, self.config.batch_size).tolist()

    def reader(
        self, start: int, stop: int, skips: Skips | None, rows: list[int] | None = None
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """This host's rows, or those given, of the batches of steps start .. stop - 1; closing it ends its threads."""
        rows = self.rows() if rows is None else rows
        return reader.train(
            self.config, self.source, start=start, stop=stop, rows=rows, order=self.order, fields=self.data.fields,
            skips=skips,
        )  # fmt: skip

    def abstract_state(self) -> TrainState:
        return build.abstract_state(self.config, self.parts, self.mesh)

    def fresh_state(self, abstract: TrainState, given: Any) -> TrainState:
        """A new state on the devices. `given`: of a load plan; a teacher's weights are added."""
        if self.teacher is not None:
            given = self.teacher.join(given)

        def init(key: jax.Array, batch: Batch, given: Any) -> TrainState:
            return init_state(self.task, self.tx, key, batch, given)

        make = build.jit_once(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))
        return jax.block_until_ready(make(jax.random.key(self.config.seed), build.zeros(self.config), given))

    def lower_step(self, state: TrainState) -> tuple[jax.stages.Lowered, dict[str, Any]]:
        """The train step for this state, which may be abstract; and its numbers; see `build.lower_step`."""
        return build.lower_step(self.config, self.parts, self.mesh, state, self.data)


def _open_sources(config: ConfigDict) -> tuple[Source, dict[str, Source], dict[str, Source]]:
    """Training data, the data of each evaluation, and what they compare with. Raises UserError, with a way to try
    without any data."""
    try:
        train = open_source(config.data.train)
        data = {name: open_source(entry.data) for name, entry in config.evals.items()}
        return train, data, {name: open_source(e.bank) for name, e in config.evals.items() if e.get("bank")}
    except UserError as error:
        fake = f"fake:1024x{max(reader.contract(config).shape[:2])}?classes=1000"
        flags = [
            f"'--config.data.train={fake}'",
            *(
                f"'--config.evals.{n}.{key}={fake}'"
                for n, e in config.evals.items()
                for key in ("data", "bank")
                if e.get(key)
            ),
        ]
        flags += ["--config.epochs=0 --config.steps=10 --config.batch_size=16"]
        raise UserError(f"{error}\nTo try this config without data, add {' '.join(flags)}") from error


def stored_classes(workdir: epath.Path) -> tuple[str, ...]:
    """Class names of the newest checkpoint of a workdir that can be asked, in its order; () where there is none."""
    for step in reversed(checkpoint.steps(workdir / "checkpoints")):
        with contextlib.suppress(UserError, OSError, KeyError):
            return tuple(checkpoint.about(workdir / "checkpoints" / str(step))["classes"])
    return ()


def open_workdir(workdir: epath.Path, config: ConfigDict, say: Say) -> tuple[checkpoint.Found, ConfigDict | None]:
    """Holds a resolved config against the one that is there; finds the checkpoint to go on from.

    Returns that checkpoint and the config of the session before, None if there was none. Raises UserError.
    """
    if not paths.is_utf8(str(workdir)):
        raise UserError(f"the workdir's name {str(workdir)!a} is no UTF-8, which checkpoints need: name another")
    before = None
    found = checkpoint.newest(workdir / "checkpoints")
    if checkpoint.steps(workdir / "checkpoints"):  # what else may be there, scores, is of no use to a fresh start
        before = _config_before(workdir, found, say)
        changed = config_lib.differences(before, config)
        if changed:
            raise UserError(
                f"{workdir} holds a run of another config:\n  " + "\n  ".join(changed) + "\nName another "
                f"--workdir, or run it with its own config. May change: {', '.join(config_lib.MAY_CHANGE)}"
            )
    for broken, reason in found.broken:
        say(f"warning: checkpoint {broken} is not used, {reason}")
    if found.broken and found.path is None:
        say("warning: no whole checkpoint is left: starting from the beginning")
    return found, before


def _config_before(workdir: epath.Path, found: checkpoint.Found, say: Say) -> ConfigDict:
    """What config.json holds; where it is lost, what the checkpoint holds of it. Raises UserError without either."""
    try:
        return config_lib.read(workdir / "config.json")
    except (FileNotFoundError, Damaged) as error:
        lost = str(error) if isinstance(error, Damaged) else f"{workdir} holds checkpoints but no config.json"
        kept = checkpoint.about(found.path).get("config") if found.path is not None else None
        if kept is None:
            raise UserError(f"{lost}: name another --workdir") from error
        say(f"warning: {lost}: it is written anew, {found.path} holds what it was trained with")
        return config_lib.from_json(json.dumps(kept))


def check_checkpoint(path: epath.Path, config: ConfigDict, source: Source, say: Say) -> None:
    """Holds a checkpoint that would go on against the config and the training data.

    Raises UserError where pixels, task, config or classes are others; another number of samples is told.
    """
    about = checkpoint.about(path)
    lines = restore.checkpoint_mismatch(about, config, source.classes)
    if lines:
        raise UserError(
            "\n  ".join([f"checkpoint {path} would go on with something else (checkpoint -> now):", *lines])
            + "\nName another --workdir, or go on with what it was trained with"
        )
    if isinstance(source, Renumbered):
        say(
            f"{source.uri} lists its classes in another order now; labels keep that of {path}. Samples that it "
            "sorts by class may come in another order, too"
        )
    samples = about.get("samples", len(source))
    if samples != len(source):
        say(
            f"warning: {source.uri} has {len(source):,} samples, and {samples:,} when {path} was saved: their order, "
            "and the steps of an epoch, are others from here on"
        )


def _check_divisible(config: ConfigDict, devices: int) -> None:
    unit = devices * config.accumulate
    if config.batch_size % unit:
        below, above = config.batch_size // unit * unit, (config.batch_size // unit + 1) * unit
        by = f"{devices} devices" + (f" times accumulate={config.accumulate}" if config.accumulate > 1 else "")
        raise UserError(
            f"batch_size {config.batch_size} is not divisible by {by}: take "
            + (f"{below} or {above}" if below else f"{above}")
        )


def _check_batch_fits(config: ConfigDict) -> None:
    """Raises UserError unless this host can hold the batches that are kept ready."""
    leaves = build.example(config, config.batch_size, train=True).values()
    kept = config.data.prefetch + 1
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) // jax.process_count()
    _require_memory(
        size * kept, f"batch_size={config.batch_size} at {reader.contract(config).canvas} px makes batches of "
        f"{size / 1e9:,.1f} GB; the {kept} that data.prefetch={config.data.prefetch} keeps need"
    )  # fmt: skip


def _require_memory(size: int, what: str) -> None:
    there = machine.memory()["total"]
    if 0 < there < size:
        raise UserError(f"{what} {size / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB: make it smaller")


def _require_deterministic() -> None:
    if jax.default_backend() == "gpu" and "--xla_gpu_deterministic_ops=true" not in os.environ.get("XLA_FLAGS", ""):
        raise UserError(
            "deterministic=True on a GPU needs a flag that is read before jax starts: run with "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true (docs/determinism.md tells its price)"
        )
