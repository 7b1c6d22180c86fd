"""What every source must keep to, over sources.__all__: a new one adds a line to CASES, a test fails until it does."""

import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import decode, open_source, sources
from jaxvision.data.sample import LABEL
from jaxvision.pack import pack
from tests.data.test_arrays import cifar_files, medmnist, write_folder, write_idx
from tests.data.test_tfds import prepared  # noqa: F401 (a fixture)

RNG = np.random.default_rng(0)
COUNT = 7


def png(k):
    file = io.BytesIO()
    Image.new("RGB", (4 + k, 5), (10 * k, 0, 0)).save(file, "PNG")
    return file.getvalue()


def folder(path):
    for k in range(COUNT):
        (path / "cdba"[k % 4]).mkdir(parents=True, exist_ok=True)
        (path / "cdba"[k % 4] / f"{9 - k}.png").write_bytes(png(k))
    return f"folder:{path}"


def images(path):
    return folder(path).replace("folder:", "images:")


def table(columns):
    def write(path):
        folder(path)
        names = [f"{'cdba'[k % 4]}/{9 - k}.png" for k in range(COUNT)]
        (path / "t.csv").write_text("".join(f"{cell}\n" for cell in columns(names)))
        return f"csv:{path}/t.csv"

    return write


def classes(names):
    return ["image,c", *(f"{name},{name[0]}" for name in names)]


def tags(names):
    return ["image,x,y,z", *(f"{name},{k % 2},{int(k < 3)},{'' if k == 4 else 1}" for k, name in enumerate(names))]


def values(path):
    uri = table(lambda names: ["image,u,v", *(f"{name},{k},{k / 7}" for k, name in enumerate(names))])(path)
    return f"{uri}?kind=values"


def tags_by_name(path):
    uri = table(lambda names: ["image,t", *(f"{name},{'x;y;z'[: 2 * (k % 3)]}" for k, name in enumerate(names))])(path)
    return f"{uri}?sep=;"


def tar(path):
    folder(path)
    with tarfile.open(path / "t.tar", "w") as file:
        for name in "abcd":
            file.add(path / name, name)
    return f"tar:{path}/t.tar"


def webdataset(path):
    path.mkdir()
    with tarfile.open(path / "t.tar", "w") as file:
        for k in range(COUNT):
            for end, data in ((".png", png(k)), (".cls", str(12 - k).encode())):
                info = tarfile.TarInfo(f"{k}{end}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return f"tar:{path}/t.tar"


def packed(make):
    def write(path):
        path.mkdir()
        pack(["--from", make(path / "from"), "--out", str(path / "out"), "--json", "--threads", "1"])
        return f"records:{path}/out"

    return write


def idx(path):
    write_idx(path, RNG.integers(0, 256, (COUNT, 28, 28), np.uint8), np.arange(COUNT, dtype=np.uint8) % 3)
    return f"idx:{path}/train"


def cifar(path):
    return f"cifar:{write_folder(path, cifar_files(count=2)[0])}/train"


def npz(path):
    path.mkdir()
    medmnist(path / "t.npz")
    return f"npz:{path}/t.npz/train"


# class in sources.__all__ -> URIs, or what makes the files of one in a new folder
CASES = {
    "Cifar": [cifar],
    "Csv": [table(classes), table(tags), tags_by_name, values],
    "Digits": ["digits:test"],
    "Fake": ["fake:7x5?classes=3"],
    "Folder": [folder],
    "Idx": [idx],
    "Images": [images],
    "Npz": [npz],
    "Records": [packed(folder), packed(table(tags)), packed(lambda path: "fake:7x5")],
    "Subset": ["fake:20x5?split=5:70%", lambda path: f"{table(tags)(path)}?part=50%:"],
    "Tar": [tar, webdataset],
    "Tfds": ["tfds:our_digits/test[:9]?data_dir={tfds}"],
}
ALL = [(name, k) for name, cases in CASES.items() for k in range(len(cases))]


def test_every_source_has_a_case():
    classes = {name for name in sources.__all__ if isinstance(getattr(sources, name), type)} - {"Source"}
    assert classes == CASES.keys()
    assert {getattr(sources, name) for name in classes - {"Subset"}} == set(sources.SCHEMES.values())


@pytest.fixture(scope="module", params=ALL, ids=[f"{name}{k or ''}" for name, k in ALL])
def source(request, tmp_path_factory):
    name, k = request.param
    case = CASES[name][k]
    if isinstance(case, str):
        data = case.format(tfds=request.getfixturevalue("prepared")) if "{tfds}" in case else case
    else:
        data = case(tmp_path_factory.mktemp("sources") / "data")
    opened = open_source(data)
    assert type(opened).__name__ == name
    return opened


def same(a, b):
    return (
        np.array_equal(np.asarray(a["image"]), np.asarray(b["image"]))
        and np.array_equal(a["label"], b["label"], equal_nan=True)
        and a["index"] == b["index"]
    )


def test_labels_are_those_of_the_samples(source):
    labels = source.labels
    assert source.kind in LABEL
    assert isinstance(source.classes, tuple)
    assert all(isinstance(name, str) and name for name in source.classes)
    assert len(set(source.classes)) == len(source.classes)
    if not LABEL[source.kind].shape:
        assert (labels.dtype, labels.shape) == (np.int32, (len(source),))
        assert labels.min() >= 0
        assert labels.max() < max(1, len(source.classes))
    else:
        assert (labels.dtype, labels.shape) == (np.float32, (len(source), len(source.classes)))
    for i in range(len(source)):
        label = source[i]["label"]
        np.testing.assert_array_equal(label, labels[i])
        assert isinstance(label, int) if not LABEL[source.kind].shape else label.dtype == np.float32


def test_samples_are_images_with_places_and_numbers_of_their_own(source):
    samples = [source[i] for i in range(len(source))]
    assert len({sample["index"] for sample in samples}) == len(samples)
    assert all(type(sample["index"]) is int and sample["index"] >= 0 for sample in samples)
    assert len({source.where(i) for i in range(len(source))}) == len(samples)
    for i, sample in enumerate(samples):
        assert sample.keys() == {"image", "label", "index"}
        pixels = decode(sample["image"], 3, source.where(i))
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)


def test_numbers_outside_are_an_index_error(source):
    for i in (len(source), -len(source) - 1, 10**9):
        with pytest.raises(IndexError):
            source[i]
        with pytest.raises(IndexError):
            source.where(i)
    assert same(source[-1], source[len(source) - 1])
    assert source.where(-1) == source.where(len(source) - 1)
    assert len(list(source)) == len(source), "it ends when it is iterated over"


def test_it_pickles(source):
    again = pickle.loads(pickle.dumps(source))
    assert (again.uri, again.kind, again.classes, len(again)) == (
        source.uri, source.kind, source.classes, len(source))  # fmt: skip
    np.testing.assert_array_equal(again.labels, source.labels)
    assert all(same(again[i], source[i]) for i in range(len(source)))
    assert [again.where(i) for i in range(len(again))] == [source.where(i) for i in range(len(source))]


def test_its_uri_opens_it_again_in_the_same_order(source):
    again = open_source(source.uri)
    assert (again.uri, again.kind, again.classes) == (source.uri, source.kind, source.classes)
    np.testing.assert_array_equal(again.labels, source.labels)
    assert all(same(again[i], source[i]) for i in range(len(source)))


def test_several_threads_may_read(source):
    fresh, want = pickle.loads(pickle.dumps(source)), [source[i] for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: fresh[i % len(want)], range(8 * len(want))))
    assert all(same(sample, want[i % len(want)]) for i, sample in enumerate(got))


def test_a_sample_is_the_callers_own_or_read_only(source):
    sample = source[0]
    kept = pickle.loads(pickle.dumps(sample))
    for part in ("image", "label"):
        if isinstance(sample[part], np.ndarray) and sample[part].flags.writeable:
            sample[part][...] = 1 + sample[part]
    assert same(source[0], kept)
    if isinstance(kept["label"], np.ndarray):
        np.testing.assert_array_equal(source.labels[0], kept["label"])
