"""The config: one tree, every key with its default here; a config file changes what it must.

    config = jaxvision.config.default()
    config.data.update(train="digits:train", size=16)
    config.batch_size = 128

`load` runs such a file, or one that defines `get_config()`, applies `--config.KEY=VALUE` from the command line
and checks the whole: an unknown key, a wrong type or an impossible value fails before any data is read, with the
nearest valid name.
"""

from jaxvision.config.checks import CHECKS, WANDB_HAS_NO, check, check_values
from jaxvision.config.defaults import EVAL, deciding, default, eval_options, measured
from jaxvision.config.durations import FORMS, Length, duration_of, over_at, past_the_end
from jaxvision.config.factories import PROVIDED, Take, factory
from jaxvision.config.files import from_json, load, read, split_argument, to_json
from jaxvision.config.overrides import override
from jaxvision.config.runs import MAY_CHANGE, changes, differences, run_of
from jaxvision.config.translate import translated
from jaxvision.config.tree import as_config, flat

__all__ = [
    "CHECKS",
    "EVAL",
    "FORMS",
    "MAY_CHANGE",
    "PROVIDED",
    "WANDB_HAS_NO",
    "Length",
    "Take",
    "as_config",
    "changes",
    "check",
    "check_values",
    "deciding",
    "default",
    "differences",
    "duration_of",
    "eval_options",
    "factory",
    "flat",
    "from_json",
    "load",
    "measured",
    "over_at",
    "override",
    "past_the_end",
    "read",
    "run_of",
    "split_argument",
    "to_json",
    "translated",
]
