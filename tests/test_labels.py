"""Every kind of label, from a table of files through training, evaluation and prediction."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from PIL import Image

from jaxvision.config import to_json
from jaxvision.errors import UserError
from jaxvision.tasks.common import network
from jaxvision.training import build, check, loop, restore
from jaxvision.weights import checkpoint, published
from jaxvision.weights.plan import averaged
from tests.deploy.test_torch_names import exported, workdir_of
from tests.tiny import make_tiny_config
from tests.weights.test_published import run

# task -> (kind of labels, metric)
TASKS = {
    "multilabel": ("tags", "multilabel"),
    "regression": ("values", "regression"),
    "ordinal": ("class", "ordinal"),
    "binary": ("class", "binary"),
}


def brightness(count, seed):
    """Red and green of as many images of one colour each, 0..255."""
    return np.random.default_rng(seed).integers(0, 256, (count, 2))


def label_of(task, red, green):
    """A line's cells: what can be seen of the colour."""
    return {
        "multilabel": ",".join(["red"] * (red > 127) + ["green"] * (green > 127)),
        "regression": f"{1000 + red},{green / 255:.4f}",
        "ordinal": str(red * 3 // 256),
        "binary": "bright" if red > 127 else "a dark one",
    }[task]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder with the images, and (task, split) -> the URI of a table of them."""
    folder = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 96), ("test", 45)):
        for i, (red, green) in enumerate(brightness(count, count).tolist()):
            Image.new("RGB", (8, 8), (red, green, 100)).save(folder / f"{split}{i}.png")
        for task in TASKS:
            colours = brightness(count, count).tolist()
            rows = [f"{split}{i}.png,{label_of(task, *colour)}" for i, colour in enumerate(colours)]
            header = "path,brightness,share" if task == "regression" else "path,label"
            (folder / f"{task}-{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder, lambda task, split: f"csv:{folder}/{task}-{split}.csv?kind={TASKS[task][0]}"


def config_of(task, uri, steps=60):
    config = make_tiny_config()
    config.data.update(train=uri(task, "train"), transforms=())
    config.model.depths = (1,)
    config.task = dict(name=task)
    config.batch_size, config.steps = 32, steps
    config.optim.update(lr=0.01, name="adamw")
    del config.optim["momentum"]
    config.evals = dict(test=dict(metric=TASKS[task][1], data=uri(task, "test"), every_epochs=0, every_steps=steps))
    config.checkpoint.every_steps = 0
    config.log.tensorboard = False
    return config


def quiet(text):
    pass


@pytest.fixture(scope="module")
def trained(tables, tmp_path_factory):
    """task -> workdir, each trained once."""
    done = {}

    def train(task):
        if task not in done:
            done[task] = tmp_path_factory.mktemp("runs") / task
            # the thresholds of ordinal take longer to part than the rank takes to be right
            steps = 150 if task == "ordinal" else 60
            loop.fit(config_of(task, tables[1], steps), done[task], say=quiet)
        return done[task]

    return train


GOOD = {
    "multilabel": dict(map=(0.9, 1), map_micro=(0.9, 1), f1=(0.85, 1), absent_classes=(0, 0)),
    "regression": dict(mae=(0, 20), r2=(0.8, 1)),
    "ordinal": dict(top1=(0.8, 1), mae=(0, 0.2), kappa=(0.85, 1)),
    "binary": dict(auroc=(0.9, 1), ap=(0.9, 1), top1=(0.8, 1)),
}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_train_evaluate_and_predict(tables, trained, task, capsys):
    folder, _ = tables
    workdir = trained(task)
    reached = json.loads((workdir / "summary.json").read_text())["evals"]["test"]
    for name, (low, high) in GOOD[task].items():
        assert low <= reached[name] <= high, (name, reached)
    assert (workdir / "curves.png").exists()

    assert run("evaluate", "--from", str(workdir)) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    again = json.loads(last)["evals"]["test"]
    assert again["count"] == 45
    assert {k: again[k] for k in reached} == pytest.approx(reached, abs=1e-4)
    (line,) = [line for line in lines if line.startswith("test (")]
    assert "/" not in line.partition("): ")[2]  # what is only of one class is in the JSON

    files = [str(folder / f"test{i}.png") for i in range(20)]
    assert run("predict", "--from", str(workdir), *files) == 0
    *lines, _, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["predictions"]
    assert len(lines) == len(found) == 20
    colours = brightness(45, 45)[:20].tolist()
    if task == "regression":
        error = [abs(row["values"]["brightness"] - 1000 - red) for row, (red, _) in zip(found, colours)]
        assert np.mean(error) < 40
        assert set(found[0]["values"]) == {"brightness", "share"}
        assert "share 0." in lines[0]
    elif task == "multilabel":
        want = [set(label_of(task, *colour).split(",")) - {""} for colour in colours]
        got = [{p["class"] for p in row["predictions"]} for row in found]
        assert np.mean([a == b for a, b in zip(got, want)]) > 0.6
        assert all(p["probability"] >= 0.5 for row in found for p in row["predictions"])
        assert run("predict", "--from", str(workdir), "--threshold", "1", files[0]) == 0
        assert "none at or above 1" in capsys.readouterr().out
    else:
        want = [label_of(task, *colour) for colour in colours]
        assert np.mean([row["predictions"][0]["class"] == w for row, w in zip(found, want)]) >= 0.75
        assert run("predict", "--from", str(workdir), "--top", "9", "--json", files[0]) == 0
        every = json.loads(capsys.readouterr().out)["predictions"][0]["predictions"]
        assert sum(p["probability"] for p in every) == pytest.approx(1, abs=1e-4)


def test_class_values_are_recorded_and_not_shown(trained):
    workdir = trained("multilabel")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"ap/red", "f1/green", "threshold/red"} <= lines[-1].keys()
    certificate = json.loads((workdir / "eval" / "test.json").read_text())
    assert 0 < certificate["metrics"]["threshold/red"] < 1
    assert not [k for k in json.loads((workdir / "summary.json").read_text())["best"] if k.count("/") > 1]


def test_the_units_of_values_are_saved_and_cross(tables, trained, tmp_path):
    """Another run of the same values starts as what the first one predicts; of other values, with a new last layer."""
    workdir = trained("regression")
    first = checkpoint.read(epath.Path(workdir) / "checkpoints" / "60", ("params", "extra"))
    assert first["extra"]["scale"]["mean"][0] > 1000
    config = config_of("regression", tables[1], 1)
    config.init, config.optim.lr = str(workdir), 0.0
    state = loop.fit(config, tmp_path / "same", say=quiet)
    np.testing.assert_array_equal(state.extra["scale"]["mean"], first["extra"]["scale"]["mean"])
    np.testing.assert_array_equal(state.params["model"]["fc"]["kernel"], first["params"]["model"]["fc"]["kernel"])
    # and of what has another task and another number of outputs
    said = []
    config = config_of("ordinal", tables[1], 1)
    config.init = str(workdir)
    loop.fit(config, tmp_path / "other", say=said.append)
    plan = json.loads((tmp_path / "other" / "load_plan.json").read_text())
    own = ["params/model/fc/bias", "params/model/fc/kernel"]
    assert plan["reinitialised"] == [*own, "params/thresholds"]
    assert plan["dropped"] == ["extra/scale/mean", "extra/scale/std", *own]
    assert any("params/thresholds" in line for line in said)


def test_the_same_classes_of_another_task_get_a_new_last_layer(tables, trained, tmp_path):
    config = config_of("ordinal", tables[1], 1)
    config.task.name, config.evals.test.metric, config.init = "classification", "per_class", str(trained("ordinal"))
    loop.fit(config, tmp_path / "w", say=quiet)
    plan = json.loads((tmp_path / "w" / "load_plan.json").read_text())
    assert plan["reinitialised"] == ["params/model/fc/bias", "params/model/fc/kernel"]
    assert "params/thresholds" in plan["dropped"]


def test_balanced_weights_reach_the_loss(tables, tmp_path):
    """The counts come from the training data, and a run with a wrapper around the task goes on to predict."""
    config = config_of("binary", tables[1], 2)
    config.task.pos_weight = "balanced"
    config.wrap = (("mixup", dict(alpha=0.2)), ("ema", dict(decay=0.5)))
    loop.fit(config, tmp_path / "w", say=quiet)
    assert run("evaluate", "--from", str(tmp_path / "w"), "--json") == 0


# --------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        ("multilabel", "topk", r'metric topk is for .* .class., task multilabel .*test.metric = "multilabel"'),
        ("regression", "multilabel", r'predicts .values.: set config.evals.test.metric = "regression"'),
        ("classification", "regression", r'metric = "topk" or "auroc" or "binary" or "ordinal" or "per_class"'),
    ],
)
def test_a_metric_of_other_labels_is_refused_before_data_is_read(task, metric, words):
    config = make_tiny_config()
    config.data.train = "csv:/nowhere.csv"
    config.task = dict(name=task)
    config.evals.test.metric = metric
    with pytest.raises(UserError, match=words):
        check.check(config)


def test_an_attack_on_what_is_not_learned_is_refused():
    config = make_tiny_config()
    config.task, config.evals, config.wrap = dict(name="mae"), dict(), (("adversarial", {}),)
    with pytest.raises(UserError, match="task mae learns without labels: remove it"):
        check.check(config)


def test_data_that_the_task_cannot_learn_is_refused_with_the_task_that_can(tables, trained, tmp_path, capsys):
    _, uri = tables
    config = config_of("multilabel", uri)
    config.data.train = uri("regression", "train")
    with pytest.raises(UserError, match=r'has .values.: set config.task.name = "regression"'):
        loop.fit(config, tmp_path, say=quiet)
    config = config_of("binary", uri)
    config.data.train = uri("ordinal", "train")
    config.evals.test.data = uri("ordinal", "test")
    with pytest.raises(UserError, match="task: binary is for data with 2 classes, there are 3: take classification"):
        loop.fit(config, tmp_path, say=quiet)
    config = config_of("multilabel", uri)
    config.evals.test.data = uri("binary", "test")
    with pytest.raises(
        UserError, match=r"evals\.test: task multilabel learns .* has 'class': name data with such labels"
    ):
        loop.fit(config, tmp_path, say=quiet)
    assert run("evaluate", "--from", str(trained("multilabel")), "--data", uri("binary", "test")) == 2
    assert "task multilabel learns labels of kind 'tags'" in capsys.readouterr().err


def test_a_class_without_a_sample_is_refused(tables, tmp_path):
    folder, uri = tables
    (tmp_path / "classes.txt").write_text("a dark one\nbright\ndazzling\n")
    config = config_of("binary", uri)
    config.task.name = "classification"
    config.evals = {}
    config.data.train = f"csv:{folder}/binary-train.csv?classes={tmp_path / 'classes.txt'}"
    with pytest.raises(UserError, match="has no sample of the class 'dazzling': remove it from the class list"):
        loop.fit(config, tmp_path / "w", say=quiet)
    config.data.train = "fake:3x8?classes=20"
    with pytest.raises(UserError, match=r"'class 3', 'class 4', .* and 12 more: remove"):
        loop.fit(config, tmp_path / "w", say=quiet)


def test_a_label_outside_the_classes_ends_the_command_with_its_place(tables, tmp_path, capsys, monkeypatch):
    """Records of another program may hold one; the reader names the sample, the command ends with 2."""
    from jaxvision.data.sources import Csv

    monkeypatch.setattr(Csv, "_label", lambda self, i: 7)
    config = config_of("binary", tables[1], 2)
    config.evals = {}
    (tmp_path / "config.py").write_text(
        f"import jaxvision.config\nconfig = jaxvision.config.from_json({to_json(config)!r})\n"
    )
    assert run("train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w")) == 2
    error = capsys.readouterr().err
    assert "label 7 is outside 0..1, the 2 classes of csv:" in error
    assert ".png: label 7" in error
    assert "Traceback" not in error


# --------------------------------------------------------------------------- export


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_a_network_without_its_task_says_the_same(trained, task):
    """What an export holds: two outputs for binary, values in their units."""
    mine = restore.load(str(trained(task)))
    leaves = averaged({"params": mine.params, "extra": mine.extra}).leaves
    alone = traverse_util.unflatten_dict(restore.standalone(mine, leaves), sep="/")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    want = jax.jit(mine.task.predict)(mine.params, mine.extra, {"image": images})
    net = network(build.model(mine.config, 2), mine.contract)
    got = jax.jit(net.apply)(alone["params"]["model"], alone["extra"]["model"], images)["logits"]
    np.testing.assert_allclose(got, want["values" if task == "regression" else "logits"], rtol=1e-4, atol=1e-4)


def test_export_writes_two_outputs_for_binary_and_refuses_thresholds(trained, tmp_path, capsys):
    workdir, _ = workdir_of(tmp_path / "run", "resnet18", task="binary", classes=("class 0", "class 1"))
    out = tmp_path / "out" / "model.safetensors"
    assert exported(workdir, out, "--data", "fake:16x32?classes=2") == 0, capsys.readouterr().err
    weight = published.read(out)["fc.weight"]
    assert weight.shape == (2, 512)
    assert not weight[0].any()
    assert weight[1].any()
    assert json.loads((out.parent / "config.json").read_text())["label_names"] == ["class 0", "class 1"]
    workdir, _ = workdir_of(tmp_path / "ranks", "resnet18", task="ordinal", classes=("a", "b", "c"))
    assert exported(workdir, tmp_path / "other" / "model.safetensors") == 2
    assert "of task ordinal, which has leaves beside the network's (params/thresholds)" in capsys.readouterr().err
