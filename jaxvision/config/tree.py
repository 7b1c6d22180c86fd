"""The type of a config, `ml_collections.ConfigDict`, and what is done with any tree of groups and tuples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxvision.errors import UserError


def as_config(tree: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """A config of a tree of dicts and ConfigDicts, which shares no group with the tree.

    It takes values of any type: a wrong one is refused by `check`, which knows the key's whole name. Raises UserError
    for a key that no config can have.
    """
    try:
        return ConfigDict(as_dict(tree), type_safe=False, allow_dotted_keys=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"the config has a key that it cannot have: {error}") from error


def as_dict(tree: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Plain dicts of a tree of dicts and ConfigDicts; a group that comes twice in it becomes two dicts."""
    return {key: as_dict(value) if isinstance(value, dict | ConfigDict) else value for key, value in tree.items()}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.size": 224, ...} of groups in groups."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def tuples(value: Any) -> Any:
    """Lists, which JSON has, as the tuples that configs hold."""
    if isinstance(value, list | tuple):
        return tuple(tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return value
