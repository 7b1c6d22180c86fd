"""Findings from the doctor's facts, each with what to do next.

Nothing is measured here.

Facts are JSON, as doctor.py gathers them. What is not there was not measured, and nothing is said of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

SKEW = 1.0  # seconds between two clocks
FILES = 1024  # that may be open: readers, shards, what Orbax writes at a time
SEMAPHORES = 2**20  # bytes of /dev/shm
NCCL = 2**29  # bytes of /dev/shm: NVIDIA advises --shm-size=1g, and Docker gives 64 MB

Facts = dict[str, Any]


class Finding(NamedTuple):
    level: str  # "problem": would stop or spoil a run; "warning"
    what: str
    next: str


def judge(facts: Facts) -> list[Finding]:
    """Findings from the facts, problems first.

    What several hosts have alike is one finding that names them.
    """
    hosts = facts["hosts"]
    whose: dict[Finding, list[int]] = {}
    for k, host in enumerate(hosts):
        for finding in (*_of_machine(facts, host), *_of_devices(facts, host), *_of_host(facts, host)):
            whose.setdefault(finding, []).append(k)
    found = [f._replace(what=who(ks, len(hosts)) + f.what) for f, ks in whose.items()]
    found += [*_of_others(hosts), *_of_job(facts)]
    return sorted(found, key=lambda f: f.level != "problem")


def problems(facts: Facts) -> list[Finding]:
    return [f for f in judge(facts) if f.level == "problem"]


def who(indices: list[int], count: int) -> str:
    """ "", "all processes: ", "processes 1 and 3: " of `count`."""
    if count == 1:
        return ""
    if len(indices) == count:
        return "all processes: "
    shown = [str(k) for k in indices[:8]] + ([f"{len(indices) - 8} others"] if len(indices) > 8 else [])
    listed = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return f"process{'es' if len(indices) > 1 else ''} {listed}: "


def _problem(what: str, then: str) -> Finding:
    return Finding("problem", what, then)


def _warning(what: str, then: str) -> Finding:
    return Finding("warning", what, then)


# --------------------------------------------------------------------------- of one host


def _of_machine(facts: Facts, host: Facts) -> Iterator[Finding]:
    machine = host["machine"]
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", machine["variables"].get("XLA_FLAGS", ""))
    if forced and int(forced[1]) > 1:
        yield _warning(
            f"XLA_FLAGS makes {forced[1]} emulated devices of the CPU, which is for rehearsals",
            "take xla_force_host_platform_device_count out of XLA_FLAGS for a real run",
        )
    jaxlib = machine["versions"].get("jaxlib")
    for plugin, version in machine["versions"].items():
        if plugin.startswith("jax-cuda") and version != jaxlib:
            yield _warning(
                f"{plugin} is {version} and jaxlib {jaxlib}: JAX may refuse it",
                f'pip install "jax[{plugin.split("-")[1]}]=={machine["versions"].get("jax")}"',
            )
    if machine["files"] < FILES:
        yield _warning(f"no more than {machine['files']} files may be open", "run ulimit -n 4096 before the command")
    room = f"/dev/shm has {machine['shm'] / 1e6:,.1f} MB left"
    more = "empty it, or give the container more (docker run --shm-size=1g)"
    if facts.get("config", {}).get("processes") and machine["shm"] < SEMAPHORES:
        yield _problem(
            f"{room}, and processes that read data need semaphores there",
            f"{more}, or read with threads: --config.data.processes=0",
        )
    if machine["gpus"] > 1 and machine["shm"] < NCCL:
        yield _warning(f"{room}: NCCL may pass data between GPUs through it, and then fails", more)
    if machine["cache"].get("error"):
        yield _warning(
            f"the compile cache {machine['cache']['folder']} cannot be written ({machine['cache']['error']}), so each "
            "start compiles anew",
            "set JAX_COMPILATION_CACHE_DIR to a folder that can",
        )


def _of_devices(facts: Facts, host: Facts) -> Iterator[Finding]:
    machine, devices = host["machine"], host.get("devices")
    settings = machine["variables"]
    asked = settings.get("JAX_PLATFORMS", "")
    for kind, name, extra, plugin, look in (
        ("gpu", "an NVIDIA GPU", "cuda", "jax-cuda", "nvidia-smi"),
        ("tpu", "a TPU", "tpu", "libtpu", "sudo lsof /dev/accel* /dev/vfio/*"),
    ):
        has = machine[f"{kind}s"]
        installed = any(package.startswith(plugin) for package in machine["versions"])
        what = f"JAX runs on the CPU, though {name} is there"
        if has and (devices["platform"] == "cpu" if devices else not installed):
            if asked.startswith("cpu"):
                yield _warning(f"{what}: JAX_PLATFORMS={asked}", "unset JAX_PLATFORMS for a real run")
            elif not installed:
                yield _problem(f"{what}: its plugin is not installed", f'pip install "jaxvision[{extra}]"')
            else:
                yield _problem(
                    f"{what} and its plugin is installed",
                    f"look with {look} whether it works and who uses it; with JAX_PLATFORMS={extra} JAX says why it "
                    "does not start",
                )
        if devices and devices["platform"] == kind:
            on_it = [h for h in facts["hosts"] if h["machine"]["name"] == machine["name"]]
            used = sum(h["devices"]["count"] for h in on_it)
            what = f"{machine['name']} has {has} {kind.upper()}s, and this job uses {used}"
            hidden = next((f"{k}={v}" for k, v in settings.items() if "VISIBLE" in k and v != "all"), "")
            if used < has and hidden:
                yield _warning(f"{what}: {hidden}", f"unset {hidden.partition('=')[0]}, or ask the scheduler for all")
            elif used < has:
                yield _problem(
                    what,
                    f"look with {look} whether one is gone or taken; where each process has one device, start as many "
                    "processes",
                )
    if devices and devices["float64"]:
        yield _warning("float64 is enabled, which takes more memory and time", "unset JAX_ENABLE_X64")


def _of_host(facts: Facts, host: Facts) -> Iterator[Finding]:
    ahead, within = host.get("clock") or (0.0, 0.0)
    if abs(ahead) - within > SKEW:
        yield _warning(
            f"the clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} that of process 0 "
            f"(± {within:.3f} s): times of files and logs disagree",
            "start NTP there (timedatectl set-ntp true)",
        )
    if error := (host.get("storage") or {}).get("error"):
        yield _problem(
            f"the workdir {facts['workdir']} cannot be used: {error}",
            "make it a folder that this user may write to, or name another --workdir",
        )
    if error := (host.get("data") or {}).get("error"):
        yield _problem(f"this config does not start: {error}", "put that right and run this again")


# --------------------------------------------------------------------------- of hosts beside each other

# (where it lies in a host's facts; what it is called, "" for a group of such; level; next step)
_COMPARED = (
    ("machine/versions", "", "problem", "install the same everywhere"),
    ("config", "the config", "problem", "start all with the same file and the same flags"),
    ("devices/platform", "the platform", "problem", "look why JAX starts other devices there"),
    ("devices/kinds", "the kind of devices", "problem", "take the same on all: a step is as fast as the slowest"),
    ("devices/count", "the number of devices", "problem", "look whether one is gone, or leave that machine out"),
    ("machine/variables/XLA_FLAGS", "XLA_FLAGS", "warning", "set the same: other programs wait for each other"),
    ("machine/variables/LIBTPU_INIT_ARGS", "LIBTPU_INIT_ARGS", "warning", "set the same on all"),
    ("machine/cores", "the number of CPU cores", "warning", "take the same: all wait for the slowest loader"),
    ("machine/memory/total", "the memory", "warning", "take the same on all, or size readers for the smallest"),
)


def odd(hosts: list[Facts]) -> dict[int, list[str]]:
    """Process -> names of what it has otherwise than most."""
    found: dict[int, list[str]] = {}
    for name, values, usual, _, _ in _uneven(hosts):
        for k, value in enumerate(values):
            if not _alike(value, usual):
                found.setdefault(k, []).append(name.removeprefix("the "))
    return found


def _of_others(hosts: list[Facts]) -> Iterator[Finding]:
    for name, values, usual, level, then in _uneven(hosts):
        for value in dict.fromkeys(v for v in values if not _alike(v, usual)):
            whose = who([k for k, v in enumerate(values) if v == value], len(hosts))
            told = "is another" if name == "the config" else f"is {_shown(value)}, elsewhere {_shown(usual)}"
            yield Finding(level, f"{whose}{name} {told}", then)


def _uneven(hosts: list[Facts]) -> Iterator[tuple[str, list[Any], Any, str, str]]:
    """(name, each host's value, the usual one, level, next step) of what is not the same on all."""
    for path, called, level, then in _COMPARED:
        found = [_at(host, path) for host in hosts]
        for name in [called] if called else sorted({name for group in found for name in group}):
            values = found if called else [group.get(name) for group in found]
            values = [" and ".join(v) if isinstance(v, list) else v for v in values]
            usual = Counter(values).most_common(1)[0][0]
            if not all(_alike(v, usual) for v in values):
                # the last part of Python's version changes nothing that hosts share
                yield name, values, usual, "warning" if name == "python" else level, then


def _at(host: Any, path: str) -> Any:
    for part in path.split("/"):
        host = (host or {}).get(part)
    return host


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are the same; bytes of memory may differ by what a machine keeps for itself."""
    if isinstance(a, int) and isinstance(b, int):
        return abs(a - b) <= 0.05 * max(a, b) if max(a, b) > 10**6 else a == b
    return a == b


def _shown(value: Any) -> str:
    if isinstance(value, int) and value > 10**6:
        return f"{value / 2**30:.1f} GiB"
    return "not there" if value is None else str(value)


# --------------------------------------------------------------------------- of the job


def _of_job(facts: Facts) -> Iterator[Finding]:
    if facts.get("shared"):
        yield _problem(facts["shared"], "mount the same storage on all, or name --workdir gs://BUCKET/DIR")
    for row in facts.get("all_reduce") or ():
        if not row["right"]:
            yield _problem(
                f"an all-reduce of {row['bytes'] / 1e6:g} MB gives a wrong sum",
                "take other machines: a device or a link is broken",
            )
    step, config = facts.get("step"), facts.get("config")
    if step and config:
        yield from _of_step(facts, step, config)


def _of_step(facts: Facts, step: Facts, config: Facts) -> Iterator[Finding]:
    smaller = "take a smaller batch_size, accumulate, model.remat or mesh.fsdp; jaxvision.plan tells what each needs"
    if step.get("error"):
        yield _problem(f"the train step does not fit: {step['error']}", smaller)
    elif step["limit"] and step["used"] > step["limit"]:
        yield _problem(
            f"the train step needs {step['used'] / 2**30:.2f} GiB of a device, which has "
            f"{step['limit'] / 2**30:.2f} GiB",
            smaller,
        )
    free, need = facts["hosts"][0]["storage"].get("free"), step["state_bytes"] * (config["keep"] + 2)
    if free is not None and free < need:
        yield _problem(
            f"{facts['workdir']} has {free / 1e9:,.2f} GB left, and checkpoints take {need / 1e9:,.2f} GB: the last "
            f"{config['keep']}, the best, and one being written, {step['state_bytes'] / 1e9:,.2f} GB each",
            "make room, or name another --workdir, or keep fewer (checkpoint.keep)",
        )
    if bottleneck(step) == "data":
        yield _warning(
            f"data is the bottleneck: the loader gives {step['data_images_per_s']:,.0f} images/s, and the step takes "
            f"{step['images_per_s']:,.0f}",
            faster_reading(config),
        )


def bottleneck(step: Facts) -> str:
    """ "data" or "step", whichever is slower; "" where they were not measured."""
    if not step.get("images_per_s"):
        return ""
    return "data" if step["data_images_per_s"] < step["images_per_s"] else "step"


def faster_reading(config: Facts) -> str:
    """Advice on a faster loader, the cheapest measure first."""
    ways = []
    if not config["processes"]:
        if config["threads"] < min(config["cores"], 16):
            ways.append(f"--config.data.threads={min(config['cores'], 16)} uses more cores")
        if config["cores"] > 1:
            ways.append(f"--config.data.processes={config['cores']} helps where transforms run in Python")
    if not config["train"].startswith(("records:", "tfds:", "fake:", "digits:")):
        ways.append("python -m jaxvision.pack makes few large files of many small ones")
    return "; ".join([*ways, "a machine with more cores or faster storage reads more"])
