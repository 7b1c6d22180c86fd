"""From a URI to a random-access source of samples. A new kind: a file here and a line in SCHEMES."""

from __future__ import annotations

import os
from collections.abc import Callable

from jaxvision.data.sources.common import EXTENSIONS, Source
from jaxvision.data.sources.digits import Digits
from jaxvision.data.sources.fake import Fake
from jaxvision.data.sources.folder import Folder
from jaxvision.data.sources.tfds import Tfds
from jaxvision.errors import UserError, nearest

__all__ = ["EXTENSIONS", "SCHEMES", "Digits", "Fake", "Folder", "Source", "Tfds", "open_source"]

SCHEMES: dict[str, Callable[[str], Source]] = {
    "digits": Digits,
    "folder": Folder,
    "tfds": Tfds,
    "fake": Fake,
}


def open_source(uri: str) -> Source:
    """The source that a URI names.

    `digits:train|test|all` · `folder:/path` · `tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=/path]` ·
    `fake:COUNTxSIZE[?classes=10]`

    Raises:
      UserError: unknown scheme, malformed URI, or data that is not there; says what to do.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        if os.path.isdir(os.path.expanduser(uri)):
            raise UserError(f"data source {uri!r} has no scheme: did you mean 'folder:{uri}'?")
        raise UserError(f"unknown data source {uri!r}, wanted SCHEME:...: {nearest(scheme, list(SCHEMES))}")
    return SCHEMES[scheme](rest)
