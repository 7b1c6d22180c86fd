"""Configs of earlier versions: a `config.json` is read as it was meant, a config file is told its new lines."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxvision.errors import UserError


def translated(tree: dict[str, Any]) -> dict[str, Any]:
    """What a `config.json` of any version holds, as this version writes it. The tree itself stays as it is.

    Until 2026-11 `wrap` was an object, whose order counted, and without `checkpoint.best` the first of `evals` decided.
    """
    new = dict(tree)
    if isinstance(tree.get("wrap"), dict):
        new["wrap"] = [[name, arguments] for name, arguments in tree["wrap"].items()]
        new["checkpoint"] = _with_best(tree.get("checkpoint", {}), tree.get("evals", {}))
    return new


def _with_best(checkpoint: Any, evals: Any) -> Any:
    if not isinstance(checkpoint, dict) or not isinstance(evals, dict) or checkpoint.get("best") or len(evals) < 2:
        return checkpoint
    return {**checkpoint, "best": next(iter(evals))}


def refuse_old(config: ConfigDict) -> None:
    """Raises UserError, with the line to write now, for a key or a form that an earlier version had."""
    wrap = config.get("wrap")
    if isinstance(wrap, ConfigDict):
        pairs = tuple((name, dict(arguments)) for name, arguments in wrap.items() if isinstance(arguments, ConfigDict))
        order = ", in the order that you mean: the first is innermost" if len(pairs) > 1 else ""
        raise UserError(
            "wrap is a tuple of (name, arguments) pairs, since their order has a meaning, and no group of keys: set "
            f"config.wrap = {pairs!r}{order}"
        )
