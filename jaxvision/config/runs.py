"""Which configs are of one run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from jaxvision.config.tree import as_dict, flat, tuples

# What may differ when a workdir is run again; anything else would make it another run.
MAY_CHANGE = (
    "epochs",
    "steps",
    "evals",
    "log",
    "checkpoint",
    "stop",
    "mesh",
    "data.threads",
    "data.processes",
    "data.prefetch",
    "data.on_error",
    "data.skip_at_most",
    "data.max_pixels",
)
ABSENT = "(absent)"  # in place of the value that a config lacks


def run_of(config: ConfigDict) -> str:
    """Sixteen letters that stand for a run: for its config, without what may change in a run."""
    kept = {k: v for k, v in flat(as_dict(config)).items() if not _may_change(k)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines "key: old -> new" for `changes`."""
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changes(old, new).items()]


def changes(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Key to (old, new) of all that makes two configs two runs: what differs and is not in MAY_CHANGE."""
    a, b = flat(tuples(as_dict(old))), flat(tuples(as_dict(new)))
    pairs = {k: (a.get(k, ABSENT), b.get(k, ABSENT)) for k in sorted(a.keys() | b.keys())}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y and not _may_change(k)}


def _may_change(key: str) -> bool:
    return (key + ".").startswith(tuple(k + "." for k in MAY_CHANGE))
