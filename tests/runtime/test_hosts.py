"""Several processes of one job: found, all there, ended together. As threads where only sockets matter, else started by
launch/local.py, connected by jax.distributed over loopback."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxvision.errors import UserError
from jaxvision.runtime import hosts
from launch.local import free_port
from tests import flags, forks
from tests.conftest import ROOT

# --------------------------------------------------------------------------- where a process stands

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[007,011-013]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "4",
}  # fmt: skip
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip
GIVEN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
PODS = {"JAX_COORDINATOR_ADDRESS": "r50-train-0-0.r50:1234", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(
            ("JOB_", "SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROC")
        ):
            monkeypatch.delenv(name)

    def set_all(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, None),
        (GIVEN, hosts.Place("10.0.0.1:1234", 2, 1)),
        ({**GIVEN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (PODS, hosts.Place("r50-train-0-0.r50:1234", 2, 1)),
        ({**PODS, "JAX_PROCESS_ID": "0"}, hosts.Place("r50-train-0-0.r50:1234", 2, 0)),
        ({"JOB_COMPLETION_INDEX": "1"}, None),
        (SLURM, hosts.Place("node007:61441", 4, 2, (0,))),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "other:1"}, hosts.Place("other:1", 4, 2, (0,))),
        (MPI, hosts.Place("10.96.0.1:62624", 2, 1, (1,))),
    ],
    ids=[
        "alone",
        "given",
        "given one",
        "pods",
        "pods and a number",
        "a pod alone",
        "slurm",
        "slurm one",
        "slurm and an address",
        "open mpi",
    ],
)
def test_found_in_the_environment(environment, values, want):
    environment(values)
    assert hosts.detect() == want


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID as well"),
        ({**GIVEN, "JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID is 'two': it must be a whole number"),
        ({**GIVEN, "JAX_PROCESS_ID": "2"}, "with 2 processes it is 0 to 1"),
        ({**GIVEN, "JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "it must be HOST:PORT"),
        ({**SLURM, "SLURM_NTASKS": "4(x2)"}, "cannot tell which process of the job this is: .*4.x2.*; set JAX_COORD"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(environment, values, words):
    environment(values)
    with pytest.raises(UserError, match=words):
        hosts.detect()


# --------------------------------------------------------------------------- the roll-call


def call(count, indices, wait, *, port=None, change=lambda place: place):
    """index -> what its roll-call raised, "" if nothing; and the seconds that all took."""
    port = port or free_port()
    found = {}

    def one(k, index):
        place = change(hosts.Place(f"127.0.0.1:{port}", count, index))
        try:
            hosts.roll_call(place, lambda text: None, wait)
            found[k] = ""
        except UserError as error:
            found[k] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(indices)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[k] for k in range(len(indices))], time.monotonic() - start


def later(seconds, *arguments, **how):
    """A thread that calls after so long, and the list that its answers go into."""
    found = []
    thread = threading.Timer(seconds, lambda: found.append(call(*arguments, **how)[0]))
    thread.start()
    return thread, found


def test_all_are_there_and_the_port_is_free_again():
    port = free_port()
    for _ in range(3):
        answers, _ = call(5, [3, 0, 4, 1, 2], 20, port=port)
        assert answers == [""] * 5
        socket.create_server(("", port)).close()


def test_the_first_may_come_last():
    port = free_port()
    late, found = later(1.0, 2, [0], 20, port=port)
    assert call(2, [1], 20, port=port)[0] == [""]
    late.join()
    assert found == [[""]]


def test_who_is_missing_is_named_on_all_that_are_there():
    answers, seconds = call(4, [0, 2], 1.5)
    assert answers[0] == answers[1]
    assert answers[0].startswith("processes 1 and 3 of 4 did not come to 127.0.0.1:")
    assert "within 1.5 s" in answers[0]
    assert 1 < seconds < 60
    answers, _ = call(200, [0], 0.5)
    assert answers[0].startswith("processes 1, 2, 3, 4, 5, 6, 7 and 192 others of 200 did not come")


def test_without_the_first_its_address_is_named():
    answers, seconds = call(3, [1], 1)
    assert "process 0 did not answer at 127.0.0.1:" in answers[0]
    assert "refused" in answers[0]
    assert seconds < 60


def test_a_number_that_is_taken_twice():
    answers, _ = call(3, [0, 1, 1], 5)
    assert "two processes have the number 1, on " in answers[0]
    assert sum(answer == answers[0] for answer in answers) == 3


def test_processes_of_two_jobs():
    answers, _ = call(3, [0, 1], 5, change=lambda p: dataclasses.replace(p, count=2) if p.index else p)
    assert answers[0] == answers[1]
    assert "process 1 on " in answers[0]
    assert "counts 2 processes, process 0 3: they are of two jobs" in answers[0]


def test_another_version_is_named(monkeypatch):
    there = [{"jax": "0.10.2"}, {"jax": "0.9.1"}]
    monkeypatch.setattr(hosts.versions, "installed", lambda *_: there[threading.current_thread().name == "old"])
    port, found = free_port(), []

    def old():
        try:
            hosts.roll_call(hosts.Place(f"127.0.0.1:{port}", 2, 1), wait=5)
        except UserError as error:
            found.append(str(error))

    thread = threading.Thread(target=old, name="old")
    thread.start()
    answers, _ = call(2, [0], 5, port=port)
    thread.join()
    assert found == answers
    assert "runs jax 0.9.1, process 0 on " in answers[0]
    assert "0.10.2: install the same everywhere" in answers[0]


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"", b"[1]\n", b"\xff\xfe\n", b'{"index": 1}\n'])
def test_strangers_are_passed_over(words):
    port = free_port()

    def stranger():
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
                    s.sendall(words)
                return
            except OSError:
                time.sleep(0.02)

    threading.Thread(target=stranger).start()
    other, found = later(0.7, 2, [1], 10, port=port)
    assert call(2, [0], 10, port=port)[0] == [""]
    other.join()
    assert found == [[""]]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on port {port}" in call(2, [0], 1, port=port)[0][0]


# --------------------------------------------------------------------------- real processes


def python(count, *words, devices=2, **env):
    """So many forks, by the launcher."""
    launcher = [sys.executable, "launch/local.py", str(count), "--devices", str(devices), "--", *forks.python()]
    return subprocess.Popen(
        [*launcher, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags.on(1), **env},
    )  # fmt: skip


def start(count, *words, **env):
    return python(count, "-m", *words, **env)


def children(process):
    """Process ids of what the launcher started, in the order of their numbers."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return sorted(map(int, file.read().split()))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def config(folder, lines=""):
    path = folder / "config.py"
    path.write_text(f"from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\n{lines}")
    return path


def test_two_processes_measure_what_one_does(command, tmp_path):
    path = config(tmp_path, "config.steps = 6\n")
    process = start(2, "jaxvision.train", "--config", path, "--workdir", tmp_path / "two")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "[1]" not in out, out  # only the first has something to say
    two = json.loads(out.splitlines()[-1])
    done = command("jaxvision.train", "--config", path, "--workdir", tmp_path / "one", "--json", devices=4)
    one = json.loads(done.stdout)
    assert two["evals"]["test"]["top1"] == one["evals"]["test"]["top1"]
    assert two["evals"]["test"]["loss"] == pytest.approx(one["evals"]["test"]["loss"], abs=1e-5)
    digests = [json.loads((tmp_path / w / "eval" / "test.json").read_text()) for w in ("one", "two")]
    assert digests[0]["digest_of_sample_ids"] == digests[1]["digest_of_sample_ids"]
    assert not (tmp_path / "two" / ".shared").exists()
    # and either goes on from the other's checkpoint
    first, second = (dict(np.load(tmp_path / w / "eval" / "test.npz")) for w in ("one", "two"))
    for name in ("index", "place", "label"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_allclose(first["p"], second["p"], atol=1e-5)
    assert (tmp_path / "two" / "report.html").exists()
    process = start(2, "jaxvision.evaluate", "--from", tmp_path / "one", "--json")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert json.loads(out.splitlines()[-1])["evals"]["test"]["digest"] == digests[0]["digest_of_sample_ids"]


@pytest.mark.parametrize(
    ("number", "count"),
    [
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGTERM, 4, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path, number, count):
    path = config(tmp_path, "config.steps = 100_000\nconfig.checkpoint.every_steps = 0\nconfig.evals = dict()\n")
    process = start(count, "jaxvision.train", "--config", path, "--workdir", tmp_path / "w")
    pids, out, sent = [], [], 0.0
    for line in process.stdout:
        out.append(line)
        if line.startswith("step") and not sent:
            pids, sent = children(process), time.monotonic()
            os.kill(pids[1], number)
    assert process.wait(60) == 75, "".join(out)
    assert time.monotonic() - sent < 60
    said = [line for line in out if "saved in" in line]
    print(f"\nSIGTERM to one of {count}: all ended {time.monotonic() - sent:.1f} s later")
    assert sorted(int(line.partition("process")[2][1]) for line in said) == list(range(count))
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    (step,) = (p.name for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit())
    assert int(step) == summary["step"]
    assert not any(map(alive, pids))


@pytest.mark.slow
def test_minutes_are_kept_by_all_at_the_same_step(tmp_path):
    """Within steps, not within log lines, of which there is none."""
    lines = "config.steps, config.evals, config.log.every_steps = 10_000_000, dict(), 1_000_000\n"
    lines += "config.checkpoint.update(every_steps=0, every_minutes=0.05, keep=1000)\n"
    process = start(2, "jaxvision.train", "--config", config(tmp_path, lines), "--workdir", tmp_path / "w",
                    "--stop-after", "1")  # fmt: skip
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 75, out
    assert "1 minutes are over: saved in" in out
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert 60 <= summary["wall_s"] < 70
    steps = sorted(int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit())
    assert steps[-1] == summary["step"]
    times = [(tmp_path / "w" / "checkpoints" / str(s) / "about.json").stat().st_mtime for s in steps[:-1]]
    assert len(times) > 5
    apart = np.diff(times)
    print(f"\nsaves apart {apart.round(2)} s, ended after {summary['wall_s']} s")
    assert np.median(apart) == pytest.approx(3, abs=0.5)


def photos(folder, count, bad):
    """Two classes of 8 x 8 pictures, of which one is none."""
    rng = np.random.default_rng(0)
    for k in range(count):
        (folder / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"class{k % 2}/{k}.png")
    (folder / f"class{bad % 2}" / f"{bad}.png").write_bytes(b"no image")


def test_an_error_on_one_ends_all_and_is_told_by_all(tmp_path):
    """A file that only one process reads, after some steps: the other waits for it in a step, and cannot save."""
    photos(tmp_path / "photos", 1500, bad=735)
    lines = f"config.data.train = 'folder:{tmp_path}/photos'\nconfig.evals = dict()\nconfig.steps = 1000\n"
    lines += "config.log.every_steps = 1\n"
    process = start(2, "jaxvision.train", "--config", config(tmp_path, lines), "--workdir", tmp_path / "w")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 2, out
    (failed,) = {k for k in (0, 1) if f"process {k}: error: " in out}
    assert "735.png" in out
    assert "step " in out
    assert f"process {1 - failed}: ends since process {failed} failed: " in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_an_evaluation_that_fails_on_one_costs_no_step(tmp_path):
    photos(tmp_path / "photos", 200, bad=33)
    photos(tmp_path / "good", 200, bad=33)
    (tmp_path / "good" / "class1" / "33.png").unlink()
    lines = f"config.data.train = 'folder:{tmp_path}/good'\nconfig.evals.test.data = 'folder:{tmp_path}/photos'\n"
    lines += "config.steps = 100\nconfig.checkpoint.every_steps = 0\n"
    process = start(2, "jaxvision.train", "--config", config(tmp_path, lines), "--workdir", tmp_path / "w")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 2, out
    assert "33.png" in out
    assert [p.name for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit()] == ["6"]


@pytest.mark.slow
def test_the_time_of_each_is_told_and_who_holds_the_others_up(tmp_path):
    """Process 1 reads slowly; process 0 waits for it in its steps."""
    path = config(tmp_path, "config.steps, config.evals, config.log.every_steps = 30, dict(), 5\n"
                            "config.data.update(threads=1, prefetch=1)\n")  # fmt: skip
    code = (
        "import os, sys, time, runpy; from jaxvision.data import sources;"
        "read = sources.Digits.__getitem__;"
        "slow = lambda self, i: (time.sleep(0.004 * int(os.environ['JAX_PROCESS_ID'])), read(self, i))[1];"
        "sources.Digits.__getitem__ = slow;"
        f"sys.argv = ['train', '--config', {str(path)!r}, '--workdir', {str(tmp_path / 'w')!r}];"
        "runpy.run_module('jaxvision.train', run_name='__main__')"
    )
    process = python(2, "-c", code, devices=1)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert out.count("warning: process 1 holds the others up: ") == 1, out
    hosts_ = json.loads((tmp_path / "w" / "summary.json").read_text())["hosts"]
    assert [host["process"] for host in hosts_] == [0, 1]
    # 32 rows of a batch of 64 a step, less what steps hid
    assert hosts_[1]["time"]["data"] > 30 * 32 * 0.004 * 0.5 > hosts_[0]["time"]["data"]
    assert hosts_[0]["time"]["step"] > hosts_[1]["time"]["step"]
    rows = [line.split()[0] for line in out.splitlines() if f" {hosts_[0]['machine']} " in line]
    assert rows[-2:] == ["1", "0"], out


def test_one_that_never_joins(tmp_path):
    env = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    done = forks.run(
        ["-m", "jaxvision.train", "--config", config(tmp_path), "--workdir", tmp_path / "w", "--wait", "1"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags.on(1), **env}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "process 1 of 2 did not come" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # its quick sibling is in test_doctor.py
def test_a_workdir_that_is_not_shared(tmp_path):
    """As on machines where each has a disk of its own under the same name: here, another name for each."""
    path = config(tmp_path)
    code = (
        "import os, sys, runpy; k = os.environ['JAX_PROCESS_ID'];"
        f"sys.argv = ['train', '--config', {str(path)!r}, '--workdir', {str(tmp_path)!r} + '/w' + k];"
        "runpy.run_module('jaxvision.train', run_name='__main__')"
    )
    process = python(2, "-c", code, devices=1)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 2, out
    assert "of process 0 is not that of process 1: all must name one folder" in out


@pytest.mark.slow
def test_losses_gradients_and_rows_are_those_of_one_process(command, tmp_path):
    """1, 2 and 4 processes of two devices, the state copied or split over all of them, at ten states of a run."""
    lines = "config.steps, config.model.depths, config.evals = 10, (1, 1), dict()\n"
    lines += "config.checkpoint.update(every_steps=1, keep=20)\n"
    path = config(tmp_path, lines)
    done = command("jaxvision.train", "--config", path, "--workdir", tmp_path / "w", "--json")
    assert done.returncode == 0, done.stderr

    def found(count, fsdp):
        out = tmp_path / f"{count}-{fsdp}"
        options = dict(config=str(path), checkpoints=str(tmp_path / "w" / "checkpoints"), fsdp=fsdp, out=str(out))
        process = start(count, "tests.runtime.host_gradients", json.dumps(options))
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        rows = [row for k in range(count) for row in json.loads((tmp_path / f"{out.name}.{k}.json").read_text())]
        return np.load(f"{out}.npz"), sorted(map(tuple, rows))

    want, want_rows = found(1, 1)
    assert len({name.split("/")[0] for name in want}) == 10
    assert [row[:2] for row in want_rows] == [(s, r) for s in range(1, 11) for r in range(64)]
    worst = {"loss": 0.0, "gradient": 0.0}
    for count in (1, 2, 4):
        for fsdp in (1, 2 * count):
            got, rows = found(count, fsdp) if (count, fsdp) != (1, 1) else (want, want_rows)
            assert rows == want_rows
            for step in range(1, 11):
                loss = abs(float(got[f"{step}/loss"] - want[f"{step}/loss"]))
                names = [name for name in want if name.startswith(f"{step}/grad")]
                norm = np.sqrt(sum(np.sum(np.square(want[name], dtype=np.float64)) for name in names))
                apart = np.sqrt(sum(np.sum(np.square(got[n].astype(np.float64) - want[n])) for n in names)) / norm
                assert loss < 1e-6, (count, fsdp, step)
                assert apart < 1e-3, (count, fsdp, step)
                worst = {"loss": max(worst["loss"], loss), "gradient": max(worst["gradient"], apart)}
    print(f"\nworst of 1, 2, 4 processes, copied and split: {worst}")


def test_a_number_of_the_first_keeps_its_digits():
    """Seconds of a week: as float32 they stand still for several steps, and the pace of steps divides by nothing."""
    number = "604_800.0123 + hosts.index()"
    code = f"from jaxvision.runtime import hosts; hosts.join(); print('=', repr(hosts.of_first({number})))"
    out, _ = python(2, "-c", code, devices=1).communicate(timeout=120)
    assert re.findall("= (.*)", out) == ["604800.0123"] * 2, out


def test_hosts_in_other_time_zones_name_the_same_workdir(tmp_path):
    code = (
        "import os, time; os.environ['TZ'] = ['UTC', 'Asia/Tokyo'][int(os.environ['JAX_PROCESS_ID'])]; time.tzset();"
        "from jaxvision import train; from jaxvision.runtime import hosts;"
        "hosts.join(); print('=', train.default_workdir('some/config.py'))"
    )
    out, _ = python(2, "-c", code, devices=1).communicate(timeout=120)
    names = [line.split("= ")[1] for line in out.splitlines() if "= " in line]
    assert len(names) == 2, out
    assert names[0] == names[1]
    assert names[0].startswith("runs/config-")
