"""Values from the command line: --config.KEY=VALUE."""

from __future__ import annotations

import ast
from typing import Any

from jaxvision.config.checks import fits, unknown
from jaxvision.config.defaults import EVAL, OPEN
from jaxvision.config.tree import Config, tuples
from jaxvision.errors import UserError


def override(config: Config, key: str, text: str) -> None:
    """Sets config.KEY from the command line's text, read as the type that the key has. Raises UserError."""
    *parents, last = key.split(".")
    node: Any = config
    for depth, part in enumerate(parents):
        if not isinstance(node, Config) or part not in node:
            # wrap.ema.decay, where the file has no wrap.ema yet, is a new entry; elsewhere it is a misspelling
            if isinstance(node, Config) and parents[0] in ("wrap", "evals") and depth == 1:
                node[part] = Config()
            else:
                raise unknown(".".join(parents[: depth + 1]), node)
        node = node[part]
    if not isinstance(node, Config) or (last not in node and not (parents and parents[0] in OPEN)):
        raise unknown(key, node)
    if last in node and isinstance(node[last], Config):
        raise UserError(f"{key!r} is a group of keys: set one of {', '.join(f'{key}.{k}' for k in node[last])}")
    value = _read(text)
    like = EVAL.get(last) if len(parents) == 2 and parents[0] == "evals" else None
    like = node.get(last) if like is None else like
    if isinstance(like, str):
        value = text
    if like is not None and not fits(value, like):
        raise UserError(f"--config.{key}={text}: expected {type(like).__name__}, like {like!r}")
    node[last] = value


def _read(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuples(value)
