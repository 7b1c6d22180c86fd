"""From a name and its arguments in a config to what they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxvision.config.ranges import annotation_of, check_arguments, is_real
from jaxvision.config.tree import as_dict
from jaxvision.errors import UserError, nearest

# Arguments of factories that the program gives and no config.
PROVIDED = ("classes", "dtype", "labels", "names", "total_steps", "steps_per_epoch", "decays")
Take = Callable[[str, Any], Any]  # (name, number) -> what stands for it


def factory(
    namespace: Any,
    spec: Mapping[str, Any],
    where: str,
    names: tuple[str, ...] = (),
    also: tuple[str, ...] = ("name",),
    take: Take | None = None,
) -> Callable[..., Any]:
    """What spec["name"] names in `namespace`, its other keys checked against the signature's annotations and bound.

    Call the result with what the program provides (PROVIDED, `dtype`, ...): arguments that the factory does
    not take are left out, and a ValueError of the factory becomes a UserError that names `where`. `also`: keys
    that the caller reads itself, for the error message. `take`: is asked, once they are checked, what stands for the
    arguments that are real numbers.
    """
    arguments = as_dict(spec)
    name = str(arguments.pop("name", None))
    valid = tuple(names or namespace.__all__)
    if name not in valid:
        raise UserError(f"{where}: unknown name {name!r}: {nearest(name, valid)}")
    make = getattr(namespace, name)
    parameters = inspect.signature(make).parameters.values()
    # a function's positional parameters are the program's to give; a flax module has two fields of flax's own
    takes = [p.name for p in parameters if not inspect.isfunction(make) or p.kind is p.KEYWORD_ONLY]
    takes = [p for p in takes if p not in ("parent", "name")]
    for key in arguments:
        if key not in takes or key in PROVIDED:
            keys = [f"{where}.{k}" for k in (*also, *takes) if k not in PROVIDED]
            raise UserError(
                f'unknown key "{where}.{key}" for {name}: {nearest(f"{where}.{key}", keys)}'.replace("'", '"')
            )
    check_arguments(make, arguments, f"{where}.")
    for key in arguments:
        if take is not None and is_real(annotation_of(make, key)):
            arguments[key] = take(f"{where}.{key}", arguments[key])

    def build(*args: Any, **provided: Any) -> Any:
        extra = {k: v for k, v in provided.items() if k in takes and k not in arguments}
        try:
            return make(*args, **extra, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error

    return build
