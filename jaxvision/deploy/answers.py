"""Predictions of images as lines for people, rows of a table, JSON."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from jaxvision.data import inputs, survey
from jaxvision.data.sources.common import guarded, read_file
from jaxvision.data.video import is_video
from jaxvision.deploy import exported
from jaxvision.deploy.inference import Predictor
from jaxvision.errors import UserError
from jaxvision.runtime import paths
from jaxvision.runtime.records import Say


def answer(
    predictor: Predictor,
    items: Sequence[tuple[str, str | bytes]],
    *,
    options: dict[str, Any],
    every: float,
    max_pixels: int,
    batch_size: int,
    out: str | None,
    say: Say,
    show: Callable[..., Iterator[Any]],
) -> dict[str, Any]:
    """Answers to images, said or written; what the command prints as JSON, with the images that could not be read.

    Args:
      items: of `inputs.find`.
      options: of an answer, see `Target.options`.
      every: seconds between frames of a video; max_pixels: of an image or a frame.
      out: a file .jsonl or .csv that the answers go into, or None: they are said, and in the result.
      say, show: who is told, and what shows how far it is (of `cli`).
    """
    if predictor.certificate is not None:
        unproved = exported.unproved(pathlib.Path(predictor.source), predictor.certificate["format"])
        if unproved:
            say(unproved)
    files = [image for _, image in items if not is_video(image)]
    looked = (files[k] for k in survey.spread(len(files), survey.LOOK))
    for line in survey.levels_told("the command line", filter(None, map(_content, looked)), predictor.contract):
        say(line)
    videos = len(files) < len(items)
    count = None if videos else len(items)
    width = max(len(_shown(name)) for name, _ in items) + 9 * videos
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    read = 0
    start = time.perf_counter()

    def fail(error: Exception) -> None:
        failed.append(str(error))
        say(f"not read: {_shown(str(error))}")

    with _whole(out) if out else contextlib.nullcontext() as file:
        add = rows.append if file is None or not out else table(file, out, predictor, options, videos)
        answers = predictor.stream(inputs.stream(items, every, max_pixels, fail), batch_size, count)
        if file is not None or not sys.stdout.isatty():  # else the lines themselves show how far it is
            answers = show(answers, count, "images")
        for place, found in answers:
            if isinstance(found, Exception):
                fail(found)
                continue
            read += 1
            row = found.to_dict(**options)
            add({"image": place.name, **({} if place.time is None else {"time": place.time}), **row})
            if file is None:
                say(f"{_shown(str(place)):<{width}}  {_shown(found.text(**options))}")
        seconds = time.perf_counter() - start
        say(f"{read:,} images in {seconds:.1f} s, {read / seconds:.1f} images/s")
    result: dict[str, Any] = {"checkpoint": predictor.source, "images": read, "images_per_s": round(read / seconds, 1)}
    result |= {"out": str(paths.path(out))} if out else {"predictions": rows}
    return result | {"failed": failed}


def _content(image: str | bytes) -> bytes:
    """The content of a file; b"" where it cannot be read, which is told in its turn."""
    if isinstance(image, bytes):
        return image
    try:
        return read_file(image)
    except OSError:
        return b""


def _shown(text: str) -> str:
    """Text in one line, with nothing that a terminal obeys or cannot show.

    Names of files may hold any bytes.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(
    file: IO[str], name: str, predictor: Predictor, options: dict[str, Any], timed: bool
) -> Callable[[dict[str, Any]], None]:
    """Returns a function that writes a row: as JSON lines, or in the columns that the kind of predictions has."""
    if name.endswith(".jsonl"):
        return lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
    lines = csv.writer(file, lineterminator="\n")

    def write(cells: list[Any]) -> None:
        lines.writerow([guarded(cell) if isinstance(cell, str) else cell for cell in cells])

    places = ["image", *(["time"] if timed else [])]
    write(places + predictor.target.columns(predictor.classes, **options))
    return lambda row: write([row.get(place, "") for place in places] + predictor.target.cells(row))


@contextlib.contextmanager
def _whole(name: str) -> Iterator[IO[str]]:
    """A text file that has its name only when the block has ended.

    A file's name that is no UTF-8 is in a CSV file as its bytes, in JSON as the escape that json reads as Python does.
    """
    errors = "surrogateescape" if name.endswith(".csv") else "backslashreplace"
    try:
        with (
            paths.whole(paths.path(name), shared=True) as beside,
            beside.open("w", encoding="utf-8", errors=errors, newline="") as file,
        ):
            yield file
    except OSError as error:  # images that cannot be read do not come here
        raise UserError(f"cannot write {name} ({error.strerror}): make room there, or name another --out") from error
