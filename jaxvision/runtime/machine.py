"""Facts of this machine and of what this process may use of it: cores, memory, accelerators, versions."""

from __future__ import annotations

import glob
import math
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from jaxvision.runtime import versions

# What changes which devices JAX starts, and what it makes of them.
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
             "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES", "JAX_CUDA_VISIBLE_DEVICES")  # fmt: skip


def facts() -> dict[str, Any]:
    """All facts of this machine, as JSON."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "name": platform.node(),
        "cores": cores(),
        "memory": memory(),
        "gpus": gpus(),
        "tpus": tpus(),
        "versions": versions.of_a_host(),
        "variables": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        "files": files if files != resource.RLIM_INFINITY else 2**31,
        "shm": shutil.disk_usage("/dev/shm").free if os.access("/dev/shm", os.W_OK) else 0,
        "cache": compile_cache(),
    }


def cores() -> int:
    """Number of cores that this process may keep busy: by its affinity and by the quota of its control groups."""
    count = float(len(os.sched_getaffinity(0)))
    for folder, unified in _groups("cpu"):
        if unified:
            quota, period = (_read(f"{folder}/cpu.max").split() or ["max", ""])[:2]
        else:
            quota, period = _read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            count = min(count, int(quota) / int(period))
    return max(1, math.ceil(count))


def memory() -> dict[str, int]:
    """Bytes that this process may use in all, and those that are free; by the machine and by its control groups."""
    lines = [line.split() for line in _read("/proc/meminfo").splitlines()]
    known = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = known.get("MemTotal:", 0), known.get("MemAvailable:", 0)
    for folder, unified in _groups("memory"):
        names = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read(f"{folder}/{name}") for name in names)
        if not limit.isdigit() or not used.isdigit() or int(limit) >= known.get("MemTotal:", 0):
            continue
        # pages of files that the kernel would give back
        name = "inactive_file" if unified else "total_inactive_file"
        cached = re.search(rf"^{name} (\d+)$", _read(f"{folder}/memory.stat"), re.MULTILINE)
        total = min(total, int(limit))
        free = min(free, int(limit) - int(used) + int(cached[1] if cached else 0))
    return {"total": total, "free": free}


def _groups(controller: str) -> Iterator[tuple[str, bool]]:
    """The folders of this process's control group and of those above it, which limit it, too; whether of version 2."""
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        unified = number == "0" and not controllers
        if unified or controller in controllers.split(","):
            root = "/sys/fs/cgroup" if unified else f"/sys/fs/cgroup/{controller}"
            group = pathlib.PurePosixPath(path)
            yield from ((f"{root}{folder}".rstrip("/"), unified) for folder in (group, *group.parents))


def gpus() -> int:
    """NVIDIA GPUs of this container or machine, whether JAX can use them or not."""
    files = len(glob.glob("/dev/nvidia[0-9]*"))
    if files or not shutil.which("nvidia-smi"):
        return files
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return done.stdout.count("GPU ") if done.returncode == 0 else 0


def tpus() -> int:
    """TPU chips. By the PCI bus too: other makers' accelerators and passed-through devices have such files as well."""
    from jax._src import hardware_utils  # what JAX asks

    files = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return min(len(files), hardware_utils.num_available_tpu_chips_and_device_id()[0])


def compile_cache() -> dict[str, str]:
    """The folder of JAX's compiled programs, and why nothing can be written there; {} if there is no such folder."""
    from etils import epath

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not folder or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("false", "0"):
        return {}
    try:
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f".doctor-{os.getpid()}").write_text("")
        (path / f".doctor-{os.getpid()}").unlink()
    except OSError as error:
        return {"folder": folder, "error": error.strerror or str(error)}
    return {"folder": folder}


def _read(path: str) -> str:
    """A file's text, "" if there is none."""
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
