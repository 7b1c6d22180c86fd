"""python -m jaxvision.predict: class names, tags or values for images, folders and videos."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import os
import pathlib
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from jaxvision import cli
from jaxvision.data.decode import MAX_PIXELS, check_pixels
from jaxvision.data.sources import EXTENSIONS
from jaxvision.data.sources.common import ENDINGS, LARGEST, counted, guarded, images, read_file
from jaxvision.errors import UserError
from jaxvision.runtime import paths

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".3gp")
TABLES = (".jsonl", ".csv")


class Place(NamedTuple):
    """An image: the name of its file, "-" for standard input; of a frame also its time in seconds."""

    name: str
    time: float | None = None

    def __str__(self) -> str:
        return self.name if self.time is None else f"{self.name} {self.time:.2f} s"


def predict(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.predict",
        "Name what images show. IMAGE is a file, a folder (all images in it, at any depth), a pattern in quotes, a\n"
        'video (needs PyAV: pip install "jaxvision[video]"), or - for standard input: an encoded image, or names of\n'
        "files, one a line or as find -print0 gives them. What cannot be read is reported and passed over; the exit\n"
        "code is 0 only if all was read.",
        [
            "python -m jaxvision.predict --from runs/a photo.jpg other.png",
            "python -m jaxvision.predict --from runs/a --checkpoint best --top 3 --out answers.csv /my/photos",
            "python -m jaxvision.predict --from exported/pets.onnx 'photos/**/*.jpg'",
            "python -m jaxvision.predict --from runs/a --every 2 clip.mp4      # a frame every 2 seconds",
            "find . -name '*.jpg' -print0 | python -m jaxvision.predict --from runs/a --out answers.jsonl -",
        ],
    )
    parser.add_from(exported=True)
    parser.add_argument("--top", type=int, metavar="K", help="classes: how many for each image (1)")
    parser.add_argument("--threshold", type=float, metavar="P", help="tags: those at or above it (0.5)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="videos: seconds between frames (1)")
    parser.add_max_pixels(MAX_PIXELS)
    parser.add_argument(
        "--out", metavar="FILE", help="the answers into FILE.jsonl, a JSON object a line, or FILE.csv, and not here"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "top", "batch_size")
    _check(arguments)
    left_out: Counter[str] = Counter()
    items = [item for name in arguments.images for item in find_images(name, left_out)]
    videos = any(is_video(image) for _, image in items)
    if videos:
        _av()  # before anything slow
    with _whole(arguments.out) if arguments.out else contextlib.nullcontext() as file:
        result = _run(arguments, items, videos, file)
    if left_out:
        cli.sayer(arguments)(f"the folders hold other files, which are left out: {counted(left_out)}")
    if arguments.out:
        result["out"] = str(paths.path(arguments.out))
        cli.sayer(arguments)(f"answers: {result['out']}")
    result["left_out"] = dict(left_out)
    failed = result["failed"]
    if failed:
        among = result["images"] + len(failed)
        refusal = UserError(f"{len(failed)} of {among} images could not be read: " + "; ".join(failed[:5]))
        refusal.result = result
        raise refusal
    return result


def _check(arguments: Any) -> None:
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is {arguments.threshold}: it is a probability, in 0..1")
    if not 0 <= arguments.every < float("inf"):
        raise UserError(f"--every is {arguments.every}: it is a number of seconds, 0 for every frame")
    if arguments.out and not arguments.out.endswith(TABLES):
        raise UserError(f"--out {arguments.out!r} must end in {' or '.join(TABLES)}")
    if arguments.out and not paths.is_bucket(arguments.out):
        out = paths.path(arguments.out)
        if out.is_dir():
            raise UserError(f"--out {arguments.out!r} is a folder: name a file in it, as {out / 'answers.csv'}")
        paths.require_writable(out.parent)


def _run(arguments: Any, items: list[Any], videos: bool, file: IO[str] | None) -> dict[str, Any]:
    cli.ticker.start(arguments, "importing JAX, reading the network, compiling")
    from jaxvision.data import survey
    from jaxvision.deploy import artefact, inference

    say, show = cli.sayer(arguments), cli.shower(arguments)
    predictor = inference.load(arguments.source, arguments.checkpoint, max_pixels=arguments.max_pixels, say=say)
    if predictor.certificate is not None:
        unproved = artefact.unproved(pathlib.Path(predictor.source), predictor.certificate["format"])
        if unproved:
            say(unproved)
    for flag, value, kind in (("--top", arguments.top, "class"), ("--threshold", arguments.threshold, "tags")):
        if value is not None and predictor.kind != kind:
            raise UserError(
                f"{flag} is for labels of kind {kind}, {arguments.source} tells {predictor.kind}: remove it"
            )
    files = [image for _, image in items if not is_video(image)]
    looked = (files[k] for k in survey.spread(len(files), survey.LOOK))
    for line in survey.levels_told("the command line", filter(None, map(_content, looked)), predictor.contract):
        say(line)
    top = min(arguments.top or 1, len(predictor.classes))
    threshold = 0.5 if arguments.threshold is None else arguments.threshold
    count = None if videos else len(items)
    width = max(len(_shown(name)) for name, _ in items) + 9 * videos
    rows: list[dict[str, Any]] = []
    add = rows.append if file is None else _table(file, arguments.out, predictor, top, videos)
    failed: list[str] = []
    read = 0
    start = time.perf_counter()

    def fail(error: Exception) -> None:
        failed.append(str(error))
        say(f"not read: {_shown(str(error))}")

    frames = _frames(items, arguments.every, arguments.max_pixels, fail)
    answers = predictor.stream(frames, arguments.batch_size, count)
    if file is not None or not sys.stdout.isatty():  # else the lines themselves show how far it is
        answers = show(answers, count, "images")
    for place, found in answers:
        if isinstance(found, Exception):
            fail(found)
            continue
        read += 1
        row, text = _described(found, top, threshold)
        add({"image": place.name, **({} if place.time is None else {"time": place.time}), **row})
        if file is None:
            say(f"{_shown(str(place)):<{width}}  {_shown(text)}")
    seconds = time.perf_counter() - start
    say(f"{read:,} images in {seconds:.1f} s, {read / seconds:.1f} images/s")
    result: dict[str, Any] = {"checkpoint": predictor.source, "images": read, "images_per_s": round(read / seconds, 1)}
    return result | ({"predictions": rows} if file is None else {}) | {"failed": failed}


def _content(image: str | bytes) -> bytes:
    """The content of a file; b"" where it cannot be read, which is told in its turn."""
    if isinstance(image, bytes):
        return image
    try:
        return read_file(image)
    except OSError:
        return b""


# --------------------------------------------------------------------------- answers


def _described(found: Any, top: int, threshold: float) -> tuple[dict[str, Any], str]:
    """For scripts, and for people."""
    if found.kind == "values":
        return {"values": found.values}, "  ".join(f"{name} {v:g}" for name, v in found.values.items())
    shown = found.tags(threshold) if found.kind == "tags" else found.top(top)
    text = "  ".join(f"{name} {p:.4f}" for name, p in shown)
    return (
        {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in shown]},
        text or f"none at or above {threshold:g}",
    )


def _shown(text: str) -> str:
    """In one line, and nothing that a terminal obeys or cannot show: names of files may hold any bytes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _table(file: IO[str], name: str, predictor: Any, top: int, timed: bool) -> Callable[[dict[str, Any]], None]:
    """What writes a row: JSON lines; or a column for each value, for each of the top classes, or one for all tags."""
    if name.endswith(".jsonl"):
        return lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
    lines = csv.writer(file, lineterminator="\n")

    def write(cells: list[Any]) -> None:
        lines.writerow([guarded(cell) if isinstance(cell, str) else cell for cell in cells])

    places, pair = ["image", *(["time"] if timed else [])], ("class", "probability")
    if predictor.kind == "values":
        columns = list(predictor.classes)
    elif predictor.kind == "tags":
        columns = ["tags", "probabilities"]
    else:
        columns = list(pair) if top == 1 else [f"{c}_{k}" for k in range(1, top + 1) for c in pair]
    write(places + columns)

    def add(row: dict[str, Any]) -> None:
        if predictor.kind == "values":
            cells = list(row["values"].values())
        elif predictor.kind == "tags":
            cells = [_joined([p[key] for p in row["predictions"]]) for key in pair]
        else:
            cells = [p[key] for p in row["predictions"] for key in pair]
        write([row.get(place, "") for place in places] + cells)

    return add


def _joined(cells: list[Any]) -> str:
    """Cells as one, separated by commas and quoted where that is needed: csv: reads them as it reads a row."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


@contextlib.contextmanager
def _whole(name: str) -> Iterator[IO[str]]:
    """A text file that has its name only when the block has ended.

    A file's name that is no UTF-8 is in a CSV file as its bytes, in JSON as the escape that json reads as Python does.
    """
    out, bucket = paths.path(name), paths.is_bucket(name)
    beside = pathlib.Path(tempfile.gettempdir() if bucket else out.parent, f".{os.getpid()}.{out.name}")
    errors = "surrogateescape" if name.endswith(".csv") else "backslashreplace"
    try:
        if not bucket:
            out.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", errors=errors, newline="") as file:
            yield file
        if bucket:
            paths.write_whole(out, beside.read_bytes())
        else:
            beside.replace(out)
    except OSError as error:  # images that cannot be read do not come here
        raise UserError(f"cannot write {name} ({error.strerror}): make room there, or name another --out") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


# --------------------------------------------------------------------------- images


def is_video(image: str | bytes) -> bool:
    return isinstance(image, str) and image.lower().endswith(VIDEOS)


def find_images(name: str, left_out: Counter[str] | None = None) -> Iterator[tuple[str, str | bytes]]:
    """(name, the file or its content) of a file, of a folder recursively and in order, of a pattern, or of what
    standard input gives for "-". `left_out` counts the other files of folders by their endings.

    Raises UserError if it is absent or holds no image.
    """
    if name == "-":
        yield from _standard_input(_all_of(sys.stdin.buffer, "standard input"), left_out)
        return
    path = str(paths.on_disk(name, "images of"))
    if os.path.isdir(path):
        others: Counter[str] = Counter()
        inside = sorted(images(path, "", set(), (*EXTENSIONS, *VIDEOS), others))
        if left_out is not None:
            left_out.update(others)
        if not inside:
            there = f", only {counted(others)}" if others else ""
            raise UserError(f"no image in folder {name!r} ({ENDINGS}, and videos){there}")
        yield from ((file, file) for file in (os.path.join(path, below) for below in inside))
    elif os.path.isfile(path):
        yield name, path
    elif os.path.exists(path):
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise UserError(f"{name!r} is a device or a socket: give a file, a folder, a pipe, or - for standard input")
        with open(path, "rb") as pipe:  # as <(curl ...) is one
            yield name, _all_of(pipe, repr(name))
    elif glob.has_magic(name):
        matching = [file for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]
        if not matching:
            raise UserError(f"no file matches {name!r}")
        yield from ((file, file) for file in matching)
    else:
        raise UserError(f"no such image or folder: {name!r}")


def _all_of(file: IO[bytes], name: str) -> bytes:
    """Content of a stream. Raises UserError for more than LARGEST bytes, since some files never end."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{name} gives more than {LARGEST:,} bytes, which no image has: did it come to the right end?")
    return data


def _standard_input(data: bytes, left_out: Counter[str] | None) -> Iterator[tuple[str, str | bytes]]:
    """One encoded image; or names, a line each, or with a 0 after each as `find -print0` gives them.

    They are names if the first of them exists, or all is text.
    """
    if not data.strip():
        raise UserError("standard input is empty: give it an image, or names of files, one a line")
    text = os.fsdecode(data)
    names = [n for n in (text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n")) if n.strip()]
    listed = bool(names) and (
        os.path.exists(names[0]) or text.replace("\0", "").replace("\n", "").replace("\r", "").isprintable()
    )
    if not listed:
        yield "-", data
        return
    if "-" in names:
        raise UserError("standard input names itself (-): give it names of files, one a line")
    for name in names:
        yield from find_images(name, left_out)


def _frames(
    items: Iterable[Any], every: float, max_pixels: int, fail: Callable[[Exception], None]
) -> Iterator[tuple[Place, Any]]:
    """Files as they are; of videos a frame every so many seconds. `fail` is told of a video that ends early."""
    for name, image in items:
        if not is_video(image):
            yield Place(name), image
            continue
        try:
            for at, pixels in _video(image, every, max_pixels):
                yield Place(name, at), pixels
        except UserError as error:
            fail(error)


def _video(path: str, every: float, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[float, Any]]:
    """(seconds since the first frame, uint8 [H, W, 3], upright).

    Raises UserError where it cannot be read, perhaps after some frames, has larger frames, or ends before the length
    that its file states.
    """
    import numpy as np

    av = _av()
    first: float | None = None
    due = end = 0.0
    try:
        with av.open(path) as opened:
            stream = opened.streams.video[0]
            stream.thread_type = "AUTO"
            check_pixels(stream.width, stream.height, max_pixels)
            # Frames may be larger than the file says. FFmpeg counts their borders as well.
            stream.codec_context.options = {"max_pixels": str(2 * max_pixels + (1 << 20))}
            rate = float(stream.average_rate or 25)
            for number, picture in enumerate(opened.decode(stream)):
                check_pixels(picture.width, picture.height, max_pixels)
                at = number / rate if picture.time is None else float(picture.time)
                first = at if first is None else first
                at -= first
                lasts = getattr(picture, "duration", None)
                end = at + (float(lasts * picture.time_base) if lasts and picture.time_base else 1 / rate)
                if at + 1e-6 >= due:
                    due = (at + 1e-6) // every * every + every if every else 0.0
                    turns = round(getattr(picture, "rotation", 0) / 90)  # of a phone held upright
                    yield round(at, 3), np.ascontiguousarray(np.rot90(picture.to_ndarray(format="rgb24"), turns))
            states = _length(stream)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (av.FFmpegError, IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot read the video after {end:.1f} s ({error}): copy it again") from error
    if first is None:
        raise UserError(f"{path}: the video has no frame: copy it again or remove it")
    if first + end < states - 1:
        raise UserError(f"{path}: the video ends after {end:.1f} s of {states - first:.1f}: copy it again")


def _length(stream: Any) -> float:
    """When it ends, in seconds, as its file states it; 0 where it does not."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    hours, minutes, seconds = (stream.metadata.get("DURATION") or "0:0:0").split(":")  # Matroska and WebM
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError('videos are read by PyAV, which is not installed: pip install "jaxvision[video]"') from error
    return av


if __name__ == "__main__":
    cli.main(predict)
