"""Class names, files that are left out and groups: the rules that all sources share."""

import contextlib
import io
import itertools
import os
import re
import tarfile
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import decode, open_source
from jaxvision.data.sources import hold_out, with_classes
from jaxvision.data.sources.common import EXTENSIONS, class_order, left_out, notes
from jaxvision.errors import Unreadable, UserError, nearest
from jaxvision.training import check

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
    whole = [name for name in names if name[0] != "-"]
    assert class_order(whole) == tuple(sorted(whole, key=natural_key))


def natural_key(text):
    """timm.utils.natural_key, by which it sorts class folders."""
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", text.lower())]


def test_class_order_of_odd_numbers():
    assert class_order(["2", "01", "1", "+1"]) == ("+1", "01", "1", "2")
    assert class_order(["٣", "10", "9"]) == ("10", "9", "٣")  # an Arabic three is text
    assert len(class_order(["1" * 5000, "2"])) == 2  # more digits than int takes


def test_the_order_of_before_is_told_and_how_to_keep_it(tmp_path):
    """A workdir of before that order, whose classes come again from the same folders."""
    uri = make_folder(tmp_path / "data")
    before = tuple(sorted(TWELVE))
    with pytest.raises(
        UserError, match=r"class 2 is '2' there and '10' in.*integers count as numbers now.*classes\.txt"
    ):
        check.classes(uri, open_source(uri).classes, before)
    (tmp_path / "data/classes.txt").write_text("\n".join(before))
    source = open_source(uri)
    check.classes(uri, source.classes, before)
    assert [os.path.basename(os.path.dirname(source.where(i))) for i in range(12)] == list(before)
    with pytest.raises(UserError, match=r"another order, class 0 is 'b' there and 'a' in the training data\. To pin"):
        check.classes("x", ("b", "a"), ("a", "b"))


# --------------------------------------------------------------------------- names that look alike

NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def test_places_of_samples_do_not_depend_on_the_numbers_of_classes(tmp_path):
    """So that a part, and the tenth that is held out, are the same images as before classes counted as numbers."""
    source = open_source(make_folder(tmp_path / "data"))
    folders = [os.path.basename(os.path.dirname(source.where(i))) for i in range(len(source))]
    assert folders == sorted(folders)
    assert [source.classes[label] for label in source.labels] == folders
    assert [source.classes[source[i]["label"]] for i in range(len(source))] == folders


def test_names_that_look_alike_are_shown_so_that_they_differ(tmp_path):
    messages = [nearest(NFC, ["cat", NFD])]
    with pytest.raises(UserError) as error:
        check.classes("x", (NFC, "cat"), (NFD, "cat"))
    messages.append(str(error.value))
    with pytest.raises(UserError) as error:
        with_classes(open_source("digits:train"), [*"012345678", NFC], "x")
    assert repr(NFC) in str(error.value), "nothing that looks the same"
    (tmp_path / "t.csv").write_text(f"path,c\na,cat\nb,{NFD}\n")
    with pytest.raises(UserError) as error:
        with_classes(open_source(f"csv:{tmp_path}/t.csv"), ["cat", NFC], "x")
    messages.append(str(error.value))
    (tmp_path / NFD).mkdir()
    for uri in (f"folder:{tmp_path}/{NFC}", f"images:{tmp_path}/{NFC}", f"csv:{tmp_path}/{NFC}"):
        with pytest.raises(UserError) as error:
            open_source(uri)
        messages.append(str(error.value))
    (tmp_path / NFD / "a.png").write_bytes(png())
    (tmp_path / "classes.txt").write_text(NFC)
    with pytest.raises(UserError) as error:
        open_source(f"folder:{tmp_path}")
    messages.append(str(error.value))
    (tmp_path / "t.csv").write_text(f"path,c\na,{NFD}\n")
    with pytest.raises(UserError) as error:
        open_source(f"csv:{tmp_path}/t.csv?classes={tmp_path}/classes.txt")
    messages.append(str(error.value))
    for message in messages:
        assert ascii(NFC) in message, message
        assert ascii(NFD) in message, message
    assert nearest("cet", ["cat", NFD]) == "did you mean 'cat'?"


# --------------------------------------------------------------------------- files that are and are no samples


KINDS = Image.registered_extensions()
WRITTEN = [end for end in EXTENSIONS if KINDS.get(end) in Image.SAVE.keys() - {"XBM", "MSP"}]  # those have one bit


def save(path, end):
    """One colour, in the format of the ending."""
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    (image.quantize() if end == ".blp" else image).save(path, KINDS[end])


def test_every_file_that_pillow_reads_is_read(tmp_path):
    assert {".jpg", ".jfif", ".jpe", ".ppm", ".pgm", ".avif", ".jp2", ".tga", ".webp"} <= set(WRITTEN)
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".txt"} & set(EXTENSIONS)
    for k, end in enumerate(WRITTEN):
        folder = tmp_path / ("cat", "dog")[k % 2]
        folder.mkdir(exist_ok=True)
        save(folder / f"x{end.upper() if k % 3 else end}", end)
    for uri in (f"folder:{tmp_path}", f"images:{tmp_path}"):
        source = open_source(uri)
        assert {os.path.splitext(source.where(i))[1].lower() for i in range(len(source))} == set(WRITTEN)
        assert source.left_out == {}
        for i in range(len(source)):
            pixels = decode(source[i]["image"], 3, source.where(i))
            assert pixels.shape[2] == 3, source.where(i)
            assert np.abs(pixels.mean((0, 1)) - (200, 100, 50)).max() < 8, source.where(i)


def test_what_is_left_out_is_counted_by_ending(tmp_path):
    for name in (
        "cat/a.png",
        "dog/deep/b.JPG",
        "cat/x.heic",
        "dog/y.HEIC",
        "dog/notes.txt",
        "c.png",
        "d.tif",
        "README",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / ".hidden").touch()
    folder = open_source(f"folder:{tmp_path}")
    counts = {"beside the class folders": 2, ".heic": 2, ".txt": 1, "no ending": 1}
    assert (len(folder), folder.left_out) == (2, counts)
    assert open_source(f"folder:{tmp_path}?split=0:50%").left_out == counts
    part = open_source(f"folder:{tmp_path}?split=50%:100%")
    (line,) = notes([part, folder])
    assert line.startswith(f"folder:{tmp_path} leaves out")
    for words in ("leaves out", "2 beside the class folders", "2 .heic", "1 .txt", "1 no ending"):
        assert words in line
    other = with_classes(part, ["dog", "cat"], "x")
    assert left_out([part, folder, other, open_source("digits:test")]) == {folder.uri: folder.left_out}, "once"
    images = open_source(f"images:{tmp_path}")
    assert (len(images), images.left_out) == (4, {".heic": 2, ".txt": 2, "no ending": 1})
    (tmp_path / "cat/a.png").unlink()
    with pytest.raises(UserError, match=r"class folder .*cat holds no image \(jpg .*\), only 1 \.heic: add"):
        open_source(f"folder:{tmp_path}")


def test_notes_count_tags_and_what_is_unknown(tmp_path):
    (tmp_path / "t.csv").write_text("image,cat,dog\na,1,\nb,0,0\nc,1,1\nd,0,\n")
    uri = f"csv:{tmp_path}/t.csv"
    assert notes([open_source(uri)] * 2) == [f"tags of {uri}: cat 2, dog 1 (2 unknown); none: 1"]
    (tmp_path / "t.csv").write_text("image,tags\n" + "".join(f"{k},t{k}\n" for k in range(60)))
    (line,) = notes([open_source(f"{uri}?kind=tags")])
    assert line.endswith(", and 10 more tags; none: 0")
    assert notes([open_source("digits:train")]) == []


@pytest.mark.parametrize("parts", [("train", "val"), ("Train", "test", "meta"), ("train",), ("valid", "testing")])
def test_the_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    for part, name in itertools.product(parts, ("cat", "dog")):
        (tmp_path / part / name).mkdir(parents=True)
        (tmp_path / part / name / "a.png").write_bytes(png())
    first = f'config.data.train = "folder:{tmp_path}/{parts[0]}"'
    with pytest.raises(UserError, match=re.escape(first)) as error:
        open_source(f"folder:{tmp_path}")
    if len(parts) > 1:
        assert f'and config.evals.NAME.data = "folder:{tmp_path}/{parts[1]}"' in str(error.value)
    assert len(open_source(f"folder:{tmp_path}/{parts[0]}").classes) == 2
    (tmp_path / "classes.txt").write_text("\n".join(parts))
    assert len(open_source(f"folder:{tmp_path}").classes) == len(parts), "classes.txt says that they are classes"


@pytest.mark.parametrize("member", ["data/{}/cat/a.png", "{}/a.png", "{}/animals/cat/a.png"])
def test_the_parts_of_a_data_set_in_one_tar_are_not_mixed(tmp_path, member):
    def write(*parts):
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for part in parts:
                info = tarfile.TarInfo(member.format(part))
                info.size = len(png())
                tar.addfile(info, io.BytesIO(png()))
        (tmp_path / "t.tar.index.npz").unlink(missing_ok=True)
        return f"tar:{tmp_path}/t.tar"

    with pytest.raises(UserError, match=r"t\.tar holds the parts of a data set \(train, val\).*a tar of its own"):
        open_source(write("train", "val"))
    assert len(open_source(write("train"))) == 1
    assert len(open_source(write("train", "tram"))) == 2


def test_a_class_may_be_called_like_a_part(tmp_path):
    for name in ("train", "tram", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    assert open_source(f"folder:{tmp_path}").classes == ("bus", "train", "tram")


# --------------------------------------------------------------------------- links


def test_a_link_to_itself_costs_nothing_but_itself(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.png").write_bytes(png())
    (tmp_path / "cat/loop").symlink_to(tmp_path / "cat/loop")
    (tmp_path / "cat/b.png").symlink_to(tmp_path / "cat/b.png")
    for uri in (f"folder:{tmp_path}", f"images:{tmp_path}"):
        source = open_source(uri)
        assert (len(source), source.left_out) == (2, {"no ending": 1})
        with pytest.raises(Unreadable, match=r"cannot read .*cat/b\.png: Too many levels of symbolic links"):
            source[1]


def test_a_link_that_may_stand_for_a_class_is_named(tmp_path):
    (tmp_path / "data/cat").mkdir(parents=True)
    (tmp_path / "data/cat/a.png").write_bytes(png())
    link = tmp_path / "data/dog"
    for target, words in (("dog", "is not there"), ("/gone", "is not there"), (".", "holds all the classes")):
        link.symlink_to(target)
        with pytest.raises(UserError, match=rf"data/dog is a link to {target}, which {words}"):
            open_source(f"folder:{tmp_path}/data")
        link.unlink()
    link.symlink_to("cat")
    assert open_source(f"folder:{tmp_path}/data").classes == ("cat", "dog")


# --------------------------------------------------------------------------- groups


def patients(folder, rows):
    """The URIs of a table and of a folder of the same images: (patient, class) a row."""
    text = "image,patient,label\n"
    for k, (patient, label) in enumerate(rows):
        name = f"{label}/p{patient}_{k:03}.png"
        (folder / label).mkdir(exist_ok=True)
        (folder / name).write_bytes(png(k))
        text += f"{name},p{patient},{label}\n"
    (folder / "t.csv").write_text(text)
    return f"csv:{folder}/t.csv?group=patient", f"folder:{folder}?group=(p\\d+)_"


def patients_of(source):
    return {re.search(r"(p\d+)_", source.where(i))[1] for i in range(len(source))}


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=12, max_size=40),
    st.integers(1, 99),
    st.integers(0, 3),
    st.sampled_from(("split", "part")),
)
@settings(max_examples=40, deadline=None)
def test_no_group_is_on_both_sides(tmp_path_factory, rows, cut, seed, key):
    for uri in patients(tmp_path_factory.mktemp("p"), rows):
        sides = []
        for share in (f"0:{cut}%", f"{cut}%:100%"):
            with contextlib.suppress(UserError):  # too few groups for this cut
                sides.append(open_source(f"{uri}&{key}={share}&seed={seed}"))
        if len(sides) == 2:
            assert not patients_of(sides[0]) & patients_of(sides[1])
            paths = [{side.where(i) for i in range(len(side))} for side in sides]
            assert not paths[0] & paths[1]
            assert len(paths[0] | paths[1]) == len(rows), "none is left out"
            for side in sides:
                assert [side[i]["label"] for i in range(len(side))] == side.labels.tolist()
                assert len(set(side.groups.tolist())) == len(patients_of(side))


def test_groups_are_found_in_the_paths_of_images_alone(tmp_path):
    """Not in the name of a tar, nor in the places that shards and arrays give their samples."""
    rows = [(patient, "ab"[k]) for patient in range(5) for k in range(2)]
    (tmp_path / "p7").mkdir()
    patients(tmp_path / "p7", rows)
    with tarfile.open(tmp_path / "p7/p8.tar", "w") as archive:
        for label in "ab":
            archive.add(tmp_path / "p7" / label, label)
    for uri in (f"tar:{tmp_path}/p7/p8.tar", f"folder:{tmp_path}/p7", f"images:{tmp_path}/p7"):
        halves = [open_source(f"{uri}?group=p(\\d+)&split={share}") for share in ("0:3", "3:5")]
        assert [len(half) for half in halves] == [6, 4]
        assert not patients_of(halves[0]) & patients_of(halves[1])
    for uri in ("digits:train", "fake:9x8"):
        with pytest.raises(UserError, match=f"group is searched in the paths of images, and {uri} has none: remove it"):
            open_source(f"{uri}?group=(\\d+)&split=0:50%")


def test_the_tenth_that_is_held_out_keeps_groups_whole_and_has_every_class(tmp_path):
    rows = [(patient, "ab"[patient % 2]) for patient in range(40) for _ in range(1 + patient % 5)]
    for uri in patients(tmp_path, rows):
        kept, held_out = map(open_source, hold_out(uri))
        assert (len(patients_of(kept)), len(patients_of(held_out))) == (36, 4), "a tenth of the patients of each class"
        assert not patients_of(kept) & patients_of(held_out)
        assert set(held_out.labels.tolist()) == {0, 1}
        assert len(kept) + len(held_out) == len(rows)
    without = [open_source(u) for u in hold_out(f"csv:{tmp_path}/t.csv?label=label")]
    assert patients_of(without[0]) & patients_of(without[1]), "else the test shows nothing"


def test_a_group_counts_for_the_class_of_most_of_its_samples(tmp_path):
    rows = [(0, "a"), (0, "b"), (0, "b"), (1, "a"), (2, "a"), (2, "b"), (3, "b")]
    uri, _ = patients(tmp_path, rows)
    # p0 and p3 are b, p1 and p2 (a tie: the lower class) are a; half of two is one of each
    halves = [patients_of(open_source(f"{uri}&part={share}")) for share in ("0:50%", "50%:100%")]
    for half in halves:
        assert len(half & {"p0", "p3"}) == len(half & {"p1", "p2"}) == 1


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("group=(", "group is no regular expression"),
        ("group=x+", "group=x\\+ finds nothing in 'cat/a.png': correct the pattern"),
        ("group=cat&split=0:50%", "leaves none of the 1 groups: widen split"),
        ("group=cat&part=0:50%", "leaves none of the 1 groups of 'cat': widen part"),
        ("group=([ab])[.]png&split=0:3", "split=0:3 does not lie in the 2 groups"),
        ("split=0:50%&split=50%:100%", "split comes twice, as 0:50% and as 50%:100%: remove one of them"),
        ("group=a&group=b", "group comes twice"),
        ("splt=0:50%", "unknown key 'splt' .*: did you mean 'split'"),
    ],
)
def test_wrong_parts_are_named(tmp_path, query, wanted):
    (tmp_path / "cat").mkdir()
    for name in "ab":
        (tmp_path / f"cat/{name}.png").write_bytes(png())
    with pytest.raises(UserError, match=wanted):
        open_source(f"folder:{tmp_path}?{query}")


def test_a_key_that_comes_twice_is_refused_by_every_source(tmp_path):
    for uri in ("fake:9x8?classes=3&classes=4", f"csv:{tmp_path}/t.csv?kind=tags&kind=class", "tar:/x?meta=a&meta=b"):
        with pytest.raises(UserError, match="comes twice"):
            open_source(uri)
    with pytest.raises(UserError, match="holds a zero byte"):
        open_source(f"folder:{tmp_path}/a\0b")
