"""Configs of earlier versions: a `config.json` is read as it was meant, a config file is told its new lines."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxvision.config.durations import DURATIONS
from jaxvision.errors import UserError


def translated(tree: dict[str, Any]) -> dict[str, Any]:
    """What a `config.json` of any version holds, as this version writes it. The tree itself stays as it is.

    `wrap` was an object, whose order counted; without `checkpoint.best` the first of `evals` decided. A duration was a
    share of the run, under the name that now has a form: `optim.warmup`.
    """
    new = dict(tree)
    if isinstance(tree.get("wrap"), dict):
        new["wrap"] = [[name, arguments] for name, arguments in tree["wrap"].items()]
        new["checkpoint"] = _with_best(tree.get("checkpoint", {}), tree.get("evals", {}))
    for group, names in DURATIONS.items():
        if isinstance(tree.get(group), dict):
            new[group] = {f"{key}_share" if key in names else key: value for key, value in tree[group].items()}
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
    for group, names in DURATIONS.items():
        for name in names:
            if isinstance(config.get(group), ConfigDict) and name in config[group]:
                key, value = f"{group}.{name}", config[group][name]
                raise UserError(
                    f"{key} is given in steps, in epochs or as a share of all steps, as {key}_steps, {key}_epochs or "
                    f"{key}_share, and it was a share: set config.{key}_share = {value!r}"
                )
