"""Measures hosts, devices, storage, the loader and the train step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.data import reader
from jaxvision.doctor import findings
from jaxvision.doctor.words import step_in_words, table
from jaxvision.errors import UserError
from jaxvision.runtime import hlo, hosts, machine, paths, sharding
from jaxvision.training import restore
from jaxvision.training.setup import Setup, check_checkpoint, open_workdir, stored_classes

TURNS = 5  # of what is timed; medians count
FILE = 16 * 2**20  # bytes that each host writes and reads back
SUMS = {"cpu": (0.25e6, 4e6), "": (1e6, 64e6)}  # bytes that each device puts into an all-reduce, by platform
ROWS = 64  # of a batch that a reader makes at a time: the readers' first batches come together, so many small ones
SECONDS = 2.0  # at least, of reading and of stepping


def examine(config: ConfigDict | None, workdir: str, say: Any) -> dict[str, Any]:
    """Measures, from what needs no other host to what needs all, and says the numbers. The same facts on all hosts."""
    folder = paths.path(workdir)
    facts: dict[str, Any] = {"workdir": str(folder)}
    facts["hosts"] = [{"machine": theirs} for theirs in hosts.allgather("machine", machine.facts())]

    def gather(name: str, value: Any) -> None:
        for host, theirs in zip(facts["hosts"], hosts.allgather(name, value)):
            host[name] = theirs

    def ready() -> bool:  # for what needs all: a host that cannot go on would keep the others waiting
        return not (hosts.several() and findings.problems(facts))

    if config:
        data = config.data
        facts["config"] = {"keep": config.checkpoint.keep, "processes": data.processes, "train": data.train}
        gather("config", hashlib.sha256(config_lib.to_json(config).encode()).hexdigest())
    gather("clock", hosts.clock())
    started = ready()
    if started:
        gather("devices", devices())
    if started and ready():
        rows = hosts.allgather("all_reduce", all_reduce())
        facts["all_reduce"] = [{**same[0], "right": all(r["right"] for r in same)} for same in zip(*rows)]
    say(f"writing and reading {folder} ...")
    gather("storage", storage(folder))
    if started and ready():
        facts["shared"] = shared(folder)
    setup = None
    if config and started:
        say(f"reading {config.data.train} ...")
        setup, rate = loader(config, folder, say)
        gather("data", rate)
        facts["config"] |= {key: facts["hosts"][0]["data"][key] for key in ("threads", "cores")}
    say("\n" + table(facts))
    if not started:
        say("devices     not started before the problems are solved: hosts that differ may wait for each other forever")
    elif not config:
        say("no --config: nothing is said of a loader, a train step and its memory")
    elif setup is None or findings.problems(facts):
        say("train step  not tried before the problems are solved")
    else:
        say("\ncompiling and timing the train step ...")
        facts["step"] = hosts.allgather("step", step(setup, [host["data"] for host in facts["hosts"]]))[0]
        say(step_in_words(facts))
    hosts.allgather("done", True)
    if facts["hosts"][hosts.index()]["storage"].get("made") and not paths.is_bucket(folder):  # left as it was
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return facts


def storage(workdir: epath.Path) -> dict[str, Any]:
    """Bytes/s of a file that this host writes and reads back, seconds of a small one, what is left on a local disk."""
    content, local = os.urandom(FILE), not paths.is_bucket(workdir)
    path, small = (workdir / f".doctor-{hosts.index()}-{what}" for what in ("large", "small"))
    try:
        made = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        turns = []
        for _ in range(TURNS):
            start = time.perf_counter()
            paths.write_whole(small, "whole")
            turns.append(time.perf_counter() - start)
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(content)
            if local:
                file.flush()
                os.fsync(file.fileno())
        write = FILE / (time.perf_counter() - start)
        if local and hasattr(os, "posix_fadvise"):  # what is read shall come from the disk
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        if path.read_bytes() != content:
            return {"error": "what is read back is not what was written"}
        read = FILE / (time.perf_counter() - start)
        free = shutil.disk_usage(str(workdir)).free if local else None
        return {"write": write, "read": read, "small": statistics.median(turns), "free": free, "made": made}
    except Exception as error:  # which it is depends on the library behind a bucket
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return {"error": reason.splitlines()[0]}
    finally:
        with contextlib.suppress(Exception):
            path.unlink(missing_ok=True)
            small.unlink(missing_ok=True)


def devices() -> dict[str, Any]:
    """Facts of this process's devices, as JAX starts them: platform, kinds, count, memory in bytes."""
    try:
        local = jax.local_devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX cannot start its devices: {str(error).splitlines()[0]}; look whether the driver works (nvidia-smi) "
            "and who else uses them, or set JAX_PLATFORMS to what is there"
        ) from error
    stats = [device.memory_stats() or {} for device in local]
    limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
    return {
        "platform": local[0].platform,
        "kinds": sorted({device.device_kind for device in local}),
        "count": len(local),
        "memory": min(limits, default=None),
        "free": min((s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s), default=None),
        "float64": bool(jax.config.read("jax_enable_x64")),
    }


def all_reduce() -> list[dict[str, Any]]:
    """Measures sums over all devices, in float32.

    A row for each size: the median seconds, bytes/s as a ring sends them, whether the sum is right.
    """
    mesh, rows = sharding.make_mesh(), []
    count = mesh.size
    add = jax.shard_map(
        lambda x: jax.lax.psum(x, mesh.axis_names), mesh=mesh, in_specs=sharding.BATCH, out_specs=PartitionSpec()
    )
    for size in SUMS.get(jax.default_backend(), SUMS[""]) if count > 1 else ():
        length, turns = int(size / 4), []
        make = jax.jit(lambda n=length: jnp.ones(n * count, jnp.float32), out_shardings=sharding.batch_sharding(mesh))
        ones, compiled = make(), jax.jit(add)
        for _ in range(TURNS + 1):  # the first compiles
            start = time.perf_counter()
            total = jax.block_until_ready(compiled(ones))
            turns.append(time.perf_counter() - start)
        seconds = statistics.median(turns[1:])
        right = all(bool(np.all(np.asarray(shard.data) == count)) for shard in total.addressable_shards)
        rate = 2 * (count - 1) / count * size / seconds
        rows.append({"bytes": size, "devices": count, "seconds": seconds, "bytes_per_s": rate, "right": right})
    return rows


def shared(workdir: epath.Path) -> str:
    """Reason why the workdir is not one for all hosts; "" if it is."""
    try:
        hosts.require_shared(workdir)
    except UserError as error:
        return str(error)
    return ""


def loader(config: ConfigDict, workdir: epath.Path, say: Any) -> tuple[Setup | None, dict[str, Any]]:
    """Builds what train would build, and measures images/s of its reader on this host with nothing else to do.

    Where that fails, the facts say why.
    """
    reading = {**reader.options(config), "cores": machine.cores()}
    try:
        setup = Setup(config, stored_classes(workdir))
        config = setup.config
        found, _ = open_workdir(workdir, config, say)
        if found.path is not None:
            check_checkpoint(found.path, config, setup.source, say)
        elif config.init:
            restore.load_plan(restore.find(config.init), setup.task, config, setup.source.classes)
        rows, start = setup.rows(), time.perf_counter()
        batches = setup.reader(0, 10**9, reader.skips(config), rows[:ROWS])
        try:
            next(batches)
            first = time.perf_counter() - start
            readers = reading["processes"] or reading["threads"]
            for _ in range(readers):  # they were under way when the first was done
                next(batches)
            start, images, least = time.perf_counter(), 0, 2 * readers * len(rows[:ROWS])
            while images < least or time.perf_counter() < start + SECONDS:
                images += len(next(batches)["label"])
            rate = images / (time.perf_counter() - start)
        finally:
            batches.close()
    except (UserError, OSError) as error:
        return None, {**reading, "error": str(error)}
    return setup, {**reading, "images_per_s": rate, "first_s": first, "rows": len(rows)}


def step(setup: Setup, data: list[dict[str, Any]]) -> dict[str, Any]:
    """The train step on all devices, handing over a batch included. `data`: what `loader` found on each host."""
    config, abstract = setup.config, setup.abstract_state()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":
        limit = machine.memory()["free"] // jax.local_device_count()
    found: dict[str, Any] = {"state_bytes": size, "used": 0, "limit": limit}
    try:
        lowered, hyper = setup.lower_step(abstract)
        compiled = lowered.compile()
        theirs = hosts.allgather("memory", [hlo.memory_bytes(compiled), limit])  # one decides for all
        found["used"] = max(used for used, _ in theirs)
        found["limit"] = min((most for _, most in theirs if most), default=None)
        if found["limit"] and found["used"] > found["limit"]:
            return found
        (batch,) = setup.reader(0, 1, reader.skips(config))
        state = setup.fresh_state(abstract, None)
        hyper = jax.device_put(hyper, sharding.replicated(setup.mesh))

        def steps(count: int) -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(count):
                state, logs = compiled(state, sharding.put_batch(batch, setup.batch_sharding, config.batch_size), hyper)
            jax.block_until_ready((state, logs))
            return (time.perf_counter() - start) / count

        steps(1)
        slowest = max(hosts.allgather("pace", steps(1)))  # all make as many
        count = max(1, min(20, round(SECONDS / slowest / TURNS)))
        found["seconds"] = statistics.median(steps(count) for _ in range(TURNS if slowest < SECONDS else 2))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if hosts.several():  # the others may be in the middle of a step, so end them
            raise UserError(
                f"the train step does not fit: {str(error).splitlines()[0]}; take a smaller batch_size or mesh.fsdp, "
                "python -m jaxvision.plan tells what each needs"
            ) from error
        return {**found, "error": str(error).splitlines()[0]}
    rate = config.batch_size / found["seconds"]
    # the slowest for its share of the batch: all wait for it
    reads = min(host["images_per_s"] * config.batch_size / host["rows"] for host in data)
    images = {"epoch": setup.steps_per_epoch * config.batch_size, "run": setup.total_steps * config.batch_size}
    return {
        **found,
        "batch_size": config.batch_size,
        "steps": setup.total_steps,
        "images_per_s": rate,
        "data_images_per_s": reads,
        **{f"{what}_s": count / min(rate, reads) for what, count in images.items()},
    }
