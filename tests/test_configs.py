"""Every shipped config: it builds, its network has the published size, and it trains two steps on a laptop."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvision import config as config_lib
from jaxvision import models
from jaxvision.data import open_source, reader
from jaxvision.errors import UserError
from jaxvision.training import build, check, evals, loop, optim
from jaxvision.training.step import init_state, make_step
from jaxvision.weights.plan import count
from tests.data.test_arrays import cifar_files, write_tar
from tests.models.published import PUBLISHED, SMALL

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# A convolutional network of each kind and a transformer train in the default tests, the others in the slow ones.
FIRST = {"convnext_tiny", "dino_vit_s16", "resnet50_a2"}
# What makes heads small, by the task.
HEADS = {
    "byol": dict(hidden=16, width=8),
    "dino": dict(outputs=16, hidden=16, bottleneck=8),
    "mae": dict(decoder_width=16, decoder_depth=1, decoder_heads=2),
    "simclr": dict(widths=(16, 8)),
}
# Options of networks that are ours, without a published number of parameters.
OWN = ("width", "depths", "stem")
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def compile_quickly():
    """Nearly all of the time here is XLA's, and two steps need no fast code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def small(path):
    """The config of a file at a size that a laptop trains two steps of; all that the recipe is about stays."""
    config = config_lib.load(str(path))
    config.update(epochs=0.0, steps=2, batch_size=8, dtype="float32", init="")
    config.data.update(threads=1, prefetch=1)
    config.log.update(every_steps=1, tensorboard=False)
    config.checkpoint.update(every_epochs=0.0)
    if config.data.train.startswith("digits:"):
        return config
    _, options, size = SMALL[models.family(config.model.name)]
    config.model.update(
        {k: 1 if k == "depth" else v[:1] if k in ("depths", "widths") else v for k, v in options.items()}
    )
    cropped = config.data.resize > config.data.size  # else images are as small as the network's input
    side = size + 8 if cropped else size
    config.data.update(size=size, resize=side)
    config.data.transforms = tuple(
        (name, {**arguments, "local_size": size // 2, "local_count": 2} if "local" in arguments else arguments)
        for name, arguments in config.data.transforms
    )
    config.task.update(HEADS.get(config.task.name, {}))
    config.data.train = f"fake:64x{side}"
    for entry in config.evals.values():
        entry.update({key: f"fake:8x{side}" for key in ("data", "bank") if entry.get(key)})
    return config


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in FIRST else pytest.mark.slow) for p in CONFIGS]
)
def test_two_steps(tmp_path, path):
    said = []
    state = loop.fit(small(path), tmp_path, say=said.append)
    assert int(state.step) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "done"
    assert set(summary["evals"]) == set(config_lib.load(str(path)).evals)
    assert all(values for values in summary["evals"].values())


@pytest.mark.slow
@every_config
def test_a_step_and_an_evaluation_fit_together_at_full_size(path):
    config = build.resolve(config_lib.load(str(path)))
    task = build.task(config, 1000, total_steps=100, steps_per_epoch=9.5)
    params, _ = build.abstract_init(task, config)
    known = {"modules": build.modules(config)} if config.optim.layer_decay != 1 else {}
    tx, _ = optim.make(config.optim, 100, params, steps_per_epoch=9.5, frozen=task.frozen, **known)
    batch = build.example(config, 8, train=True)
    state = jax.eval_shape(lambda k, b: init_state(task, tx, k, b, None), jax.random.key(0), build.example(config))
    after, logs = jax.eval_shape(make_step(task, tx, seed=0), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert logs["loss"].shape == ()
    names = tuple(map(str, range(1000)))
    update = evals.make_update(task, {name: build.metric(config, name, names) for name in config.evals})
    jax.eval_shape(update, state.params, state.extra, build.example(config, 8))


@every_config
def test_reads_as_one_screen(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python -m jaxvision.train --config configs/{path.name}" in text
    for word in ("Expected", "Source", "Hardware"):
        assert f"\n{word}: " in text, f"{path.name}: the docstring says no {word}"
    if "tfds:imagenet2012" in text:
        assert re.search("[Nn]ot run by us", text), "nobody here has ImageNet results"
        assert re.search(r"https://(arxiv\.org|github\.com)/", text)
    check.check(config_lib.load(str(path)))


@every_config
def test_network_has_the_published_size(path):
    config = config_lib.load(str(path))
    options = {k: v for k, v in config.model.items() if k != "name"}
    if set(options) & set(OWN):
        assert network_size(config.model.name, **options) < PUBLISHED[config.model.name]
        return
    want = PUBLISHED[config.model.name]
    if models.family(config.model.name) == "vit":  # what is fixed or left out is no parameter
        width, patches = getattr(models, config.model.name).keywords["width"], (224 // 16) ** 2
        token = options.get("pooling", "token") == "token"
        want -= 0 if token else width * 2  # the class token and its position
        want -= width * (patches + token) if options.get("positions") == "sincos" else 0
    assert network_size(config.model.name, **options) == want


@functools.cache
def network_size(name, **options):
    config = config_lib.default()
    config.model = dict(name=name, **options)
    params, _ = build.abstract_init(build.task(config, 1000), config)
    return count(params["model"])


@every_config
def test_the_table_of_recipes_has_it(path):
    """docs/recipes.md: a line for each config, and for nothing else."""
    table = (ROOT / "docs" / "recipes.md").read_text()
    assert f"| [{path.stem}](../configs/{path.name}) |" in table
    assert set(re.findall(r"configs/(\w+)\.py\) \|", table)) == {p.stem for p in CONFIGS}


@pytest.mark.parametrize("name", ["cifar10_fast", "cifar10_finetune"])
def test_cifar_comes_from_the_archive(tmp_path, monkeypatch, name):
    """As it is downloaded, beside the command."""
    files, _ = cifar_files()
    write_tar(tmp_path / "cifar-10-binary.tar.gz", files)
    config = config_lib.load(str(ROOT / "configs" / f"{name}.py"))
    assert (
        "curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in (ROOT / f"configs/{name}.py").read_text()
    )
    monkeypatch.chdir(tmp_path)
    train, test = open_source(config.data.train), open_source(config.evals.test.data)
    assert (len(train), len(test)) == (20, 4)
    assert train.classes == test.classes
    assert train[0]["image"].shape == (32, 32, 3)


def photos(root, counts):
    for name, number in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(number):
            pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return f"folder:{root}"


def test_own_photos_need_one_flag(tmp_path):
    """A tenth of each class is held out, said, measured by class, and the same when the run goes on."""
    uri = photos(tmp_path / "photos", {"cat": 20, "dog": 11, "owl": 5})
    config = small(ROOT / "configs" / "finetune.py")
    config.model = dict(name="resnet18", width=8, depths=(1,), stem="small")
    config.data.train, said, again = uri, [], []
    loop.fit(config, tmp_path / "w", say=said.append)
    assert f"evals.val names no data: 5 images of {uri} are held out for it, the same in every run" in said
    assert any("3 classes (cat, dog, owl) | 31 training images" in line for line in said)
    certificate = json.loads((tmp_path / "w" / "eval" / "val.json").read_text())
    assert (certificate["count"], certificate["data"]) == (5, f"{uri}?part=90%:100%")
    assert {"accuracy/cat", "accuracy/dog", "accuracy/owl", "balanced_accuracy"} <= set(certificate["metrics"])
    kept = json.loads((tmp_path / "w" / "config.json").read_text())
    assert (kept["data"]["train"], kept["evals"]["val"]["data"]) == (f"{uri}?part=0:90%", f"{uri}?part=90%:100%")
    loop.fit(config, tmp_path / "w", say=again.append)
    assert any("resuming at step 2" in line for line in again)
    assert [line for line in again if "held out" in line] == [line for line in said if "held out" in line]
    config.evals.val.data = uri  # then nothing is held out, and this would be another run
    with pytest.raises(UserError, match=r"data\.train: "):
        loop.fit(config, tmp_path / "w", say=said.append)


def test_a_part_of_photos_holds_nothing_out(tmp_path):
    config = small(ROOT / "configs" / "finetune.py")
    config.data.train = photos(tmp_path / "photos", {"cat": 2, "dog": 2}) + "?part=0:50%"
    with pytest.raises(UserError, match=r"evals\.val\.data is empty, and data\.train .*\?part=0:50%' is a part"):
        loop.fit(config, tmp_path / "w", say=lambda text: None)


def test_held_out_images_are_not_their_own_neighbours():
    config = config_lib.default()
    config.data.train = "digits:all"
    config.evals = dict(knn=dict(metric="knn", bank="digits:all"), other=dict(metric="knn", data="x:", bank="y:"))
    assert build.without_data(config) == ["knn"]
    resolved = build.resolve(config)
    assert resolved.evals.knn.to_dict() == {
        "metric": "knn",
        "bank": "digits:all?part=0:90%",
        "data": "digits:all?part=90%:100%",
    }
    assert resolved.evals.other == config.evals.other
    assert config.data.train == "digits:all"


def test_missing_imagenet_is_told_in_seconds(command, tmp_path):
    """Before the network is built and compiled, which takes minutes."""
    done = command("jaxvision.train", "--config", "configs/resnet50.py", timeout=60, TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    for words in ("imagenet2012/train is not prepared", "download_and_prepare", "ILSVRC2012_img_train.tar",
                  "--config.data.train=fake:1024x224", "--config.evals.val.data=fake:"):  # fmt: skip
        assert words in done.stderr


def test_fine_tuning_needs_the_network_of_its_pre_training():
    """What mae_vit_b16 saves is all that mae_vit_b16_finetune loads, but for the head."""
    trees = []
    for name in ("mae_vit_b16", "mae_vit_b16_finetune"):
        config = config_lib.load(str(ROOT / "configs" / f"{name}.py"))
        params, _ = build.abstract_init(build.task(config, 1000), config)
        trees.append(params["model"])
        assert reader.contract(config).filter == "bicubic"
    head = trees[1].pop("head")
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    assert jax.tree.map(lambda x: x.shape, trees[0]) == jax.tree.map(lambda x: x.shape, trees[1])
    assert head["kernel"].shape == (768, 1000)
