"""Every URI scheme: what it gives, and what it says when it cannot."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import decode, open_source
from jaxvision.errors import Unreadable, UserError

ROOT = pathlib.Path(__file__).parents[2]


def write(path, colour=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path, "PNG")


# --------------------------------------------------------------------------- digits:


def test_digits_equal_scikit_learn():
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), open_source("digits:all")
    assert len(ours) == len(theirs.target) == 1797
    for i in range(len(ours)):
        sample = ours[i]
        assert sample["index"] == i
        assert sample["label"] == theirs.target[i]
        assert sample["image"].dtype == np.uint8
        assert sample["image"].shape == (8, 8, 3)
        want = np.array([round(v * 255 / 16) for v in theirs.data[i]]).reshape(8, 8)
        assert (sample["image"] == want[:, :, None]).all()


def test_digits_split_is_disjoint_and_complete():
    train, test = open_source("digits:train"), open_source("digits:test")
    rows = [[s[i]["index"] for i in range(len(s))] for s in (train, test)]
    assert (len(train), len(test)) == (1437, 360)
    assert sorted(rows[0] + rows[1]) == list(range(1797))
    assert all(k % 5 == 0 for k in rows[1])
    assert train.classes == tuple("0123456789")


# --------------------------------------------------------------------------- folder:


def test_folder_orders_classes_and_files_and_keeps_bytes(tmp_path):
    for name in (
        "dog/b.png",
        "dog/sub/a.PNG",
        "cat/10.JpEg",
        "cat/9.jpg",
        "cat/notes.txt",
        ".git/x.png",
        "dog/._b.png",
    ):
        write(tmp_path / name)
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    found = [os.path.relpath(source.where(i), tmp_path) for i in range(len(source))]
    assert found == ["cat/10.JpEg", "cat/9.jpg", "dog/b.png", "dog/sub/a.PNG"]
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
    assert [source[i]["index"] for i in range(4)] == [0, 1, 2, 3]
    assert source[2]["image"] == (tmp_path / "dog/b.png").read_bytes()
    with pytest.raises(IndexError):
        source[4]


def test_folder_takes_any_file_name(tmp_path):
    names = ["ünï 猫.png", "line\nbreak.png", "tab\t'quote\".png", os.fsdecode(b"not-utf8-\xff.png")]
    for k, name in enumerate(names):
        write(tmp_path / "klasse\n1 ß" / name, colour=k)
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("klasse\n1 ß",)
    colours = [int(decode(source[i]["image"], 3, "")[0, 0, 0]) for i in range(len(source))]
    assert sorted(colours) == [0, 1, 2, 3]
    assert {os.path.basename(source.where(i)): c for i, c in enumerate(colours)} == dict(zip(names, range(4)))


def test_folder_classes_file_pins_the_order(tmp_path):
    write(tmp_path / "a/1.png", 1)
    write(tmp_path / "b/2.png", 2)
    (tmp_path / "classes.txt").write_text("b\na\n\n")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("b", "a")
    assert [decode(source[i]["image"], 3, "")[0, 0, 0] for i in range(2)] == [2, 1]


def test_folder_survives_a_circle_of_links(tmp_path):
    write(tmp_path / "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(open_source(f"folder:{tmp_path}")) == 1


def test_folder_expands_the_home(tmp_path, monkeypatch):
    write(tmp_path / "pets/a/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("folder:~/pets").where(0) == str(tmp_path / "pets/a/1.png")


def test_folder_errors_name_the_place_and_the_next_step(tmp_path):
    def message(path=tmp_path / "pets"):
        with pytest.raises(UserError) as error:
            open_source(f"folder:{path}")
        return str(error.value)

    (tmp_path / "pets").mkdir()
    assert str(tmp_path / "pest") in message(tmp_path / "pest")
    assert "did you mean" in message(tmp_path / "pest")
    assert "No such file" in message(tmp_path / "no" / "where")
    assert "no class folders" in message()
    write(tmp_path / "pets/cat/1.png")
    (tmp_path / "pets/dog").mkdir()
    assert str(tmp_path / "pets/dog") in message()
    assert "no image" in message()
    write(tmp_path / "pets/dog/1.png")
    for text, wanted in (
        ("cat\ndgo\n", "did you mean 'dog'"),
        ("cat\n", "lacks 'dog'"),
        ("cat\ndog\ncat", "twice"),
    ):
        (tmp_path / "pets/classes.txt").write_text(text)
        assert wanted in message()
        assert "classes.txt" in message()


def test_folder_names_a_file_that_vanished(tmp_path):
    write(tmp_path / "a/1.png")
    source = open_source(f"folder:{tmp_path}")
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(UserError, match=r"a/1\.png: No such file"):
        source[0]


# --------------------------------------------------------------------------- fake:


# --------------------------------------------------------------------------- images:


def test_images_takes_all_below_a_folder_without_labels(tmp_path):
    for name in ("b/2.png", "b/deep/er/1.JPG", "10.png", "9.png", "notes.txt", ".git/x.png"):
        write(tmp_path / name)
    source = open_source(f"images:{tmp_path}")
    assert (source.kind, source.classes) == ("none", ())
    found = [os.path.relpath(source.where(i), tmp_path) for i in range(len(source))]
    assert found == ["10.png", "9.png", "b/2.png", "b/deep/er/1.JPG"]
    assert [source[i]["index"] for i in range(4)] == [0, 1, 2, 3]
    assert source[3]["image"] == (tmp_path / "b/deep/er/1.JPG").read_bytes()
    assert source.labels.dtype == np.int32
    assert not source.labels.any()
    halves = [open_source(f"images:{tmp_path}?split={part}") for part in ("0:50%", "50%:100%")]
    assert sorted(half.where(i) for half in halves for i in range(2)) == sorted(source.where(i) for i in range(4))
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(UserError, match="per_class needs one class a sample"):
        open_source(f"images:{tmp_path}?per_class=1")


def test_images_errors_name_the_place(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/no: no such folder"):
        open_source(f"images:{tmp_path}/no")
    with pytest.raises(UserError, match=r"holds no image \(jpg .*\), at any depth"):
        open_source(f"images:{tmp_path}")
    write(tmp_path / "1.png")
    with pytest.raises(UserError, match=f"or learn without labels, from images:{tmp_path}"):
        open_source(f"folder:{tmp_path}")
    source = open_source(f"images:{tmp_path}")
    (tmp_path / "1.png").unlink()
    with pytest.raises(Unreadable, match=r"1\.png: No such file"):
        source[0]


def test_fake_is_deterministic_and_all_different():
    first, second = open_source("fake:70000x2?classes=7"), open_source("fake:70000x2?classes=7")
    images = [first[i]["image"].tobytes() for i in range(70000)]
    assert len(set(images)) == 70000
    assert (second[123]["image"] == first[123]["image"]).all()
    assert second[123]["label"] == 123 % 7
    assert len(first.classes) == 7
    assert len(open_source("fake:3x5").classes) == 10
    assert open_source("fake:3x5")[2]["image"].shape == (5, 5, 3)
    large = open_source("fake:9x64")
    assert 100 < np.mean(large[4]["image"]) < 155  # noise, not a constant
    large[4]["image"][:] = 0  # a sample is the caller's own
    assert large[4]["image"].any()


# --------------------------------------------------------------------------- URIs


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("digts:train", "did you mean 'digits'"),
        ("digits", "did you mean 'digits'"),
        ("digits:trian", "did you mean 'train'"),
        ("nonsense", "known: cifar, csv, digits, fake, folder, idx, "),
        ("fake:10", "COUNTxSIZE"),
        ("fake:10x0", "COUNTxSIZE"),
        ("fake:10x8?clases=3", "did you mean 'classes'"),
        ("fake:10x8?classes=", "no value"),
        ("fake:10x8?classes=none", "COUNTxSIZE"),
        ("tfds:mnist", "NAME/SPLIT"),
        ("tfds:mnist/train?datadir=/x", "did you mean 'data_dir'"),
    ],
)
def test_bad_uris(uri, wanted):
    with pytest.raises(UserError) as error:
        open_source(uri)
    assert wanted in str(error.value)


def test_a_bare_folder_is_told_its_scheme(tmp_path):
    with pytest.raises(UserError, match=f"did you mean 'folder:{tmp_path}'"):
        open_source(str(tmp_path))


# --------------------------------------------------------------------------- what is imported


def test_nothing_heavy_is_loaded_and_no_backend_starts():
    code = """
import sys
import jaxvision.data as data
source = data.open_source("digits:train")
assert not {"jax", "grain", "sklearn.datasets", "tensorflow_datasets"} & set(sys.modules), "imports"
contract = data.InputContract(size=8, resize=8)
next(data.train_batches(source, [], contract, batch_size=4, seed=0, start=0, stop=9))
assert not {"tensorflow", "torch"} & set(sys.modules)
from jax._src import xla_bridge  # grain imports jax; what must not happen is that it takes the accelerator
assert not xla_bridge._backends, xla_bridge._backends
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_file_here_imports_jax():
    import ast

    import jaxvision.data

    for file in pathlib.Path(jaxvision.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"jax", "flax", "tensorflow", "torch"}, file
