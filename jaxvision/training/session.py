"""A session: what one start of a training opens, restores and compiles before its first step."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.data import reader
from jaxvision.data.pipeline import Skips
from jaxvision.data.sample import fields_of
from jaxvision.data.sources.common import notes
from jaxvision.errors import Damaged, UserError
from jaxvision.runtime import goodput, hlo, hosts, paths, sharding
from jaxvision.runtime.chips import KINDS, Chip
from jaxvision.runtime.clock import Clock
from jaxvision.runtime.paths import write_whole
from jaxvision.runtime.records import Say, read_records, read_summary
from jaxvision.training import build, check, evals, restore
from jaxvision.training.setup import Setup, check_checkpoint, open_workdir, stored_classes
from jaxvision.training.step import TrainState
from jaxvision.weights import checkpoint
from jaxvision.weights.plan import count


@dataclasses.dataclass(frozen=True)
class Session:
    """One session of a training, from its opening on. Nothing in it changes but what `batches` and `skips` count."""

    setup: Setup
    workdir: epath.Path
    run: str  # which run the workdir holds, see `config.run_of`
    leader: bool  # whether this host writes
    start: int  # the step at which the session begins
    resumed: bool  # from a checkpoint
    broken: list[epath.Path]  # checkpoints that cannot be used
    earlier: list[dict[str, Any]]  # sessions before this one, see runtime/goodput.py
    identities: dict[str, str]  # evaluation -> what it measures now, see `evals.identity`
    identities_before: dict[str, str]  # the same by the config of the session before
    skips: Skips | None
    reader: Generator[dict[str, np.ndarray], None, None]  # to be closed at the end
    batches: Iterator[dict[str, np.ndarray]]  # the reader's, whose first was read while XLA compiled
    step: Callable[..., Any]  # the compiled train step
    updates: dict[str, evals.Update]  # the compiled evaluations
    learning_rate: Callable[[int], jax.Array]
    chip: Chip | None
    flops: float  # of an image
    programs: dict[str, int]  # how many were asked for, and how many of them had been compiled before


def open_session(
    config: ConfigDict, workdir: epath.Path, say: Say, clock: Clock, held: ExitStack
) -> tuple[Session, TrainState]:
    """Opens the data and the workdir, restores or makes a state, compiles; says what is trained on what.

    held: takes what must be let go of at the end, even where this raises. Raises UserError.
    """
    programs = held.enter_context(_count_programs())
    setup = Setup(config, stored_classes(workdir))
    config, leader = setup.config, jax.process_index() == 0
    if leader:
        busy = f"another process is training in {workdir}: stop it, or name another --workdir"
        held.enter_context(paths.lock(workdir, busy))
    hosts.require_shared(workdir)
    found, before = open_workdir(workdir, config, say)
    if found.path is not None:
        check_checkpoint(found.path, config, setup.source, say)
    run = (checkpoint.about(found.path).get("run") if found.path else "") or config_lib.run_of(config)
    summary = _summary_before(workdir, run, say)
    earlier = goodput.earlier_sessions(summary, read_records(workdir, run))
    state = _first_state(setup, found, workdir, say, clock)
    start = int(state.step)
    if start > setup.total_steps:
        raise UserError(f"{workdir} is at step {start}, past the {setup.total_steps} that this config asks for")
    if leader:  # before all that takes long: it may not be written
        write_whole(workdir / "config.json", config_lib.to_json(before or config))
    for line in _introduction(setup, leader):
        say(line)
    skipped = {row["sample"]: row["reason"] for row in summary.get("skipped", [])} if found.path is not None else None
    skips = reader.skips(config, skipped)
    batches = setup.reader(start, setup.total_steps, skips)
    held.callback(batches.close)
    # The reader starts up while XLA compiles.
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, batches, None)
        step, flops, updates, learning_rate = compile_programs(setup, state, clock)
        with clock("data"):
            batch = first.result()
    session = Session(
        setup=setup,
        workdir=workdir,
        run=run,
        leader=leader,
        start=start,
        resumed=found.path is not None,
        broken=[path for path, _ in found.broken],
        earlier=earlier,
        identities=_identities(setup, config),
        identities_before=_identities(setup, before or config),
        skips=skips,
        reader=batches,
        batches=itertools.chain([] if batch is None else [batch], batches),
        step=step,
        updates=updates,
        learning_rate=learning_rate,
        chip=KINDS.get(setup.mesh.devices.flat[0].device_kind),
        flops=flops,
        programs=programs,
    )
    return session, state


def compile_programs(
    setup: Setup, state: TrainState, clock: Clock
) -> tuple[Callable[..., Any], float, dict[str, evals.Update], Callable[[int], jax.Array]]:
    """The train step, its FLOP an image, the updates of the evaluations, and step -> learning rate."""
    config, updates = setup.config, {}
    with clock("compile"):
        lowered, hyper = setup.lower_step(state)
        compiled = lowered.compile()
        hyper = jax.device_put(hyper, sharding.replicated(setup.mesh))
        counted = hlo.flops(lowered, compiled, list(setup.mesh.devices.flat))
        # of an image: what was counted is of one device, and of one micro-batch
        flops = counted * config.accumulate * setup.mesh.size / config.batch_size
        learning_rate = build.learning_rate(config, setup.length)
        learning_rate(0)
        rows = evals.padded_size(config.batch_size, setup.mesh)
        for name, metrics in setup.metrics.items():
            source = setup.eval_sources[name]
            fields = fields_of(source)
            batch = build.abstract_batch(config, setup.mesh, rows, fields=fields, classes=len(source.classes))
            updates[name] = evals.compile_update(setup.task, metrics, state, batch)
    return lambda state, batch: compiled(state, batch, hyper), flops, updates, learning_rate


def _first_state(setup: Setup, found: checkpoint.Found, workdir: epath.Path, say: Say, clock: Clock) -> TrainState:
    """First state of a session: from the checkpoint, from `config.init`, or fresh.

    A fresh state has the teacher's weights.
    """
    config, abstract = setup.config, setup.abstract_state()
    if setup.mesh.size > 1:
        line, listing = sharding.table(abstract)
        say(f"{line}; see sharding.txt")
        if jax.process_index() == 0:
            write_whole(workdir / "sharding.txt", listing)
    if found.path is not None:
        with clock("restore"):
            state = jax.block_until_ready(checkpoint.restore(found.path, abstract))
        say(f"resuming at step {int(state.step)} from {found.path}")
    else:
        given = None
        if config.init:
            origin = restore.find(config.init, say=say)
            plan = restore.load_plan(origin, setup.task, config, setup.source.classes)
            say(f"init: from {origin}\n  made for        {origin.contract}\n{plan.table()}")
            if jax.process_index() == 0:
                content = {"from": config.init, "contract": origin.contract.to_dict(), **plan.to_dict()}
                write_whole(workdir / "load_plan.json", json.dumps(content, indent=1))
            given = plan.given
        if setup.teacher is not None:
            say(f"teacher: {count(setup.teacher.leaves['params']):,} parameters, from {setup.teacher.source}")
        with clock("compile"):
            state = setup.fresh_state(abstract, given)
    setup.teacher = None  # its weights are in the state: the host's copy can go
    return state


def _summary_before(workdir: epath.Path, run: str, say: Say) -> dict[str, Any]:
    """summary.json of the session before; {} where it is lost, which costs no training."""
    try:
        return read_summary(workdir, run)
    except Damaged as error:
        say(f"warning: {error}: earlier sessions are counted from metrics.jsonl, skipped images anew")
        return {}


def _identities(setup: Setup, config: ConfigDict) -> dict[str, str]:
    """Evaluation -> what it measures, as `config` has it on the data that are there now."""
    return {
        name: evals.identity(config_lib.eval_options(config.evals[name]), source)
        for name, source in setup.eval_sources.items()
        if name in config.evals
    }


def _introduction(setup: Setup, leader: bool) -> Iterator[str]:
    """Lines for people: what is trained on what, and what may be no intention. Only the leader looks at files."""
    config, names = setup.config, setup.source.classes
    device = jax.devices()[0].device_kind
    listed = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])  # their order has a meaning, too
    classes = f"{len(names)} classes ({listed})" if names else "no labels"
    yield (
        f"{config.model.name}: {setup.parameters:,} parameters, {classes} | "
        f"{len(setup.source):,} training images | batch {config.batch_size} on {setup.mesh.size} x {device}, "
        f"{config.dtype} | {setup.total_steps} steps, {setup.total_steps / setup.steps_per_epoch:.4g} epochs"
        + (setup.optimiser_table and f"\n{setup.optimiser_table}")
    )
    yield from notes(setup.sources())
    if setup.steps_per_epoch < 1:
        yield (
            f"warning: batch_size is {config.batch_size:,}, and there are {len(setup.source):,} training images: a "
            f"step sees each about {1 / setup.steps_per_epoch:.3g} times, and the run has {setup.total_steps:,} of "
            "them. A smaller batch_size makes more steps of an epoch"
        )
    yield from config_lib.past_the_end(config, setup.length)
    if setup.task.frozen and not config.init:
        yield (
            f"warning: task {config.task.name} never moves {', '.join(setup.task.frozen)}, and config.init is "
            "empty: what it learns from are random features"
        )
    if leader:
        yield from setup.data_lines()
    for name, data in setup.eval_sources.items():
        yield from check.eval_lines(config, name, data, setup.banks.get(name), names)
    for name in setup.held_out:
        yield (
            f"evals.{name} names no data: {len(setup.eval_sources[name]):,} images of {setup.undivided} are held out "
            "for it, the same in every run"
        )


@contextmanager
def _count_programs() -> Iterator[dict[str, int]]:
    """Counts the programs that JAX was asked for meanwhile, and those that it had compiled in an earlier process."""
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
