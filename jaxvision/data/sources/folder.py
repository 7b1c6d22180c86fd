"""folder: images in one folder a class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxvision.data.sources.common import (
    ENDINGS,
    EXTENSIONS,
    Names,
    class_order,
    counted,
    ending,
    images,
    is_folder,
    read_classes,
    read_image,
    sibling,
    subfolders,
)
from jaxvision.errors import UserError, nearest

_LISTING = "classes.txt"
BESIDE = "beside the class folders"  # of images, in `left_out`
PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")  # of a data set: folders, no classes


class Folder:
    """Images in one folder a class: ROOT/CLASS/.../IMAGE. Hidden names (a leading dot) are left out.

    Classes are the folders' names in the order of `class_order`, or the lines of ROOT/classes.txt, which must name them
    all. Names that differ only in case are taken for a mistake, unless classes.txt has them.
    Samples are ordered by class folder, as its name sorts as text or as classes.txt has it, then by path: so class `10`
    is the tenth class, and its samples come after those of `1`. The listing takes the bytes of the names and 12 more a
    file.

    Raises:
      UserError: no class folders, the parts of a data set (train, val) instead of them, a class folder without images,
        a link beside them that leads nowhere.

    Attributes:
      left_out: dict[str, int], the other files by their endings, and the images that lie beside the class folders.
    """

    kind = "class"

    def __init__(self, path: str) -> None:
        self.uri = f"folder:{path}"
        self.root = os.path.expanduser(path)
        left_out: Counter[str] = Counter()
        self.classes = _classes(self.root, left_out)
        names: list[bytes] = []
        counts = []
        listed = os.path.exists(os.path.join(self.root, _LISTING))
        folders = list(self.classes) if listed else sorted(self.classes)
        for name in folders:
            folder = os.path.join(self.root, name)
            others: Counter[str] = Counter()
            found = sorted(os.fsencode(n) for n in images(folder, "", set(), left_out=others))
            if not found:
                there = f", only {counted(others)}" if others else ""
                raise UserError(
                    f"class folder {folder} holds no image ({ENDINGS}){there}: add images or remove the folder"
                )
            left_out.update(others)
            names += found
            counts.append(len(found))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.repeat(np.array([numbers[name] for name in folders], np.int32), counts)
        self.left_out = dict(left_out)
        self._names = Names(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        return {"image": read_image(self.where(i)), "label": int(self.labels[i]), "index": i}

    def where(self, i: int) -> str:
        return os.path.join(self.root, self.member(i))

    def member(self, i: int) -> str:
        i = range(len(self))[i]
        return os.path.join(self.classes[self.labels[i]], self._names[i])


def check_case(names: Iterable[str], place: str, listing: str) -> None:
    """Raises UserError if two class names are the same but for case, or for how Unicode spells an accent."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UserError(
                f"{place} has the classes {other!a} and {name!a}, which differ only in case or in the spelling of "
                f"accents: rename one or merge them or, if both are meant, name all classes in {listing}"
            )


def _classes(root: str, left_out: Counter[str]) -> tuple[str, ...]:
    """The class names of an image folder, in order. Counts what lies beside the class folders."""
    listing = os.path.join(root, _LISTING)
    found = _class_folders(root, left_out)
    if not os.path.exists(listing):
        _check_parts(root, found)
        check_case(found, root, listing)
        return class_order(found)
    wanted = read_classes(listing)
    for name in wanted:
        if name not in found:
            raise UserError(f"{listing} names {name!r}, which is no folder of {root}: {nearest(name, found)}")
    for name in found:
        if name not in wanted:
            raise UserError(f"{listing} lacks {name!r}, a folder of {root}: add the line or move it away")
    return wanted


def _class_folders(root: str, left_out: Counter[str]) -> list[str]:
    """The names of the folders in an image folder. Counts the files."""
    found = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == _LISTING:
                    continue
                if entry.is_symlink():
                    _check_link(root, entry.path)
                if is_folder(entry):
                    found.append(entry.name)
                else:
                    left_out[BESIDE if entry.name.lower().endswith(EXTENSIONS) else ending(entry.name)] += 1
    except OSError as error:
        raise UserError(f"cannot open the image folder {root}: {error.strerror}{sibling(root)}") from error
    if not found:
        raise UserError(
            f"{root} holds no class folders: put the images into {root}/CLASS/, or learn without labels, from "
            f"images:{root}"
        )
    return sorted(found)


def _check_link(root: str, link: str) -> None:
    """Raises UserError if a link that may stand for a class leads nowhere or to all classes."""
    if not os.path.exists(link):
        what = "which is not there, so a class may be missing"
    elif os.path.join(os.path.realpath(root), "").startswith(os.path.join(os.path.realpath(link), "")):
        what = "which holds all the classes"
    else:
        return
    raise UserError(f"{link} is a link to {os.readlink(link)}, {what}: correct or remove the link")


def _check_parts(root: str, found: list[str]) -> None:
    """Raises UserError if the folders are not those of classes but the parts of a data set."""
    parts = sorted((name for name in found if name.lower() in PARTS), key=lambda name: PARTS.index(name.lower()))
    if not parts or (len(parts) < len(found) and (len(parts) == 1 or parts[0].lower() not in PARTS[:2])):
        return
    below = subfolders(os.path.join(root, parts[0]))
    if len(parts) < len(found) and not below:
        return
    scheme = "folder" if below else "images"
    keys = ["data.train", *["evals.NAME.data"] * (len(parts) - 1)]
    lines = [f'config.{key} = "{scheme}:{os.path.join(root, name)}"' for key, name in zip(keys, parts)]
    raise UserError(
        f"{root} holds the parts of a data set ({', '.join(parts)}), not a folder a class: write "
        f"{' and '.join(lines)}. If they are classes, name all of them in {os.path.join(root, 'classes.txt')}"
    )


def check_parts_of_paths(place: str, paths: Iterable[bytes]) -> None:
    """Raises UserError if folders above those of the classes, or all of these, are the parts of a data set."""
    folders = {tuple(path.decode("utf-8", "surrogateescape").split("/")[:-1]) for path in paths}
    above = {name for folder in folders for name in folder[:-1] if name.lower() in PARTS}
    classes = {folder[-1] for folder in folders if folder}
    parts = classes if all(name.lower() in PARTS for name in classes) else above
    if len(parts) > 1 and any(name.lower() in PARTS[:2] for name in parts):
        raise UserError(
            f"{place} holds the parts of a data set ({', '.join(sorted(parts))}), whose images would be learned "
            "together: pack each part into a tar of its own, or give labels=FILE if they belong together"
        )
