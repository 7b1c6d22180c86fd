"""Whether the train step of a config fits chips, and what bounds it: compiled for chips that are not here."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

import jaxvision.models
from jaxvision import config as config_lib
from jaxvision import targets
from jaxvision.data.sources import open_source
from jaxvision.errors import UserError
from jaxvision.models.layers import REMAT
from jaxvision.runtime import hlo, sharding
from jaxvision.runtime.chips import Chip, slice_of
from jaxvision.runtime.records import Say
from jaxvision.training import build, restore

PROGRAMS = 4  # compiled to find the largest batch: each takes minutes


@dataclasses.dataclass(frozen=True)
class Row:
    """The compiler's figures of one program.

    Where it found no room, only what it says that it needs is known.
    """

    images: int  # a chip and step
    remat: str
    fsdp: int
    compile_s: float
    memory: float = 0.0  # bytes a chip: the state, the batch, what lives in between, the program; 0: not known
    flops: float = 0.0  # an image
    traffic: float = 0.0  # bytes an image, to and from device memory
    collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # kind: how many, bytes a chip
    room: float = 0.0  # bytes that a chip has for programs, where the compiler says so: where it does not fit
    problem: str = ""  # the compiler's, where it does not fit

    @property
    def fits(self) -> bool:
        return not self.problem

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Seconds that a step takes at least, by each side: if that were all that counts."""
        # a ring sends the operand of an all-reduce twice, of the others once
        sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in self.collectives.items())
        return {
            "compute": self.images * self.flops / chip.flops,
            "memory": self.images * self.traffic / chip.bandwidth,
            "links": sent / chip.links,
        }

    def bound(self, chip: Chip) -> tuple[float, str]:
        """Images/s a chip that the slowest side allows, and which that is."""
        seconds = self.seconds(chip)
        side = max(seconds, key=lambda k: seconds[k])
        return self.images / seconds[side], side


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for. `chip` is None where their speed is not known; a chip may be several devices."""

    name: str
    devices: list[jax.Device]
    chips: int
    chip: Chip | None

    @classmethod
    def find(cls, topology: str) -> Slice:
        """The slice of a name, or the devices that are "here".

        Raises UserError.
        """

        if topology == "here":
            return cls(topology, jax.devices(), jax.device_count(), None)
        if importlib.util.find_spec("libtpu") is None:
            raise UserError('compiling for TPUs needs libtpu: pip install "jaxvision[plan]" (Linux x86-64)')
        chip, chips = slice_of(topology)
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        except Exception as error:
            raise UserError(f"topology {topology!r}: libtpu says {str(error).splitlines()[0]}") from error
        return cls(topology, list(devices), chips, chip)


class Planner:
    """Compiles variants of a config, each once, and says what it finds."""

    def __init__(
        self, config: ConfigDict, classes: int, say: Say, at: Callable[[str], None], *, exact: bool = False
    ) -> None:
        """at: is told what is being compiled; exact: see `largest_that_fits`, whose `most` has no limit then."""

        self.config, self.say, self.at, self.most = config, say, at, math.inf if exact else PROGRAMS
        self.left = 0  # programs to compile after this one, at most
        try:
            source = open_source(config.data.train)
            self.data = build.data(config, source)
        except UserError as error:
            learns = build.declared(config).learns or targets.class_
            self.data = build.Data(learns.fields, classes, config.data.slots)
            say(f"planned with {classes} classes (--classes): {str(error).splitlines()[0]}")
        self.rows: dict[tuple, Row] = {}

    def study(self, topology: str, images: int, *, only: bool) -> dict[str, Any]:
        """Result for one topology: a row for each variant; the largest batch, or None."""
        where = Slice.find(topology)
        images = images or max(1, self.config.batch_size // where.chips)
        remat, fsdp = self.config.model.get("remat", ""), self.config.mesh.fsdp
        memory = f", {where.chip.memory / 2**30:.0f} GiB each" if where.chip else ""
        what = f"{'chip' if where.chip else 'device'}{'s' if where.chips > 1 else ''}"
        self.say(f"\n{topology}: {where.chips} {what}{memory}\n{HEADER}")
        low, high = 0, math.inf
        if only or not where.chip:
            base = self.row(where, images, remat, fsdp)
        else:
            other_fsdp = 1 if fsdp != 1 else math.gcd(8, len(where.devices))
            others = [(other, fsdp) for other in self.policies() if other != remat] + [(remat, other_fsdp)]
            self.left = len(others) + PROGRAMS
            low, high = self.largest(where, images, remat, fsdp)
            base = self.row(where, images, remat, fsdp)
            self.say(in_words(low, high, images, where.chips))
            self.left = len(others)
            for other, shards in others:
                self.row(where, images, other, shards)
        for kind, (count, size) in sorted(base.collectives.items()):
            self.say(f"each step every chip puts {size / 1e6:,.1f} MB into {count} {kind}")
        rows = [as_json(row, where.chip) for (name, *_), row in self.rows.items() if name == topology]
        found = {"largest": low or None, "too_large": high if high < math.inf else None}
        return {"chips": where.chips, **found, "rows": rows}

    def largest(self, where: Slice, images: int, remat: str, fsdp: int) -> tuple[int, float]:
        """Batches a chip, searched from `images`: see `largest_that_fits`."""
        assert where.chip
        whole = where.chip.memory * 15.75 / 16  # a v5e's for programs; the compiler says it where it refuses one

        def memory(n: int) -> tuple[bool, float]:
            row = self.row(where, n, remat, fsdp)
            return row.fits, row.memory

        def limit() -> float:
            told = [row.room for (name, *_), row in self.rows.items() if name == where.name and row.room]
            return told[-1] if told else whole

        return largest_that_fits(memory, images, limit, self.most)

    def policies(self) -> tuple[str, ...]:
        """Names of what the network may compute again in the backward pass; "" is nothing."""

        fields = getattr(jaxvision.models, self.config.model.name).func.__dataclass_fields__
        return ("", *REMAT) if "remat" in fields else ()

    def row(self, where: Slice, images: int, remat: str, fsdp: int) -> Row:
        """The row of a program, compiled where it is not known, and shown."""
        key = (where.name, images, remat, fsdp)
        if key not in self.rows:
            self.at(f"compiling for {images:,} images a chip")
            self.rows[key] = self.compile(where, images, remat, fsdp)
            self.left -= 1
            self.say(line(self.rows[key], where.chip) + self.time_left())
        return self.rows[key]

    def time_left(self) -> str:
        """Estimate of the time for the programs still to follow, from those compiled; "" where none follows."""
        if self.left < 1:
            return ""
        seconds = int(self.left * statistics.mean(row.compile_s for row in self.rows.values()))
        return f"  (at most {self.left} more, {seconds // 60}:{seconds % 60:02})"

    def compile(self, where: Slice, images: int, remat: str, fsdp: int) -> Row:

        config = type(self.config)(self.config.to_dict())
        config.update(batch_size=images * where.chips)
        if remat != config.model.get("remat", ""):
            config.model.remat = remat
        mesh = sharding.make_mesh(-1, fsdp, where.devices)
        start = time.monotonic()
        try:
            compiled = compile_step(config, mesh, self.data)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used = re.search(r"([\d.]+\w)\)? (?:of|exceeds available HBM) \(?([\d.]+\w)", str(error))
            problem = f"needs {used[1]} of {used[2]}" if used else "does not fit"
            needs, room = map(in_bytes, used.groups()) if used else (0.0, 0.0)
            took = time.monotonic() - start
            return Row(images, remat, fsdp, took, memory=needs, room=room, problem=problem)
        cost, program = compiled.cost_analysis(), compiled.as_text()
        share = len(where.devices) / where.chips  # devices of a chip
        traffic = hlo.device_memory_bytes(program) if where.chip else cost["bytes accessed"]
        return Row(
            images,
            remat,
            fsdp,
            time.monotonic() - start,
            memory=hlo.memory_bytes(compiled) * share,
            flops=cost["flops"] * share / images,
            traffic=traffic * share / images,
            collectives={k: (n, int(size * share)) for k, (n, size) in hlo.collectives(program).items()},
        )


def largest_that_fits(
    memory: Callable[[int], tuple[bool, float]], first: int, limit: Callable[[], float], most: float = PROGRAMS
) -> tuple[int, float]:
    """The largest batch that was seen to fit, 0 if none, and the smallest that was seen not to, infinite if none.

    memory: images -> (whether they fit, bytes they need, 0 if that is not known): a compilation, so at most `most` are
    asked for. limit: bytes there are, by what is known by then. Batches are multiples of `unit_of(first)` images.

    Memory is nearly linear in the batch: two points give the line, the third confirms where it meets the limit, the
    fourth refutes the next batch. What goes on after that trusts lines less: near the limit the compiler computes again
    what it has no room for.
    """
    unit = unit_of(first)
    needs: dict[int, float] = {}
    low, high = 0, math.inf
    images, jump = first, unit
    for tried in itertools.count(1):
        fits, used = memory(images)
        needs |= {images: used} if used else {}
        low, high = (max(low, images), high) if fits else (low, min(high, images))
        if high - low <= unit or tried >= most:
            break
        guess = _meets(needs, limit()) if needs else images / 2
        if tried + 1 == most and low + unit < guess < high - unit:  # lines were wrong: something that fits, rather
            guess *= 0.99
        if tried >= PROGRAMS and high == math.inf:
            jump *= 2
            guess = max(guess, low + jump)
        elif tried >= PROGRAMS and tried % 2:
            guess = (low + high) / 2
        images = int(min(max(guess * (1 + 1e-9) // unit * unit, low + unit), high - unit))
    return low, high


def unit_of(first: int) -> int:
    """Unit of the batches in a search that begins with `first` images: 8, or 1 if `first` is no multiple of 8."""
    return 8 if first % 8 == 0 else 1


def _meets(needs: dict[int, float], limit: float) -> float:
    """Batch at which the line through the two points nearest to the limit meets it; through 0 where one is known.

    Through 0 the guess is too low if that point fits: it takes what does not depend on the batch for a part of it.
    """
    nearest_, *others = sorted(needs, key=lambda n: abs(needs[n] - limit))
    slope = (needs[others[0]] - needs[nearest_]) / (others[0] - nearest_) if others else 0.0
    if slope <= 0:
        return nearest_ * limit / needs[nearest_]
    return nearest_ + (limit - needs[nearest_]) / slope


def compile_step(config: ConfigDict, mesh: Any, data: build.Data) -> Any:
    """The compiled train step of a config on the devices of a mesh, of which none need be here.

    `data`: of the training. Raises JaxRuntimeError where it finds no room.
    """

    config = config_lib.as_config({**config.to_dict(), "evals": {}})  # a train step does not depend on them
    if config.dtype == "auto" and mesh.devices.flat[0].platform != "cpu":
        config.dtype = "bfloat16"
    config = build.resolve(config)
    classes = data.classes
    names = tuple(map(str, range(classes)))
    teacher = restore.teacher(config, names)
    # of the labels themselves, and of the number of steps, only numbers would change
    labels, teaching = lambda: np.arange(classes), teacher and teacher.task
    parts = build.parts(config, classes, labels, teaching=teaching, length=config_lib.Length(1000, 100.0))
    state = build.abstract_state(config, parts, mesh)
    return build.lower_step(config, parts, mesh, state, data)[0].compile()


def in_bytes(text: str) -> float:
    """Bytes of "18.23G", as the compiler writes them; 0 for what it does not write."""
    found = re.fullmatch(r"([\d.]+)([KMGT])", text)
    return float(found[1]) * 2.0 ** (10 * " KMGT".index(found[2])) if found else 0.0


def in_words(low: int, high: float, first: int, chips: int) -> str:
    """Result of a search from `first`, in words.

    `low` images a chip fit, `high` do not, see `largest_that_fits`.
    """
    if not low:
        return f"largest batch that fits: none was found, the smallest that was tried is {high:,} images a chip"
    start = f"{low:,} images a chip, {low * chips:,} in all"
    if high - low <= unit_of(first):
        return f"largest batch that fits: {start}"
    more = f"{high:,} does not" if high < math.inf else "more was not tried"
    return f"largest batch that was seen to fit: {start}; {more}, --exact goes on"


HEADER = "images a chip     remat  fsdp      memory  GFLOP/image  MB/image  images/s a chip  bound by  compiled in"


def line(row: Row, chip: Chip | None) -> str:
    start = f"{row.images:>13}  {row.remat or 'no':>8}  {row.fsdp:>4}"
    if not row.fits:
        return f"{start}  does not fit: {row.problem} ({row.compile_s:.0f} s)"
    speed, bound = "", ""
    if chip:
        rate, bound = row.bound(chip)
        speed = f"{rate:,.0f}"
    return (
        f"{start}  {row.memory / 2**30:>6.2f} GiB  {row.flops / 1e9:>11.3g}  {row.traffic / 1e6:>8.1f}  {speed:>15}"
        f"  {bound:>8}  {row.compile_s:>9.0f} s"
    )


def scaling_table(planner: Planner) -> str:
    """A line a slice: how the rate and what is sent change with the number of chips."""
    lines = ["\nslice       chips  images a chip      memory  sent a chip  images/s a chip  images/s in all  bound by"]
    for (name, *_), row in planner.rows.items():
        chip, chips = slice_of(name)
        start = f"{name:<10}  {chips:>5}  {row.images:>13}"
        if row.fits:
            rate, bound = row.bound(chip)
            sent = sum(size for _, size in row.collectives.values())
            rates = f"{rate:>15,.0f}  {rate * chips:>15,.0f}  {bound}"
            lines.append(f"{start}  {row.memory / 2**30:>6.2f} GiB  {sent / 1e6:>8,.1f} MB  {rates}")
        else:
            lines.append(f"{start}  does not fit: {row.problem}")
    return "\n".join(lines)


def as_json(row: Row, chip: Chip | None) -> dict[str, Any]:
    found = {**dataclasses.asdict(row), "fits": row.fits}
    if chip and row.fits:
        found["seconds"] = row.seconds(chip)
        found["images_per_s_a_chip"], _ = row.bound(chip)
    return found
