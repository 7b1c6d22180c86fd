"""Every command as a user starts it."""

import contextlib
import json
import os
import pathlib
import pty
import re
import resource
import subprocess
import sys

import pytest
from PIL import Image

import jaxvision
from jaxvision import cli, plan, train
from jaxvision.__main__ import commands
from jaxvision.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = [f"jaxvision.{name}" for name in commands()]


def spent() -> float:
    """Seconds of processor time of the processes started here that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def front_door(*words):
    return subprocess.run([sys.executable, "-m", "jaxvision", *words], capture_output=True, text=True, timeout=120)


def test_the_front_door_lists_the_commands():
    start = spent()
    bare, asked = front_door(), front_door("--help")
    assert spent() - start < 2  # of both: it loads no jax and no numpy
    assert bare.returncode == asked.returncode == 0
    assert bare.stdout == asked.stdout
    listed = dict(line.split(maxsplit=1) for line in bare.stdout.split("\n\n")[1].splitlines())
    assert list(listed) == sorted(listed)
    assert len(listed) == 10
    assert listed["train"] == "train a network as a config says, or go on where it stopped"
    assert front_door("--version").stdout.strip() == jaxvision.__version__


def test_the_front_door_passes_on():
    done = front_door("models", "--filter", "resnet18", "--json")
    assert json.loads(done.stdout)["models"][0]["name"] == "resnet18"
    refused = front_door("models", "--filter", "resnet18", "--jsn")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "did you mean '--json'?" in refused.stderr
    unknown = front_door("trian", "--config", "x")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: there is no command 'trian': did you mean 'train'?\n"


@pytest.mark.slow
def test_the_front_door_trains_with_worker_processes(tmp_path):
    """They import what the process that started them ran."""
    words = ["--config", str(ROOT / "configs" / "digits.py"), "--workdir", str(tmp_path / "w")]
    words += ["--config.epochs=0", "--config.steps=2", "--config.data.processes=2", "--json"]
    done = front_door("train", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2


@pytest.mark.parametrize("module", COMMANDS)
def test_help(command, module):
    start = spent()
    done = command(module, "--help", process=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout
    assert "examples:" in done.stdout
    assert "exit codes" in done.stdout
    # the contract is 3 s; processor time, doubled: the tests share two threads of one core
    assert spent() - start < 6


@pytest.mark.parametrize("module", COMMANDS)
def test_unknown_flag_exits_2_with_the_nearest(command, module):
    required = {
        "jaxvision.train": ["--config", "configs/digits.py"],
        "jaxvision.evaluate": ["--from", "x"],
        "jaxvision.predict": ["--from", "x", "image.png"],
        "jaxvision.export": ["--from", "x", "--format", "safetensors", "--out", "y.safetensors"],
        "jaxvision.plan": ["--config", "configs/digits.py"],
        "jaxvision.doctor": [],
        "jaxvision.pack": ["--from", "x", "--out", "y"],
        "jaxvision.transfer": ["--from", "x"],
        "jaxvision.models": [],
        "jaxvision.report": ["x"],
    }[module]
    done = command(module, *required, "--jsn", process=True)
    assert done.returncode == 2
    assert "did you mean '--json'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["--data", "X"], "did you mean --config.data.train=X?"), (["--lr", "0.1"], "did you mean --config.optim.lr=0.1?"),
     (["--epochs=3"], "did you mean --config.epochs=3?"), (["--batch-size", "8"], "--config.batch_size=8?"),
     (["--model=resnet50"], "did you mean --config.model.name=resnet50?"), (["--wrokdir", "x"], "mean '--workdir'?"),
     (["--every-steps=3"], "--config.checkpoint.every_steps=3 or --config.log.every_steps=3?")],
)  # fmt: skip
def test_a_flag_that_is_a_key_of_the_config(words, hint):
    with pytest.raises(UserError) as error:
        train.train(["--config", "configs/digits.py", *words])
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [(train.train, ["--profile", "-1"], "--profile is -1"),
     (train.train, ["--stop-after", "nan"], "--stop-after is nan"),
     (train.train, ["--wait", "-5"], "--wait is -5.0"),
     (plan.plan, ["--batch", "-1"], "--batch is -1: it must be at least 0"),
     (plan.plan, ["--classes", "0"], "--classes is 0: it must be at least 1")],
)  # fmt: skip
def test_numbers_of_flags_that_make_no_sense(command, words, said):
    with pytest.raises(UserError, match=said):
        command(["--config", "configs/digits.py", *words])


def test_help_loads_no_jax(command):
    code = (
        "import sys; from jaxvision import train\n"
        "try: train.train(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'tensorflow', 'torch', 'grain') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config"),
        (["--config", "configs/digts.py"], "did you mean 'configs/digits.py'?"),
        (["--config", "configs/digits.py", "--config.optim.lrr=1"],
         'unknown key "optim.lrr" for sgd: did you mean "optim.lr"?'),
        (["--config", "configs/digits.py", "--config.optmi.lr=1"], 'unknown key "optmi": did you mean "optim"?'),
        (["--config", "configs/digits.py", "--config.batch_size=many"], "expected int"),
        (["--config", "configs/digits.py", "--config.batch_size=1.5"], "expected int"),
        (["--config", "configs/digits.py", "--config.model.widht=8"], 'did you mean "model.width"?'),
        (["--config", "configs/digits.py", "--config.model.name=resnet51"], "did you mean 'resnet50'?"),
        (["--config", "configs/digits.py", "--config.data=digits:train"], "is a group of keys"),
        (["--config", "configs/digits.py", "--config.seed"], "needs a value"),
        (["--config", "configs/digits.py", "--config.data.train=digit:train"], "did you mean 'digits'?"),
        (["--config", "configs/digits.py", "--config.data.train=folder:/nowhere/at/all"], "/nowhere/at/all"),
    ],
)  # fmt: skip
def test_bad_arguments_exit_2_in_one_paragraph(command, tmp_path, arguments, words):
    done = command("jaxvision.train", *arguments, "--workdir", tmp_path / "w")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_batch_not_divisible_by_devices(command, tmp_path):
    done = command("jaxvision.train", "--config", "configs/digits.py", "--config.batch_size=100",
                   "--workdir", tmp_path / "w", devices=8)  # fmt: skip
    assert done.returncode == 2
    assert "batch_size 100 is not divisible by 8 devices: take 96 or 104" in done.stderr


def test_evaluate_without_checkpoint(command, tmp_path):
    done = command("jaxvision.evaluate", "--from", tmp_path)
    assert done.returncode == 2
    assert "no checkpoints in" in done.stderr
    done = command("jaxvision.evaluate", "--from", tmp_path / "absent")
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_debug_shows_the_traceback(command):
    done = command("jaxvision.train", "--config", "absent.py", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_name_that_the_encoding_lacks_ends_no_command(command, tmp_path):
    names = ["zürich", os.fsdecode(b"caf\xe9")]
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "ü.png")
    for encoding, out in (("ascii", "gepäck"), ("utf-8", names[1])):
        done = command("jaxvision.pack", "--from", f"folder:{tmp_path}/data", "--out", tmp_path / out,
                       process=True, PYTHONIOENCODING=encoding)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ascii(out)[1:-1] in done.stdout
        assert "Traceback" not in done.stderr


def test_json_prints_one_line(command, tmp_path):
    done = command("jaxvision.train", "--config", "configs/digits.py", "--json", "--workdir", tmp_path / "w",
                   "--config.epochs=0", "--config.steps=2", "--config.model.width=4", "--config.batch_size=16",
                   "--config.model.depths=(1,)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["step"] == 2


def on_terminal(code, *arguments):
    """What a terminal of 80 columns gets from `code` as a process, and its exit code."""
    terminal, inside = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    parts = []
    with contextlib.suppress(OSError):  # Linux: the other side is closed
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode(), process.wait()


@pytest.mark.parametrize(("length", "arguments", "shown"), [(10, (), True), (99, (), False), (99, ("--json",), True)])
def test_a_terminal_gets_json_that_is_short_or_asked_for(length, arguments, shown):
    """Where standard output is no terminal, it is the last line there, however long."""
    code = f"from jaxvision import cli; cli.main(lambda argv: print('done') or {{'a': {length} * 'x'}})"
    out, status = on_terminal(code, *arguments)
    assert status == 0
    assert out.split("\r\n") == ["done", *([json.dumps({"a": length * "x"})] if shown else []), ""]
    piped = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert piped.stdout.splitlines() == ["done", json.dumps({"a": length * "x"})]


def test_a_terminal_sees_what_a_command_is_at_and_for_how_long():
    """The line goes before anything else is printed, words, errors and all."""
    code = """if True:
        import time
        from jaxvision import cli
        from jaxvision.errors import UserError
        def command(argv):
            arguments, _ = cli.Parser("x", "", []).parse(argv)
            cli.ticker.start(arguments, "compiling" + 99 * "g")
            time.sleep(1.2)
            cli.printer(arguments)("words")
            time.sleep(1.2)
            raise UserError("no data")
        cli.main(command)
    """
    out, status = on_terminal(code)
    assert status == 2
    *ticks, last = out.split("\r\x1b[K")
    assert last == "error: no data\r\n"
    times = [tick.partition(" ")[0] for tick in ticks if "compilingg" in tick]
    assert len(times) >= 2
    assert times == sorted(times)
    assert all(re.fullmatch(r"0:\d\d", t) for t in times)
    assert [tick for tick in ticks if "compilingg" not in tick] == ["", "words\r\n"]
    assert max(map(len, ticks)) < 80  # a line that wraps could not be taken away
    asked, _ = on_terminal(code, "--json")
    assert asked == "error: no data\r\n"


def test_the_first_line_comes_before_jax_is_imported(tmp_path):
    """Where standard error is no terminal; of several processes from the first alone."""
    (tmp_path / "jax.py").write_text("raise SystemExit('jax is imported')\n")
    words = [sys.executable, "-m", "jaxvision.train", "--config", "configs/digits.py"]
    for number, said in (("0", True), ("1", False)):
        path = f"{tmp_path}{os.pathsep}{ROOT}"
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT,
                              env={**os.environ, "PYTHONPATH": path, "SLURM_PROCID": number})  # fmt: skip
        assert "jax is imported" in done.stderr
        assert done.stdout.startswith("importing JAX, opening data, compiling: about a minute") == said
        assert len(done.stdout.splitlines()) == said


@pytest.mark.parametrize(
    ("given", "version", "machine", "want"),
    [
        ("", "0.10.2", "x86_64", "--xla_cpu_experimental_ynn_fusion_type="),
        ("--a=1", "0.10.2", "x86_64", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("--xla_cpu_experimental_ynn_fusion_type=X", "0.10.2", "x86_64", "--xla_cpu_experimental_ynn_fusion_type=X"),
        ("--a=1", "0.13.0.1", "x86_64", "--a=1"),  # an XLA that may not know the flag would abort
        ("", "0.10.2", "aarch64", ""),
    ],
)
def test_xla_is_asked_to_go_without_ynnpack_where_that_was_tried(monkeypatch, given, version, machine, want):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", "linux")
    cli.without_ynnpack()
    assert os.environ["XLA_FLAGS"] == want


def test_what_was_compiled_is_kept_for_the_next_start(command, tmp_path):
    """Where nothing says otherwise, in the user's cache; JAX reads the folder when it is imported, so new processes.
    With another rate, decay, momentum, seed and length, too: they are arguments of the programs."""
    (tmp_path / "tiny.py").write_text(
        "from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\nconfig.steps, config.evals = 2, dict()\n"
    )
    said, counts = [], []
    other = ["--config.optim.lr=0.02", "--config.optim.momentum=0.8", "--config.seed=3", "--config.steps=3"]
    for name, more in (("cold", []), ("warm", other)):
        done = command(
            "jaxvision.train", "--config", tmp_path / "tiny.py", "--workdir", tmp_path / name, *more, process=True,
            XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_COMPILATION_CACHE_DIR=None,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(next(line for line in done.stdout.splitlines() if line.startswith("first step after ")))
        counts.append(json.loads((tmp_path / name / "summary.json").read_text())["programs"])
    (machine,) = (tmp_path / "cache" / "jaxvision" / "compiled").iterdir()
    assert any(file.name.startswith("jit_step") for file in machine.iterdir())
    assert counts[0]["kept"] == 0
    assert counts[1]["kept"] == counts[1]["asked"] == counts[0]["asked"] > 1
    told = re.search(r"(\d+) of (\d+) programs were compiled before", said[1])  # the copy that saves make comes later
    assert 1 < int(told[1]) == int(told[2]) < counts[1]["asked"]


def test_products_by_a_constant_matrix_of_equal_values_are_right():
    """YNNPACK with XLA's `..._DOT` gives x[:, 0] here; these tests go without it, as the commands."""
    import jax
    import numpy as np

    x = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    got = jax.jit(lambda x: x @ np.ones((20, 2), np.float32))(x)
    np.testing.assert_allclose(got[:, 0], x.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--from", ""], "--from is empty: give it a value"),
        (["--from="], "--from is empty: give it a value"),
        (["--from", "x", ""], "an argument is empty"),
        (["--from", "x", "--wait", "-1"], "--wait is -1.0: it is a number of seconds"),
        (["--from", "x", "--wait=nan"], "--wait is nan"),
        (["--from", "x", "--top", "0"], "--top is 0: it must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense(argv, words):
    parser = cli.Parser("jaxvision.none", "", [])
    parser.add_from()
    parser.add_wait()
    parser.add_argument("--top", type=int)
    parser.add_argument("files", nargs="*")
    with pytest.raises(UserError, match=words):
        parser.need_positive(parser.parse(argv)[0], "top")


def test_the_name_of_a_file_may_end_in_an_equals_sign():
    parser = cli.Parser("jaxvision.none", "", [])
    parser.add_argument("files", nargs="*")
    assert parser.parse(["aGk=", "a=b="])[0].files == ["aGk=", "a=b="]


def test_a_key_of_the_config_may_be_empty():
    parser = cli.Parser("jaxvision.none", "", [])
    assert parser.parse(["--config.init="], prefix="config")[1] == {"init": ""}
    assert parser.parse(["--config.init", ""], prefix="config")[1] == {"init": ""}


def test_errors_of_the_system_name_the_file_first():
    assert cli._words(FileExistsError(17, "File exists", "a.csv")) == "a.csv: File exists"
    assert cli._words(UserError("what it says")) == "what it says"
