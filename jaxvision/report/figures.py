"""Matplotlib figures as files of PNG."""

from __future__ import annotations

import io
from typing import Any

from etils import epath

from jaxvision.runtime import paths


def save(figure: Any, path: epath.Path) -> None:
    """A matplotlib figure as PNG, under its final name only when whole."""
    paths.write_whole(path, png(figure))


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG. A dollar sign in it is a dollar sign: names of classes and files are no formulas."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    file = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):  # some labels are made while it is drawn
        figure.savefig(file, dpi=110, format="png")
    return file.getvalue()
