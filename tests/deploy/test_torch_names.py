"""A training's weights, written with the names of another library: read back here byte for byte."""

import json

import jax
import numpy as np
import pytest
import safetensors
from etils import epath
from flax import traverse_util

import jaxvision.config
from jaxvision import models
from jaxvision.config import to_json
from jaxvision.data import reader
from jaxvision.data.contract import InputContract
from jaxvision.deploy import torch_names
from jaxvision.training import build
from jaxvision.weights import checkpoint, published, torch
from tests.weights.test_published import run

CLASSES = ("class 0", "class 1", "class 2")  # of fake:16x32?classes=3


def workdir_of(folder, name="vit_tiny_patch16_224", size=32, wrap=(), channels=3, task="classification",
               classes=CLASSES, data=(), **options):  # fmt: skip
    """(workdir, the leaves that are to be exported): as a training leaves it, of random numbers, without compiling."""
    config = jaxvision.config.default()
    config.model = dict(name=name, **options)
    config.data.update(train="fake:16x32?classes=3", size=size, resize=size + 5, channels=channels)
    config.data.update(mean=(0.25,) * channels, std=(0.5,) * channels)
    config.data.update(dict(data))
    config.wrap, config.task.name = wrap, task
    config.evals = dict(val=dict(metric="topk", data="fake:16x32?classes=3", every_epochs=1.0))
    config.steps = 1
    config = build.resolve(config)
    params, extra = build.abstract_init(build.task(config, len(classes)), config)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        value = rng.normal(0, 0.05, leaf.shape).astype(np.float32)
        return np.abs(value) + 1 if str(path[-1].key) == "var" else value

    state = jax.tree_util.tree_map_with_path(random, {"params": params, "extra": extra})
    workdir = epath.Path(folder)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config))
    writer = checkpoint.Writer(workdir / "checkpoints", keep=2)
    about = {"contract": reader.contract(config).to_dict(), "classes": list(classes), "task": task, "versions": {}}
    writer.save(7, state, about)
    writer.close()
    trained = state["extra"]["ema"] if "ema" in state["extra"] else {**state, "model": state["extra"]["model"]}
    leaves = {"params": trained["params"]["model"], **trained["model"]}
    return workdir, traverse_util.flatten_dict(leaves, sep="/")


def certificate_digest(out):
    return json.loads(out.with_name(out.name + ".json").read_text())["sha256"]


def exported(workdir, out, *more):
    return run("export", "--from", str(workdir), "--out", str(out), "--images", "8", *more)


@pytest.mark.parametrize(
    ("name", "options", "names"),
    [
        ("vit_tiny_patch16_224", dict(wrap=(("ema", dict(decay=0.9)),)), "timm"),
        pytest.param(
            *("efficientnet_b0", dict(drop_path=0.1, dropout=0.5, remat=True), "timm"), marks=pytest.mark.slow
        ),
        pytest.param("mobilenet_v2", dict(wrap=(("ema", dict(decay=0.9)),)), "torchvision", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", dict(layer_scale=1e-5), "timm", marks=pytest.mark.slow),
        pytest.param("swin_t", dict(size=224), "timm", marks=pytest.mark.slow),
    ],
)
def test_the_file_holds_the_leaves_and_comes_back(tmp_path, capsys, name, options, names):
    workdir, leaves = workdir_of(tmp_path / "run", name, **options)
    out = tmp_path / "out" / "model.safetensors"
    assert exported(workdir, out, *(() if names == "timm" else ("--names", names))) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    origin = models.origins(name)[names]
    state = published.read(out)
    model = getattr(models, name)(classes=3)
    want = torch.to_state_dict(leaves, origin, model)
    assert state.keys() == want.keys()
    assert all(state[k].tobytes() == want[k].tobytes() and state[k].dtype == want[k].dtype for k in want)
    assert result["tensors"] == len(leaves)
    assert result["tensors"] + result["regenerated"] == len(state)
    assert result["bytes"] == out.stat().st_size
    assert f"{len(leaves):>4} tensors  {sum(leaf.size for leaf in leaves.values()):>13,} values" in said
    with safetensors.safe_open(out, "numpy") as file:
        header = file.metadata()
    assert header["jaxvision"] == jaxvision.__version__
    assert json.loads(header["classes"]) == list(CLASSES)
    assert header["step"] == "7"
    assert header["source_sha256"] == result["source_sha256"]
    assert sorted(p.name for p in out.parent.iterdir()) == sorted(
        ["README.md", "model.safetensors", "model.safetensors.json"] + ["config.json"] * (names == "timm")
    )
    card = (out.parent / "README.md").read_text()
    assert f"library_name: {names}\n" in card
    assert certificate_digest(out) in card
    certificate = json.loads((out.parent / "model.safetensors.json").read_text())
    assert certificate["from_crops"]["agreement"] == 1
    assert certificate["from_crops"]["largest_difference"] < 1e-5
    assert certificate["classes"] == list(CLASSES)
    back = published.find(f"{names}:{origin.names[name]}={out}")
    size = options.get("size", 32)
    assert back.contract == InputContract(size=size, resize=size + 5, mean=(0.25,) * 3, std=(0.5,) * 3)
    assert back.classes == CLASSES
    got = torch.from_state_dict(state, leaves, origin, model).leaves
    assert all(got[n].tobytes() == leaves[n].tobytes() for n in leaves)


def test_what_timm_is_told(tmp_path):
    """The fields that timm reads. 37 px of 32: the share must give 37 again when it is divided and floored."""
    workdir, _ = workdir_of(tmp_path / "run", channels=1)
    assert exported(workdir, tmp_path / "m.safetensors") == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["num_classes"] == 3
    assert config["label_names"] == list(CLASSES)
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["fixed_input_size"], cfg["mean"], cfg["std"]) == ([1, 32, 32], True, [0.25], [0.5])
    assert (cfg["first_conv"], cfg["classifier"]) == ("patch_embed.proj", "head")
    assert int(32 / cfg["crop_pct"]) == 37
    assert InputContract(**published.timm_contract(cfg)) == InputContract(32, 37, channels=1, mean=(0.25,), std=(0.5,))


def test_crop_shares_come_back():
    for resize in range(1, 600):
        for size in range(max(1, resize - 80), resize + 1):
            assert int(size / torch_names.crop_share(size, resize)) == resize


@pytest.mark.slow  # its quick sibling is in test_published.py
def test_evaluate_and_predict_on_the_file(tmp_path, capsys):
    """As on the workdir: the same numbers, the same class names, the same digest of sample ids."""
    from PIL import Image

    workdir, _ = workdir_of(tmp_path / "run", wrap=(("ema", dict(decay=0.9)),))
    out = tmp_path / "model.safetensors"
    assert exported(workdir, out) == 0
    source = f"timm:vit_tiny_patch16_224={out}"
    Image.new("RGB", (40, 36), "red").save(tmp_path / "red.png")
    answers = []
    for start in (str(workdir), source):
        capsys.readouterr()
        data = ("--data", "fake:16x40?classes=3", "--batch-size", "16", "--out", str(tmp_path / "eval"))
        assert run("evaluate", "--from", start, "--json", *data) == 0
        assert run("predict", "--from", start, "--json", "--top", "3", str(tmp_path / "red.png")) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    ours, theirs = answers
    assert list(ours[0]["evals"].values()) == list(theirs[0]["evals"].values())
    assert ours[1]["predictions"] == theirs[1]["predictions"]
    assert theirs[1]["predictions"][0]["predictions"][0]["class"] in CLASSES
    assert run("evaluate", "--from", source, "--data", "fake:16x40?classes=4") == 2
    assert "are not those of the training data" in capsys.readouterr().err


def test_google_weights_become_timms(tmp_path, capsys):
    """Of a .npz file: no class names, no step, the digest of the file."""
    import hashlib

    from jaxvision.weights import npz

    _, leaves = workdir_of(tmp_path / "run")
    model = models.vit_tiny_patch16_224(classes=3)
    np.savez(tmp_path / "weights.npz", **npz.to_npz(leaves, model, "vit"))
    out = tmp_path / "out" / "vit.safetensors"
    assert exported(f"augreg:vit_tiny_patch16_224={tmp_path / 'weights.npz'}", out) == 0
    said = capsys.readouterr().out
    assert f'timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, checkpoint_path="{out}")' in said
    result = json.loads(said.splitlines()[-1])
    assert result["source_sha256"] == hashlib.sha256((tmp_path / "weights.npz").read_bytes()).hexdigest()
    want = torch.to_state_dict(leaves, models.origins("vit_tiny_patch16_224")["timm"], model)
    got = published.read(out)
    assert got.keys() == want.keys()
    assert all(got[k].tobytes() == want[k].tobytes() for k in want)
    assert "label_names" not in json.loads((out.parent / "config.json").read_text())
    assert published.find(f"timm:vit_tiny_patch16_224={out}").classes == ()


@pytest.mark.parametrize(
    ("name", "options", "more", "wanted"),
    [
        ("resnet18", dict(stem="small"), (), "resnet18 with stem = 'small', which timm's resnet18 has not"),
        ("resnet18", dict(width=16, depths=(1, 1)), (), r"depths = \(1, 1\)"),
        pytest.param("vit_tiny_patch16_224", dict(heads=6), (), "heads = 6", marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", dict(layer_scale=0.1), (), r"layer_scale = 0.1 \(.*scale_1 differs\)"),
        pytest.param("vit_tiny_patch16_224", dict(pooling="mean"), (), "pooling = 'mean'", marks=pytest.mark.slow),
        ("efficientnet_b0", dict(channels=1), ("--names", "torchvision"), "with 1 channel"),
        ("vit_tiny_patch16_224", {}, ("--names", "torchvision"), "torchvision has no vit_tiny_patch16_224"),
    ],
)
def test_networks_that_the_library_has_not(tmp_path, capsys, name, options, more, wanted):
    workdir, _ = workdir_of(tmp_path / "run", name, **options)
    assert exported(workdir, tmp_path / "m.safetensors", *more) == 2
    error = capsys.readouterr().err
    import re

    assert re.search(wanted, error), error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--format", "onnx", "--out", "x"), "must be a path on this machine that ends in .onnx"),
        (("--out", "x.pb"), "ends in none of .stablehlo, .onnx, .tflite, .safetensors"),
        (("--out", "x.onnx", "--names", "timm"), "--names goes with --format safetensors, this is onnx"),
        (("--out", "x.safetensors", "--pixels", "crops"), "--pixels goes with --format stablehlo or onnx"),
        (("--out", "x.stablehlo", "--int8", "digits:train"), "--int8 goes with --format onnx"),
        (("--out", "x.onnx", "--pixels", "crop"), "did you mean 'crops'?"),
        (("--out", "x.onnx", "--images", "0"), "--images is 0: it must be at least 1"),
        (("--out", "x.onnx", "--agreement", "99"), "--agreement is 99.0: it is a share"),
        (("--verify", "x.onnx"), "leave out --from"),
        ((), "missing: --out: --from says what to export"),
        (("--format", "safetensor", "--out", "x"), "did you mean 'safetensors'?"),
        (("--format", "safetensors", "--out", "x.pth"), "must be a path on this machine that ends in .safetensors"),
        (("--format", "safetensors", "--out", "x.safetensors", "--names", "tim"), "did you mean 'timm'?"),
        (("--format", "safetensors", "--out", "{there}"), "is there already"),
        (("--format", "safetensors", "--out", "{beside}"), "config.json is there already"),
        (("--format", "safetensors", "--out", "new.safetensors"), "'no/such/run' does not exist"),
    ],
)
def test_flags_are_checked_before_anything_slow(tmp_path, capsys, arguments, wanted):
    (tmp_path / "there.safetensors").write_bytes(b"x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    places = dict(there=tmp_path / "there.safetensors", beside=tmp_path / "a" / "m.safetensors")
    assert run("export", "--from", "no/such/run", *(a.format(**places) for a in arguments)) == 2
    assert wanted in capsys.readouterr().err
    assert (tmp_path / "there.safetensors").read_bytes() == b"x"


def test_a_disk_that_refuses_leaves_nothing(tmp_path, capsys, monkeypatch):
    import safetensors.numpy

    workdir, _ = workdir_of(tmp_path / "run")

    def full(state, path, header):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    assert exported(workdir, tmp_path / "out" / "m.safetensors") == 2
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert "No space left on device" in error
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    workdir, leaves = workdir_of(tmp_path / "run")
    path = tmp_path / "broken.safetensors"
    origin = models.origins("vit_tiny_patch16_224")["timm"]
    leaves["params/ln/scale"][3] = np.nan
    import safetensors.numpy

    safetensors.numpy.save_file(torch.to_state_dict(leaves, origin, None), path)
    assert exported(f"timm:vit_tiny_patch16_224.augreg_in21k={path}", tmp_path / "m.safetensors") == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()
    assert workdir.exists()


def test_a_header_of_ours_that_is_broken_is_said(tmp_path):
    import safetensors.numpy

    from jaxvision.errors import UserError

    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(
        {"a": np.zeros(1, np.float32)}, path, {"jaxvision": "0", "contract": "{", "classes": ""}
    )
    with pytest.raises(UserError, match=r"its header is of jaxvision\.export, but broken"):
        published.find(f"timm:resnet18.a1_in1k={path}")
