"""The command that packs: what it keeps, what it refuses, and that it may be killed at any moment."""

import errno
import fcntl
import io
import json
import os
import pathlib
import random
import resource
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import decode, open_source, sources
from jaxvision.data.packing import Packing, content_digest
from jaxvision.data.sources.records import open_shard
from jaxvision.errors import UserError
from jaxvision.pack import pack
from jaxvision.runtime import paths
from tests.conftest import ROOT

RESULT = {"out", "count", "skipped", "shards", "bytes", "digest", "seconds", "images_per_s"}


def jpeg(seed, height, width, **how):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def make_folder(root, count, data):
    """`count` files of two classes; data(k) gives the bytes of file k."""
    for k in range(count):
        path = root / ("cat", "dog")[k % 2] / f"{k:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(k))
    return f"folder:{root}"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "pets", 20, lambda k: jpeg(k, 20 + 4 * k, 60))


def run(*arguments):
    return pack([*map(str, arguments), "--json"])


def all_but_the_check(monkeypatch, *arguments):
    """Stops when all shards are whole, before the folder counts."""

    def enough(*_):
        raise UserError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Packing, "_verify", enough)
        with pytest.raises(UserError, match="enough"):
            run(*arguments)


def mtimes(out):
    return {p.name: p.stat().st_mtime_ns for p in out.glob("*.array_record")}


# --------------------------------------------------------------------------- what is written


def test_kept_bytes_and_the_result(folder, tmp_path, capsys):
    out = tmp_path / "out"
    result = pack(["--from", folder, "--out", str(out), "--shards", "3"])
    assert set(result) == RESULT
    assert (result["count"], result["skipped"], result["shards"]) == (20, 0, 3)
    assert result["bytes"] == sum(p.stat().st_size for p in out.glob("*.array_record"))
    assert result["digest"] == content_digest(open_source(folder)) == content_digest(open_source(f"records:{out}"))
    assert sorted(p.name for p in out.iterdir()) == [
        "index.npy",
        "info.json",
        "labels.npy",
        *(f"shard-{k:05}-of-00003.array_record" for k in range(3)),
    ]
    info = json.loads((out / "info.json").read_text())
    assert [s["count"] for s in info["shards"]] == [6, 7, 7]
    assert info["keeps_bytes"]
    assert f"--config.data.train=records:{out}" in capsys.readouterr().out


def test_what_the_source_leaves_out_is_told(folder, tmp_path, capsys):
    (tmp_path / "pets" / "notes.txt").touch()
    pack(["--from", folder, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"{folder} leaves out 1 .txt" in said
    assert "groups" not in said
    pack(["--from", f"{folder}?group=[0-9][.]jpg&split=0:80%", "--out", str(tmp_path / "part")])
    assert "has groups, and records keep none: pack the data of an evaluation apart" in capsys.readouterr().out


def test_the_same_command_after_the_end_does_nothing(folder, tmp_path, capsys):
    out = tmp_path / "out"
    first = run("--from", folder, "--out", out, "--shards", 3)
    before = mtimes(out)
    again = pack(["--from", folder, "--out", str(out), "--shards", "3"])
    assert "packed already" in capsys.readouterr().out
    assert mtimes(out) == before
    for key in RESULT - {"seconds", "images_per_s"}:
        assert again[key] == first[key]
    (out / "shard-00001-of-00003.array_record").write_bytes(b"short")
    with pytest.raises(UserError, match=r"shard-00001-of-00003.*has 5 bytes"):
        run("--from", folder, "--out", out, "--shards", 3)


def test_any_number_of_threads_gives_the_same_files(folder, tmp_path):
    for threads in (1, 7):
        run("--from", folder, "--out", tmp_path / f"{threads}", "--shards", 2, "--threads", threads, "--longest", 40)
    infos = [json.loads((tmp_path / n / "info.json").read_text()) for n in ("1", "7")]
    assert infos[0]["shards"] == infos[1]["shards"]
    assert infos[0]["digest"] == infos[1]["digest"]


def test_longest_bounds_the_sides_and_keeps_what_fits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    files = [
        jpeg(0, 30, 64),
        jpeg(1, 65, 40),
        jpeg(2, 300, 200),
        jpeg(3, 100, 400, exif=exif),
        jpeg(4, 2, 999),
        jpeg(5, 20, 60, exif=exif),
    ]
    uri = make_folder(tmp_path / "in", len(files), lambda k: files[k])
    result = run("--from", uri, "--out", tmp_path / "out", "--longest", 64)
    source, back = open_source(uri), open_source(f"records:{tmp_path}/out")
    shapes = {}
    for i in range(len(back)):
        k = files.index(source[i]["image"])
        shapes[k] = decode(back[i]["image"], 3, "").shape[:2]
        assert max(shapes[k]) <= 64
        assert (back[i]["image"] == files[k]) == (k in (0, 5))
        stored = Image.open(io.BytesIO(back[i]["image"]))
        assert stored.format == "JPEG"
        assert k == 5 or 0x0112 not in stored.getexif()  # upright
    assert shapes == {0: (30, 64), 1: (64, 39), 2: (64, 43), 3: (64, 16), 4: (1, 64), 5: (60, 20)}
    assert result["digest"] == content_digest(back) != content_digest(source)
    assert not back.info["keeps_bytes"]


def test_a_resized_image_is_the_antialiased_original(tmp_path):
    files = [jpeg(0, 400, 300, quality=95)]
    uri = make_folder(tmp_path / "in", 1, lambda k: files[k])
    run("--from", uri, "--out", tmp_path / "out", "--longest", 100, "--quality", 98)
    # luma: JPEG halves the resolution of colours
    stored = decode(open_source(f"records:{tmp_path}/out")[0]["image"], 1, "")[:, :, 0].astype(int)
    original = Image.open(io.BytesIO(files[0]))
    apart = {}
    for name in ("LANCZOS", "NEAREST"):
        want = original.resize((75, 100), Image.Resampling[name]).convert("L")
        apart[name] = np.abs(stored - np.asarray(want)).mean()
    print(apart)
    assert apart["LANCZOS"] < 2
    assert apart["NEAREST"] > 4


def test_quality_alone_encodes_all_again(folder, tmp_path):
    sizes = []
    for quality in (30, 95):
        run("--from", folder, "--out", tmp_path / str(quality), "--quality", quality)
        source, back = open_source(folder), open_source(f"records:{tmp_path}/{quality}")
        for i in range(20):
            assert back[i]["image"] != source[i]["image"]
            assert decode(back[i]["image"], 3, "").shape == decode(source[i]["image"], 3, "").shape
        sizes.append(sum(len(back[i]["image"]) for i in range(20)))
    assert sizes[0] < sizes[1]


def test_pixels_that_are_encoded_again_become_jpeg(tmp_path):
    run("--from", "digits:test", "--out", tmp_path / "out", "--quality", 90)
    image = open_source(f"records:{tmp_path}/out")[7]["image"]
    assert image[:2] == b"\xff\xd8"
    assert decode(image, 3, "").shape == (8, 8, 3)


# --------------------------------------------------------------------------- unreadable images


def test_an_unreadable_image_stops_with_its_path_or_is_skipped(folder, tmp_path, capsys):
    out = tmp_path / "out"
    bad = tmp_path / "pets" / "dog" / "00005.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    arguments = ["--from", folder, "--out", str(out), "--shards", "5"]
    with pytest.raises(UserError, match=r"dog/00005\.jpg: cannot decode .*--on-error skip"):
        run(*arguments)
    before = mtimes(out)
    assert len(before) == 3  # it is image 12 of 20
    result = pack([*arguments, "--on-error", "skip"])
    told = capsys.readouterr().out
    assert "resuming: 3 of 5 shards are whole" in told
    assert "skipped 1 unreadable image" in told
    assert (result["count"], result["skipped"]) == (19, 1)
    assert before.items() <= mtimes(out).items()
    source, back = open_source(folder), open_source(f"records:{out}")
    (skipped,) = back.info["skipped"]
    assert skipped["sample"] == 12
    assert str(bad) in skipped["error"]
    assert [back[i]["index"] for i in range(19)] == [i for i in range(20) if i != 12]
    for i in range(19):
        assert back[i]["image"] == source[back[i]["index"]]["image"]
        assert back[i]["label"] == source[back[i]["index"]]["label"]


def test_what_was_skipped_stops_a_run_that_must_not_skip(folder, tmp_path, monkeypatch):
    (tmp_path / "pets" / "cat" / "00004.jpg").write_bytes(b"")
    arguments = ["--from", folder, "--out", tmp_path / "out", "--shards", 5]
    all_but_the_check(monkeypatch, *arguments, "--on-error", "skip")
    with pytest.raises(UserError, match=r"00004\.jpg"):
        run(*arguments)


def test_a_shard_of_nothing_and_a_source_of_nothing(folder, tmp_path):
    for k in (0, 2, 4, 6):
        (tmp_path / "pets" / "cat" / f"{k:05}.jpg").write_bytes(b"no image")
    result = run("--from", folder, "--out", tmp_path / "a", "--shards", 5, "--on-error", "skip")
    assert (result["count"], result["skipped"], result["shards"]) == (16, 4, 5)
    assert len(open_source(f"records:{tmp_path}/a")) == 16
    for path in (tmp_path / "pets").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 20 images"):
        run("--from", folder, "--out", tmp_path / "b", "--on-error", "skip")
    assert not (tmp_path / "b" / "info.json").exists()


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_are_refused_and_named(folder, tmp_path, monkeypatch, finished):
    out = tmp_path / "out"
    arguments = ["--from", folder, "--out", out, "--shards", 4]
    if finished:
        run(*arguments)
    else:
        all_but_the_check(monkeypatch, *arguments)

    def message(*more):
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(UserError) as error:
            run(*more)
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"} == {
            k: v for k, v in before.items() if k != ".lock"
        }
        assert str(out) in str(error.value)
        assert "another --out" in str(error.value)
        return str(error.value)

    assert "--longest was not given, now 64" in message(*arguments, "--longest", 64)
    assert "--quality was not given, now 80" in message(*arguments, "--quality", 80)
    assert "--shards was 4, now 5" in message(*arguments[:-1], 5)
    assert "--from was folder:" in message("--from", "digits:test", "--out", out, "--shards", 4)
    extra = tmp_path / "pets" / "dog" / "new.jpg"
    extra.write_bytes(jpeg(99, 20, 20))
    assert "the number of samples was 20, now 21" in message(*arguments)
    extra.unlink()
    os.rename(tmp_path / "pets" / "cat" / "00000.jpg", tmp_path / "pets" / "dog" / "99999.jpg")
    assert "the labels differ" in message(*arguments)
    os.rename(tmp_path / "pets" / "cat", tmp_path / "pets" / "cow")
    assert "classes: 'cat' only then, 'cow' only now" in message(*arguments)


def test_a_folder_with_other_files_is_refused_and_left_alone(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"holds other files \(mine\.txt\)"):
        run("--from", folder, "--out", tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_two_at_once_are_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is packing"):
            run("--from", folder, "--out", tmp_path / "out")
    run("--from", folder, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shards", "0"], "--shards is 0"),
        (["--shards", "21"], "holds 20 samples"),
        (["--longest", "0"], "--longest is 0"),
        (["--quality", "101"], "1 to 100"),
        (["--threads", "0"], "--threads is 0"),
        (["--on-error", "ignore"], "invalid choice"),
        (["--qualty", "90"], "did you mean '--quality'?"),
    ],
)
def test_bad_arguments(folder, tmp_path, arguments, words):
    with pytest.raises(UserError) as error:
        run("--from", folder, "--out", tmp_path / "out", *arguments)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- the check at the end


class Changing:
    """A source one of whose images is another one from the second time on that it is read."""

    uri, kind, classes = "changing:", "class", ("a",)
    labels = np.zeros(6, np.int32)

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.reads += i == 4
        return {"image": np.full((4, 4, 3), 10 * i + (i == 4 and self.reads > 1), np.uint8), "label": 0, "index": i}

    def where(self, i):
        return f"changing, sample {i}"


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source = Changing()
    monkeypatch.setitem(sources.SCHEMES, "changing", lambda rest: source)
    arguments = ["--from", "changing:", "--out", tmp_path / "out", "--shards", 3]
    with pytest.raises(UserError, match=r"shard-00002-of-00003\.array_record, record 0 is not what changing, sample 4"):
        run(*arguments)
    assert not (tmp_path / "out" / "info.json").exists()
    before = mtimes(tmp_path / "out")
    assert len(before) == 2
    assert run(*arguments)["digest"] == content_digest(source)
    assert before.items() <= mtimes(tmp_path / "out").items()


@pytest.mark.parametrize("options", [[], ["--quality", 90]])
def test_a_disk_that_gives_back_something_else_is_noticed(folder, tmp_path, monkeypatch, capsys, options):
    path = tmp_path / "out" / "shard-00001-of-00004.array_record"
    arguments = ["--from", folder, "--out", tmp_path / "out", "--shards", 4, *options]
    verify = Packing._verify

    def damaged(self, *arguments):
        data = bytearray(path.read_bytes())
        data[data.find(b"\xff\xd8", 200) + 50] ^= 1
        path.write_bytes(data)
        return verify(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Packing, "_verify", damaged)
        with pytest.raises(UserError, match=r"shard-00001-of-00004.*damaged"):
            run(*arguments)
    assert not (tmp_path / "out" / "info.json").exists()
    before = mtimes(tmp_path / "out")
    result = pack([*map(str, arguments)])
    assert "shard-00001-of-00004.array_record is damaged: it is written again" in capsys.readouterr().out
    after = mtimes(tmp_path / "out")
    assert {k for k in before if before[k] != after[k]} == {path.name}
    assert result["digest"] == content_digest(open_source(f"records:{tmp_path}/out"))


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"bytes": "many"}'])
def test_a_damaged_note_of_a_shard_costs_that_shard_alone(folder, tmp_path, monkeypatch, capsys, content):
    out = tmp_path / "out"
    arguments = ["--from", folder, "--out", out, "--shards", 4]

    def fails(self, *arguments):
        raise UserError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Packing, "_info", fails)
        with pytest.raises(UserError, match="no room"):
            run(*arguments)
    notes = sorted(out.glob("shard-*.json"))
    assert len(notes) == 4
    notes[1].write_text(content)
    before = mtimes(out)
    result = pack([*map(str, arguments)])
    assert f"{notes[1]} is damaged (" in capsys.readouterr().out
    after = mtimes(out)
    assert {k for k in after if before.get(k) != after[k] and k.startswith("shard")} == {
        f"{notes[1].stem}.array_record"
    }
    assert result["digest"] == content_digest(open_source(f"records:{out}"))


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_damaged_plan_is_named(folder, tmp_path, monkeypatch, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "packing.json").write_text(content)
    with pytest.raises(UserError, match=r"packing\.json is damaged \(.*name another --out"):
        run("--from", folder, "--out", tmp_path / "out", "--shards", 4)


# --------------------------------------------------------------------------- the process


def start(arguments, **how):
    words = [sys.executable, "-m", "jaxvision.pack", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **how)


def wait_for(process, out, shards):
    """Until that many shards have their final names."""
    end = time.monotonic() + 120
    while len(list(out.glob("*.array_record"))) < shards:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


def check_whole(out):
    """Every shard that has its final name can be read to its end. Returns the times when they were written."""
    for path in out.glob("*.array_record"):
        part = json.loads(path.with_suffix(".json").read_text())
        reader = open_shard(str(path), part["count"])
        assert len(reader.read_all()) == part["count"]
    return mtimes(out)


def kill_and_finish(uri, out, shards, moments):
    """Kills the command (when so many shards are there, and seconds later), then lets it finish."""
    arguments = ["--from", uri, "--out", out, "--shards", shards, "--json"]
    before = {}
    for count, delay in moments:
        process = start(arguments)
        wait_for(process, out, count)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "info.json").exists()
        now = check_whole(out)
        assert before.items() <= now.items()  # none was written twice
        before = now
    process = start(arguments)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert before.items() <= mtimes(out).items()
    names = sorted(p.name for p in out.iterdir())
    shard_names = [f"shard-{k:05}-of-{shards:05}.array_record" for k in range(shards)]
    assert names == ["index.npy", "info.json", "labels.npy", *shard_names]
    result = json.loads(stdout)
    assert result["digest"] == content_digest(open_source(uri)) == content_digest(open_source(f"records:{out}"))
    return result


def test_killed_twice(tmp_path):
    uri = make_folder(tmp_path / "in", 300, lambda k: jpeg(k, 200 + k % 7, 260))
    result = kill_and_finish(uri, tmp_path / "out", 12, [(3, 0.0), (6, 0.01)])
    assert result["count"] == 300


@pytest.mark.slow
def test_ten_thousand_images_killed_twice_at_random(tmp_path):
    base = jpeg(0, 32, 32)

    def data(k):  # one file, with a comment of its own
        return base[:2] + b"\xff\xfe" + (2 + 8).to_bytes(2, "big") + k.to_bytes(8, "big") + base[2:]

    uri = make_folder(tmp_path / "in", 10_000, data)
    rng = random.Random(time.time_ns())
    first = rng.randint(1, 18)
    moments = [(first, rng.random() / 20), (rng.randint(first + 3, 36), rng.random() / 20)]
    print("killed at", moments)
    result = kill_and_finish(uri, tmp_path / "out", 40, moments)
    assert result["count"] == 10_000
    print(result)
    began = time.perf_counter()
    whole = run("--from", uri, "--out", tmp_path / "at once", "--shards", 40)
    print("at once:", round(time.perf_counter() - began, 2), "s", whole)
    assert whole["digest"] == result["digest"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_exits_75_and_says_how_to_resume(tmp_path, number):
    uri = make_folder(tmp_path / "in", 200, lambda k: jpeg(k, 300, 300))
    out = tmp_path / "out put"
    process = start(["--from", uri, "--out", out, "--shards", 8])
    wait_for(process, out, 2)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert f"{number.name}: " in stderr
    assert "of 8 shards are whole in" in stderr
    assert "Traceback" not in stderr
    assert not list(out.glob(".shard-*"))
    before = check_whole(out)
    words = shlex.split(stderr.split("To resume: ")[1])
    assert words[:3] == ["python", "-m", "jaxvision.pack"]
    process = start(words[3:])
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert f"resuming: {len(before)} of 8 shards are whole" in stdout
    assert before.items() <= mtimes(out).items()
    assert json.loads(stdout.splitlines()[-1])["digest"] == content_digest(open_source(uri))


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    uri = make_folder(tmp_path / "in", 40, lambda k: jpeg(k, 300, 300))
    out = tmp_path / "out"
    arguments = ["--from", uri, "--out", out, "--shards", 1, "--json"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # as a full disk: write() fails

    process = start(arguments, preexec_fn=limit)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert "cannot write" in stderr
    assert "shard-00000-of-00001.array_record" in stderr
    assert "File too large" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert sorted(p.name for p in out.iterdir()) == [".lock", "packing.json"]
    assert run(*arguments)["digest"] == content_digest(open_source(uri))


@pytest.mark.parametrize(("limit", "name"), [(1, "packing.json"), (1000, "shard-00000-of-00001.array_record")])
def test_any_limit_of_a_file_names_the_file(tmp_path, limit, name):
    uri = make_folder(tmp_path / "in", 3, lambda k: jpeg(k, 30, 30))
    out = tmp_path / "out"
    process = start(
        ["--from", uri, "--out", out, "--json"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: cannot write {out}/{name}: ")
    assert "File too large" in line
    assert "make room there or allow it, the same command resumes" in line
    assert not (out / name).exists()


def test_a_folder_that_may_not_be_written_names_it(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*/file/out: .*/file is a file, and no folder"):
        run("--from", folder, "--out", tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"--out .*/file: .*/file is a file, and no folder"):
        run("--from", folder, "--out", tmp_path / "file")
    real = open

    def refuses(name, mode="r", *more, **options):
        if "w" in mode:  # as on a disk that is mounted for reading only; permissions do not bind root
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return real(name, mode, *more, **options)

    monkeypatch.setattr(paths, "open", refuses, raising=False)
    with pytest.raises(UserError, match=r"cannot write .*/out/\.lock: Read-only file system: .*another --out"):
        run("--from", folder, "--out", tmp_path / "out")


def test_too_many_pixels_stop_the_packing_or_are_left_out(folder, tmp_path):
    arguments = ["--from", folder, "--out", tmp_path / "out", "--max-pixels", 60 * 90]
    with pytest.raises(UserError, match=r"cat/00018\.jpg: .*60 x 92 pixels are more than max_pixels=5400"):
        run(*arguments)
    assert run(*arguments, "--on-error", "skip")["skipped"] == 2  # heights of 92 and 96
    with pytest.raises(UserError, match=r"'0' is no number of pixels"):
        run(*arguments[:-1], 0)


def test_grey_of_32_bits_is_kept_for_whoever_knows_its_range(tmp_path):
    levels = np.linspace(-1000, 3000, 64, dtype=np.float32).reshape(8, 8)
    (tmp_path / "in/ct").mkdir(parents=True)
    Image.fromarray(levels).save(tmp_path / "in/ct/0.tif")
    out, uri = tmp_path / "out", f"folder:{tmp_path}/in"
    run("--from", uri, "--out", out)
    image = open_source(f"records:{out}")[0]["image"]
    assert image == (tmp_path / "in/ct/0.tif").read_bytes()
    found = decode(image, 1, "x", range=(-1000, 3000))[..., 0]
    np.testing.assert_array_equal(found, np.rint((levels.astype(float) + 1000) * 255 / 4000))
    with pytest.raises(UserError, match=r"0\.tif: cannot decode an image of 32 bits"):  # of which 8 would be stored
        run("--from", uri, "--out", tmp_path / "small", "--quality", 90)
    (tmp_path / "in/ct/1.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"1\.tif: cannot decode the image"):
        run("--from", uri, "--out", tmp_path / "damaged")


def test_help_shows_examples_and_loads_no_jax(tmp_path):
    code = (
        "import sys; from jaxvision import pack\n"
        f"pack.pack(['--from', 'digits:test', '--out', {str(tmp_path / 'out')!r}, '--json'])\n"
        "assert not [m for m in ('jax', 'grain', 'tensorflow', 'torch') if m in sys.modules]\n"
        "pack.pack(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=pathlib.Path(ROOT))
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert "--out /data/packed/pets-train" in done.stdout
    assert "--on-error" in done.stdout
