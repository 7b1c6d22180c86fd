"""Workdirs with one damaged file: nothing ends in a traceback, and no figure is another than before.

Each file of a workdir x each damage x what reads workdirs. A command either gives the figures of the undamaged workdir
or ends with exit code 2 and one paragraph that says which file it is.
"""

import hashlib
import json
import pathlib
import random
import re
import shutil

import jax
import pytest
from etils import epath
from PIL import Image

from jaxvision.data.sources import open_source
from jaxvision.weights import checkpoint
from tests.conftest import ROOT
from tests.report.test_page import read

CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.steps = 8
config.model.width = 4
config.optim.update(schedule="constant", warmup_share=0.0)
config.evals.test.every_steps = 4
config.checkpoint.update(every_steps=4, keep=3)
config.log.every_steps = 2
"""
CHECKPOINT = ("checkpoints/8/about.json", "checkpoints/8/digests.json", "checkpoints/8/state/_METADATA")
FILES = (
    "config.json", "summary.json", "metrics.jsonl", "eval/test.json", "eval/test.npz", "load_plan.json", "sharding.txt",
    "checkpoints/scores.json", *CHECKPOINT,
)  # fmt: skip


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit of one byte."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def digit(content: bytes, rng: random.Random) -> bytes:
    """One digit is another, so that JSON stays JSON; a bit where there is none."""
    places = [k for k, byte in enumerate(content) if chr(byte) in "0123456789"]
    if not places:
        return flip(content, rng)
    at = rng.choice(places)
    return content[:at] + str((int(chr(content[at])) + rng.randint(1, 9)) % 10).encode() + content[at + 1 :]


DAMAGES = {
    "empty": lambda content, rng, other: b"",
    "cut": lambda content, rng, other: content[: len(content) // 2],
    "a bit": lambda content, rng, other: flip(content, rng),
    "another bit": lambda content, rng, other: flip(content, rng),
    "a digit": lambda content, rng, other: digit(content, rng),
    "another digit": lambda content, rng, other: digit(content, rng),
    "of another run": lambda content, rng, other: other,
    "missing": lambda content, rng, other: None,
    "[]": lambda content, rng, other: b"[]",
    "null": lambda content, rng, other: b"null",
    "{}": lambda content, rng, other: b"{}",
}
# What each command reads; of the rest one damage is enough.
READS = {
    "resume": FILES,
    "report": (*FILES[:5], *CHECKPOINT),
    "evaluate": ("config.json", *CHECKPOINT),
    "best": ("config.json", "checkpoints/scores.json", *CHECKPOINT),
    "predict": ("config.json", *CHECKPOINT),
    "export": ("config.json", *CHECKPOINT),
}


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """`run` and `other`, which differ by their seed, both begun from `first`; images to predict."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.py").write_text(CONFIG)
    for name, more in (
        ("first", ["--config.steps=2"]),
        ("run", [f"--config.init={folder}/first"]),
        ("other", [f"--config.init={folder}/first", "--config.seed=1"]),
    ):
        train(command, folder, folder / name, *more)
    (folder / "images").mkdir()
    source = open_source("digits:test")
    for i in range(3):
        Image.fromarray(source[i]["image"]).save(folder / "images" / f"{i}.png")
    return folder


def train(command, folder, workdir, *more):
    done = command("jaxvision.train", "--config", folder / "config.py", "--workdir", workdir, *more, devices=2,
                   PYTHONPATH=str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def run(command, folder, workdir, what, out):
    """What a command gives: the completed process, and if it succeeded the figures, as JSON has them."""
    words = {
        "resume": ["train", "--config", folder / "config.py", "--workdir", workdir, f"--config.init={folder}/first",
                   "--config.steps=12"],
        "report": ["report", workdir, "--out", out / "report.html"],
        "evaluate": ["evaluate", "--from", workdir, "--out", out, "--json"],
        "best": ["evaluate", "--from", workdir, "--checkpoint", "best", "--out", out, "--json"],
        "predict": ["predict", "--from", workdir, "--json", folder / "images"],
        "export": ["export", "--from", workdir, "--images", "2", "--out", out / "a.onnx", "--json"],
    }[what]  # fmt: skip
    devices = 2 if what == "resume" else 1
    done = command(f"jaxvision.{words[0]}", *words[1:], devices=devices, PYTHONPATH=str(ROOT))
    if done.returncode:
        return done, None
    last = json.loads(done.stdout.splitlines()[-1])
    if what == "resume":
        params = checkpoint.read(epath.Path(workdir) / "checkpoints" / "12", ("params",))
        digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(params))).hexdigest()
        certificate = json.loads((workdir / "eval" / "test.json").read_text())
        return done, [last["step"], last["evals"], certificate["metrics"], digest]
    if what == "report":
        said = read(out / "report.html").said
        shown = re.findall(r"test (loss|top1|top5) (\S+) (\S+)", said)
        return done, {(key, kind, value) for key, *values in shown for kind, value in zip(("last", "best"), values)}
    if what in ("evaluate", "best"):
        return done, [last["step"], last["evals"]]
    if what == "predict":
        return done, [(pathlib.Path(p["image"]).name, p["predictions"]) for p in last["predictions"]]
    certificate = json.loads((out / "a.onnx.json").read_text())
    return done, [certificate[key] for key in ("step", "classes", "contract", "source_sha256", "probes")]


@pytest.fixture(scope="module")
def undamaged(command, folder, tmp_path_factory):
    """What a command gives of the workdir as it was, or without its last checkpoint; each is run once."""
    known = {}

    def get(what, without=False):
        key = what, without
        if key not in known:
            out = tmp_path_factory.mktemp("undamaged")
            shutil.copytree(folder / "run", out / "w")
            if without:
                shutil.rmtree(out / "w" / "checkpoints" / "8")
            done, known[key] = run(command, folder, out / "w", what, out)
            assert done.returncode == 0, done.stderr
            assert known[key]
        return known[key]

    return get


def check(command, folder, undamaged, tmp_path, file, damage, whats):
    """The same copy for all commands; `resume`, which writes to it, comes last. How many refused."""
    name = f"{file.replace('/', '-')} {damage}"
    out = tmp_path / name
    shutil.copytree(folder / "run", out / "w")
    path, rng = out / "w" / file, random.Random(name)
    content = DAMAGES[damage](path.read_bytes(), rng, (folder / "other" / file).read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    refused = 0
    for what in whats:
        undamaged(what)  # succeeds
    for what in sorted(whats, key=lambda what: what == "resume"):
        done, found = run(command, folder, out / "w", what, out)
        where = (what, name, done.stdout[-600:], done.stderr)
        assert done.returncode in (0, 2), where
        assert "Traceback" not in done.stderr, where
        if done.returncode == 2:
            refused += 1
            assert done.stderr.startswith("error: "), where
            assert len(done.stderr) < 1200, where
            assert str(out / "w") in done.stderr, where  # the file, or the checkpoint that it belongs to
        elif what == "report":
            want = undamaged(what)
            assert found <= want | {(key, kind, "-") for key, kind, _ in want}, where
        else:
            # without digests.json it is what a kill leaves of a save: the checkpoint before it is used
            assert found == undamaged(what, file.endswith("digests.json") and damage == "missing"), where
    shutil.rmtree(out)
    return refused


@pytest.mark.parametrize(
    ("file", "damage", "whats"),
    [
        ("config.json", "cut", ["predict"]),
        ("config.json", "missing", ["resume"]),
        ("summary.json", "empty", ["report", "resume"]),
        ("summary.json", "of another run", ["report"]),
        ("summary.json", "[]", ["resume"]),
        ("metrics.jsonl", "a digit", ["report", "resume"]),
        ("metrics.jsonl", "null", ["report"]),
        ("eval/test.json", "a digit", ["report"]),
        ("eval/test.json", "of another run", ["report"]),
        ("eval/test.npz", "empty", ["report"]),
        ("eval/test.npz", "a bit", ["report"]),
        ("checkpoints/scores.json", "a digit", ["best"]),
        ("checkpoints/scores.json", "missing", ["best"]),
        ("checkpoints/scores.json", "{}", ["report"]),
        ("checkpoints/8/digests.json", "null", ["predict"]),
        ("checkpoints/8/about.json", "of another run", ["report"]),
    ],
)
def test_a_damaged_file_is_named_or_made_anew(command, folder, undamaged, tmp_path, file, damage, whats):
    check(command, folder, undamaged, tmp_path, file, damage, whats)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file(command, folder, undamaged, tmp_path, file):
    refused = 0
    for damage in DAMAGES:
        whats = [what for what, files in READS.items() if file in files or damage == "empty"]
        refused += check(command, folder, undamaged, tmp_path, file, damage, whats)
    print(f"\n{file}: {len(DAMAGES)} damaged workdirs, {refused} refusals")


@pytest.mark.parametrize(
    "words", [["evaluate"], ["predict", "{images}"], ["export", "--images", "2", "--out", "{out}"]]
)
def test_a_checkpoint_that_is_not_used_is_said(command, folder, tmp_path, words):
    workdir = tmp_path / "w"
    shutil.copytree(folder / "run", workdir)
    (workdir / "checkpoints" / "8" / "digests.json").unlink()
    words = [word.format(images=folder / "images", out=tmp_path / "a.onnx") for word in words]
    done = command(f"jaxvision.{words[0]}", "--from", workdir, *words[1:], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    said = f"warning: checkpoint {workdir}/checkpoints/8 is not used, half-written: it has no digests.json"
    assert done.stdout.count(said) == 1, done.stdout


def test_what_is_made_anew_is_said(command, folder, tmp_path):
    """And only where something was lost."""
    workdir = tmp_path / "w"
    shutil.copytree(folder / "run", workdir)
    (workdir / "config.json").write_text("{")
    (workdir / "summary.json").write_text("[]")
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join([*lines[:1], b'{"step": "x"}\n', *lines[2:3], lines[3][:10]]))
    (workdir / "checkpoints" / "scores.json").write_text('{"scores": 3}')
    more = ["--config.init=" + str(folder / "first"), "--config.steps=12"]
    done = train(command, folder, workdir, *more)
    for words in (
        f"warning: {workdir}/config.json is damaged (",
        f"warning: {workdir}/summary.json is damaged (its content is [] instead of a dict)",
        f"warning: 1 of 4 lines of {workdir}/metrics.jsonl are damaged or of another run",
        "warning: metrics.jsonl has no lines of training between step ",
    ):
        assert done.stdout.count(words) == 1, done.stdout
    sessions = json.loads((workdir / "summary.json").read_text())["sessions"]
    assert [session["last"] for session in sessions][-1] == 12
    assert len(sessions) == 2
    scores = json.loads((workdir / "checkpoints" / "scores.json").read_text())["scores"]
    assert "12" in scores
    again = train(command, folder, workdir, *more)
    assert "warning" not in again.stdout, again.stdout
