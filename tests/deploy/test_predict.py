"""python -m jaxvision.predict: what it is given, what it writes, and what it says of what it cannot read."""

import csv
import errno
import functools
import io
import json
import os
import re
import socket
import struct
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

import jaxvision
from jaxvision.data import inputs
from jaxvision.data.video import frames
from jaxvision.deploy import inference
from jaxvision.errors import UserError
from jaxvision.targets.class_ import Classes
from tests import mixed_images
from tests.deploy.test_torch_names import workdir_of
from tests.weights.test_published import run

SMALL = dict(name="resnet18", width=16, depths=(1, 1), size=16)
# what has a meaning in a table, in a line, on a terminal, and in JSON
CLASSES = ("plain", 'a "quoted", one', "two\nlines; \x1b[31mred \u2028 é")


@pytest.fixture(scope="module", autouse=True)
def load_once():
    """Commands of this process share what they load, and so the compiled functions."""
    patches = pytest.MonkeyPatch()
    patches.setattr(inference, "load", functools.cache(inference.load))
    yield
    patches.undo()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return str(workdir_of(tmp_path_factory.mktemp("runs") / "class", classes=CLASSES, **SMALL)[0])


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    tags = ("red", "fast car", "a;b")
    return str(workdir_of(tmp_path_factory.mktemp("runs") / "tags", task="multilabel", classes=tags, **SMALL)[0])


@pytest.fixture(scope="module")
def measurer(tmp_path_factory):
    names = ("height, cm", "age")
    return str(workdir_of(tmp_path_factory.mktemp("runs") / "values", task="regression", classes=names, **SMALL)[0])


@pytest.fixture
def asked(workdir, capfd, monkeypatch):
    """(exit code, last line as JSON, lines before it, standard error) of a command on `workdir`."""
    monkeypatch.setattr(os, "_exit", sys.exit)  # which ends a command after an error of the disk

    def ask(*arguments, start=workdir):
        code = run("predict", "--from", start, "--batch-size", "4", *(str(a) for a in arguments))
        out, err = capfd.readouterr()
        *lines, last = out.split("\n")[:-1] or [""]
        return SimpleNamespace(
            code=code, result=json.loads(last) if last[:1] == "{" else None, lines=lines, err=err, out=out
        )

    return ask


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path):
    """Images in folders, what is none beside them, and one that cannot be read."""
    for k, name in enumerate(("b.png", "a/c.PNG", "a/d/e.png", "f g.png")):
        picture(tmp_path / "photos" / name, k)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("no image")
    (tmp_path / "photos" / "c bad.png").write_bytes(b"nothing")
    return tmp_path / "photos"


IN_ORDER = ["a/c.PNG", "a/d/e.png", "b.png", "f g.png"]  # those of `folder` that can be read


def names(answer, folder):
    return [os.path.relpath(p["image"], folder) for p in answer.result["predictions"]]


# --------------------------------------------------------------------------- what it is given


def test_a_folder_with_one_bad_file(asked, folder):
    answer = asked(folder)
    assert answer.code == 2
    assert names(answer, folder) == IN_ORDER
    assert answer.result["images"] == 4
    assert answer.result["left_out"] == {".txt": 1}
    assert "the folders hold other files, which are left out: 1 .txt" in answer.lines
    (bad,) = answer.result["failed"]
    assert "c bad.png: cannot decode" in bad
    assert "1 of 5 images could not be read" in answer.err
    assert sum("not read: " in line for line in answer.lines) == 1
    (folder / "c bad.png").unlink()
    answer = asked(folder)
    assert (answer.code, answer.result["failed"], answer.err) == (0, [], "")
    model = jaxvision.load(answer.result["checkpoint"])
    want = model.predict([folder / name for name in IN_ORDER], batch_size=4)
    found = [p["predictions"][0] for p in answer.result["predictions"]]
    assert [f["class"] for f in found] == [w.label for w in want]
    assert [f["probability"] for f in found] == pytest.approx([w.top(1)[0][1] for w in want], abs=1e-6)


def test_json_is_one_line(asked, folder):
    answer = asked("--json", folder)
    assert (answer.code, answer.lines) == (2, [])
    assert len(answer.result["predictions"]) == 4
    assert len(asked(folder).lines) == 7  # one for each, the time, and what is left out


def test_patterns_files_and_folders_in_the_order_given(asked, folder):
    answer = asked(folder / "f g.png", f"{folder}/**/[ce]*.[pP]*", folder / "a")
    assert answer.code == 2
    assert names(answer, folder) == ["f g.png", "a/c.PNG", "a/d/e.png", "a/c.PNG", "a/d/e.png"]
    odd = picture(folder / "x[1].png")  # a file's own name comes before what it means as a pattern
    assert names(asked(odd), folder) == ["x[1].png"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{folder}/*.jpg", "no file matches"),
        ("{folder}/a*", "no file matches"),  # a folder alone
        ("{folder}/absent.png", "no such image or folder"),
        ("{folder}/empty", "no image in folder"),
        ("gs://bucket/a.png", "must be on a disk"),
    ],
)
def test_what_is_not_there_is_said_before_anything_slow(asked, folder, given, words):
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("")
    answer = asked(folder, given.format(folder=folder), start="no/such/run")
    assert answer.code == 2
    assert words in answer.err
    assert answer.out == ""


def test_links_in_circles_and_folders_that_cannot_be_listed(asked, folder, monkeypatch):
    (folder / "c bad.png").unlink()
    (folder / "a" / "up").symlink_to(folder)
    assert sorted(names(asked(folder), folder)) == IN_ORDER
    plain = os.scandir

    def scandir(path):
        if str(path).endswith("/d"):
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    answer = asked(folder)
    assert answer.code == 2
    assert "a/d: Permission denied" in answer.err


def test_files_of_all_kinds(asked, tmp_path):
    mixed_images.write(tmp_path, len(mixed_images.KINDS))
    answer = asked(tmp_path)
    assert (answer.code, answer.result["images"]) == (0, 13)


def test_a_pipe_as_a_shell_makes_one(asked, folder):
    read, write = os.pipe()
    os.write(write, (folder / "b.png").read_bytes())
    os.close(write)
    answer = asked(f"/dev/fd/{read}", folder / "b.png")
    os.close(read)
    assert answer.code == 0
    first, second = answer.result["predictions"]
    assert first["image"] == f"/dev/fd/{read}"
    assert first["predictions"] == second["predictions"]


def test_files_that_never_end_are_refused_before_anything_slow(asked, tmp_path, stdin, monkeypatch):
    name = str(tmp_path / "socket.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        for given in ("/dev/zero", name):
            answer = asked(given, start="no/such/run")
            assert answer.code == 2
            assert f"'{given}' is a device or a socket" in answer.err
    monkeypatch.setattr(inputs, "LARGEST", 1000)
    stdin(bytes(1001))
    assert "standard input gives more than 1,000 bytes" in asked("-", start="no/such/run").err
    read, write = os.pipe()
    os.write(write, bytes(2000))
    assert "gives more than 1,000 bytes" in asked(f"/dev/fd/{read}", start="no/such/run").err
    os.close(read)
    os.close(write)


def test_pipes_and_sockets_in_a_folder_are_passed_over(asked, folder):
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.png"))
        (folder / "zero.png").symlink_to("/dev/zero")
        answer = asked(folder)
    assert (answer.code, names(answer, folder)) == (2, IN_ORDER)
    assert len(answer.result["failed"]) == 4


def test_large_images_and_videos_are_passed_over(asked, folder):
    (folder / "c bad.png").unlink()
    Image.new("RGB", (60000, 1)).save(folder / "line.png")
    Image.new("1", (9460, 9460)).save(folder / "large.png")
    answer = asked(folder)
    assert (answer.code, names(answer, folder)) == (2, IN_ORDER)
    assert re.search(r"large.png: .*9460 x 9460 pixels are more than max_pixels=89478485", answer.err)
    assert "line.png has 60000 x 1 pixels, a line" in answer.err
    video(folder / "v.mp4", GREY)
    answer = asked("--max-pixels", "700", folder)  # a picture has 480, a frame 768
    assert (answer.code, names(answer, folder)) == (2, IN_ORDER)
    assert re.search(r"v.mp4: .*32 x 24 pixels are more than max_pixels=700", answer.err)
    assert names(asked("--max-pixels", "768", folder / "v.mp4"), folder) == ["v.mp4"] * 3
    for wrong in ("0", "-1", "1e6", "many"):
        assert f"'{wrong}' is no number of pixels" in asked("--max-pixels", wrong, folder).err
    model = jaxvision.load(answer.result["checkpoint"], max_pixels=479)
    for image in (folder / "b.png", (folder / "b.png").read_bytes(), Image.open(folder / "b.png")):
        with pytest.raises(UserError, match="24 x 20 pixels are more than max_pixels=479"):
            model.predict(image)


# --------------------------------------------------------------------------- standard input


@pytest.fixture
def stdin(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize("kind", mixed_images.KINDS, ids=lambda kind: kind[0])
def test_standard_input_is_an_image(asked, stdin, kind, tmp_path):
    """Of every kind; also black ones, whose bytes are nearly all 0 as those that end names."""
    for image in (next(iter(mixed_images.photos().values())).resize((40, 30)), Image.new("RGB", (8, 8))):
        data = kind[1](image)
        stdin(data)
        assert [kind for _, kind in inputs.find("-")] == [data]
    stdin(data)
    (tmp_path / f"a{kind[0]}").write_bytes(data)
    answer = asked("-", tmp_path / f"a{kind[0]}")
    assert answer.code == 0
    first, second = answer.result["predictions"]
    assert first["image"] == "-"
    assert first["predictions"] == second["predictions"]


def test_standard_input_is_a_cut_off_image(asked, stdin, folder):
    stdin((folder / "b.png").read_bytes()[:300])
    answer = asked("-")
    assert answer.code == 2
    assert answer.result["failed"][0].startswith("-: cannot decode")
    assert answer.result["predictions"] == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_standard_input_is_names(asked, stdin, folder, end):
    given = [folder / "f g.png", folder / "c bad.png", folder / "a"]
    stdin(b"".join(os.fsencode(path) + end for path in given))
    answer = asked("-")
    assert answer.code == 2
    assert names(answer, folder) == ["f g.png", "a/c.PNG", "a/d/e.png"]
    assert len(answer.result["failed"]) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "standard input is empty"),
        (b" \n\n", "standard input is empty"),
        (b"absent.png\n", "no such image or folder: 'absent.png'"),
        (b"absent.png\0absent too.png\0", "no such image or folder: 'absent.png'"),
        (b"-\n", "standard input names itself"),
    ],
)
def test_standard_input_of_no_use(asked, stdin, data, words):
    stdin(data)
    answer = asked("-", start="no/such/run")
    assert answer.code == 2
    assert words in answer.err
    stdin(b"\0\0")
    assert asked("-").result["failed"]


HOSTILE = [
    b"two\nlines.png",
    b"\xff\xfe no UTF-8.png",
    b" spaces .png",
    "é \u2028.png".encode(),
    b'a","b.png',
    b"\x1b[31m.png",
]


@pytest.mark.parametrize("ending", ["", ".csv", ".jsonl"])
def test_names_of_any_bytes(asked, stdin, tmp_path, ending):
    """As find -print0 gives them; they come back as they are on the disk, and no terminal obeys them."""
    inside = tmp_path / "in"
    for k, name in enumerate(HOSTILE):
        picture(inside / os.fsdecode(name), k)
    for way in ("-", inside):
        stdin(b"".join(os.fsencode(inside) + b"/" + name + b"\0" for name in HOSTILE))
        answer = asked(way, *(("--out", tmp_path / f"a{ending}") if ending else ()))
        assert (answer.code, answer.err) == (0, "")
        if ending == ".csv":
            with open(tmp_path / "a.csv", errors="surrogateescape", newline="") as file:
                found = [row["image"] for row in csv.DictReader(file)]
        elif ending == ".jsonl":
            with open(tmp_path / "a.jsonl", encoding="utf-8") as file:
                found = [json.loads(line)["image"] for line in file]
        else:
            found = [row["image"] for row in answer.result["predictions"]]
            assert len(answer.lines) == len(HOSTILE) + 1
            assert all(line.isprintable() for line in answer.lines)
        assert sorted(os.path.basename(os.fsencode(name)) for name in found) == sorted(HOSTILE)


def test_a_bad_file_of_a_hostile_name(asked, tmp_path):
    (tmp_path / os.fsdecode(b"\xff\n.png")).write_bytes(b"nothing")
    picture(tmp_path / "good.png")
    answer = asked(tmp_path)
    assert answer.code == 2
    assert os.fsencode(answer.result["failed"][0]).startswith(os.fsencode(tmp_path) + b"/\xff\n.png: ")
    assert "not read: " + str(tmp_path) + r"/\udcff\n.png: cannot decode" in answer.out


# --------------------------------------------------------------------------- what it writes


def test_top_classes(asked, folder):
    answer = asked("--top", "99", folder / "b.png")
    (row,) = answer.result["predictions"]
    assert sorted(p["class"] for p in row["predictions"]) == sorted(CLASSES)
    found = [p["probability"] for p in row["predictions"]]
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert len(asked(folder / "b.png").result["predictions"][0]["predictions"]) == 1


def test_tables_of_classes(asked, folder, tmp_path):
    """Class names that hold commas, quotes and line ends come back; the bad file has no row."""
    want = asked("--top", "3", folder).result["predictions"]
    answer = asked("--top", "9", "--out", tmp_path / "new" / "a.csv", folder)  # there are but 3
    assert answer.code == 2
    assert answer.result["out"] == str(tmp_path / "new" / "a.csv")
    assert "predictions" not in answer.result
    assert answer.lines[0].startswith("not read: ")
    assert answer.lines[-1] == f"answers: {tmp_path / 'new' / 'a.csv'}"
    with open(tmp_path / "new" / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", *(f"{c}_{k}" for k in (1, 2, 3) for c in ("class", "probability"))]
    for row, one in zip(rows, want, strict=True):
        assert row["image"] == one["image"]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [p["class"] for p in one["predictions"]]
        assert [float(row[f"probability_{k}"]) for k in (1, 2, 3)] == [p["probability"] for p in one["predictions"]]
    asked("--out", tmp_path / "a.csv", folder)
    with open(tmp_path / "a.csv", newline="") as file:
        assert next(csv.reader(file)) == ["image", "class", "probability"]
    asked("--top", "3", "--out", tmp_path / "a.jsonl", folder)
    with open(tmp_path / "a.jsonl", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == want
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.csv"]


def test_tables_of_tags(asked, tagger, folder, tmp_path):
    out = tmp_path / "a.csv"
    answer = asked("--threshold", "0", folder / "b.png", start=tagger)
    (row,) = answer.result["predictions"]
    assert sorted(p["class"] for p in row["predictions"]) == ["a;b", "fast car", "red"]
    assert asked("--threshold", "0", "--out", out, folder / "b.png", start=tagger).code == 0
    with open(out, newline="") as file:
        (found,) = csv.DictReader(file)
    assert found["tags"].split(",") == [p["class"] for p in row["predictions"]]
    assert [float(p) for p in found["probabilities"].split(",")] == [p["probability"] for p in row["predictions"]]
    answer = asked("--threshold", "1", "--out", out, folder / "b.png", start=tagger)
    with open(out, newline="") as file:
        assert [(row["tags"], row["probabilities"]) for row in csv.DictReader(file)] == [("", "")]
    assert "none at or above 1" in asked("--threshold", "1", folder / "b.png", start=tagger).out
    answer = asked("--top", "2", folder / "b.png", start=tagger)
    assert (answer.code, answer.result) == (2, None)
    assert "--top is for labels of kind class" in answer.err


def test_tables_of_values(asked, measurer, folder, tmp_path):
    (row,) = asked(folder / "b.png", start=measurer).result["predictions"]
    assert list(row["values"]) == ["height, cm", "age"]
    assert asked("--out", tmp_path / "a.csv", folder / "b.png", start=measurer).code == 0
    with open(tmp_path / "a.csv", newline="") as file:
        (found,) = csv.DictReader(file)
    assert {name: float(found[name]) for name in row["values"]} == row["values"]
    assert "--threshold is for labels of kind tags" in asked("--threshold", "0.2", folder, start=measurer).err


def test_answers_have_their_name_only_when_whole(asked, folder, tmp_path, monkeypatch):
    """And they are written as they come: half of them are in the folder while the other half is computed."""
    out, seen = tmp_path / "out" / "a.jsonl", []
    plain = Classes.to_dict

    def watched(*arguments, **options):
        seen.append([p.name for p in out.parent.iterdir()])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(Classes, "to_dict", watched)
    answer = asked("--out", out, folder)
    assert answer.code == 130
    assert [[name[:9], name[-4:]] for (name,) in seen] == [[".a.jsonl.", ".tmp"]] * 4
    assert list(out.parent.iterdir()) == []
    (tmp_path / "file").write_text("")
    answer = asked("--out", tmp_path / "file" / "a.csv", folder, start="no/such/run")
    assert answer.code == 2
    assert "no/such/run" not in answer.err  # the disk is tried first


def test_a_full_disk_names_the_file_of_answers(asked, folder, tmp_path, monkeypatch):
    def full(*_, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Classes, "to_dict", full)  # as the writing of a row that follows
    answer = asked("--out", tmp_path / "a.csv", folder)
    assert answer.code == 2
    assert (
        answer.err
        == f"error: cannot write {tmp_path}/a.csv (No space left on device): make room there, or name "
        + ("another --out\n")
    )
    assert not list(tmp_path.glob(".*"))


def test_a_bar_only_where_lines_do_not_show_how_far_it_is(asked, folder, tmp_path, monkeypatch):
    bars = []

    def tqdm(items, **options):
        bars.append(options)
        return items

    monkeypatch.setattr("tqdm.tqdm", tqdm)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for on_terminal, more, wanted in (
        (True, (), 0),
        (False, (), 1),
        (True, ("--out", tmp_path / "a.csv"), 1),
        (False, ("--json",), 0),
    ):
        monkeypatch.setattr(sys.stdout, "isatty", lambda on=on_terminal: on, raising=False)
        bars.clear()
        asked(*more, folder)
        assert [bar["total"] for bar in bars] == [5] * wanted


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--top", "0"), "--top is 0: it must be at least 1"),
        (("--batch-size", "0"), "--batch-size is 0: it must be at least 1"),
        (("--threshold", "50"), "--threshold is 50.0: it is a probability, in 0..1"),
        (("--threshold", "nan"), "--threshold is nan"),
        (("--every", "-1"), "--every is -1.0"),
        (("--every", "nan"), "--every is nan"),
        (("--out", "a.txt"), "--out 'a.txt' must end in .jsonl or .csv"),
    ],
)
def test_flags(asked, folder, flags, words):
    answer = asked(*flags, folder, start="no/such/run")
    assert answer.code == 2
    assert words in answer.err


# --------------------------------------------------------------------------- videos


def video(path, colours, rate=10, **options):
    """A film of a colour for each frame."""
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        file.start_encoding()
        for colour in colours:
            pixels = np.broadcast_to(np.asarray(colour, np.uint8), (24, 32, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        file.mux(stream.encode())
    return path


GREY = [(8 * k,) * 3 for k in range(30)]  # frame k of 3 seconds


def means(path, every):
    """[(time, mean of the pixels)]"""
    return [(at, float(pixels.mean())) for at, pixels in frames(str(path), every)]


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi"])
def test_times_of_frames(tmp_path, ending):
    path = video(tmp_path / f"a{ending}", GREY)
    for every, wanted in (
        (1, [0, 10, 20]),
        (0.5, [0, 5, 10, 15, 20, 25]),
        (0, range(30)),
        (0.01, range(30)),
        (0.25, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]),
        (99, [0]),
    ):
        found = means(path, every)
        assert [at for at, _ in found] == pytest.approx([k / 10 for k in wanted], abs=2e-3)
        assert [grey for _, grey in found] == pytest.approx([8 * k for k in wanted], abs=4)  # as lossy as it is


@pytest.mark.parametrize(("ending", "options"), [(".mp4", dict(movflags="faststart")), (".mkv", {})])
def test_times_count_from_the_first_frame(tmp_path, ending, options):
    """Of a stream that begins later, as those of cameras do, the second frame is not due at once; and its length."""
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (50, 24, 32, 3), np.uint8)
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for k, pixels in enumerate(noise):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = k + 24
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    assert [at for at, _ in means(path, 1)] == pytest.approx([0, 1, 2, 3, 4], abs=2e-3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r"ends after [23]\.. s of 5\.0"):
        means(path, 1)


def test_a_video_of_a_phone_held_upright(tmp_path):
    """Its frames lie on their side, and the file says so: what is left in them is above."""
    left_to_right = np.zeros((24, 32, 3), np.uint8)
    left_to_right[:, :16, 0] = left_to_right[:, 16:, 2] = 255
    path = video(tmp_path / "a.mp4", [left_to_right] * 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack(">9I", data[matrix : matrix + 36])[:5] == (1 << 16, 0, 0, 0, 1 << 16)
    data[matrix : matrix + 36] = struct.pack(">9I", 0, 1 << 16, 0, 0xFFFF0000, 0, 0, 24 << 16, 0, 1 << 30)
    path.write_bytes(data)
    ((_, pixels), *_) = frames(str(path), 1)
    assert pixels.shape == (32, 24, 3)
    assert pixels[4, 12, 0] > 200 > 50 > pixels[4, 12, 2]
    assert pixels[27, 12, 2] > 200 > 50 > pixels[27, 12, 0]


def test_videos_among_images(asked, folder, tmp_path):
    (folder / "c bad.png").unlink()
    path = video(folder / "e.mp4", GREY)
    answer = asked("--every", "1.5", folder)
    assert answer.code == 0
    assert names(answer, folder) == ["a/c.PNG", "a/d/e.png", "b.png", "e.mp4", "e.mp4", "f g.png"]
    assert [p.get("time") for p in answer.result["predictions"]] == [None, None, None, 0, 1.5, None]
    assert f"{path} 1.50 s  " in answer.lines[4]
    assert asked("--every", "1.5", "--out", tmp_path / "a.csv", folder).code == 0
    with open(tmp_path / "a.csv", newline="") as file:
        assert [row["time"] for row in csv.DictReader(file)] == ["", "", "", "0.0", "1.5", ""]


@pytest.mark.parametrize(("ending", "options"), [(".mp4", dict(movflags="faststart")), (".mkv", {})])
def test_a_cut_off_video_gives_what_could_be_read(asked, tmp_path, ending, options):
    """FFmpeg ends these without an error."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 24, 32, 3), np.uint8)
    path = video(tmp_path / f"a{ending}", noise, **options)
    assert asked(path).code == 0
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    answer = asked("--every", "0.5", path)
    assert answer.code == 2
    assert 3 <= answer.result["images"] <= 6
    (failed,) = answer.result["failed"]
    assert re.search(f"a{ending}: the video ends after [12]\\.. s of 5.0: copy it again", failed)


def test_videos_that_cannot_be_read(asked, folder):
    path = video(folder / "a.mp4", GREY)
    path.write_bytes(path.read_bytes()[:-100])  # within its table of contents
    (folder / "b.mkv").write_bytes(b"nothing")
    video(folder / "c.mkv", [])
    (folder / "d.mp4").write_bytes(b"")
    sound(folder / "e.mkv")
    answer = asked(folder)
    assert answer.code == 2
    assert len(answer.result["predictions"]) == 4
    failed = {os.path.basename(line.split(":")[0]): line for line in answer.result["failed"]}
    assert sorted(failed) == ["a.mp4", "b.mkv", "c bad.png", "c.mkv", "d.mp4", "e.mkv"]
    assert all("video" in line for name, line in failed.items() if name != "c bad.png")


def sound(path):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def test_without_pyav_it_is_said_before_anything_slow(asked, folder, monkeypatch):
    (folder / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    answer = asked(folder, start="no/such/run")
    assert answer.code == 2
    assert 'pip install "jaxvision[video]"' in answer.err
    (folder / "a.mp4").unlink()
    assert len(asked(folder).result["predictions"]) == 4
