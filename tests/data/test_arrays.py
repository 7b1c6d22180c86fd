"""idx:, cifar: and npz:, each written here byte by byte as its format says, and damaged in many ways."""

import gzip
import hashlib
import io
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from jaxvision.data import InputContract, eval_batches, open_source
from jaxvision.data.sources import arrays, cifar, idx
from jaxvision.errors import UserError

RNG = np.random.default_rng(0)
FASHION = pathlib.Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def pixels(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def refused(uri, *words):
    with pytest.raises(UserError) as caught:
        open_source(uri)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message
    return message


# --------------------------------------------------------------------------- writing


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, images, labels, split="train", prefix="", gz=False, dot="-"):
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in ((f"images{dot}idx3", images), (f"labels{dot}idx1", labels)):
        data = idx_bytes(array)
        name = f"{prefix}{split}-{what}-ubyte" + (".gz" if gz else "")
        (folder / name).write_bytes(gzip.compress(data) if gz else data)


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_files(hundred=False, count=4):
    """{name: bytes} and {split: (images, labels)}, of so many records a file."""
    files, truth = {}, {}
    names = (
        {"train": ["train.bin"], "test": ["test.bin"]}
        if hundred
        else {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
    )
    for split, listed in names.items():
        images, labels = pixels(len(listed) * count, 3, 32, 32), RNG.integers(0, 10, (len(listed) * count, 1 + hundred))
        truth[split] = images.transpose(0, 2, 3, 1), labels
        for k, name in enumerate(listed):
            part = slice(k * count, (k + 1) * count)
            rows = np.concatenate([labels[part].astype(np.uint8), images[part].reshape(count, -1)], 1)
            files[name] = rows.tobytes()
    if hundred:
        files["fine_label_names.txt"] = "\n".join(f"fine {k}" for k in range(100)).encode()
        files["coarse_label_names.txt"] = "\n".join(f"coarse {k}" for k in range(20)).encode()
    else:
        files["batches.meta.txt"] = ("\n".join(TEN) + "\n\n").encode()
    return files, truth


def write_tar(path, files, mode="w:gz", folder="cifar-10-batches-bin"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def medmnist(path, save=np.savez_compressed, labels=None, shape=(28, 28, 3), **more):
    content = {}
    for split, count in (("train", 9), ("val", 3), ("test", 4)):
        content[f"{split}_images"] = pixels(count, *shape)
        content[f"{split}_labels"] = (
            (np.arange(count) % 3)[:, None].astype(np.uint8) if labels is None else labels(count)
        )
    save(path, **{**content, **more})
    return content


# --------------------------------------------------------------------------- idx:


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("gz", [False, True])
def test_idx(tmp_path, gz, dot):
    images, labels = pixels(7, 5, 6), np.array([3, 0, 1, 2, 3, 3, 0], np.uint8)
    write_idx(tmp_path, images, labels, gz=gz, dot=dot)
    write_idx(tmp_path, images[:2], np.array([4, 0], np.uint8), "t10k", gz=gz, dot=dot)
    source = open_source(f"idx:{tmp_path}/train")
    assert (source.kind, len(source), source.classes) == ("class", 7, tuple("01234"))
    assert source.labels.dtype == np.int32
    for k in range(7):
        sample = source[k]
        assert (sample["image"] == images[k][:, :, None]).all()
        assert (sample["label"], sample["index"]) == (labels[k], k)
    assert open_source(f"idx:{tmp_path}/test").classes == source.classes  # although neither part has them all
    assert source.where(6).endswith(", image 6")
    with pytest.raises(IndexError):
        source[7]
    batch = next(eval_batches(source, InputContract(size=4, resize=4), batch_size=7, threads=0))
    assert batch["image"].shape == (7, 4, 4, 3)


def test_idx_of_several_data_sets(tmp_path):
    for prefix, first in (("emnist-letters-", 1), ("emnist-digits-", 0)):
        for split in ("train", "test"):
            write_idx(tmp_path, pixels(3, 4, 4), np.array([first, 9, 2], np.uint8), split, prefix, gz=True)
    refused(f"idx:{tmp_path}/train", "set=emnist-digits, set=emnist-letters")
    refused(f"idx:{tmp_path}/train?set=emnist-leters", "did you mean 'emnist-letters'?")
    letters = open_source(f"idx:{tmp_path}/train?set=emnist-letters")
    assert "".join(letters.classes) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert [letters.classes[label] for label in letters.labels] == ["A", "I", "B"]
    digits = open_source(f"idx:{tmp_path}/test?set=emnist-digits")
    assert [digits.classes[label] for label in digits.labels] == ["0", "9", "2"]


def test_emnist_is_upright(tmp_path):
    images = pixels(2, 4, 4)
    write_idx(tmp_path, images, np.array([0, 1], np.uint8), prefix="emnist-balanced-")
    source = open_source(f"idx:{tmp_path}/train")
    assert (source[1]["image"][:, :, 0] == images[1].T).all()
    assert len(source.classes) == 47


@pytest.mark.parametrize("gz", [False, True])
def test_idx_names_of_classes(tmp_path, gz, monkeypatch):
    labels = np.array([0, 9, 1], np.uint8)
    write_idx(tmp_path, pixels(3, 4, 4), labels, gz=gz)
    (tmp_path / "names.txt").write_text("\n".join(f"name {k}" for k in range(10)))
    uri = f"idx:{tmp_path}/train?classes={tmp_path}/names.txt"
    assert open_source(uri).classes[9] == "name 9"
    (tmp_path / "names.txt").write_text("a\nb")
    refused(uri, "label 9 of image 1 is not in 0..1", "names.txt names")
    assert open_source(f"idx:{tmp_path}/train").classes == tuple("0123456789")
    monkeypatch.setattr(idx, "_FASHION", (hashlib.sha256(labels.tobytes()).hexdigest(),))
    assert open_source(f"idx:{tmp_path}/train").classes[9] == "Ankle boot"


@pytest.mark.slow
def test_fashion_mnist():
    """The real files: of Debian's package dataset-fashion-mnist, or in the folder that FASHION_MNIST names."""
    train, test = open_source(f"idx:{FASHION}/train"), open_source(f"idx:{FASHION}/test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.classes == test.classes
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert [train.classes[k] for k in train.labels[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]


def damaged_idx():
    good = idx_bytes(pixels(3, 4, 4))
    huge = struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    return {
        "empty": (b"", "begins with"),
        "short header": (good[:9], "ends within its header"),
        "cut": (good[:-1], "ends after 47 of 48"),
        "too long": (good + b"x", "goes on after them"),
        "labels": (idx_bytes(np.zeros(3, np.uint8)), "begins with 00 00 08 01"),
        "floats": (bytes((0, 0, 13, 3)) + good[4:], "begins with 00 00 0d 03"),
        "a web page": (b"<!DOCTYPE html><html>", "begins with 3c 21 44 4f"),
        "none": (idx_bytes(np.zeros((0, 28, 28), np.uint8)), "none"),
        "huge": (huge, "bytes of memory"),
        "gzip, cut": (gzip.compress(good)[:-9], "cannot read"),
        "gzip, damaged": (gzip.compress(good)[:-8] + b"\0" * 8, "cannot read"),
        "gzip, huge": (gzip.compress(huge), "bytes of memory"),
        "gzip, a bomb": (
            gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 100_000, 28, 28)), "images never do"),
    }  # fmt: skip


@pytest.mark.parametrize("case", damaged_idx())
def test_damaged_idx(tmp_path, case):
    content, words = damaged_idx()[case]
    write_idx(tmp_path, pixels(3, 4, 4), np.array([0, 1, 0], np.uint8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    refused(f"idx:{tmp_path}/train", str(tmp_path / "train-images-idx3-ubyte"), words)


def test_idx_that_does_not_fit_or_is_not_there(tmp_path):
    refused(f"idx:{tmp_path}/mnist/train", "No such file")
    refused(f"idx:{tmp_path}", "/train or idx:")
    refused(f"idx:{tmp_path}/trian", "names no part of the data set")
    refused(f"idx:{tmp_path}/train", "holds no images in the format of MNIST")
    write_idx(tmp_path / "MNIST" / "raw", pixels(3, 4, 4), np.array([0, 1], np.uint8))
    refused(f"idx:{tmp_path}/MNIST/train", f"write idx:{tmp_path}/MNIST/raw/train")
    refused(f"idx:{tmp_path}/MNIST/raw/train", "3 images", "2 labels")
    refused(f"idx:{tmp_path}/MNIST/raw/test", "no test images")
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    refused(f"idx:{tmp_path}/MNIST/raw/train", "no file of labels")
    refused(f"idx:{tmp_path}/MNIST/raw/train?clases=x", "did you mean 'classes'?")


# --------------------------------------------------------------------------- cifar:


def same(source, images, labels, count):
    assert len(source) == count
    assert source.labels.tolist() == labels.tolist()
    for k in (0, count - 1):
        assert (source[k]["image"] == images[k]).all()
        assert (source[k]["label"], source[k]["index"]) == (labels[k], k)


@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder", "folder of the folder", "folder of the archive"])
def test_cifar10(tmp_path, form):
    files, truth = cifar_files()
    where = {
        "tar.gz": lambda: write_tar(tmp_path / "cifar-10-binary.tar.gz", files),
        "tar": lambda: write_tar(tmp_path / "any name", files, "w"),
        "folder": lambda: write_folder(tmp_path / "x", files),
        "folder of the folder": lambda: write_folder(tmp_path / "x" / "cifar-10-batches-bin", files).parent,
        "folder of the archive": lambda: write_tar(tmp_path / "cifar-10-binary.tar.gz", files).parent,
    }[form]()
    for split, count in (("train", 20), ("test", 4)):
        source = open_source(f"cifar:{where}/{split}")
        assert source.classes == tuple(TEN)
        same(source, truth[split][0], truth[split][1][:, 0], count)


def test_cifar100(tmp_path):
    files, truth = cifar_files(hundred=True)
    path = write_tar(tmp_path / "cifar-100-binary.tar.gz", files, folder="cifar-100-binary")
    images, labels = truth["train"]
    fine, coarse = open_source(f"cifar:{path}/train"), open_source(f"cifar:{path}/train?label=coarse")
    same(fine, images, labels[:, 1], 4)
    same(coarse, images, labels[:, 0], 4)
    assert (fine.classes[99], coarse.classes[19]) == ("fine 99", "coarse 19")
    assert len(open_source(f"cifar:{path}/train?label=coarse&split=:50%")) == 2
    refused(f"cifar:{path}/train?label=corse", "did you mean 'coarse'?")


def test_a_folder_with_both_cifars(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-bin", cifar_files()[0])
    write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar_files()[0])
    assert len(open_source(f"cifar:{tmp_path}/test")) == 4  # an archive and what came out of it are one
    write_folder(tmp_path / "cifar-100-binary", cifar_files(hundred=True)[0])
    refused(f"cifar:{tmp_path}/train", f"cifar:{tmp_path}/cifar-10-batches-bin/train")


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("hundred", [False, True])
def test_pickled_cifar_is_refused_unread(tmp_path, hundred, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = pickle.dumps(Evil())
    names = ("train", "test", "meta") if hundred else (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
    files = dict.fromkeys(names, bad)
    archive = write_tar(tmp_path / "cifar-python.tar.gz", files)
    for place in (archive, write_folder(tmp_path / "py", files)):
        refused(f"cifar:{place}/train", "pickled", "runs whatever code", "binary.tar.gz")
    assert not (tmp_path / "PWNED").exists()


def damaged_cifar():
    files, _ = cifar_files()
    cut = {**files, "data_batch_3.bin": files["data_batch_3.bin"][:-1]}
    label = {**files, "test_batch.bin": b"\x0a" + files["test_batch.bin"][1:]}
    return {
        "cut batch": (cut, "train", "data_batch_3.bin has 12,291 bytes"),
        "empty batch": ({**files, "data_batch_3.bin": b""}, "train", "data_batch_3.bin has 0 bytes"),
        "label": (label, "test", "label 10 of image 0 is not in 0..9"),
        "no batch": ({k: v for k, v in files.items() if "_4" not in k}, "train", "lacks data_batch_4.bin"),
        "no names": ({k: v for k, v in files.items() if "meta" not in k}, "train", "lacks batches.meta.txt"),
        "binary names": ({**files, "batches.meta.txt": b"\xff\xfe"}, "train", "no list of different class names"),
        "same names": ({**files, "batches.meta.txt": b"a\na\n"}, "train", "no list of different class names"),
        "other files": ({"readme.html": b"hello"}, "train", "no files of CIFAR's binary version, but readme.html"),
        "matlab": ({"test_batch.mat": b"MATLAB"}, "train", "the version of CIFAR for MATLAB"),
        "both": ({**files, **cifar_files(hundred=True)[0]}, "train", "both CIFAR-10 and CIFAR-100"),
    }  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", damaged_cifar())
def test_damaged_cifar(tmp_path, case, packed):
    files, split, words = damaged_cifar()[case]
    place = write_tar(tmp_path / "x.tar.gz", files) if packed else write_folder(tmp_path / "x", files)
    refused(f"cifar:{place}/{split}", words)


def test_damaged_archives_of_cifar(tmp_path, monkeypatch):
    refused(f"cifar:{tmp_path}/cifar-10-binary.tar.gz/train", "No such file", "https://www.cs.toronto.edu")
    files, _ = cifar_files()
    path = write_tar(tmp_path / "x.tar.gz", files)
    good = path.read_bytes()
    plain = gzip.decompress(good)
    lying = bytearray(plain)
    lying[124:136] = b"77777777777\0"  # the size of the first member: 8 GB
    lying[148:156] = b"%06o\0 " % (sum(lying[:148]) + 8 * 32 + sum(lying[156:512]))
    for content in (b"", b"no archive", good[: len(good) // 2], gzip.compress(plain[:-9000]), bytes(lying)):
        path.write_bytes(content)
        refused(f"cifar:{path}/train", str(path))
    path.write_bytes(good)
    monkeypatch.setattr(cifar, "_MOST", 50_000)
    refused(f"cifar:{path}/train", "unpacks to more than 50,000 bytes")


def test_links_in_an_archive_lead_nowhere(tmp_path):
    files, _ = cifar_files()
    (tmp_path / "secret").write_bytes(files.pop("test_batch.bin"))
    path = write_tar(tmp_path / "x.tar", files, "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    refused(f"cifar:{path}/test", "lacks test_batch.bin")


# --------------------------------------------------------------------------- npz:


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (28, 28, 3)])
def test_npz_of_classes(tmp_path, save, shape):
    content = medmnist(tmp_path / "pathmnist.npz", save, shape=shape)
    for split, count in (("train", 9), ("val", 3), ("test", 4)):
        source = open_source(f"npz:{tmp_path}/pathmnist.npz/{split}")
        assert (source.kind, len(source), source.classes) == ("class", count, tuple("012"))
        assert (source[2]["image"] == content[f"{split}_images"][2].reshape(28, 28, -1)).all()
        assert source.labels.tolist() == content[f"{split}_labels"][:, 0].tolist()
        assert source.labels.dtype == np.int32


def test_npz_of_tags(tmp_path):
    content = medmnist(tmp_path / "chestmnist.npz", labels=lambda n: RNG.integers(0, 2, (n, 14)), shape=(28, 28))
    source = open_source(f"npz:{tmp_path}/chestmnist.npz/val")
    assert (source.kind, len(source.classes)) == ("tags", 14)
    assert source.labels.dtype == source[1]["label"].dtype == np.float32
    assert (source[1]["label"] == content["val_labels"][1]).all()
    (tmp_path / "n.txt").write_text("\n".join(f"finding {k}" for k in range(14)))
    assert open_source(f"npz:{tmp_path}/chestmnist.npz/val?classes={tmp_path}/n.txt").classes[13] == "finding 13"
    (tmp_path / "n.txt").write_text("\n".join("abcdefghijklmno"))
    refused(f"npz:{tmp_path}/chestmnist.npz/val?classes={tmp_path}/n.txt", "15 lines", "14 columns")


def test_npz_as_keras_has_it(tmp_path):
    images, labels = pixels(5, 8, 8), np.array([1, 0, 1, 2, 0])
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    source = open_source(f"npz:{tmp_path}/mnist.npz/train")
    same(source, images[..., None], labels, 5)
    assert open_source(f"npz:{tmp_path}/mnist.npz/test").classes == source.classes == tuple("012")
    refused(f"npz:{tmp_path}/mnist.npz/val", f"take npz:{tmp_path}/mnist.npz/train or npz:")


def bad_npz():
    objects = np.array([Evil(), None], object)
    return {
        "objects": (dict(train_images=objects), "reading a pickle runs"),
        "labels of objects": (dict(val_labels=objects), "reading a pickle runs"),
        "floats": (dict(train_images=np.zeros((9, 4, 4), np.float32)), "is float32[9, 4, 4], wanted uint8"),
        "volumes": (dict(train_images=np.zeros((9, 28, 28, 28), np.uint8)), "seems to hold volumes"),
        "no images": (dict(train_images=np.zeros((0, 28, 28), np.uint8)), "uint8[0, 28, 28]"),
        "numbers": (dict(train_labels=np.full((9, 1), 0.5)), "wanted integers"),
        "other counts": (dict(train_labels=np.zeros((8, 1), np.uint8)), "9 images in train_images, 8 labels"),
        "other columns": (dict(val_labels=np.zeros((3, 2), np.uint8)), "alike in all parts"),
        "negative": (dict(train_labels=np.full((9, 1), -1)), "label -1 of image 0 is not in 0..2"),
        "huge": (dict(train_labels=np.full((9, 1), 2**40)), "label 1099511627776 of image 0 is not in 0..9999"),
        "not 0 and 1": (
            {f"{s}_labels": np.full((n, 2), 3) for s, n in (("train", 9), ("val", 3), ("test", 4))},
            "in row 0 other numbers than 0 and 1 ([3, 3])",
        ),
    }


@pytest.mark.parametrize("case", bad_npz())
def test_npz_of_another_kind(tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more, words = bad_npz()[case]
    medmnist(tmp_path / "x.npz", shape=(28, 28), **more)
    refused(f"npz:{tmp_path}/x.npz/train", str(tmp_path / "x.npz"), words)
    assert not (tmp_path / "PWNED").exists()


def npy(shape, data=b"", dtype="|u1"):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_hostile_npz(tmp_path):
    path = tmp_path / "x.npz"
    refused(f"npz:{path}/train", "no such file")

    def of(images, method=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("train_images.npy", images)
            archive.writestr("train_labels.npy", npy((1, 1), b"\0"))
        return f"npz:{path}/train"

    refused(of(npy((2**40, 28, 28))), "862,017,116,176,384 bytes, and 0 are there")
    refused(of(npy((10, 4, 4), b"\0" * 159)), "160 bytes, and 159 are there")
    refused(of(npy((-1, 4, 4), b"")), "train_images")
    refused(of(npy((2, 4, 4), b"\0" * 32, "|O")), "holds Python objects")
    refused(of(b"hello"), "cannot read")
    refused(of(npy((100_000, 28, 28), bytes(78_400_000))), "images never do")  # 76 KB
    good = of(npy((1, 4, 4), pixels(16).tobytes()))
    assert len(open_source(good)) == 1
    content = path.read_bytes()
    for k in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:k])
        refused(good, str(path))
    at = content.index(b"train_images.npy") + 40
    path.write_bytes(content[:at] + bytes((content[at] ^ 255,)) + content[at + 1 :])
    refused(good, str(path))
    path.write_bytes(npy((1, 4, 4), bytes(16)))  # an .npy under this name
    refused(good, "cannot read")


# --------------------------------------------------------------------------- all


def test_more_than_the_machine_has_is_refused():
    with pytest.raises(UserError, match="this machine has"):
        arrays.check_size("x", 1 << 60)


@pytest.mark.parametrize("scheme", ["idx", "cifar", "npz"])
def test_pickles_and_is_cut_into_parts(tmp_path, scheme):
    write_idx(tmp_path, pixels(10, 8, 8), np.arange(10, dtype=np.uint8) % 2)
    write_folder(tmp_path / "c", cifar_files()[0])
    medmnist(tmp_path / "m.npz")
    uri = {"idx": f"idx:{tmp_path}/train", "cifar": f"cifar:{tmp_path}/c/train", "npz": f"npz:{tmp_path}/m.npz/train"}
    source = open_source(uri[scheme])
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.uri, copy.classes, len(copy)) == (source.uri, source.classes, len(source))
    for k in range(len(source)):
        assert (copy[k]["image"] == source[k]["image"]).all()
        assert copy[k]["label"] == source[k]["label"] == source.labels[k]
    half = open_source(uri[scheme] + "?split=0:50%")
    assert len(half) == len(source) // 2
    contract = InputContract(size=8, resize=8)
    want = [b["image"] for b in eval_batches(half, contract, batch_size=3, threads=0)]
    for options in (dict(threads=2), dict(processes=1)):
        got = [b["image"] for b in eval_batches(half, contract, batch_size=3, **options)]
        assert all((a == b).all() for a, b in zip(got, want, strict=True))
