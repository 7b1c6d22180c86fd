"""Programs and their certificates, through the command; what is wrong with a file is found where it is deployed."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import jaxvision
from jaxvision import targets
from jaxvision.deploy import certificate
from jaxvision.errors import UserError
from jaxvision.runtime import paths
from tests.conftest import ROOT
from tests.deploy.test_inference import seeing
from tests.deploy.test_torch_names import CLASSES, workdir_of
from tests.weights.test_published import run

SMALL = dict(width=8, depths=(1, 1), stem="small", size=16)


@pytest.fixture(scope="module", autouse=True)
def _programs_name_lines_of_python():
    """As those of users do; conftest.py turns it off."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 10)
    yield
    jax.config.update("jax_traceback_in_locations_limit", before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A workdir of random weights, and what is exported of it: suffix of the name -> file."""
    folder = tmp_path_factory.mktemp("exported")
    workdir, _ = seeing(folder / "run", "classification", **SMALL)
    made = {"workdir": workdir}
    for name, more in {
        "a.onnx": (),
        "a.stablehlo": (),
        "crops.onnx": ("--pixels", "crops"),
        "crops.stablehlo": ("--pixels", "crops"),
        "int8.onnx": ("--int8", "fake:16x40?classes=3", "--calibration", "8", "--agreement", "0"),
    }.items():
        out = folder / "out" / name
        assert run("export", "--from", str(workdir), "--out", str(out), "--images", "12", *more) == 0, name
        made[name] = out
    return made


def about(path):
    return json.loads(path.with_name(path.name + ".json").read_text())


@pytest.mark.parametrize("name", ["a.onnx", "a.stablehlo", "crops.onnx", "crops.stablehlo"])
def test_the_certificate(files, name):
    found = about(files[name])
    crops = found["from_crops"]
    assert crops["images"] == 12
    assert crops["agreement"] == 1
    assert crops["largest_difference"] < 1e-5
    whole = name.startswith("a.")
    if whole:
        assert found["from_files"]["images"] == 12
        assert found["from_files"]["largest_difference"] < 1e-3  # a level in some pixels, see test_resize
        assert found["input"]["shape"] == ["batch", "height", "width", 3]
    else:
        assert found["from_files"] is None
        assert found["input"]["shape"] == ["batch", 16, 16, 3]
    assert found["accuracy"]["trained"] == found["accuracy"]["exported"]
    assert 0 <= found["accuracy"]["trained"]["top1"] <= 1
    assert found["classes"] == list(CLASSES)
    assert found["contract"]["resize"] == 21
    assert found["bytes"] == files[name].stat().st_size
    assert found["latency_ms"]["1"] > 0
    assert found["latency_ms"]["8"] > 0
    assert {"jaxvision", "jax", "numpy"} <= found["versions"].keys()
    assert ("onnxruntime" in found["versions"]) == name.endswith(".onnx")
    assert len(found["probes"]) == certificate.PROBES


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.onnx", dict(size=(16, 24), resize=16, fit="shortest", longest=30)),
        ("a.stablehlo", dict(size=(16, 24), resize=0, fit="pad", filter="linear")),
        ("crops.onnx", dict(size=(24, 16), resize=0, fit="stretch", filter="bicubic")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["fit"],
)
def test_files_of_every_fit(tmp_path, photos, name, data):
    """They agree with the trained network on photos of many shapes, and where they are deployed they say the same."""
    workdir, _ = seeing(tmp_path / "run", "classification", width=8, depths=(1, 1), stem="small", data=data)
    uri, out = f"images:{photos}", tmp_path / name
    crops = ("--pixels", "crops") if name.startswith("crops") else ()
    assert run("export", "--from", str(workdir), "--out", str(out), "--data", uri, *crops) == 0
    found = about(out)
    assert found["from_crops"]["agreement"] == 1
    assert found["from_crops"]["largest_difference"] < 1e-5
    if not crops:
        assert found["from_files"]["agreement"] == 1
        # a level in some pixels, see test_resize
        assert found["from_files"]["largest_difference"] < (0.005 if "filter" in data else 1e-3)
    assert run("export", "--verify", str(out)) == 0
    files = sorted(str(p) for p in photos.rglob("*.png"))
    trained, deployed = jaxvision.load(workdir), jaxvision.load(out)
    for one, other in zip(trained.predict(files), deployed.predict(files), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    together, alone = trained.predict(files), [trained.predict(file)[0] for file in files]
    np.testing.assert_allclose([p.scores for p in together], [p.scores for p in alone], atol=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of several shapes."""
    folder, photo = tmp_path_factory.mktemp("photos"), Image.fromarray(load_sample_image("china.jpg"))
    for k, sides in enumerate([(40, 30), (30, 40), (90, 20), (20, 90), (24, 16), (16, 24), (8, 9), (64, 64)]):
        photo.rotate(20 * k).resize(sides).save(folder / f"{k}.png")
    return folder


def test_timms_config_has_no_words_for_padding(tmp_path, capsys):
    workdir, _ = seeing(
        tmp_path / "run", "classification", width=64, depths=(2, 2, 2, 2), data=dict(size=32, resize=0, fit="pad")
    )
    assert run("export", "--from", str(workdir), "--out", str(tmp_path / "a.safetensors"), "--names", "timm") == 2
    assert "timm's config.json has no words for that" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["a.onnx", "a.stablehlo"])
def test_folders_of_the_machine_that_exported_are_not_in_the_file(files, name):
    content = files[name].read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert (b"resnet.py" in content) == name.endswith(".stablehlo")  # what an error may name


def test_nothing_else_is_left(files):
    names = sorted(p.name for p in files["a.onnx"].parent.iterdir())
    expected = ["a.onnx", "a.stablehlo", "crops.onnx", "crops.stablehlo", "int8.onnx"]
    assert names == sorted(expected + [f"{n}.json" for n in expected])


def test_the_onnx_file_says_what_it_is(files):
    model = onnx.load(str(files["a.onnx"]))
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["classes"]) == list(CLASSES)
    assert json.loads(properties["contract"]) == about(files["a.onnx"])["contract"]
    assert properties["source_sha256"] == about(files["a.onnx"])["source_sha256"]
    assert [o.name for o in model.graph.output] == ["logits", "probabilities"]


def test_int8_is_smaller_and_close(files):
    small, large = files["int8.onnx"], files["a.onnx"]
    found = about(small)
    within = {p.key: p.value for p in onnx.load(str(large)).metadata_props}["certificate"]
    assert found["float32_bytes"] == pytest.approx(large.stat().st_size - len(within), rel=0.01)
    assert found["calibration"] == {"data": "fake:16x40?classes=3", "images": 8, "skipped": []}
    assert found["from_crops"]["largest_difference"] < 0.1
    kinds = [node.op_type for node in onnx.load(str(small)).graph.node]
    first = kinds.index("Conv")
    assert "QuantizeLinear" not in kinds[: first - 3]  # the resizing stays as it was
    assert kinds.count("DequantizeLinear") > kinds.count("Conv")
    weights = [i for i in onnx.load(str(small)).graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= kinds.count("Conv")


@pytest.mark.parametrize("name", ["a.onnx", "crops.stablehlo", "int8.onnx"])
def test_verify(files, capsys, name):
    capsys.readouterr()
    assert run("export", "--verify", str(files[name]), *(("--agreement", "0") if "int8" in name else ())) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert result["compared"] == "trained network"
    assert result["from_crops"] == about(files[name])["from_crops"]
    assert "probes: 4" in said


def test_verify_without_the_training_and_without_the_data(files, tmp_path, capsys):
    for end in ("", ".json"):
        shutil.copy(f"{files['a.onnx']}{end}", tmp_path / f"a.onnx{end}")
    beside = tmp_path / "a.onnx.json"
    beside.write_text(beside.read_text().replace(str(files["workdir"]), "/nowhere"))
    capsys.readouterr()
    assert run("export", "--verify", str(tmp_path / "a.onnx")) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["compared"] == "accuracy"
    assert result["accuracy"] == result["certified"]
    beside.write_text(beside.read_text().replace("fake:16x32?classes=3", "folder:/nowhere"))
    assert run("export", "--verify", str(tmp_path / "a.onnx"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["compared"] == "probes"
    assert result["probes_largest_difference"] < 1e-5


def _spoil(model):
    """The classes of the last layer in another order."""
    (kernel,) = [i for i in model.graph.initializer if list(i.dims) == [16, len(CLASSES)]]
    values = np.ascontiguousarray(np.roll(onnx.numpy_helper.to_array(kernel), 1, 1))
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))


def test_a_changed_file_is_found(files, tmp_path, capsys):
    """By its digest; and where someone made a certificate for it, by what it computes."""
    changed = tmp_path / "a.onnx"
    model = onnx.load(str(files["a.onnx"]))
    _spoil(model)
    onnx.save(model, str(changed))
    shutil.copy(f"{files['a.onnx']}.json", f"{changed}.json")
    assert run("export", "--verify", str(changed)) == 2
    assert "is not the file that a.onnx.json certifies" in capsys.readouterr().err

    forged = {**about(changed), "sha256": paths.digest(changed)}
    pathlib.Path(f"{changed}.json").write_text(json.dumps(forged))
    assert run("export", "--verify", str(changed)) == 2
    assert "computes something else here than the trained network did" in capsys.readouterr().err


@pytest.fixture(scope="module")
def carriers(files, tmp_path_factory):
    """A file of every format that this machine writes."""
    folder = tmp_path_factory.mktemp("carriers")
    workdir, _ = workdir_of(folder / "run", "resnet18")
    out = folder / "model.safetensors"
    assert run("export", "--from", str(workdir), "--out", str(out), "--images", "4") == 0
    return {**{name: files[name] for name in ("a.onnx", "int8.onnx", "crops.stablehlo")}, out.name: out}


def copied(path, folder):
    for end in ("", ".json"):
        shutil.copy(f"{path}{end}", folder / f"{path.name}{end}")
    return folder / path.name


CHANGES = {
    "classes": (lambda found: found["classes"].reverse(), f"classes[0] is {json.dumps(CLASSES[0])} in the file, "
                f"{json.dumps(CLASSES[-1])} beside it"),
    "mean": (lambda found: found["contract"].update(mean=[0.5] * 3), "contract.mean[0] is 0.25 in the file, 0.5"),
    "accuracy": (lambda found: found["accuracy"]["exported"].update(top1=0.99), "accuracy.exported.top1 is "),
    "precision": (lambda found: found.update(precision="int7"), '32" in the file, "int7" beside it'),
    "bound": (lambda found: found.update(bound=0.0), "bound is "),
    "kind": (lambda found: found.update(kind="values"), 'kind is "class" in the file, "values" beside it'),
    "probes": (lambda found: found.pop("probes"), "probes is [["),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.onnx", "int8.onnx", "crops.stablehlo", "model.safetensors"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_certificate_is_found(carriers, tmp_path, capsys, name, change):
    """By what the file itself carries, in verify and in predict; with what both say."""
    path = copied(carriers[name], tmp_path)
    alter, words = CHANGES[change]
    if change == "precision" and name.startswith("int8"):
        words = '"int8" in the file, "int7" beside it'
    if change == "bound" and name.startswith("int8"):
        pytest.skip("it is 0 there")
    found = about(path)
    alter(found)
    pathlib.Path(f"{path}.json").write_text(json.dumps(found))
    for command in (["export", "--verify", str(path)], ["predict", "--from", str(path), __file__]):
        capsys.readouterr()
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert f"{path}.json was changed, or is of another file: " in error
        assert words in error
        assert "Traceback" not in error


def test_where_the_network_and_the_images_lay_may_change(files, tmp_path, capsys):
    path = copied(files["crops.stablehlo"], tmp_path)
    pathlib.Path(f"{path}.json").write_text(json.dumps(about(path) | {"source": "/elsewhere", "data": None}))
    assert run("export", "--verify", str(path)) == 0


def _forget(path):
    """As an earlier version wrote the file."""
    if path.suffix == ".onnx":
        model = onnx.load(str(path))
        kept = {p.key: p.value for p in model.metadata_props if p.key != "certificate"}
        onnx.helper.set_model_props(model, kept)
        onnx.save(model, str(path))
    elif path.suffix == ".safetensors":
        import safetensors
        import safetensors.numpy

        with safetensors.safe_open(path, "numpy") as file:
            kept = {k: v for k, v in file.metadata().items() if k != "certificate"}
        safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, kept)
    else:
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(b"PK\x03\x04")])

    found = about(path) | {"bytes": path.stat().st_size, "sha256": paths.digest(path)}
    pathlib.Path(f"{path}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("name", ["a.onnx", "crops.stablehlo", "model.safetensors"])
def test_files_that_carry_no_certificate_are_still_read_and_it_is_said(carriers, tmp_path, capsys, name):
    from PIL import Image

    path = copied(carriers[name], tmp_path)
    _forget(path)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    for command in (["export", "--verify", str(path)], ["predict", "--from", str(path), str(tmp_path / "red.png")]):
        capsys.readouterr()
        assert run(*command) == 0
        assert "was exported by an earlier version and does not carry its certificate" in capsys.readouterr().out
    if not name.endswith(".stablehlo"):  # these said their classes and contract all the same
        found = about(path)
        found["classes"].reverse()
        pathlib.Path(f"{path}.json").write_text(json.dumps(found))
        assert run("export", "--verify", str(path)) == 2
        assert "classes[0] is " in capsys.readouterr().err


def test_the_metadata_is_read_as_onnx_reads_it(files):
    from jaxvision.deploy import exported

    for name in ("a.onnx", "int8.onnx"):
        with files[name].open("rb") as file:
            found = dict(exported._onnx_metadata(file, files[name].stat().st_size))
        assert found == {p.key: p.value for p in onnx.load(str(files[name])).metadata_props}
        assert json.loads(found["certificate"])["accuracy"] == about(files[name])["accuracy"]


def test_a_program_with_calls_of_its_own_is_not_run(files, tmp_path, capsys):
    """A call of Python at an address that the file names: run, it ends the process by a signal."""
    import jax
    import jax.numpy as jnp

    from jaxvision.deploy import exported

    target = "xla_ffi_python_cpu_callback"

    def network(images):
        made = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(images.shape, jnp.float32))(images, index=np.uint64(4096))
        logits = made.mean((1, 2))
        return {"logits": logits, "probabilities": logits}

    path = copied(files["crops.stablehlo"], tmp_path)
    allowed = [jax.export.DisabledSafetyCheck.custom_call(target)]
    spec = jax.ShapeDtypeStruct((1, 16, 16, 3), np.uint8)
    path.write_bytes(jax.export.export(jax.jit(network), disabled_checks=allowed)(spec).serialize())
    exported.embed(path, about(path))
    found = about(path) | {"sha256": paths.digest(path)}
    pathlib.Path(f"{path}.json").write_text(json.dumps(found))
    for command in (["export", "--verify", str(path)], ["predict", "--from", str(path), __file__]):
        assert run(*command) == 2
        assert f"calls '{target}', which no file of jaxvision.export does" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('%1 = stablehlo.custom_call @"a name"(%0) : ()', "a name"),
        ('%1 = "stablehlo.custom_call"(%0) <{api_version = 1 : i32, call_target_name = "evil"}> : ()', "evil"),
        ("%1 = stablehlo.custom_call\n", "custom_call"),
        ('"stablehlo.outfeed"(%0, %1)', "outfeed"),
        ("stablehlo.infeed %0", "infeed"),
    ],
)
def test_calls_are_found_in_both_spellings(line, name):
    from jaxvision.deploy import exported

    ours = 'stablehlo.custom_call @shape_assertion(%1) {error_message = "x", has_side_effect = true} : ()\n'
    exported._refuse_calls(pathlib.Path("a.stablehlo"), ours)
    with pytest.raises(UserError, match=f"calls '{name}'"):
        exported._refuse_calls(pathlib.Path("a.stablehlo"), ours + line)


def test_a_file_that_does_not_agree_is_not_written(files, tmp_path, capsys, monkeypatch):
    """ONNX's own writer spoils the weights: nothing may appear, and it is said by how much."""
    save = onnx.save

    def spoilt(model, path):
        _spoil(model)
        save(model, path)

    monkeypatch.setattr(onnx, "save", spoilt)
    out = tmp_path / "out" / "b.onnx"
    assert run("export", "--from", str(files["workdir"]), "--out", str(out), "--images", "12", "--pixels", "crops") == 2
    error = capsys.readouterr().err
    assert "does not agree with the trained network: the same crops" in error
    assert "the bound is 99.00%" in error
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("task", ["multilabel", "regression", "binary", "ordinal"])
def test_other_labels(tmp_path, task):
    """Tags and values, and classes whose network has other outputs than classes."""
    classes = CLASSES[:2] if task == "binary" else CLASSES
    workdir, _ = seeing(tmp_path / "run", task, classes=classes, **SMALL)
    for out in (tmp_path / "a.onnx", tmp_path / "a.stablehlo"):
        images = ("--data", str(_images(tmp_path, task)), "--images", "12")
        assert run("export", "--from", str(workdir), "--out", str(out), "--pixels", "crops", *images) == 0
        found = about(out)
        assert found["from_crops"]["agreement"] == 1
        assert found["kind"] == {"multilabel": "tags", "regression": "values"}.get(task, "class")
        key = "values" if task == "regression" else "probabilities"
        assert key in found["outputs"]


def _images(folder, task):
    """A URI of 12 images with labels of the kind that the task learns."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (20 + k, 30, 3), np.uint8)).save(folder / f"{k}.png")
    if task in ("binary", "ordinal"):
        return f"images:{folder}"
    if task == "regression":
        rows = ["image," + ",".join(CLASSES), *(f"{k}.png,{k},{k / 2},1" for k in range(12))]
    else:
        rows = ["image,tags", *(f"{k}.png,{CLASSES[k % 3]},{CLASSES[(k + 1) % 3]}" for k in range(12))]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{folder}/labels.csv?kind={'values' if task == 'regression' else 'tags'}"


def test_ties_and_differences():
    """By hand: two of four differ, one of them a tie in the trained network; a NaN agrees with nothing."""
    trained = {"logits": np.array([[2.0, 1.0], [0.5, 0.5 - 1e-6], [1.0, -1.0], [0.0, 1.0]])}
    exported = {"logits": np.array([[2.0, 1.0], [0.5, 0.5 + 1e-6], [-1.0, 1.0], [0.0, 1.0]])}
    found = certificate.compared(targets.class_, trained, exported)
    assert (found["agreement"], found["ties"]) == (0.75, 1)
    assert found["largest_difference"] == pytest.approx(2 / 2)
    exported["logits"][0, 1] = np.nan
    broken = certificate.compared(targets.class_, trained, exported)
    assert broken["agreement"] == 0.5
    assert broken["largest_difference"] == np.inf
    with pytest.raises(UserError, match=r"the same crops, 50.00% of 4 images are told the same, the bound is 99.00%"):
        certificate.check(pathlib.Path("a.onnx"), broken, 0.99, "the same crops")


BLOCKED = """
import sys, json
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Only())
import numpy as np
pixels = np.arange(2 * 19 * 30 * 3, dtype=np.int64).astype(np.uint8).reshape(2, 19, 30, 3)
{load}
print(json.dumps(np.asarray(found).tolist()))
"""
OURS = {
    "jaxvision",
    "flax",
    "optax",
    "orbax",
    "etils",
    "ml_collections",
    "PIL",
    "cv2",
    "tensorflow_datasets",
    "tensorstore",
}
LOAD = {
    "a.stablehlo": """
import jax.export
found = jax.export.deserialize(open({path!r}, "rb").read()).call(pixels)["probabilities"]
""",
    "a.onnx": """
import onnxruntime
found = onnxruntime.InferenceSession({path!r}).run(["probabilities"], {{"images": pixels}})[0]
""",
}


@pytest.mark.parametrize("name", LOAD)
def test_it_runs_without_jaxvision(files, name):
    """With the lines that the command prints; the probabilities are those of `jaxvision.load`."""
    import jaxvision

    blocked = OURS | ({"jax", "onnx"} if name.endswith(".onnx") else {"onnx", "onnxruntime"})
    code = BLOCKED.format(blocked=sorted(blocked), load=LOAD[name].format(path=str(files[name])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = np.array(json.loads(done.stdout))
    pixels = np.arange(2 * 19 * 30 * 3, dtype=np.int64).astype(np.uint8).reshape(2, 19, 30, 3)
    want = [p.scores for p in jaxvision.load(files["workdir"]).predict(pixels)]
    np.testing.assert_allclose(found, want, atol=2e-3)  # a level of a pixel, see test_resize


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "packages"), [("a.stablehlo", ["jax", "numpy", "flatbuffers"]), ("a.onnx", ["onnxruntime", "numpy"])]
)
def test_in_a_fresh_environment(files, tmp_path, name, packages):
    """What pip installs of these alone is enough."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "v")], check=True)
    python = str(tmp_path / "v" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    code = BLOCKED.format(blocked=["jaxvision"], load=LOAD[name].format(path=str(files[name])))
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/", env=environment)
    found = np.array(json.loads(done.stdout))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.slow
def test_int8_digits(command, tmp_path):
    """The README's network: at most half a point lost, at most 0.3 of the bytes."""
    workdir = tmp_path / "digits"
    done = command("jaxvision.train", "--config", "configs/digits.py", "--workdir", workdir, timeout=400, XLA_FLAGS="")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "int8.onnx"
    done = command("jaxvision.export", "--from", workdir, "--out", out, "--int8", "digits:train", "--images", "360")
    assert done.returncode == 0, done.stderr
    found = about(out)
    assert found["accuracy"]["exported"]["top1"] >= found["accuracy"]["trained"]["top1"] - 0.005
    assert out.stat().st_size <= 0.3 * found["float32_bytes"]


def test_weights_that_no_file_holds(files, tmp_path, capsys, monkeypatch):
    from jaxvision.deploy import network

    monkeypatch.setattr(network, "LARGEST", 1000)
    assert run("export", "--from", str(files["workdir"]), "--out", str(tmp_path / "a.onnx")) == 2
    assert "hold at most 2 GB: export safetensors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite(tmp_path, capsys):
    import jax
    from etils import epath

    from jaxvision.weights import checkpoint

    workdir, _ = seeing(tmp_path / "run", "classification", **SMALL)
    saved = epath.Path(workdir) / "checkpoints" / "8"
    state = checkpoint.read(saved, ("params", "extra"))
    state["extra"] = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), state["extra"])
    writer = checkpoint.Writer(saved.parent, keep=3)
    writer.save(9, state, {k: v for k, v in checkpoint.about(saved).items() if k != "step"})
    writer.close()
    assert run("export", "--from", str(workdir), "--out", str(tmp_path / "a.onnx")) == 2
    assert "extra/model/batch_stats" in (error := capsys.readouterr().err)
    assert "not finite: choose another --checkpoint" in error


def test_weights_of_others_are_told_from_exported_ones(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert run("predict", "--from", str(tmp_path / "model.safetensors"), str(tmp_path)) == 2
    assert "no image in folder" in capsys.readouterr().err
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert run("predict", "--from", str(tmp_path / "model.safetensors"), str(tmp_path)) == 2
    assert f"name the network: timm:NAME={tmp_path}" in capsys.readouterr().err
