"""Durations in a config: each is given in optimiser steps, in epochs, or as a share of the run.

config.optim.warmup_steps = 10_000  # or warmup_epochs = 5.0, or warmup_share = 0.1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxvision.errors import UserError

FORMS = ("steps", "epochs", "share")
# Group -> its durations: a number, or a tuple of numbers, or one of (pattern, number) pairs. Each is a key with _FORM.
DURATIONS = {"optim": ("warmup", "milestones", "unfreeze"), "task": ("teacher_warmup",)}


class Length(NamedTuple):
    """How long a run is. steps_per_epoch: 0.0 where no data say it."""

    total_steps: int
    steps_per_epoch: float = 0.0

    def steps(self, form: str, value: float) -> float:
        """A duration in steps, which may be no whole number. Raises ValueError for epochs of an unknown length."""
        if form == "steps":
            return value
        if form == "epochs" and not self.steps_per_epoch:
            raise ValueError("a duration in epochs needs steps_per_epoch")
        return value * (self.total_steps if form == "share" else self.steps_per_epoch)


def duration_of(group: Mapping[str, Any] | ConfigDict, name: str) -> tuple[str, Any]:
    """(form, value) of a duration in its group; where no form is given, the share, which is 0 or ()."""
    form = next((form for form in FORMS if group.get(f"{name}_{form}")), "share")
    return form, group[f"{name}_{form}"]


def over_at(form: str, value: float) -> str:
    """When a duration is over, for people."""
    return {"steps": f"step {value:,}", "epochs": f"epoch {value:g}", "share": f"{value:.0%} of the steps"}[form]


def check_forms(config: ConfigDict) -> None:
    """Raises UserError for a duration that is given in two forms."""
    for group, names in DURATIONS.items():
        for name in names:
            keys = [f"{name}_{form}" for form in FORMS if config[group].get(f"{name}_{form}")]
            if len(keys) > 1:
                told = " and ".join(f"{group}.{key}={config[group][key]!r}" for key in keys)
                raise UserError(f"{told} are one duration: give it in one form, and set the others to 0 or ()")


def past_the_end(config: ConfigDict, length: Length) -> list[str]:
    """Lines for people about durations that are not over when the run is."""
    lines = []
    for group, names in DURATIONS.items():
        for name in (n for n in names if any(config[group].get(f"{n}_{form}") for form in FORMS)):
            form, value = duration_of(config[group], name)
            several = value if isinstance(value, tuple) else (value,)
            ends = [end[1] if isinstance(end, tuple) else end for end in several]
            late = [end for end in ends if length.steps(form, end) >= length.total_steps]
            if late:
                lines.append(
                    f"warning: {group}.{name}_{form} is over at {over_at(form, late[0])}, and the run has "
                    f"{length.total_steps:,} steps"
                )
    return lines
