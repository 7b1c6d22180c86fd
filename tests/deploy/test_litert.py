"""Networks as LiteRT files, computed by ai-edge-litert; needs the extra litert."""

import json

import jax
import numpy as np
import pytest

from jaxvision import models
from jaxvision.data.contract import InputContract
from jaxvision.deploy import exported, formats, inference, network
from jaxvision.errors import UserError
from jaxvision.tasks import common
from tests.deploy.test_torch_names import workdir_of
from tests.models.published import SMALL
from tests.weights.test_published import run

pytestmark = pytest.mark.litert


def random_network(family):
    """(its function of crops, its contract): no leaf at its initial value, no constant that a converter could drop."""
    name, options, size = SMALL[family]
    contract = InputContract(size=size, resize=size + 5)
    net = common.network(getattr(models, name)(classes=10, **options), contract)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), np.uint8))
    rng = np.random.default_rng(0)

    def random(path, leaf):
        if str(path[-1].key) in ("scale", "var"):
            return rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
        # kernels so large that what the images differ in comes through all layers
        spread = 1.5 / np.prod(leaf.shape[:-1]) ** 0.5 if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    params, extra = jax.tree_util.tree_map_with_path(random, shapes)

    def function(images):
        logits = net.apply(params, extra, images)["logits"]
        return {"probabilities": jax.nn.softmax(logits), "logits": logits}

    return function, contract


@pytest.mark.parametrize("family", SMALL)
def test_a_network_of_every_family(family, tmp_path):
    """Of a program for XLA's CPU compiler, the converter refuses efficientnet, mobilenet and alex_net."""
    function, contract = random_network(family)
    path = tmp_path / "network.tflite"
    formats.write_litert(path, function, network.one(contract))
    rng = np.random.default_rng(1)  # noise of another colour in each image: noise alone is all the same to a mean
    colours, noise = (rng.integers(0, 128, (3, n, n, 3), np.uint8) for n in (1, contract.size))
    images = colours + noise
    found, wanted = exported.runner(path, "litert")(images), jax.jit(function)(images)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        value = np.asarray(value)
        assert np.ptp(value, axis=0).max() > 1e-3 * np.abs(value).max()  # or a constant would do
        # float32 with another order of sums: 2e-6 is the most of any family
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * np.abs(value).max())


def test_the_file_takes_one_image_by_name(tmp_path):
    """What the documents say of the file is what someone without jaxvision finds in it."""
    function, contract = random_network("resnet")
    path = tmp_path / "network.tflite"
    formats.write_litert(path, function, network.one(contract))
    from ai_edge_litert import interpreter

    program = interpreter.Interpreter(model_path=str(path))
    assert program.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["logits", "probabilities"]}
    }
    (given,) = program.get_input_details()
    assert given["dtype"] == np.uint8
    assert given["shape_signature"].tolist() == [1, contract.size, contract.size, 3]


def test_export_load_and_verify(tmp_path, capsys):
    workdir, _ = workdir_of(tmp_path / "run")
    out = tmp_path / "network.tflite"
    assert run("export", "--from", str(workdir), "--out", str(out)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    about = json.loads(exported.certificate_of(out).read_text())
    assert (result["format"], result["from_crops"]["agreement"], result["from_files"]) == ("litert", 1.0, None)
    assert result["from_crops"]["largest_difference"] < 2e-5
    assert (about["input"]["shape"], about["input"]["pixels"]) == ([1, 32, 32, 3], "crops")
    assert {"litert-converter", "ai-edge-litert"} <= about["versions"].keys()
    assert run("export", "--verify", str(out)) == 0

    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    for ours, theirs in zip(inference.load(str(out)).predict(images), inference.load(str(workdir)).predict(images)):
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)

    assert exported.unproved(out, "litert") == ""
    about["classes"].reverse()
    exported.certificate_of(out).write_text(json.dumps(about))
    assert run("export", "--verify", str(out)) == 2
    assert "network.tflite.json was changed, or is of another file: classes[0] is " in capsys.readouterr().err


def test_flags_that_do_not_go_with_it(capsys):
    for flag, value in (("--pixels", "images"), ("--int8", "fake:8x32")):
        assert run("export", "--from", "x", "--out", "x.tflite", flag, value) == 2
        assert f"{flag} goes with --format" in capsys.readouterr().err


def test_what_it_cannot_convert_is_said(tmp_path):
    with pytest.raises(UserError, match="litert-converter cannot convert this network, choose another --format"):
        formats.write_litert(
            tmp_path / "a.tflite", lambda x: {"values": jax.lax.cummax(x, axis=1)}, network.one(InputContract(8, 8))
        )
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_said(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"no flatbuffer at all, whatever it is called")
    with pytest.raises(UserError, match=r"a\.tflite cannot be read by ai-edge-litert"):
        exported.runner(path, "litert")
