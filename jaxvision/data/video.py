"""Frames of videos, by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvision.data.decode import MAX_PIXELS, check_pixels
from jaxvision.errors import UserError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".3gp")


def is_video(image: str | bytes) -> bool:
    """Whether an image, as `inputs.find` gives it, is the name of a video."""
    return isinstance(image, str) and image.lower().endswith(VIDEOS)


def frames(path: str, every: float, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[float, Any]]:
    """(seconds since the first frame, uint8 [H, W, 3], upright).

    Raises UserError where it cannot be read, perhaps after some frames, has larger frames, or ends before the length
    that its file states.
    """
    av = require()
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
    """Length of a video stream in seconds, as its file states it; 0 where the file does not."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    hours, minutes, seconds = (stream.metadata.get("DURATION") or "0:0:0").split(":")  # Matroska and WebM
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def require() -> Any:
    """Imports PyAV.

    Raises UserError where it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError('videos are read by PyAV, which is not installed: pip install "jaxvision[video]"') from error
    return av
