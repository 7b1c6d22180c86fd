"""Worker processes: the same batches, errors with their tracebacks, deaths on either side, Ctrl-C, and no jax."""

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import InputContract, Order, build, eval_batches, open_source, train_batches, transforms
from jaxvision.data.order import generator
from jaxvision.errors import Unreadable, UserError
from tests import flags

ROOT = pathlib.Path(__file__).parent.parent.parent
CONTRACT = InputContract(size=8, resize=8)
SPECS = (("shift", {"share": 0.2}), ("flip", {}), ("color_jitter", {"brightness": 0.4}))
ONE_DEVICE = {**os.environ, "XLA_FLAGS": flags.on(1)}

# A process of its own, with two workers; a kill of it is no kill of the tests.
SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from jaxvision.data import InputContract, build, open_source, train_batches
contract = InputContract(size=8, resize=8)
def batches(**options):
    return train_batches(open_source("digits:train"), build([("flip", {})], contract), contract, batch_size=4, seed=0,
                         start=0, stop=10**9, **options)
"""


class Noise:
    """Samples of noise; a source as a user may write one."""

    uri, kind, classes = "noise:", "class", ("a", "b")

    def __init__(self, length=40):
        self.length = length
        self.labels = np.arange(length, dtype=np.int32) % 2

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"image": np.full((8, 8, 3), i, np.uint8), "label": int(self.labels[i]), "index": i}

    def where(self, i):
        return f"noise {i}"


class Failing(Noise):
    """Raises at one of its samples."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error = at, error

    def __getitem__(self, i):
        if i == self.at:
            raise self.error
        return super().__getitem__(i)


class Spy(Noise):
    """Writes down what is loaded in the process that reads it."""

    def __init__(self, folder):
        super().__init__()
        self.folder = str(folder)

    def __getitem__(self, i):
        jax = sys.modules.get("jax")
        backends = list(sys.modules["jax._src.xla_bridge"]._backends) if jax else []
        heavy = [name for name in ("jax", "jaxlib", "tensorflow", "torch", "sklearn.datasets") if name in sys.modules]
        report = {"backends": backends, "modules": heavy, "parent": os.getppid()}
        pathlib.Path(self.folder, f"{os.getpid()}.json").write_text(json.dumps(report))
        return super().__getitem__(i)


def batches(source, specs=SPECS, *, batch_size=10, start=0, stop=6, **options):
    return train_batches(
        source, build(specs, CONTRACT), CONTRACT, batch_size=batch_size, seed=5, start=start, stop=stop, **options
    )


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            assert np.array_equal(a[key], b[key]), key


def workers_of(pid):
    """The worker processes of a process."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pids, seconds=10.0):
    """Whether all of them end in time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    return not any(map(alive, pids))


def wait_for(found, seconds=60.0):
    """What `found()` gives as soon as it gives anything."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError("nothing came")


@pytest.fixture(autouse=True)
def _none_are_left():
    yield
    assert gone([p.pid for p in multiprocessing.active_children()]), "worker processes are left"


@pytest.fixture
def folder(tmp_path):
    for k in range(12):
        path = tmp_path / "pets" / f"class {k % 2}" / f"{k:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + k, 12), (k, k, k)).save(path)
    return tmp_path / "pets"


# --------------------------------------------------------------------------- the same batches


def test_same_batches_as_threads(folder):
    source = open_source(f"folder:{folder}")
    crop = (("random_resized_crop", {}), *SPECS)
    whole = list(batches(source, crop, stop=8, threads=2))
    same(whole, list(batches(source, crop, stop=8, processes=2)))
    rows = [7, 0, 4]
    part = [{key: array[rows] for key, array in batch.items()} for batch in whole[3:]]
    same(part, list(batches(source, crop, start=3, stop=8, rows=rows, prefetch=1, processes=1)))


def test_same_weighted_batches_with_skipped_images(folder):
    from jaxvision.data import Skips

    (folder / "class 1" / "07.jpg").write_bytes(b"no image")
    source = open_source(f"folder:{folder}")
    order = Order(1, 12, np.arange(1.0, 13), repeats=2)
    got, seen = [], []
    for options in ({"threads": 2}, {"processes": 2}):
        skips = Skips(0.5)
        got.append(list(batches(source, [("random_resized_crop", {})], order=order, skips=skips, **options)))
        seen.append(skips.rows())
    same(*got)
    assert seen[0] == seen[1]
    assert [row["sample"] for row in seen[0]] == [[source.where(i) for i in range(12)].index(
        str(folder / "class 1" / "07.jpg"))]  # fmt: skip


def test_same_evaluation_as_threads():
    source = open_source("digits:test")
    for rows, processes in ((None, 2), ([5, 0, 63], 1)):
        wanted = list(eval_batches(source, CONTRACT, batch_size=64, rows=rows))
        same(wanted, list(eval_batches(source, CONTRACT, batch_size=64, rows=rows, processes=processes)))


def test_batches_can_be_written_to():
    for batch in batches(Noise(), stop=2, processes=1):
        assert all(array.flags.writeable for array in batch.values())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has files in memory")
def test_the_memory_of_batches_is_given_back():
    def held():
        return sum("jaxvision-batch" in os.path.realpath(path) for path in pathlib.Path("/proc/self/fd").iterdir())

    iterator = batches(Noise(), stop=10**6, processes=2)
    kept = [next(iterator) for _ in range(50)]
    assert held() <= 10  # those that are being loaded ahead, not the fifty
    iterator.close()  # with batches that nobody took
    del iterator
    gc.collect()
    assert held() == 0
    same(kept, list(batches(Noise(), stop=50)))  # the arrays outlive the iterator and its processes


def test_same_batches_where_there_are_no_files_in_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    same(list(batches(Noise())), list(batches(Noise(), processes=1)))


# --------------------------------------------------------------------------- errors and deaths


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a defect of the source"), "in __getitem__"),
        (UserError("mend your data"), "in __getitem__"),
        (Unreadable("cannot read it"), "in __getitem__"),
    ],
)
def test_an_error_comes_at_its_batch_with_the_traceback(error, words):
    at = Order(5, 40)(23)
    iterator = batches(Failing(at, error), stop=10**6, processes=1)
    same(list(batches(Noise(), stop=2)), list(itertools.islice(iterator, 2)))  # the batches before it arrive
    begin = time.perf_counter()
    with pytest.raises(type(error), match=str(error)) as caught:
        next(iterator)
    assert time.perf_counter() - begin < 60
    assert type(caught.value) is type(error)
    trace = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in trace
    assert words in trace
    assert "test_workers.py" in trace


def test_a_damaged_file(folder):
    bad = folder / "class 1" / "07.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    source = open_source(f"folder:{folder}")
    first = [source.where(Order(5, 12)(n)) for n in range(12)].index(str(bad))
    iterator = batches(source, [("random_resized_crop", {})], batch_size=1, stop=100, processes=1)
    assert len(list(itertools.islice(iterator, first))) == first
    with pytest.raises(Unreadable, match=r"07\.jpg: cannot decode") as caught:
        next(iterator)
    assert "decode.py" in str(caught.value.__cause__)
    with pytest.raises(UserError, match=r"07\.jpg"):
        list(eval_batches(source, CONTRACT, batch_size=4, processes=1))


@pytest.mark.parametrize("pause", [0.0, 1.5])
def test_a_killed_worker_is_an_error(pause):
    """At once, or while nobody looks: the next batch is then asked of a pool that is known to be broken."""
    iterator = batches(Noise(), stop=10**9, processes=2)
    next(iterator)
    victim = wait_for(lambda: workers_of(os.getpid()))[0]
    os.kill(victim, signal.SIGKILL)
    time.sleep(pause)
    begin = time.perf_counter()
    with pytest.raises(UserError, match=r"worker process .* killed, .*memory.*data\.processes=0"):
        list(iterator)
    assert time.perf_counter() - begin < 60


class Crashing(Noise):
    """Sample 17 takes its reader along, as a library does that crashes on a file."""

    def __getitem__(self, i):
        if i == 17:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__getitem__(i)


def test_a_worker_that_crashes_names_the_sample():
    with pytest.raises(UserError, match=r"worker process .* died without a word, while .*\b17\b.* was read") as error:
        list(batches(Crashing(), stop=10**9, processes=2))
    assert len(str(error.value)) < 400  # no more samples than there are processes


def test_workers_die_with_their_parent():
    script = SCRIPT + "iterator = batches(processes=2)\nnext(iterator)\nnext(iterator)\nprint('go', flush=True)\n"
    script += "time.sleep(600)\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "go\n"
    pids = workers_of(process.pid)
    assert len(pids) == 2
    process.kill()
    process.communicate()
    assert gone(pids)


@pytest.mark.parametrize("end", ["close", "drop", "exhaust"])
def test_ending_the_iterator_ends_the_workers(end):
    iterator = batches(Noise(), stop=3 if end == "exhaust" else 10**9, processes=1)
    next(iterator)
    pids = workers_of(os.getpid())
    assert pids
    if end == "close":
        begin = time.perf_counter()
        iterator.close()
        assert time.perf_counter() - begin < 60
    elif end == "exhaust":
        assert len(list(iterator)) == 2
    del iterator
    assert gone(pids)


def test_an_iterator_left_open_does_not_keep_python():
    script = SCRIPT + "iterator = batches(processes=2)\nnext(iterator)\n"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - begin < 60


def test_ctrl_c_while_workers_start():
    """It reaches them as soon as they exist, long before they can say that they do not mind."""
    script = (
        SCRIPT
        + """
signal.signal(signal.SIGINT, lambda *_: None)
over = threading.Event()
def press():
    while not over.wait(0.02):
        os.killpg(0, signal.SIGINT)
thread = threading.Thread(target=press)
thread.start()
try:
    iterator = batches(processes=2)
    for _ in range(50):
        next(iterator)
    iterator.close()
finally:
    over.set()
    thread.join()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# --------------------------------------------------------------------------- what is loaded


def test_workers_load_no_framework_and_start_no_backend(tmp_path):
    import jax

    assert jax.devices()  # the parent has them; the workers must not
    assert len(list(batches(Spy(tmp_path), build_all_specs(), stop=20, processes=2))) == 20
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert reports
    for report in reports:
        assert report == {"backends": [], "modules": report["modules"], "parent": os.getpid()}
        assert set(report["modules"]) <= {"jax", "jaxlib"}


def test_reading_loads_no_framework():
    script = (
        SCRIPT
        + """
for options in ({"threads": 2}, {"processes": 1}):
    iterator = batches(**options)
    next(iterator)
    iterator.close()
print([name for name in ("jax", "jaxlib", "tensorflow", "torch", "flax", "orbax") if name in sys.modules])
"""
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n", done.stderr


# --------------------------------------------------------------------------- pickling


def build_all_specs():
    """All transforms but the last of all, on images that stay 8 x 8."""
    return [(name, {}) for name in transforms.__all__ if name != "multi_view"]


@pytest.mark.parametrize("name", transforms.__all__)
def test_transforms_pickle(name):
    (transform,) = build([(name, {})], CONTRACT)
    again = pickle.loads(pickle.dumps(transform))
    image = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    for n in range(5):
        first, second = transform(image, generator(0, n, 0)), again(image, generator(0, n, 0))
        if not isinstance(first, dict):
            first, second = {"image": first}, {"image": second}
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_transforms_pickle_with_arguments():
    specs = (
        ("random_resized_crop", {"scale": (0.3, 0.9)}),
        ("multi_view", {"views": [SPECS], "local": [("resize", {}), ("center_crop", {})], "local_count": 2,
                        "local_size": 4}),
    )  # fmt: skip
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for transform in build(specs, CONTRACT):
        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(transform))))
        first, second = transform(image, generator(0, 1, 0)), again(image, generator(0, 1, 0))
        first, second = (x if isinstance(x, dict) else {"image": x} for x in (first, second))
        assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("uri", ["digits:train", "digits:train?split=0:50%", "fake:37x8", "folder", "folder?split=3:"])
def test_sources_pickle(uri, folder):
    source = open_source(uri.replace("folder", f"folder:{folder}"))
    again = pickle.loads(pickle.dumps(source))
    assert (again.uri, again.kind, again.classes, len(again)) == (source.uri, source.kind, source.classes, len(source))
    assert np.array_equal(again.labels, source.labels)
    for i in range(0, len(source), 7):
        first, second = source[i], again[i]
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)
        assert source.where(i) == again.where(i)


# --------------------------------------------------------------------------- the train command


CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.data.processes = 2
config.steps = 10**5
config.optim.schedule = "constant"
config.checkpoint.every_steps = 0
config.evals = dict()
config.log.update(every_steps=1, tensorboard=False)
"""


@pytest.fixture
def training(tmp_path):
    """A run with two workers that has made three steps, in a process group of its own; its workdir."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxvision.train", "--config", str(tmp_path / "tiny.py"), "--workdir",
         str(tmp_path / "w")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ONE_DEVICE,
        start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.split("/")[0].split() == ["step", "3"]:
            break
    yield process, tmp_path / "w"
    if process.poll() is None:
        process.kill()
    process.communicate()


def saved_steps(workdir):
    return [int(p.name) for p in (workdir / "checkpoints").iterdir() if (p / "digests.json").exists()]


def test_ctrl_c_under_train_saves_and_exits_75(training):
    process, workdir = training
    pids = workers_of(process.pid)
    assert len(pids) == 2
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "To resume: python -m jaxvision.train" in err
    assert "Traceback" not in err
    assert "Interrupt" not in err
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert saved_steps(workdir) == [summary["step"]]
    assert gone(pids)


def test_a_dead_worker_under_train_costs_no_steps(tmp_path):
    from jaxvision import config as config_lib
    from jaxvision.training import loop

    (tmp_path / "tiny.py").write_text(CONFIG)
    workdir, killed = tmp_path / "w", []

    def say(line):
        if line.split("/")[0].split() == ["step", "3"]:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(UserError, match="a worker process of the loader died without a word, while ") as error:
        loop.fit(config_lib.load(str(tmp_path / "tiny.py")), workdir, say=say)
    assert "\n" not in str(error.value)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["step"] >= 3
    assert saved_steps(workdir) == [summary["step"]]
    assert gone(killed)
