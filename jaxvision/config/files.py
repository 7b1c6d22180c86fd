"""Configs in files: Python that makes one, and the JSON of a workdir."""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxvision.config.checks import check
from jaxvision.config.defaults import OPEN, default
from jaxvision.config.overrides import override
from jaxvision.config.translate import translated
from jaxvision.config.tree import as_config, as_dict, flat, tuples
from jaxvision.errors import Damaged, UserError, nearest
from jaxvision.runtime import paths


def load(path: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Runs a config file, applies {"a.b": "text"} overrides, checks all. Raises UserError.

    The file sets `config`, or defines `get_config()`; with a path "FILE.py:ARGUMENT" it is `get_config(ARGUMENT)`.
    """
    file, argument = split_argument(path)
    if not file.is_file():
        there = sorted(str(f) for f in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"no config file {str(file)!r}: {nearest(str(file), there)}")
    try:
        made = _made_by(runpy.run_path(str(file)), file, argument)
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = frames[-1].lineno if frames else "?"
        raise UserError(f"{file}, line {line}: {_words(error, frames[-1].line if frames else '')}") from error
    if not isinstance(made, ConfigDict):
        raise UserError(
            f"{file} must set `config`, or define `get_config()` that returns one, starting from "
            f"jaxvision.config.default(): it gives {made!r:.80}"
        )
    config = as_config(made)
    for key, text in (overrides or {}).items():
        override(config, key, text)
    check(config)
    if "train" in config.evals:  # not in `check`: workdirs of older versions may have it
        raise UserError("evals.train: the training's own records have that name: choose another")
    return config


def split_argument(path: str) -> tuple[pathlib.Path, str | None]:
    """A config file, and what follows ".py:" in the path; None if nothing does. Other colons belong to the file."""
    with_argument = None if pathlib.Path(path).is_file() else re.fullmatch(r"(.+?\.py):(.*)", path, re.DOTALL)
    return (pathlib.Path(with_argument[1]), with_argument[2]) if with_argument else (pathlib.Path(path), None)


def _made_by(names: Mapping[str, Any], file: pathlib.Path, argument: str | None) -> Any:
    """What a file with these names has as its config: `config`, where no argument is given, else of `get_config`."""
    make = names.get("get_config")
    if argument is None and ("config" in names or not callable(make)):
        return names.get("config")
    if not callable(make):
        raise UserError(f"{file} defines no get_config, which would take {argument!r}: leave out :{argument}")
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as error:
        how = f"name one, {file}:ARGUMENT" if argument is None else f"leave out :{argument}"
        raise UserError(f"{file}: get_config{inspect.signature(make)}: {error}: {how}") from error
    return make(*arguments)


def _words(error: Exception, line: str | None) -> str:
    """An exception of a config file in words, with a hint where somebody meant a key."""
    if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):  # of a ConfigDict
        name = str(error.args[0].args[0]).partition("\n")[0].strip("'")
        keys = {part for key in flat(as_dict(default())) for part in key.split(".")}
        return f"no key {name!r} in the config: {nearest(name, sorted(keys))}"
    more = ""
    if isinstance(error, AttributeError) and isinstance(error.obj, tuple) and ".wrap" in (line or ""):
        more = ': wrap is a tuple of (name, arguments) pairs, as config.wrap = (("ema", dict(decay=0.99)),)'
    return f"{type(error).__name__}: {error}{more}"


def to_json(config: ConfigDict) -> str:
    """The text of a config.json."""
    return json.dumps(as_dict(config), indent=1)


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`, checked, for texts of earlier versions, too. A key that is newer than the text has its
    default. Raises UserError."""
    tree = tuples(translated(json.loads(text)))
    for name, value in as_dict(default()).items():
        if name not in tree:
            tree[name] = value
        elif isinstance(tree[name], dict) and isinstance(value, dict) and (name not in OPEN or name == "optim"):
            tree[name] = {**value, **tree[name]}
    config = as_config(tree)
    check(config)
    return config


def read(path: epath.Path) -> ConfigDict:
    """The config that a run wrote. Raises FileNotFoundError, and Damaged where it is none."""
    content = paths.read_json(path)
    try:
        return from_json(json.dumps(content))
    except UserError as error:
        raise Damaged(f"{path} is damaged, or of another version ({error})") from error
