"""FROM: what a checkpoint says of itself is held against the workdir that it lies in."""

import json
import shutil

import pytest
from etils import epath

from jaxvision import config as config_lib
from jaxvision.config import as_config
from jaxvision.data import reader
from jaxvision.deploy import inference
from jaxvision.errors import UserError
from jaxvision.runtime import paths
from jaxvision.training import evals, loop, restore, transfer
from jaxvision.weights import checkpoint
from tests.tiny import make_tiny_config
from tests.weights.test_published import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        config = make_tiny_config()
        config.steps, config.seed, config.evals = 1, seed, {}
        loop.fit(config, folder / str(seed), say=lambda text: None)
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained / "0", tmp_path / "run")
    return tmp_path / "run"


def edit(workdir, key, value):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    path.write_text(json.dumps(config))


def forget(workdir, *keys):
    """As an earlier version wrote it: without these keys of about.json."""
    path = workdir / "checkpoints" / "1"
    about = json.loads((path / "about.json").read_text())
    (path / "about.json").write_text(json.dumps({k: v for k, v in about.items() if k not in keys}))
    digests = json.loads((path / "digests.json").read_text())
    digests["about.json"] = paths.digest(epath.Path(path / "about.json"))
    (path / "digests.json").write_text(json.dumps(digests))


READERS = {
    "evaluate, export": restore.load,
    "predict": inference.load,
    "transfer": lambda name: transfer.recipe(
        restore.find(name),
        type("Arguments", (), {"source": name, "batch_size": 8, "steps": 1, "overrides": {}})(),
        transfer.DataSet("digits", "digits:train", "digits:test"),
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["", "saved without its config"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_edited_contract_is_refused(workdir, read, old):
    if old:
        forget(workdir, "config")
    read(str(workdir))
    edit(workdir, "data.mean", [0.1, 0.2, 0.3])
    with pytest.raises(UserError) as caught:
        read(str(workdir))
    said = str(caught.value)
    assert "data.mean: (0.485, 0.456, 0.406) -> (0.1, 0.2, 0.3)" in said
    assert str(workdir / "config.json") in said
    assert str(workdir / "checkpoints" / "1") in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("data.filter", "bicubic", "data.filter: 'bilinear' -> 'bicubic'"),
        ("data.resize", 9, "data.resize: 8 -> 9"),
        ("task.name", "binary", "task.name: 'classification' -> 'binary'"),
        ("task.label_smoothing", 0.1, "task.label_smoothing: '(absent)' -> 0.1"),
        ("model.stem", "imagenet", "model.stem: 'small' -> 'imagenet'"),
        ("wrap", [["ema", {"decay": 0.9}]], "wrap: () -> (('ema', {'decay': 0.9}),)"),
        ("optim.lr", 0.3, "optim.lr: 0.05 -> 0.3"),
    ],
)
def test_every_key_that_makes_another_run_is_refused(workdir, key, value, line):
    edit(workdir, key, value)
    with pytest.raises(UserError, match="is not the config that") as caught:
        restore.load(str(workdir))
    assert line in str(caught.value)


def test_a_checkpoint_of_another_run_is_refused(trained, workdir):
    shutil.rmtree(workdir / "checkpoints")
    shutil.copytree(trained / "1" / "checkpoints", workdir / "checkpoints")
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        restore.load(str(workdir))


def test_what_may_change_and_what_is_newer_is_no_other_run(workdir):
    edit(workdir, "evals", {"test": {"metric": "topk", "data": "digits:test"}})
    edit(workdir, "data.threads", 3)
    edit(workdir, "data.train", "digits:train?moved")
    config = json.loads((workdir / "config.json").read_text())
    del config["accumulate"], config["optim"]["layer_decay"]  # as a version wrote it that did not know them
    (workdir / "config.json").write_text(json.dumps(config))
    assert restore.load(str(workdir)).step == 1


def test_the_classes_of_the_data_are_held_against_the_checkpoint(workdir):
    config = config_lib.from_json((workdir / "config.json").read_text())
    about = checkpoint.about(epath.Path(workdir / "checkpoints" / "1"))
    names = tuple(about["classes"])
    assert restore.checkpoint_mismatch(about, config, names) == []
    (line,) = restore.checkpoint_mismatch(about, config, names[::-1])
    assert line.startswith(
        "classes: the same names in another order, class 0 is '0' in the checkpoint and '9' in the data"
    )
    assert restore.checkpoint_mismatch(about, config, ("ant", *names[1:])) == [
        "classes: only in the checkpoint: ['0']; only in the data: ['ant']"
    ]
    assert (
        reader.contract(as_config(about["config"])).to_dict()
        == restore.InputContract.from_dict(about["contract"]).to_dict()
    )


FROM = [  # what is named, what it is, what is said
    ("r18.pth", b"PK", "r18.pth is a pickle, .*; then say whose weights they are: timm:NAME=.*r18.safetensors"),
    ("r18.safetensors", b"", r"is a file of weights, .* write timm:NAME=.*r18.safetensors or torchvision:NAME="),
    ("b16.npz", b"", r"is a file of weights, .* write augreg:NAME=.*b16.npz"),
    ("a.csv", b"", "is a file, and none of weights: name a workdir"),
    ("a.onnx", b"", "is an exported file, which predict, export --verify and jaxvision.load take"),
    ("empty/", None, "no checkpoints in .*empty: it is no workdir of jaxvision.train"),
    ("absent", None, "absent' does not exist: name a workdir"),
    ("run/config.json", None, "config.json' is a file in a workdir: name the workdir, .*run$"),
    ("run/checkpoints/1/about.json", None, "about.json' is a file"),
    ("run/checkpoints", None, "no checkpoints in .*run/checkpoints: .*; name .*run$"),
]


@pytest.mark.parametrize(("name", "content", "words"), FROM)
def test_what_else_a_from_names_is_told(workdir, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name.endswith("/"):
        path.mkdir()
    with pytest.raises(UserError, match=words):
        restore.find(str(path))
    if not name.endswith((".onnx", ".safetensors")):  # which predict takes, with a certificate
        with pytest.raises(UserError, match=words):
            inference.load(path)


def test_nothing_is_no_from():
    for name in ("", " "):
        with pytest.raises(UserError, match="names nothing to start from: name a workdir"):
            inference.load(name)


PLACES = [  # what a command is told to write to, and what it says before it works
    (["evaluate", "--from", "{run}", "--out", "{file}"], "{file}/eval cannot be written"),
    (["predict", "--from", "{run}", "--out", "{file}/a.csv", "{file}"], "{file} cannot be written"),
    (["predict", "--from", "{run}", "--out", "{folder}.csv", "{file}"], "{folder}.csv' is a folder: name a file in it"),
    (["export", "--from", "{run}", "--out", "{file}/a.onnx"], "{file} cannot be written"),
    (["train", "--config", "configs/digits.py", "--workdir", "{file}"], "{file} is a file, and no folder"),
    (["train", "--config", "configs/digits.py", "--workdir", "{file}/b"], "{file} is a file, and no folder"),
    (["pack", "--from", "digits:train", "--out", "{file}"], "{file} is a file, and no folder"),
    (["transfer", "--from", "{run}", "--to", "digits:train", "--out", "{file}"], "{file} cannot be written"),
]


@pytest.mark.parametrize(("words", "said"), PLACES, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_places_that_cannot_be_written_are_said_before_the_work(workdir, tmp_path, capsys, monkeypatch, words, said):
    places = {"run": str(workdir), "file": str(tmp_path / "there"), "folder": str(tmp_path / "folder")}
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "folder.csv").mkdir()
    edit(workdir, "evals", {"test": {"metric": "topk", "data": "digits:test"}})
    monkeypatch.setattr(evals, "measure", None)
    command, *arguments = (word.format(**places) for word in words)
    assert run(command, *arguments) == 2
    error = capsys.readouterr().err
    assert said.format(**places) in error
    assert "Errno" not in error
    assert len(error.splitlines()) == 1
