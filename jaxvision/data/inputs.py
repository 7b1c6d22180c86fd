"""Images that people name on a command line: files, folders, patterns, videos, standard input."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from jaxvision.data.sources import EXTENSIONS
from jaxvision.data.sources.common import ENDINGS, LARGEST, counted, images
from jaxvision.data.video import VIDEOS, frames, is_video
from jaxvision.errors import UserError
from jaxvision.runtime import paths


class Place(NamedTuple):
    """An image: the name of its file, "-" for standard input; of a frame also its time in seconds."""

    name: str
    time: float | None = None

    def __str__(self) -> str:
        return self.name if self.time is None else f"{self.name} {self.time:.2f} s"


def find(name: str, left_out: Counter[str] | None = None) -> Iterator[tuple[str, str | bytes]]:
    """Yields (name, the file or its content) of the images that people name.

    Named are a file, a folder (recursively and in order), a pattern, or "-" for what standard input gives. `left_out`
    counts the other files of folders by their endings.

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
        yield from find(name, left_out)


def stream(
    items: Iterable[Any], every: float, max_pixels: int, fail: Callable[[Exception], None]
) -> Iterator[tuple[Place, Any]]:
    """Yields image files as they are, and of each video a frame every so many seconds.

    `fail` is told of a video that ends early.
    """
    for name, image in items:
        if not is_video(image):
            yield Place(name), image
            continue
        try:
            for at, pixels in frames(image, every, max_pixels):
                yield Place(name, at), pixels
        except UserError as error:
            fail(error)
