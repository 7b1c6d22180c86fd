"""Signals and lost output, sent to processes as a shell, a terminal and a scheduler send them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from jaxvision.errors import Interrupted
from jaxvision.runtime.stop import Stop, interrupted
from jaxvision.weights import checkpoint
from tests import flags, forks
from tests.conftest import ROOT
from tests.training.test_loop import assert_bit_equal, final_state, finish, start

CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.evals = dict()
config.checkpoint.every_steps = 0
config.log.every_steps = 1
config.steps = {steps}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A function: the path of a config of so many steps."""
    folder = tmp_path_factory.mktemp("configs")

    def make(steps):
        path = folder / f"{steps}.py"
        path.write_text(CONFIG.format(steps=steps))
        return str(path)

    return make


def summary(workdir):
    return json.loads((pathlib.Path(workdir) / "summary.json").read_text())


# --------------------------------------------------------------------------- Ctrl-C before training began

# Each is what a library does with the first KeyboardInterrupt; without a second one these run for a minute.
SWALLOWED = {
    "an import that tries": "try: wait()\nexcept BaseException: wait()",
    "another error of it": "try: wait()\nexcept BaseException: raise ImportError('no such library')",
    "a callback": (
        "class Loud:\n    def __del__(self): wait()\n"
        "Loud()\nwait()"
    ),
    "twice": "try: wait()\nexcept BaseException:\n    try: wait()\n    except BaseException: wait()",
    "just before the end": "try: wait()\nexcept BaseException: pass",
}  # fmt: skip


@pytest.mark.parametrize("how", SWALLOWED)
def test_a_ctrl_c_that_a_library_swallows_still_ends_the_command(how):
    code = (
        "import sys, time; from jaxvision import cli; from jaxvision.runtime import stop; stop.REPEAT = 0.3\n"
        "def wait():\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        f"code = {SWALLOWED[how]!r}\n"
        "cli.main(lambda argv: exec(code, dict(wait=wait)) or {}, [])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "interrupted, nothing saved" in err


def test_after_a_command_a_ctrl_c_is_raised_once():
    """`main` in a process that goes on: a test's, a notebook's."""
    code = (
        "import signal, time; from jaxvision import cli; from jaxvision.runtime import stop; stop.REPEAT = 0.05\n"
        "try: cli.main(lambda argv: {}, [])\nexcept SystemExit: pass\n"
        "try: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: print('raised')\n"
        "time.sleep(0.5); print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["{}", "raised", "goes on"], done.stderr


@pytest.mark.parametrize("many", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_ctrl_c_at_every_moment_of_the_start(config, tmp_path, many):
    """While a command imports, which takes seconds; -SIGINT is what a shell calls 130, too. Nothing can be done about
    the first moments, in which Python itself starts and ends with 1."""
    codes = []
    for k in range(many):
        words = [sys.executable, "-m", "jaxvision.train", "--config", config(3), "--workdir", str(tmp_path / f"{k}")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        time.sleep(0.05 + 0.05 * k * (24 // many))
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process, timeout=60)
        codes.append(code)
        ours = "Could not import runpy" not in err
        assert code in ((130, -signal.SIGINT) if ours else (1,)), (k, out, err)
        assert not (tmp_path / f"{k}" / "checkpoints").exists()
    print(codes)


# --------------------------------------------------------------------------- training


def until(process, words):
    """Reads lines until one begins so."""
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"no line began with {words}: {process.stderr and process.stderr.read()}")


def test_a_lost_terminal_saves_and_exits_75(config, tmp_path):
    process = start(config(100_000), tmp_path / "w")
    until(process, "step")
    process.send_signal(signal.SIGHUP)
    code, _, err = finish(process)
    assert code == 75, err
    assert err.startswith("SIGHUP: saved in")
    reached = summary(tmp_path / "w")
    assert reached["status"] == "interrupted"
    newest = checkpoint.newest(epath.Path(tmp_path) / "w" / "checkpoints")
    assert newest.path.name == str(reached["step"])
    assert not newest.broken


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.asked == "SIGHUP"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_of_another_program_is_pythons_own():
    """In a notebook that calls `fit` nothing is raised again later, and the next `fit` begins."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert not interrupted()
        with Stop() as stop:
            stop.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_asks_by_itself_when_the_time_is_over():
    with Stop() as stop:
        stop.at(time.perf_counter() + 3600, "an hour is over")
        stop.check()
        stop.at(time.perf_counter() + 0.05, "time is over")
        batches = stop.watch(range(100))  # of an evaluation
        next(batches)
        time.sleep(0.06)
        with pytest.raises(Interrupted, match="time is over: saved"):
            next(batches)


@pytest.fixture(scope="module")
def heard(config, tmp_path_factory):
    """The workdir of a run whose output was read to its end."""
    workdir = tmp_path_factory.mktemp("heard") / "w"
    code, _, err = finish(start(config(40), workdir))
    assert code == 0, err
    return workdir


@pytest.mark.parametrize(
    "how",
    ["both readers go", *(pytest.param(how, marks=pytest.mark.slow) for how in ("the reader goes", "closed", "full"))],
)
def test_output_that_nobody_reads_is_no_reason_to_stop(config, tmp_path, heard, how):
    workdir = tmp_path / "w"
    words = ["-m", "jaxvision.train", "--config", config(40), "--workdir", str(workdir)]
    options = dict(cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags.on(1)}, text=True)
    if how == "closed":
        process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *words], **options)
    elif how == "full":
        with open("/dev/full", "w") as full:
            process = forks.Fork(words, stdout=full, stderr=full, **options)
    else:
        errors = subprocess.STDOUT if how == "both readers go" else subprocess.PIPE
        process = forks.Fork(words, stdout=subprocess.PIPE, stderr=errors, **options)
        until(process, "workdir")
        process.stdout.close()
    assert process.wait(120) == 0
    if how == "the reader goes":
        assert process.stderr.read() == ""
        process.stderr.close()
    reached = summary(workdir)
    assert (reached["status"], reached["step"]) == ("done", 40)
    assert_bit_equal(final_state(workdir, 40), final_state(heard, 40))
    assert {p.name for p in workdir.iterdir()} == {p.name for p in heard.iterdir()}


def test_the_file_of_a_closed_stream_is_not_printed_into(tmp_path):
    """Where 1 is free, the next file that is opened is 1."""
    code = (
        "import os\nfrom jaxvision import cli\n"
        f"def command(argv):\n    file = open({str(tmp_path / 'data')!r}, 'wb')\n    print('words', flush=True)\n"
        "    os.write(1, b'words'); os.write(2, b'words')\n    file.close()\n    return {}\n"
        "cli.main(command, [])"
    )
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_a_command_whose_answer_is_lost_says_so():
    """What it prints is what it is for: exit code 0 would be a lie to `models > file` on a full disk."""
    words = [sys.executable, "-c", "from jaxvision import cli; cli.main(lambda argv: {}, [])"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
