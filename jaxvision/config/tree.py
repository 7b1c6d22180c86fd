"""The type of a config, and what is done with any tree of dicts and tuples."""

from __future__ import annotations

from typing import Any

from jaxvision.errors import nearest


class Config(dict[str, Any]):
    """A dict whose keys are attributes too, and whose dicts are Configs; keeps the order of its keys.

    (ml_collections.ConfigDict sorts them, and the order of `wrap` has a meaning.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, Config(value) if isinstance(value, dict) and not isinstance(value, Config) else value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"no key {key!r} in the config: {nearest(key, list(self))}")

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def to_dict(self) -> dict[str, Any]:
        """A deep copy of plain dicts."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
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
