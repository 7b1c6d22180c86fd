"""A run that is killed and goes on with other numbers of hosts and readers trains on the same rows.

Hosts are real processes, connected by jax.distributed; kills are SIGKILL. What is compared was read back from the
devices after each step, see elastic_host.py.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from launch.local import free_port
from tests import flags, forks
from tests.conftest import ROOT

STEPS, BATCH, IMAGES, SAVE = 100, 16, 90, 10


class Session(NamedTuple):
    """So many hosts with such readers, killed once a step in the range was done; None: to the end."""

    hosts: int
    threads: int = 0
    processes: int = 0
    kill: tuple[int, int] | None = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Smooth images, since noise has no edges that a crop of other pixels would show in."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.Generator(np.random.Philox(3))
    for k in range(IMAGES):
        path = root / f"class {k % 3}" / f"{k:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        width, height = (int(n) for n in rng.integers(30, 160, 2))
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def start(session, folder, workdir, name):
    """The session's processes, one a host."""
    common = dict(
        hosts=session.hosts, data=str(folder), workdir=str(workdir / "w"), steps=STEPS, save=SAVE,
        threads=session.threads, processes=session.processes,
    )  # fmt: skip
    return start_hosts(session.hosts, common, workdir, name, forks.Fork)


def python(words, **options):
    return subprocess.Popen([sys.executable, *words], **options)


def start_hosts(count, options, workdir, name, begin=python):
    """So many processes of elastic_host.py, each with a log and an output of its own. What processes of Python start is
    found by their sessions, which are theirs alone. begin: of what each is."""
    port, processes = free_port(), []
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    environment = {**os.environ, "XLA_FLAGS": flags.on(1), **job}
    for host in range(count):
        mine = json.dumps({**options, "log": str(workdir / f"{name}.{host}.rows")})
        with open(workdir / f"{name}.{host}.out", "w") as out:
            processes.append(begin(
                ["-m", "tests.elastic_host", mine], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                env={**environment, "JAX_PROCESS_ID": str(host)}, start_new_session=True,
            ))  # fmt: skip
    return processes


def said(workdir, name):
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(workdir.glob(f"{name}.*.out")))


def rows(workdir, name):
    """[(step, row, id, digest)] of all hosts; a last line that a kill cut short is left out."""
    found = []
    for path in sorted(workdir.glob(f"{name}*.rows")):  # a name that none other begins with
        for line in path.read_text().split("\n")[:-1]:
            step, row, i, digest = line.split()
            found.append((int(step), int(row), int(i), digest))
    return found


def finish(processes, workdir, name):
    deadline = time.monotonic() + 240
    try:
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        kill(processes)
    assert codes == [0] * len(processes), said(workdir, name)


def kill(processes):
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def kill_after(step, processes, workdir, name, rng):
    """SIGKILL for every host once the first has done this step."""
    log, deadline = workdir / f"{name}.0.rows", time.monotonic() + 240
    try:
        while not log.exists() or not any(int(line.split()[0]) >= step for line in log.read_text().split("\n")[:-1]):
            assert all(process.poll() is None for process in processes), said(workdir, name)
            assert time.monotonic() < deadline, said(workdir, name)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        assert all(process.poll() is None for process in processes), said(workdir, name)
    finally:
        rng.shuffle(processes)
        kill(processes)


def run(sessions, folder, workdir, seed):
    """All sessions, one after the other, in one workdir; (name, hosts) of each."""
    rng = random.Random(seed)
    for k, session in enumerate(sessions):
        name = f"session {k}"
        processes = start(session, folder, workdir, name)
        if session.kill:
            kill_after(rng.randint(*session.kill), processes, workdir, name, rng)
        else:
            finish(processes, workdir, name)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """(step, row) -> (id, digest) of a run that is never interrupted: what the law says, read here."""
    from jaxvision.data import InputContract, Order, build, open_source, train_batches
    from tests.elastic_host import make_config

    config = make_config(dict(data=str(folder), threads=1, processes=0, steps=STEPS, save=0))
    contract, found = InputContract(size=16, resize=16), {}
    batches = train_batches(
        open_source(config.data.train), build(config.data.transforms, contract), contract, batch_size=BATCH, seed=7,
        start=0, stop=STEPS, threads=0,
    )  # fmt: skip
    for step, batch in enumerate(batches):
        for row in range(BATCH):
            digest = hashlib.sha256(batch["image"][row].tobytes() + batch["label"][row].tobytes()).hexdigest()
            found[step, row] = int(batch["index"][row]), digest
    order = Order(7, IMAGES)
    assert [found[divmod(n, BATCH)][0] for n in range(STEPS * BATCH)] == [order(n) for n in range(STEPS * BATCH)]
    assert len({digest for _, digest in found.values()}) > 0.99 * STEPS * BATCH  # each crop is another
    return found


@pytest.mark.slow
def test_an_undisturbed_run_is_what_the_law_says(undisturbed, folder, tmp_path):
    run([Session(1, threads=2)], folder, tmp_path, 0)
    found = rows(tmp_path, "session 0")
    assert [(step, row) for step, row, _, _ in found] == list(undisturbed)
    assert {(step, row): (i, digest) for step, row, i, digest in found} == undisturbed


def check(sessions, undisturbed, workdir):
    """Every row of every step of every session, steps that were done twice included."""
    seen, compared, firsts = set(), 0, []
    for k, session in enumerate(sessions):
        found = rows(workdir, f"session {k}")
        for step, row, i, digest in found:
            assert undisturbed[step, row] == (i, digest), (k, step, row)
        assert len({(step, row) for step, row, _, _ in found}) == len(found), "a row came to two hosts"
        for host in range(session.hosts):
            mine = {row for _, row, _, _ in rows(workdir, f"session {k}.{host}")}
            assert len(mine) == BATCH // session.hosts
        out = pathlib.Path(workdir, f"session {k}.0.out").read_text()
        assert f"on {session.hosts} x cpu" in out
        seen |= {(step, row) for step, row, _, _ in found}
        firsts.append(min(step for step, *_ in found))
        compared += len(found)
    assert seen == undisturbed.keys()
    assert firsts[0] == 0
    assert all(first > 0 and first % SAVE == 0 for first in firsts[1:]), firsts
    print(f"\n{compared} rows of {STEPS} steps compared; hosts {[s.hosts for s in sessions]}, resumed at {firsts[1:]}")


def test_killed_on_2_hosts_and_resumed_on_1(undisturbed, folder, tmp_path):
    sessions = [Session(2, threads=1, kill=(45, 55)), Session(1, processes=1)]
    run(sessions, folder, tmp_path, 1)
    check(sessions, undisturbed, tmp_path)


@pytest.mark.slow
def test_killed_and_resumed_on_1_2_and_4_hosts(undisturbed, folder, tmp_path):
    sessions = [
        Session(1, threads=4, kill=(45, 55)),
        Session(2, threads=1, kill=(82, 94)),
        Session(4, processes=1),
    ]
    run(sessions, folder, tmp_path, 1)
    check(sessions, undisturbed, tmp_path)


@pytest.mark.slow
def test_killed_and_resumed_on_many_numbers_of_hosts(undisturbed, folder, tmp_path):
    sessions = [
        Session(4, threads=2, kill=(12, 17)),
        Session(1, processes=2, kill=(22, 32)),
        Session(2, processes=2, kill=(42, 47)),
        Session(4, processes=1, kill=(62, 67)),
        Session(2, threads=4, kill=(82, 87)),
        Session(1),
    ]
    run(sessions, folder, tmp_path, 2)
    check(sessions, undisturbed, tmp_path)
