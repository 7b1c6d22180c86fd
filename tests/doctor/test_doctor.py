"""What the doctor says of made-up facts, and of this machine as a user starts it, alone and with several processes."""

import copy
import json
import os
import subprocess
import sys
import threading
import time

import jax
import pytest

from jaxvision.doctor import findings, words
from jaxvision.doctor.__main__ import doctor
from jaxvision.errors import Unfit
from jaxvision.runtime import hosts, machine
from jaxvision.training import setup
from tests import flags, forks
from tests.bucket import Bucket
from tests.conftest import ROOT

GOOD = {
    "machine": {
        "name": "a", "cores": 8, "memory": {"total": 64 * 2**30, "free": 60 * 2**30}, "gpus": 0, "tpus": 0,
        "versions": {"python": "3.11.7", "jaxvision": "0.1.0 (aaaa)", "jax": "0.10.2", "jaxlib": "0.10.2"},
        "variables": {}, "files": 1024, "shm": 2**30, "cache": {"folder": "/cache"},
    },
    "clock": [0.0, 0.0],
    "storage": {"write": 1e8, "read": 1e9, "small": 1e-3, "free": 10**10},
    "devices": {"platform": "cpu", "kinds": ["cpu"], "count": 1, "memory": None, "free": None, "float64": False},
    "data": {"threads": 2, "processes": 0, "cores": 8, "images_per_s": 2000.0, "first_s": 0.1, "rows": 64},
}  # fmt: skip
JOB = {
    "workdir": "/w",
    "config": {"keep": 2, "processes": 0, "threads": 2, "cores": 8, "train": "folder:photos"},
    "all_reduce": [{"bytes": 1e6, "devices": 2, "seconds": 1e-3, "bytes_per_s": 1e9, "right": True}],
    "shared": "",
    "step": {
        "state_bytes": 10**8, "used": 2**30, "limit": 16 * 2**30, "seconds": 0.1, "batch_size": 100, "steps": 300,
        "images_per_s": 1000.0, "data_images_per_s": 2000.0, "epoch_s": 10.0, "run_s": 30.0,
    },
}  # fmt: skip


def facts(count=1, changes=None, **of_hosts):
    """Those of a job in which nothing is wrong, but for `changes`, path -> value, and `of_hosts`, h0={path: value}."""
    made = copy.deepcopy({**JOB, "hosts": [GOOD] * count})
    made["hosts"] = [copy.deepcopy(host) for host in made["hosts"]]
    places = [(made, changes or {})] + [(made["hosts"][int(name[1:])], paths) for name, paths in of_hosts.items()]
    for place, paths in places:
        for path, value in paths.items():
            *parents, last = path.split("/")
            node = place
            for parent in parents:
                node = node[parent]
            node[last] = value
    return made


GPU = {"devices/platform": "gpu", "devices/kinds": ["NVIDIA H100"], "machine/gpus": 8, "devices/count": 8}
CUDA = {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2"}
XLA = "machine/variables"


@pytest.mark.parametrize("count", [1, 2, 300])
def test_nothing_is_wrong(count):
    assert findings.judge(facts(count)) == []
    assert findings.judge(facts(count, **{f"h{k}": {**GPU, "machine/name": str(k)} for k in range(count)})) == []


@pytest.mark.parametrize(
    ("made", "level", "what", "then"),
    [
        (facts(h0={"machine/gpus": 2}), "problem",
         "JAX runs on the CPU, though an NVIDIA GPU is there: its plugin is not installed", '"jaxvision[cuda]"'),
        (facts(h0={"machine/tpus": 4}), "problem", "though a TPU is there: its plugin is not installed",
         '"jaxvision[tpu]"'),
        (facts(h0={"machine/gpus": 1, "machine/versions": CUDA}), "problem", "and its plugin is installed",
         "nvidia-smi"),
        (facts(h0={"machine/gpus": 1, XLA: {"JAX_PLATFORMS": "cpu"}}), "warning", "JAX_PLATFORMS=cpu",
         "unset JAX_PLATFORMS"),
        # before devices are started: what is installed tells
        (facts(h0={"machine/gpus": 1, "devices": None}), "problem", "its plugin is not installed", "jaxvision[cuda]"),
        (facts(h0={**GPU, "devices/count": 7}), "problem", "a has 8 GPUs, and this job uses 7", "nvidia-smi"),
        (facts(h0={**GPU, "devices/count": 1, XLA: {"CUDA_VISIBLE_DEVICES": "0"}}), "warning",
         "this job uses 1: CUDA_VISIBLE_DEVICES=0", "unset CUDA_VISIBLE_DEVICES"),
        (facts(h0={**GPU, "devices/count": 7, XLA: {"NVIDIA_VISIBLE_DEVICES": "all"}}), "problem", "uses 7", ""),
        (facts(h0={XLA: {"XLA_FLAGS": "--a --xla_force_host_platform_device_count=4"}}), "warning",
         "XLA_FLAGS makes 4 emulated devices", "out of XLA_FLAGS"),
        (facts(h0={**GPU, "machine/versions": {**CUDA, "jax-cuda12-plugin": "0.9.0"}}), "warning",
         "jax-cuda12-plugin is 0.9.0 and jaxlib 0.10.2", 'pip install "jax[cuda12]==0.10.2"'),
        (facts(h0={"machine/files": 256}), "warning", "no more than 256 files may be open", "ulimit -n"),
        (facts(h0={"machine/shm": 0}, changes={"config/processes": 2}), "problem", "/dev/shm has 0.0 MB left",
         "data.processes=0"),
        (facts(h0={**GPU, "machine/shm": 64e6}), "warning", "/dev/shm has 64.0 MB left: NCCL", "--shm-size"),
        (facts(h0={"machine/cache": {"folder": "/c", "error": "Read-only file system"}}), "warning",
         "the compile cache /c cannot be written (Read-only file system)", "JAX_COMPILATION_CACHE_DIR"),
        (facts(h0={"devices/float64": True}), "warning", "float64 is enabled", "JAX_ENABLE_X64"),
        (facts(2, h1={"clock": [-90.0, 0.001]}), "warning",
         "process 1: the clock is 90.0 s behind that of process 0 (± 0.001 s)", "NTP"),
        (facts(h0={"storage": {"error": "Permission denied"}}), "problem",
         "the workdir /w cannot be used: Permission denied", "--workdir"),
        (facts(2, h1={"data": {"threads": 2, "processes": 0, "cores": 8, "error": "no such folder"}}), "problem",
         "process 1: this config does not start: no such folder", "run this again"),
        (facts(3, h2={"machine/versions/flax": "0.12"}), "problem", "process 2: flax is 0.12, elsewhere not there",
         "install the same"),
        (facts(3, h1={"machine/versions/jaxvision": "0.1.0 (bbbb)"}), "problem",
         "process 1: jaxvision is 0.1.0 (bbbb), elsewhere 0.1.0 (aaaa)", "install the same"),
        (facts(3, h1={"machine/versions/python": "3.11.8"}), "warning", "process 1: python is 3.11.8", ""),
        (facts(3, h0={"config": "a"}, h1={"config": "a"}, h2={"config": "b"}), "problem",
         "process 2: the config is another", "the same flags"),
        (facts(3, h1={**GPU, "machine/gpus": 1, "devices/count": 1}), "problem",
         "process 1: the platform is gpu, elsewhere cpu", ""),
        (facts(3, h0={"devices/count": 2}, h1={"devices/count": 2}), "problem",
         "process 2: the number of devices is 1, elsewhere 2", "leave that machine out"),
        (facts(2, h0={"devices/kinds": ["A", "B"]}), "problem",
         "process 1: the kind of devices is cpu, elsewhere A and B", ""),
        (facts(3, h1={XLA: {"XLA_FLAGS": "--b"}}), "warning", "process 1: XLA_FLAGS is --b, elsewhere not there", ""),
        (facts(3, h1={"machine/cores": 4}), "warning", "process 1: the number of CPU cores is 4, elsewhere 8", ""),
        (facts(3, h1={"machine/memory/total": 32 * 2**30}), "warning",
         "process 1: the memory is 32.0 GiB, elsewhere 64.0 GiB", ""),
        (facts(2, {"shared": "/w of process 0 is not that of process 1: all must"}), "problem",
         "/w of process 0 is not that of process 1", "gs://"),
        (facts(changes={"all_reduce": [{**JOB["all_reduce"][0], "right": False}]}), "problem",
         "an all-reduce of 1 MB gives a wrong sum", "other machines"),
        (facts(h0={"storage/free": 399_000_000}), "problem",
         "/w has 0.40 GB left, and checkpoints take 0.40 GB: the last 2, the best, and one being written, 0.10 GB each",
         "checkpoint.keep"),
        (facts(changes={"step/limit": 2**29}), "problem",
         "the train step needs 1.00 GiB of a device, which has 0.50 GiB", "jaxvision.plan"),
        (facts(changes={"step/error": "RESOURCE_EXHAUSTED: 5G"}), "problem", "the train step does not fit: RESOURCE",
         "remat"),
        (facts(changes={"step/data_images_per_s": 400.0}), "warning",
         "data is the bottleneck: the loader gives 400 images/s, and the step takes 1,000",
         "--config.data.threads=8 uses more cores; --config.data.processes=8 helps where transforms run in Python; "
         "python -m jaxvision.pack makes few large files of many small ones"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(made, level, what, then):
    (found,) = (f for f in findings.judge(made) if what in f.what)
    assert found.level == level
    assert then in found.next
    assert len(findings.judge(made)) <= 3  # what one cause brings with it, as another platform another kind


def test_little_differences_are_none():
    assert findings.judge(facts(3, h1={"machine/memory/total": 63 * 2**30, "clock": [0.9, 0.01]})) == []
    # one process a device: together they use all
    each = {**GPU, "devices/count": 1}
    assert findings.judge(facts(8, **{f"h{k}": each for k in range(8)})) == []
    assert findings.judge(facts(h0={"machine/shm": 0})) == []  # threads need no semaphores there


def test_problems_come_first_and_what_hosts_have_alike_is_said_once():
    slow = {"machine/files": 256}
    made = facts(12, **{f"h{k}": slow for k in range(10)}, h11={"storage": {"error": "Permission denied"}})
    first, second = findings.judge(made)
    assert first.level == "problem"
    assert first.what.startswith("process 11: the workdir")
    assert second.what.startswith("processes 0, 1, 2, 3, 4, 5, 6, 7 and 2 others: no more than 256 files")
    (only,) = findings.judge(facts(2, h0=slow, h1=slow))
    assert only.what.startswith("all processes: no more")
    assert findings.who([1, 3], 4) == "processes 1 and 3: "


def test_what_makes_a_loader_faster_is_what_is_left_to_try():
    config = dict(processes=0, threads=16, cores=64, train="folder:x")
    assert "threads=" not in findings.faster_reading(config)
    assert "processes" not in findings.faster_reading({**config, "processes": 8})
    assert "pack" not in findings.faster_reading({**config, "train": "records:x"})


def test_the_table_has_a_row_a_host_and_names_what_differs():
    lines = words.table(facts(3, h1={"machine/cores": 4, "machine/name": "b"}, h2={"clock": [0.5, 0.001]})).splitlines()
    assert lines[0].split()[:3] == ["process", "machine", "cores"]
    assert [line.split()[:3] for line in lines[1:4]] == [["0", "a", "8"], ["1", "b", "4"], ["2", "a", "8"]]
    assert lines[2].endswith("number of CPU cores")
    assert "+500.0 ± 1.0 ms" in lines[3]
    assert "over 2 devices: 1 MB in 1.00 ms, 1.00 GB/s" in lines[-1]


def test_times_are_in_words():
    assert [words.span(s) for s in (1, 119, 120, 7200, 200_000)] == [
        "1.0 s",
        "119.0 s",
        "2.0 min",
        "2.0 h",
        "2.3 days",
    ]


# --------------------------------------------------------------------------- what is measured


def test_limits_of_control_groups_count(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/job/step",
        "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\nHugePages_Total: 0",
        "/sys/fs/cgroup/job/step/memory.max": "max",
        "/sys/fs/cgroup/job/step/memory.current": "5",
        "/sys/fs/cgroup/job/memory.max": "102400",
        "/sys/fs/cgroup/job/memory.current": "51200",
        "/sys/fs/cgroup/job/memory.stat": "anon 7\ninactive_file 10240",
        "/sys/fs/cgroup/job/cpu.max": "150000 100000",
        "/sys/fs/cgroup/job/step/cpu.max": "max 100000",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert machine.memory() == {"total": 102400, "free": 102400 - 51200 + 10240}
    assert machine.cores() == 2
    files = {
        "/proc/self/cgroup": "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x",
        "/proc/meminfo": files["/proc/meminfo"],
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "204800",  # a container sees its own at the root
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "102400",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert machine.memory() == {"total": 204800, "free": 102400}
    assert machine.cores() == 64


def test_a_clock_that_is_ahead_is_measured(monkeypatch):
    """Through a store in which an answer takes its time; the other process is a thread with a clock of its own."""
    store, changed = {}, threading.Condition()

    class Client:
        def key_value_set(self, key, value):
            time.sleep(0.005)
            with changed:
                store[key] = value
                changed.notify_all()

        def blocking_key_value_get(self, key, timeout):
            with changed:
                assert changed.wait_for(lambda: key in store, timeout=20)
                return store[key]

    class Clock:
        def time(self):
            return time.time() + 100 * mine()

    def mine():
        return int(threading.current_thread().name == "late")

    monkeypatch.setattr(hosts, "_client", Client)
    monkeypatch.setattr(hosts, "_state", lambda: type("State", (), {"num_processes": 2}))
    monkeypatch.setattr(hosts, "index", mine)
    monkeypatch.setattr(hosts, "time", Clock())
    found = []
    late = threading.Thread(target=lambda: found.append(hosts.clock()), name="late")
    late.start()
    assert hosts.clock() == (0.0, 0.0)
    late.join()
    ((ahead, within),) = found
    assert abs(ahead - 100) <= within
    assert 0.005 <= within < 1


# --------------------------------------------------------------------------- as a user starts it


def config(folder, lines=""):
    path = folder / "tiny.py"
    path.write_text(f"from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\n{lines}")
    return path


def test_alone_with_a_config(command, tmp_path):
    done = command("jaxvision.doctor", "--config", config(tmp_path), "--workdir", tmp_path / "w", devices=2)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last)
    (host,) = result["hosts"]
    assert host["devices"]["count"] == 2
    assert host["machine"]["cores"] <= (os.cpu_count() or 1)
    assert 0 < host["machine"]["memory"]["free"] < host["machine"]["memory"]["total"]
    assert host["storage"]["write"] > 0 < host["storage"]["read"]
    assert [(r["bytes"], r["devices"], r["right"]) for r in result["all_reduce"]] == [(0.25e6, 2, True), (4e6, 2, True)]
    step = result["step"]
    assert step["images_per_s"] == pytest.approx(64 / step["seconds"])
    slower = min(step["images_per_s"], step["data_images_per_s"])
    assert step["epoch_s"] == pytest.approx(1437 / slower)
    assert step["run_s"] == pytest.approx(12 * 64 / slower)
    assert step["used"] > step["state_bytes"] > 1e4
    said = "\n".join(lines)
    for text in ("bottleneck  step: the loader is", "all-reduce  over 2 devices", "an epoch    about", "GiB a device"):
        assert text in said
    assert [f["what"] for f in result["findings"]] == [
        "XLA_FLAGS makes 2 emulated devices of the CPU, which is for rehearsals"
    ]
    assert "  next: take xla_force_host_platform_device_count out of XLA_FLAGS for a real run" in lines
    assert not (tmp_path / "w").exists()  # it is left as it was


def test_alone_without_a_config(command, tmp_path):
    (tmp_path / "w").mkdir()
    done = command("jaxvision.doctor", "--workdir", "w", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "nothing is wrong" in done.stdout
    assert "all-reduce  skipped: one device" in done.stdout
    assert "no --config: nothing is said of a loader" in done.stdout
    assert list((tmp_path / "w").iterdir()) == []
    done = command("jaxvision.doctor", "--workdir", "w", "--json", cwd=tmp_path)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["findings"] == []


def test_a_workdir_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("")
    done = command("jaxvision.doctor", "--config", config(tmp_path), "--workdir", tmp_path / "file" / "w")
    assert done.returncode == 2
    assert f"problem: the workdir {tmp_path}/file/w cannot be used: Not a directory" in done.stdout
    assert "  next: make it a folder that this user may write to, or name another --workdir" in done.stdout
    assert "train step  not tried before the problems are solved" in done.stdout
    assert done.stderr == "error: 1 problem would stop or spoil a run: see above\n"
    done = command("jaxvision.doctor", "--workdir", tmp_path / "file" / "w", "--json")
    assert done.returncode == 2
    assert "or name another --workdir" in done.stderr
    (line,) = done.stdout.splitlines()
    assert [f["level"] for f in json.loads(line)["findings"]] == ["problem"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("config.batch_size = 63", "batch_size 63 is not divisible by 2 devices"),
        ("config.data.train = 'folder:/nowhere'", "this config does not start: cannot open the image folder /nowhere"),
        ("config.init = '/nowhere'", "/nowhere"),
    ],
)
def test_a_config_that_would_not_start(command, tmp_path, lines, words):
    done = command("jaxvision.doctor", "--config", config(tmp_path, lines), "--workdir", tmp_path, "--json", devices=2)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_step_that_finds_no_room(monkeypatch, tmp_path, capsys):
    def lower_step(self, state):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5G\nmore")

    monkeypatch.setattr(setup.Setup, "lower_step", lower_step)
    with pytest.raises(Unfit, match="1 problem") as raised:
        doctor(["--config", str(config(tmp_path)), "--workdir", str(tmp_path / "w")])
    (problem, _) = raised.value.result["findings"]
    assert problem["what"] == "the train step does not fit: RESOURCE_EXHAUSTED: Out of memory allocating 5G"
    assert "checkpoint " in capsys.readouterr().out


def test_a_gpu_that_is_not_used(command, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\necho 'GPU 1: NVIDIA H100'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", JAX_PLATFORMS="cpu")
    done = command("jaxvision.doctor", "--workdir", tmp_path / "w", **env)
    assert done.returncode == 0, done.stderr
    assert "warning: JAX runs on the CPU, though an NVIDIA GPU is there: JAX_PLATFORMS=cpu" in done.stdout


def test_devices_that_do_not_start(command, tmp_path):
    done = command("jaxvision.doctor", "--workdir", tmp_path / "w", process=True, JAX_PLATFORMS="nowhere")
    assert done.returncode == 2
    assert "JAX cannot start its devices: " in done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_override_without_a_config(command):
    done = command("jaxvision.doctor", "--config.seed=1")
    assert done.returncode == 2
    assert "--config.seed overrides a key of a config: name it with --config FILE" in done.stderr


def test_a_workdir_of_another_config(command, tmp_path):
    path = config(tmp_path)
    done = command("jaxvision.train", "--config", path, "--workdir", tmp_path / "w", "--config.steps=1", "--json",
                   "--config.evals.test.every_steps=100")  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = sorted(tmp_path.glob("w/**/*"))
    done = command("jaxvision.doctor", "--config", path, "--workdir", tmp_path / "w", "--config.optim.lr=0.7")
    assert done.returncode == 2
    assert "holds a run of another config:\n  optim.lr: 0.05 -> 0.7" in done.stdout
    assert sorted(tmp_path.glob("w/**/*")) == before


def test_a_slow_loader_is_the_bottleneck(command, tmp_path):
    lines = (
        "import time\nfrom jaxvision.data.sources import Digits\nquick = Digits.__getitem__\n"
        "def slow(self, i):\n    time.sleep(0.005)\n    return quick(self, i)\n"
        "Digits.__getitem__ = slow\nconfig.data.update(threads=1, prefetch=1)\n"
    )
    done = command("jaxvision.doctor", "--config", config(tmp_path, lines), "--workdir", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert "bottleneck  data: the step is" in done.stdout
    step = json.loads(done.stdout.splitlines()[-1])["step"]
    assert 50 < step["data_images_per_s"] < 200 < step["images_per_s"]  # 200 a second is what the sleep allows
    assert step["run_s"] == pytest.approx(12 * 64 / step["data_images_per_s"])
    assert "warning: data is the bottleneck: the loader gives" in done.stdout


@pytest.mark.slow
def test_a_workdir_in_a_bucket(command):
    with Bucket() as bucket:
        done = command("jaxvision.doctor", "--workdir", "gs://bucket/run", **bucket.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        storage = json.loads(done.stdout.splitlines()[-1])["hosts"][0]["storage"]
        assert storage["write"] > 0 < storage["read"]
        assert storage["free"] is None
        assert bucket.objects == {}
        done = command("jaxvision.doctor", "--workdir", "gs://other/run", **bucket.environment)
        assert done.returncode == 2
        assert "problem: the workdir gs://other/run cannot be used: cannot write " in done.stdout
        assert "does the bucket exist" in done.stdout
        two = start(2, "['--workdir', 'gs://bucket/run']", **bucket.environment)
        assert two.returncode == 0, two.stdout + two.stderr
        assert bucket.objects == {}


def start(count, arguments, **env):
    """So many processes of two devices; in the arguments, an expression, `k` is the number of each."""
    code = f"import os, sys, runpy; k = os.environ['JAX_PROCESS_ID']; sys.argv = ['doctor', *{arguments}]\n"
    code += "runpy.run_module('jaxvision.doctor', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "launch/local.py", str(count), "--devices", "2", "--", *forks.python(), "-c", code],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags.on(1), **env}, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes(tmp_path):
    path = config(tmp_path, "config.batch_size = 40\n")
    done = start(2, f"['--config', {str(path)!r}, '--workdir', {str(tmp_path / 'w')!r}]")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert not any(line.startswith("[") for line in lines), done.stdout  # only the first has something to say
    result = json.loads(last)
    (at,) = (k for k, line in enumerate(lines) if line.startswith("process  machine"))
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["0", "1"]
    assert "loader" in lines[at]
    for k, host in enumerate(result["hosts"]):
        assert host["devices"]["count"] == 2
        assert host["data"]["rows"] == 20
        ahead, within = host["clock"]
        assert abs(ahead) <= within + 0.001  # one machine, so one clock
        assert (0 < within < 0.5) == (k > 0)
    assert all(row["right"] and row["devices"] == 4 for row in result["all_reduce"])
    slowest = min(host["data"]["images_per_s"] for host in result["hosts"])
    assert result["step"]["data_images_per_s"] == pytest.approx(2 * slowest)
    assert not (tmp_path / "w").exists()


def test_processes_of_different_configs_do_not_wait_for_each_other(tmp_path):
    path = config(tmp_path)
    done = start(2, f"['--config', {str(path)!r}, '--workdir', {str(tmp_path / 'w')!r}, '--config.seed=' + k]")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "problem: process 1: the config is another\n  next: start all with the same file" in done.stdout
    assert "devices     not started before the problems are solved" in done.stdout
    assert "error: 1 problem would stop or spoil a run: see above" in done.stdout
    assert "[1]" not in done.stdout


def test_a_workdir_that_is_not_shared(tmp_path):
    """As on machines where each has a disk of its own under the same name: here, another name for each."""
    done = start(2, f"['--workdir', {str(tmp_path)!r} + '/w' + k]")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "problem: " in done.stdout
    assert "of process 0 is not that of process 1: all must name one folder" in done.stdout
    assert "[1]" not in done.stdout
