"""Weights in files that others make: whatever is wrong with one is said, and nothing is left unaccounted for."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import jaxvision.cli
import jaxvision.config
from jaxvision import models
from jaxvision.errors import UserError
from jaxvision.training import build, restore
from jaxvision.weights import published, torch

ORIGIN = models.origins("resnet18")["torchvision"]
CLASSES = tuple(f"class {k}" for k in range(7))


def config_of(**model):
    config = jaxvision.config.default()
    config.model = dict(name="resnet18", width=8, depths=(1, 1)) | model
    config.data.update(train="fake:16x32", size=32)
    config.steps = 1
    return config


@pytest.fixture(scope="module")
def state():
    """What a file of such a network with 7 classes holds, all of it random."""
    model = build.model(config_of(), 7)
    variables = jax.eval_shape(
        lambda k: model.init(k, np.zeros((1, 32, 32, 3), np.float32), train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return torch.to_state_dict(
        {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()}, ORIGIN, model
    )


def save(folder, state):
    path = folder / "model.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    return path


def plan(path, config=None, classes=CLASSES):
    config = config or config_of()
    found = restore.find(f"torchvision:resnet18={path}")
    return restore.load_plan(found, build.task(config, len(classes)), config, classes)


def leaves_of(given):
    return traverse_util.flatten_dict(given, sep="/")


def test_everything_goes_where_it_belongs(tmp_path, state):
    made = plan(save(tmp_path, state))
    assert not [*made.resized, *made.reinitialised, *made.dropped]
    given = leaves_of(made.given)
    assert sorted(given) == made.loaded
    np.testing.assert_array_equal(
        given["params/model/layer2_0/conv1/kernel"], state["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(given["extra/model/batch_stats/bn1/mean"], state["bn1.running_mean"])
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(given) + len(counters) == len(state)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_become_float32(tmp_path, state, dtype):
    narrow = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in state.items()}
    given = leaves_of(plan(save(tmp_path, narrow)).given)
    assert {v.dtype for v in given.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(given["params/model/bn1/scale"], narrow["bn1.weight"].astype(np.float32))


def test_bfloat16_is_read(tmp_path):
    """Written by hand, since numpy has no such type: 1.5, -2 and 2^-130, which is a denormal."""
    bits = np.array([0x3FC0, 0xC000, 0x0008], "<u2").tobytes()
    header = json.dumps({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits)
    np.testing.assert_array_equal(published.read(path)["a"], np.array([1.5, -2.0, 2.0**-130], np.float32))


def fault(kind, state, rng):
    """(state with one fault, what the message must name)."""
    state = dict(state)
    parameters = sorted(n for n in state if not n.endswith("num_batches_tracked"))
    name = parameters[rng.integers(len(parameters))]
    if kind == "missing":
        del state[name]
        return state, name
    if kind == "renamed":
        state[f"module.{name}"] = state.pop(name)
        return state, f"module.{name}"
    if kind == "transposed":  # of a leaf where it shows: a square one looks as it did
        shows = [n for n in parameters if state[n].T.shape != state[n].shape]
        name = shows[rng.integers(len(shows))]
        state[name] = state[name].T
        return state, name
    if kind == "extra":
        state[f"{name}_2"] = state[name]
        return state, f"{name}_2"
    if kind == "not finite":
        array = state[name].copy()
        array.flat[rng.integers(array.size)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
        state[name] = array
        return state, name
    if kind == "dtype":
        state[name] = state[name].astype([np.int64, np.int32, np.uint8, bool][rng.integers(4)])
        return state, name
    if kind == "cut":
        state[name] = state[name][:-1] if len(state[name]) > 1 else state[name][:0]
        return state, name
    raise ValueError(kind)


KINDS = ["missing", "renamed", "transposed", "extra", "not finite", "dtype", "cut", "truncated", "garbled"]


@pytest.mark.parametrize("kind", KINDS)
def test_25_faults_of_each_kind_are_named(tmp_path, state, kind):
    """225 cases. Never another exception than UserError, never a silent load."""
    ours = {torch.torch_name(n.replace("params/model", "params").removeprefix("extra/model/"), ORIGIN): n
            for n in plan(save(tmp_path, state)).loaded}  # fmt: skip
    for seed in range(25):
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        if kind in ("truncated", "garbled"):
            path, name = save(tmp_path, state), "model.safetensors"
            data = bytearray(path.read_bytes())
            if kind == "truncated":
                data = data[: rng.integers(len(data))]
            else:
                start = rng.integers(0, 200)
                data[start : start + 8] = rng.bytes(8)
            path.write_bytes(data)
        else:
            broken, name = fault(kind, state, rng)
            path = save(tmp_path, broken)
        with pytest.raises(UserError) as caught:
            plan(path)
        message = str(caught.value)
        assert name in message or ours.get(name, name) in message, (seed, name, message)


def test_the_message_shows_the_line_that_allows_it(tmp_path, state):
    broken = dict(state)
    broken["other.weight"] = broken.pop("layer1.0.conv1.weight")
    path = save(tmp_path, broken)
    with pytest.raises(UserError, match="init_policy") as caught:
        plan(path)
    config = config_of()
    lines = [part.split("config.")[1] for part in str(caught.value).split(" and ") if "init_policy" in part]
    for line in lines:
        exec(f"config.{line}", {"config": config})
    made = plan(path, config)
    assert made.reinitialised == ["params/model/layer1_0/conv1/kernel"]
    assert made.dropped == ["other.weight"]
    config.init_policy.fresh = ("no such leaf",)
    with pytest.raises(UserError, match="matches no leaf"):
        plan(path, config)


def test_ten_classes_and_one_channel(tmp_path, state):
    """The head starts afresh, the first convolution sums its colours; both are in the plan."""
    config = config_of()
    config.data.update(channels=1, mean=(0.5,), std=(0.5,))
    made = plan(save(tmp_path, state), config, tuple("abcdefghij"))
    assert made.reinitialised == ["params/model/fc/bias", "params/model/fc/kernel"]
    assert made.dropped == ["fc.bias", "fc.weight"]
    assert made.resized == ["params/model/conv1/kernel: [7, 7, 3, 8] -> [7, 7, 1, 8], summed over the colours"]
    np.testing.assert_allclose(
        leaves_of(made.given)["params/model/conv1/kernel"][..., 0, :], state["conv1.weight"].sum(1).transpose(1, 2, 0)
    , rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [("mean", (0.5, 0.5, 0.5)), ("std", (0.5, 0.5, 0.5)), ("filter", "bicubic")])
def test_another_contract_is_refused_unless_named(tmp_path, state, key, value):
    config = config_of()
    config.data[key] = value
    path = save(tmp_path, state)
    with pytest.raises(UserError, match=f"config.data.{key} = "):
        plan(path, config)
    config.init_policy.contract = (key,)
    assert plan(path, config).loaded


def test_all_that_differs_from_the_weights_is_said_at_once(tmp_path, state):
    """With the whole line to write: network, options and pixels."""
    config = config_of(name="resnet50", bottleneck=True)
    config.data.update(filter="bicubic", mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=r"init: the weights in .*torchvision resnet18") as caught:
        plan(save(tmp_path, state), config)
    for words in ("want model.name 'resnet18', this config has 'resnet50'; data.mean (0.485",
                  "set config.model.name = 'resnet18', config.data.mean = (0.485, 0.456, 0.406), config.data.filter = "
                  "'bilinear' (flags: --config.model.name=resnet18 '--config.data.mean=(0.485, 0.456, 0.406)' "
                  "--config.data.filter=bilinear); or config.init_policy.contract = ('mean', 'filter')"):  # fmt: skip
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("timm:resnet50", "names no file"),
        ("timm:resnet51.a1_in1k=/x/model.safetensors", "did you mean 'resnet50'"),
        ("torchvision:resnet50=/x/resnet50-0676ba61.pth", "weights_only=True"),
        ("torchvision:resnet50=/x/y/model.safetensors", "no file /x/y/model.safetensors"),
        ("hf:someone/resnet50", "write hf:timm/NAME.TAG"),
        ("runs/none", "does not exist"),
    ],
)
def test_a_source_that_is_none(source, wanted):
    with pytest.raises(UserError, match=wanted):
        restore.find(source)


def test_unknown_tags_are_named(tmp_path, state):
    path = save(tmp_path, state)
    with pytest.raises(UserError, match="did you mean 'a1_in1k'"):
        restore.find(f"timm:resnet18.a1_in1kk={path}")
    with pytest.raises(UserError, match="does not say which weights"):
        restore.find(f"timm:resnet18={path}")


def test_the_contract_beside_the_file_counts(tmp_path, state):
    path = save(tmp_path, state)
    cfg = {
        "input_size": [3, 288, 288],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg}))
    contract = restore.find(f"timm:resnet18.a1_in1k={path}").contract
    assert (contract.size, contract.resize, contract.filter) == (288, 320, "bicubic")
    assert (contract.mean, contract.std) == ((0.5,) * 3, (0.25,) * 3)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        restore.find(f"timm:resnet18.a1_in1k={path}")


SELF_SUPERVISED = [
    ("vit_small_patch16_224", "dino", (0.485, 0.456, 0.406)),
    ("vit_base_patch16_224", "mae", (0.485, 0.456, 0.406)),
    ("vit_large_patch16_224", "orig_in21k", (0.5, 0.5, 0.5)),
    ("convnext_tiny", "dinov3_lvd1689m", (0.485, 0.456, 0.406)),
]


@pytest.mark.parametrize(("name", "tag", "mean"), SELF_SUPERVISED)
def test_weights_without_a_last_layer_have_their_own_mean(tmp_path, state, name, tag, mean):
    path = save(tmp_path, state)
    assert restore.find(f"timm:{name}.{tag}={path}").contract.mean == mean
    if name.startswith("vit"):
        with pytest.raises(UserError, match=rf"their pixels differ: timm:{name}\.TAG=.* TAG one of .*{tag}"):
            restore.find(f"timm:{name}={path}")


def test_crops_that_are_not_known_are_asked_for_where_they_count(tmp_path, state):
    """To start from, mean, std and filter must be known; to measure with, the crop too."""
    path = save(tmp_path, state)
    for source, wanted in (
        (f"torchvision:resnet50={path}", "sizes or crops differ: torchvision:resnet50.TAG=.*IMAGENET1K_V2"),
        (f"timm:convnext_tiny.in12k_ft_in1k_384={path}", "squashed to 384 x 384 pixels"),
    ):
        found = restore.find(source)
        with pytest.raises(UserError, match=wanted):
            raise UserError(found.doubt)
    assert restore.find(f"torchvision:resnet50.IMAGENET1K_V2={path}").doubt == ""
    assert restore.find(f"torchvision:resnet18={path}").doubt == ""
    config = config_of()
    doubted = restore.find(f"torchvision:resnet18={path}")._replace(doubt="the crop is not known")
    assert restore.load_plan(doubted, build.task(config, 7), config, CLASSES).loaded
    with pytest.raises(UserError, match="the crop is not known"):
        restore.load_found(doubted._replace(options=dict(width=8, depths=(1, 1))), "")


def test_a_config_of_other_weights_beside_the_file_is_refused(tmp_path, state):
    path = save(tmp_path, state)
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "tag": "a2_in1k"}
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg, "label_names": ["a", "b"]}))
    with pytest.raises(UserError, match=r"asks for the tag a1_in1k, .*config\.json is of a2_in1k"):
        restore.find(f"timm:resnet18.a1_in1k={path}")
    with pytest.raises(UserError, match=r"asks for the network resnet34, .* is of resnet18"):
        restore.find(f"timm:resnet34={path}")
    assert restore.find(f"timm:resnet18={path}").classes == ("a", "b")
    beside.write_text(json.dumps({"pretrained_cfg": {**cfg, "crop_mode": "squash"}}))
    assert "squashed to 224 x 224" in restore.find(f"timm:resnet18={path}").doubt


def test_imagenets_classes():
    """Known answers, of which many depend: predictions of published weights are read by these names."""
    names, synsets = published.imagenet(1000)
    assert len(set(names)) == len(set(synsets)) == 1000
    assert [names[k] for k in (0, 1, 134, 238, 517, 639, 999)] == [
        "tench", "goldfish", "crane bird", "Greater Swiss Mountain dog", "crane", "maillot tank suit", "toilet tissue"
    ]  # fmt: skip
    assert (synsets[0], synsets[999]) == ("n01440764", "n15075141")
    for count in (11221, 11821, 21841, 21843):
        names, synsets = published.imagenet(count)
        assert len(set(names)) == len(set(synsets)) == count
        assert list(synsets) == sorted(synsets)
    assert published.imagenet(10) == ((), ())


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A file of ResNet-18 for 1,000 classes that answers class 238."""
    model = models.resnet18(classes=1000)
    shapes = jax.eval_shape(
        lambda k: model.init(k, np.zeros((1, 32, 32, 3), np.float32), train=False), jax.random.key(0)
    )
    leaves = {n: np.zeros(leaf.shape, np.float32) for n, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    leaves["params/fc/bias"][238] = 9.0
    folder = tmp_path_factory.mktemp("thousand")
    return f"torchvision:resnet18={save(folder, torch.to_state_dict(leaves, ORIGIN, model))}"


def test_published_weights_name_imagenets_classes(tmp_path, thousand, capsys):
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert run("predict", "--from", thousand, "--json", str(tmp_path / "red.png")) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    assert answer["predictions"][0]["class"] == "Greater Swiss Mountain dog"
    data = ("--data", "fake:16x40?classes=1000", "--batch-size", "16")
    assert run("evaluate", "--from", thousand, *data) == 0
    assert "name ImageNet's classes otherwise: class k is taken to be" in capsys.readouterr().out


def test_data_name_imagenets_classes_in_two_ways(thousand):
    trained, said = restore.load(thousand), []
    names, synsets = published.imagenet(1000)
    assert (trained.classes, trained.synsets, trained.named) == (names, synsets, True)
    for theirs, wanted in ((synsets, synsets), (names, names), (synsets[5:9], synsets), (names[::-1], names)):
        assert trained.classes_of("folder:x", theirs, said.append) == wanted
    assert not said
    other = tuple(f"c{k}" for k in range(1000))
    assert trained.classes_of("folder:x", other, said.append) == other
    assert len(said) == 1
    with pytest.raises(UserError, match=r"folder:x has 10 classes, the weights in .* 1000"):
        trained.classes_of("folder:x", other[:10])
    mine = trained._replace(synsets=())  # weights of a training say their own names
    assert mine.classes_of("folder:x", other) == names


def test_every_variant_has_a_contract_or_none_is_published():
    for library, names in published.table().items():
        assert set(names) == {o.names[n] for n in models.__all__ if (o := models.origins(n).get(library))}
        for name, tags in names.items():
            for fields in tags.values():
                published.contract_of(fields)
            assert name


def test_state_dicts_go_back_byte_equal(state):
    model = build.model(config_of(), 7)
    variables = jax.eval_shape(
        lambda k: model.init(k, np.zeros((1, 32, 32, 3), np.float32), train=False), jax.random.key(0)
    )
    want = traverse_util.flatten_dict(variables, sep="/")
    got = torch.from_state_dict(state, want, ORIGIN, model)
    back = torch.to_state_dict(got.leaves, ORIGIN, model)
    assert back.keys() == state.keys()
    assert all(back[k].tobytes() == state[k].tobytes() and back[k].dtype == state[k].dtype for k in state)
    assert isinstance(model, nn.Module)


def test_training_starts_from_a_file(tmp_path, state, capsys):
    """The command: the plan is printed and kept; a broken file ends it with one paragraph and exit code 2."""
    path = save(tmp_path, state)
    config = tmp_path / "config.py"
    config.write_text(
        "import jaxvision.config\n"
        "config = jaxvision.config.default()\n"
        "config.model = dict(name='resnet18', width=8, depths=(1, 1))\n"
        "config.data.update(train='fake:16x32?classes=4', size=32, resize=32, threads=1)\n"
        f"config.steps, config.batch_size, config.init = 1, 8, 'torchvision:resnet18={path}'\n"
    )
    command = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    assert run("train", *command) == 0
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "load_plan.json").read_text())
    assert "reinitialised   params/model/fc/bias" in said
    assert "shorter side to 256 px (bilinear" in said
    assert kept["reinitialised"] == ["params/model/fc/bias", "params/model/fc/kernel"]
    assert len(kept["loaded"]) + 2 == len([k for k in state if not k.endswith("num_batches_tracked")])
    path.write_bytes(path.read_bytes()[:5000])
    assert run("train", *command[:-1], str(tmp_path / "other")) == 2
    error = capsys.readouterr().err
    assert "model.safetensors is no whole safetensors file" in error
    assert "Traceback" not in error


def test_evaluate_and_predict_take_a_file(tmp_path, capsys):
    from PIL import Image

    model = models.resnet18(classes=3)
    variables = jax.eval_shape(
        lambda k: model.init(k, np.zeros((1, 32, 32, 3), np.float32), train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    leaves = {
        name: np.abs(rng.normal(0, 0.02, leaf.shape)).astype(np.float32)
        for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    path = save(tmp_path, torch.to_state_dict(leaves, ORIGIN, model))
    source = f"torchvision:resnet18={path}"
    few = ("--data", "fake:16x40?classes=3", "--batch-size", "16")
    assert run("evaluate", "--from", source, *few, "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "the weights name no classes" in said
    assert json.loads((tmp_path / "eval" / "data.json").read_text())["count"] == 16
    assert json.loads(said.splitlines()[-1])["evals"]["data"]["count"] == 16
    assert run("evaluate", "--from", source, "--data", "fake:16x40?classes=4") == 2
    assert "has 4 classes, the weights" in capsys.readouterr().err
    assert run("evaluate", "--from", source) == 2
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert run("predict", "--from", source, "--json", str(tmp_path / "red.png")) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"][0]
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"][0])(
        traverse_util.unflatten_dict(leaves, sep="/"),
        (np.array([[[[1.0, 0.0, 0.0]]]]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225) * np.ones((1, 224, 224, 1)),
    )
    assert answer["predictions"][0]["class"] == str(int(np.argmax(logits)))


def run(command, *arguments):
    """The exit code of a command, in this process."""
    return run_module(f"jaxvision.{command}", command, *arguments)


def run_module(module, function, *arguments):
    import importlib

    with pytest.raises(SystemExit) as ended:
        jaxvision.cli.main(getattr(importlib.import_module(module), function), list(arguments))
    return ended.value.code
