"""python -m jaxvision.predict: class names, tags or values for images, folders and videos."""

from __future__ import annotations

import csv
import glob
import io
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jaxvision import cli, paths
from jaxvision.data.sources import EXTENSIONS
from jaxvision.errors import UserError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
TABLES = (".jsonl", ".csv")


def predict(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.predict",
        "Name what images show. IMAGE is a file, a folder (all images in it, at any depth), a pattern in quotes, a\n"
        'video (needs PyAV: pip install "jaxvision[video]"), or - for standard input: an encoded image, or names of\n'
        "files, one a line. What cannot be read is reported and passed over; the exit code is 0 only if all was read.",
        [
            "python -m jaxvision.predict --from runs/a photo.jpg other.png",
            "python -m jaxvision.predict --from runs/a --checkpoint best --top 3 --out answers.csv /my/photos",
            "python -m jaxvision.predict --from exported/pets.onnx 'photos/**/*.jpg'",
            "python -m jaxvision.predict --from runs/a --every 2 clip.mp4      # a frame every 2 seconds",
            "find . -name '*.jpg' | python -m jaxvision.predict --from runs/a --out answers.jsonl -",
        ],
    )
    parser.add_from(exported=True)
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes shown for each image")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="multilabel: classes at or above it are shown (0.5)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="videos: seconds between frames (1)")
    parser.add_argument("--out", metavar="FILE", help="all answers as FILE.jsonl, a JSON object a line, or as FILE.csv")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    arguments, _ = parser.parse(argv)
    if arguments.top < 1 or arguments.batch_size < 1:
        raise UserError("--top and --batch-size must be at least 1")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is {arguments.threshold}: it is a probability, in 0..1")
    if not arguments.every >= 0:
        raise UserError(f"--every is {arguments.every}: it is a number of seconds, 0 for every frame")
    if arguments.out and not arguments.out.endswith(TABLES):
        raise UserError(f"--out {arguments.out!r} must end in {' or '.join(TABLES)}")
    say, show = cli.sayer(arguments), cli.shower(arguments)
    items = list(find_images(arguments.images))
    if any(isinstance(item, pathlib.Path) and is_video(item) for item in items):
        _av()  # before anything slow

    from jaxvision.deploy import inference

    predictor = inference.load(arguments.source, arguments.checkpoint)
    top = min(arguments.top, len(predictor.classes))
    size = arguments.batch_size
    if not any(isinstance(item, pathlib.Path) and is_video(item) for item in items):
        size = min(size, len(items))
    width = max(len(_name(item)) for item in items)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    read = 0
    start = time.perf_counter()
    frames = show(_frames(items, arguments.every, failed), len(items), "images")
    for frame, found in predictor.stream(frames, size):
        if isinstance(found, Exception):
            failed.append(str(found))
            say(f"not read: {found}")
            continue
        read += 1
        row, text = _described(found, top, arguments.threshold)
        place = {"image": _name(frame)} | ({"time": frame.time} if isinstance(frame, Frame) and frame.time >= 0 else {})
        rows.append({**place, **row})
        at = f"{_name(frame)} {frame.time:.2f} s" if "time" in place else _name(frame)
        say(f"{at:<{width}}  {text}")
    seconds = time.perf_counter() - start
    say(f"{read:,} images in {seconds:.1f} s, {read / seconds:.1f} images/s")
    result: dict[str, Any] = {"checkpoint": predictor.source, "images": read, "images_per_s": round(read / seconds, 1)}
    if arguments.out:
        out = paths.path(arguments.out)
        paths.write_whole(out, _table(rows, arguments.out, predictor.kind, predictor.classes, top))
        say(f"answers: {out}")
        result["out"] = str(out)
    else:
        result["predictions"] = rows
    result["failed"] = failed
    if failed:
        refusal = UserError(f"{len(failed)} of {read + len(failed)} images could not be read: " + "; ".join(failed[:5]))
        refusal.result = result
        raise refusal
    return result


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


def _table(rows: list[dict[str, Any]], name: str, kind: str, classes: tuple[str, ...], top: int) -> str:
    """JSON lines; or a table with a column for each value, for each of the top classes, or one for all tags."""
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    places = ["image", *(["time"] if any("time" in row for row in rows) else [])]
    if kind == "values":
        columns = list(classes)
    elif kind == "tags":
        columns = ["tags", "probabilities"]
    else:
        columns = [
            c
            for k in range(1, top + 1)
            for c in (("class", "probability") if top == 1 else (f"class_{k}", f"probability_{k}"))
        ]
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(places + columns)
    for row in rows:
        if kind == "values":
            cells = list(row["values"].values())
        elif kind == "tags":
            cells = [";".join(str(p[key]) for p in row["predictions"]) for key in ("class", "probability")]
        else:
            cells = [p[key] for p in row["predictions"] for key in ("class", "probability")]
        table.writerow([row.get(place, "") for place in places] + cells)
    return file.getvalue()


# --------------------------------------------------------------------------- images


class Frame:
    """An image that is no file of its own: of a video, at `time` in seconds; of standard input, time -1."""

    def __init__(self, name: str, time: float, pixels: Any) -> None:
        self.name, self.time, self.pixels = name, time, pixels


def _name(item: Any) -> str:
    return item.name if isinstance(item, Frame) else str(item)


def is_video(path: pathlib.Path) -> bool:
    return path.suffix.lower() in VIDEOS


def find_images(names: list[str]) -> Iterator[pathlib.Path | Frame]:
    """Files as named, folders recursively and in order, patterns, and what standard input gives for "-".

    Raises UserError if one is absent or holds no image.
    """
    for name in names:
        if name == "-":
            yield from _standard_input(sys.stdin.buffer.read())
            continue
        path = paths.on_disk(name, "images of")
        if path.is_dir():
            known = (*EXTENSIONS, *VIDEOS)
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
            if not inside:
                raise UserError(f"no image in folder {name!r} (looked for {', '.join(EXTENSIONS)}, and videos)")
            yield from inside
        elif path.is_file():
            yield path
        elif glob.has_magic(name):
            matching = [p for p in sorted(glob.glob(str(path), recursive=True)) if pathlib.Path(p).is_file()]
            if not matching:
                raise UserError(f"nothing matches {name!r}")
            yield from map(pathlib.Path, matching)
        else:
            raise UserError(f"no such image or folder: {name!r}")


def _standard_input(data: bytes) -> Iterator[pathlib.Path | Frame]:
    """One encoded image; or names, a line each, or with a 0 after each as `find -print0` gives them."""
    try:
        text = data.decode()
        names = [n for n in (text.split("\0") if "\0" in text else text.splitlines()) if n.strip()]
        listed = bool(names) and all(n.isprintable() for n in names)
    except UnicodeDecodeError:
        listed = False
    if not data.strip():
        raise UserError("standard input is empty: give it an image, or names of files, one a line")
    if not listed:
        yield Frame("-", -1.0, data)
        return
    if "-" in names:
        raise UserError("standard input names itself (-): give it names of files, one a line")
    yield from find_images(names)


def _frames(items: Iterable[Any], every: float, failed: list[str]) -> Iterator[Any]:
    """Files and frames as they are; of videos a frame every so many seconds. What ends early is noted in `failed`."""
    for item in items:
        if not (isinstance(item, pathlib.Path) and is_video(item)):
            yield item
            continue
        try:
            yield from _video(item, every)
        except UserError as error:
            failed.append(str(error))
            print(f"not read: {error}", file=sys.stderr, flush=True)


def _video(path: pathlib.Path, every: float) -> Iterator[Frame]:
    """Raises UserError where it cannot be read, perhaps after some frames."""
    av = _av()
    count, due = 0, 0.0
    try:
        with av.open(str(path)) as opened:
            stream = opened.streams.video[0]
            stream.thread_type = "AUTO"
            for number, picture in enumerate(opened.decode(stream)):
                at = float(picture.time) if picture.time is not None else number / float(stream.average_rate or 25)
                if at + 1e-6 >= due:
                    due = max(due + every, at) if every else at
                    count += 1
                    yield Frame(str(path), round(at, 3), picture.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot read the video after {count} frames ({error}): copy it again") from error
    if not count:
        raise UserError(f"{path}: the video has no frame")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError('videos are read by PyAV, which is not installed: pip install "jaxvision[video]"') from error
    return av


if __name__ == "__main__":
    cli.main(predict)
