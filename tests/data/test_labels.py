"""Class names, files that are left out and groups: the rules that all sources share."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import open_source
from jaxvision.data.sources.common import class_order

TWELVE = [str(k) for k in range(12)]


def png(colour=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(path):
    for name in TWELVE:
        (path / name).mkdir(parents=True)
        (path / name / "a.png").write_bytes(png(int(name)))
    return f"folder:{path}"


def make_csv(path):
    path.mkdir()
    (path / "t.csv").write_text("image,label\n" + "".join(f"{n}.png,{n}\n" for n in reversed(TWELVE)))
    return f"csv:{path}/t.csv"


def make_tar(path, inner=False):
    path.mkdir()
    with tarfile.open(path / "t.tar", "w") as tar:
        for name in TWELVE:
            data, member = png(int(name)), f"{name}/a.png"
            if inner:
                buffer = io.BytesIO()
                with tarfile.open(fileobj=buffer, mode="w") as below:
                    info = tarfile.TarInfo("a.png")
                    info.size = len(data)
                    below.addfile(info, io.BytesIO(data))
                data, member = buffer.getvalue(), f"{name}.tar"
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"tar:{path}/t.tar"


ORDERED = {"folder": make_folder, "csv": make_csv, "tar": make_tar, "inner": lambda path: make_tar(path, inner=True)}


@pytest.mark.parametrize("layout", ORDERED)
def test_classes_that_are_integers_count_as_numbers_in_every_source(tmp_path, layout):
    source = open_source(ORDERED[layout](tmp_path / "data"))
    assert source.classes == tuple(TWELVE)
    assert sorted(source.labels.tolist()) == list(range(12))
    for i, label in enumerate(source.labels.tolist()):
        assert TWELVE[label] in source.where(i)  # the label is the number that the name says


@given(st.lists(st.integers(-20, 200).map(str), min_size=1, unique=True))
@settings(deadline=None)
def test_class_order_is_that_of_numbers_or_of_text(names):
    assert [int(n) for n in class_order(names)] == sorted(int(n) for n in names)
    assert class_order([*names, "x"]) == tuple(sorted([*names, "x"])), "one name that is no integer"
    assert class_order(reversed(names)) == class_order(names)


def test_class_order_of_odd_numbers():
    assert class_order(["2", "01", "1", "+1"]) == ("+1", "01", "1", "2")
    assert class_order(["٣", "10", "9"]) == ("10", "9", "٣")  # an Arabic three is text
    assert len(class_order(["1" * 5000, "2"])) == 2  # more digits than int takes
