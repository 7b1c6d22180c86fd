"""Values from the command line: --config.KEY=VALUE."""

from __future__ import annotations

import ast
from typing import Any

from ml_collections import ConfigDict

from jaxvision.config.checks import WRAP, fits, unknown
from jaxvision.config.defaults import EVAL, OPEN, OTHERWISE
from jaxvision.config.translate import refuse_old
from jaxvision.config.tree import tuples
from jaxvision.errors import UserError


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets config.KEY from the command line's text, read as the type that the key has. Raises UserError."""
    *parents, last = key.split(".")
    if parents[:1] == ["wrap"]:
        _override_wrapper(config, key, text)
        return
    node: Any = config
    for depth, part in enumerate(parents):
        if not isinstance(node, ConfigDict) or part not in node:
            # evals.more.data, where the file has no evals.more yet, is a new entry; elsewhere it is a misspelling
            if isinstance(node, ConfigDict) and parents[0] == "evals" and depth == 1:
                node[part] = {}
            else:
                raise unknown(".".join(parents[: depth + 1]), node)
        node = node[part]
    if not isinstance(node, ConfigDict) or (last not in node and not (parents and parents[0] in OPEN)):
        raise unknown(key, node)
    if last in node and isinstance(node[last], ConfigDict):
        raise UserError(f"{key!r} is a group of keys: set one of {', '.join(f'{key}.{k}' for k in node[last])}")
    like = EVAL.get(last) if len(parents) == 2 and parents[0] == "evals" else None
    node[last] = _typed(key, text, node.get(last) if like is None else like)


def _override_wrapper(config: ConfigDict, key: str, text: str) -> None:
    """wrap.NAME.ARGUMENT=VALUE, or wrap.NAME={...} for all arguments: of the wrapper of this name, a new last one if
    there is none."""
    refuse_old(config)
    WRAP.check("wrap", config.wrap)
    _, name, *argument = key.split(".")
    if len(argument) > 1:
        raise UserError(f'unknown key "{key}": did you mean "wrap.{name}.{argument[0]}"?')
    arguments = dict(config.wrap).get(name, {})
    if argument:
        changed = {**arguments, argument[0]: _typed(key, text, arguments.get(argument[0]))}
    else:
        changed = _typed(key, text, {})
    names = [known for known, _ in config.wrap]
    pairs = config.wrap if name in names else (*config.wrap, (name, {}))
    config.wrap = tuple((known, changed if known == name else theirs) for known, theirs in pairs)


def _typed(key: str, text: str, like: Any) -> Any:
    """A text as the value that it is; as one of the type of `like`, unless that is None."""
    value = _read(text)
    if isinstance(like, str):
        value = text
    if like is not None and not fits(value, like) and not fits(value, OTHERWISE.get(key, like)):
        raise UserError(f"--config.{key}={text}: expected {type(like).__name__}, like {like!r}")
    return value


def _read(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuples(value)
