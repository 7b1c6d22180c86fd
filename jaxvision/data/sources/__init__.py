"""Sources: a URI to a random-access source of samples.

A new kind: a file here and a line in SCHEMES.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from jaxvision.data.sources.cifar import Cifar
from jaxvision.data.sources.classes import absent, only_present, with_classes
from jaxvision.data.sources.common import EXTENSIONS, PART, Source, parse_query
from jaxvision.data.sources.csv import Csv
from jaxvision.data.sources.digits import Digits
from jaxvision.data.sources.fake import Fake
from jaxvision.data.sources.folder import Folder
from jaxvision.data.sources.idx import Idx
from jaxvision.data.sources.images import Images
from jaxvision.data.sources.npz import Npz
from jaxvision.data.sources.records import Records
from jaxvision.data.sources.subset import Subset
from jaxvision.data.sources.tar import Tar
from jaxvision.data.sources.tfds import Tfds
from jaxvision.errors import UserError, nearest
from jaxvision.runtime import paths

__all__ = [
    "EXTENSIONS",
    "SCHEMES",
    "Cifar",
    "Csv",
    "Digits",
    "Fake",
    "Folder",
    "Idx",
    "Images",
    "Npz",
    "Records",
    "Source",
    "Subset",
    "Tar",
    "Tfds",
    "absent",
    "hold_out",
    "only_present",
    "open_source",
    "with_classes",
]

SCHEMES: dict[str, Callable[[str], Source]] = {
    "digits": Digits,
    "folder": Folder,
    "images": Images,
    "tar": Tar,
    "csv": Csv,
    "idx": Idx,
    "cifar": Cifar,
    "npz": Npz,
    "tfds": Tfds,
    "records": Records,
    "fake": Fake,
}


def open_source(uri: str) -> Source:
    """The source that a URI names.

    `digits:train|test|all` · `folder:/path` · `images:/path` (no labels) ·
    `tfds:NAME[/CONFIG][:VERSION]/SPLIT[?data_dir=/path]` ·
    `tar:/path.tar[?label=PART][&labels=FILE][&meta=FILE][&classes=FILE]` ·
    `csv:/path.csv[?kind=class|tags|values][&root=/path][&classes=FILE]`, more keys: see Csv · `records:/path` ·
    `idx:/folder/train|test[?set=NAME][&classes=FILE]` · `cifar:/archive.tar.gz/train|test[?label=coarse]` ·
    `npz:/path.npz/train|val|test[?classes=FILE]` ·
    `fake:COUNTxSIZE[?classes=10]`; of any, a part: `?split=0:90%[&seed=1]` (but of tfds, which has its own),
    `?per_class=5[&seed=1]`, `?part=0:80%[&seed=1]` of each class, or all three. With `group=PATTERN` (folder, images,
    tar) or `group=COLUMN` (csv) no group is torn apart by split and part, see Subset.

    Raises:
      UserError: unknown scheme, malformed URI, or data that is not there; says what to do.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        if os.path.isdir(os.path.expanduser(uri)):
            raise UserError(f"data source {uri!r} has no scheme: did you mean 'folder:{uri}'?")
        raise UserError(f"unknown data source {uri!r}, wanted SCHEME:...: {nearest(scheme, list(SCHEMES))}")
    if "\0" in uri:
        raise UserError(f"{uri!r} holds a zero byte, which no path has: remove it")
    # TFDS has its own split, cifar10/train[:10%], and no paths; a csv file has a column of groups
    own = [key for key in PART if (scheme, key) not in {("tfds", "split"), ("tfds", "group"), ("csv", "group")}]
    path, items = _items(rest)
    tail = "&".join(item for item in items if item.partition("=")[0] in own)
    part = parse_query(uri, f"?{tail}", tuple(own))[1]
    path = _joined(path, [item for item in items if item.partition("=")[0] not in own])
    if part.keys() == {"seed"}:
        raise UserError(f"{uri!r}: seed goes with split, per_class or part, like split=0:90%&seed=1")
    if scheme in ("digits", "folder", "images", "records") and not os.path.exists(os.path.expanduser(path)):
        parse_query(uri, path, ())  # a name may hold a question mark; if there is none of that name, it began a query
    if scheme not in ("records", "tfds"):  # what they read may be in a bucket
        paths.on_disk(path, f"{scheme} of")
    source = SCHEMES[scheme](path)
    return Subset(source, **part) if part else source


def _items(rest: str) -> tuple[str, list[str]]:
    """("path", ["key=value", ...]) of path?key=value&..."""
    path, _, tail = rest.partition("?")
    return path, tail.split("&") if tail else []


def hold_out(uri: str) -> tuple[str, str]:
    """(the URI of nine tenths of a source, that of the tenth which is left): no sample is in both, none in neither.

    A tenth of each class, rounded up; of tfds the last tenth, since its labels are only in its records. A rule of the
    URI alone, so the parts are the same in every run.

    Raises UserError if the URI names such a part by itself.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        return uri, uri  # open_source says what is wrong with it
    path, items = _items(rest)
    if any(item.startswith("part=") for item in items) or (scheme == "tfds" and ("[" in path or "+" in path)):
        raise UserError(
            f"{uri!r} is a part of a source already, nothing of it is held out: name the data to measure on"
        )
    whole = f"{scheme}:{path}"
    if scheme == "tfds":
        return _joined(whole + "[:90%]", items), _joined(whole + "[90%:]", items)
    return _joined(whole, [*items, "part=0:90%"]), _joined(whole, [*items, "part=90%:100%"])


def _joined(path: str, items: list[str]) -> str:
    return path + ("?" + "&".join(items) if items else "")
