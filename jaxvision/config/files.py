"""Configs in files: Python that sets one, and the JSON of a workdir."""

from __future__ import annotations

import json
import pathlib
import runpy
import traceback
from collections.abc import Mapping

from etils import epath

from jaxvision.config.checks import check
from jaxvision.config.defaults import OPEN, default
from jaxvision.config.overrides import override
from jaxvision.config.translate import translated
from jaxvision.config.tree import Config, tuples
from jaxvision.errors import Damaged, UserError, nearest
from jaxvision.runtime import paths


def load(path: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Runs a config file, applies {"a.b": "text"} overrides, checks all. Raises UserError."""
    file = pathlib.Path(path)
    if not file.is_file():
        there = sorted(str(f) for f in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"no config file {path!r}: {nearest(path, there)}")
    try:
        config = runpy.run_path(str(file)).get("config")
    except UserError:
        raise
    except Exception as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(file)),
            "?",
        )
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"{path} must set `config`, starting from jaxvision.config.default()")
    config = Config(config.to_dict())  # groups that the file set as plain dicts become Configs
    for key, text in (overrides or {}).items():
        override(config, key, text)
    check(config)
    if "train" in config.evals:  # not in `check`: workdirs of older versions may have it
        raise UserError("evals.train: the training's own records have that name: choose another")
    return config


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str) -> Config:
    """The inverse of `to_json`, checked, for texts of earlier versions, too. A key that is newer than the text has its
    default. Raises UserError."""
    config = Config(tuples(translated(json.loads(text))))
    for name, value in default().items():
        if name not in config:
            config[name] = value
        elif isinstance(config[name], Config) and isinstance(value, Config) and (name not in OPEN or name == "optim"):
            config[name] = {**value, **config[name]}
    check(config)
    return config


def read(path: epath.Path) -> Config:
    """The config that a run wrote. Raises FileNotFoundError, and Damaged where it is none."""
    content = paths.read_json(path)
    try:
        return from_json(json.dumps(content))
    except UserError as error:
        raise Damaged(f"{path} is damaged, or of another version ({error})") from error
