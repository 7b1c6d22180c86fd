"""A function as one flat list of primitives, for a converter that knows no JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Primitives that only hold a function; it is in the first of these parameters that is there.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_HOLDERS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2",
            "checkpoint")  # fmt: skip


def flatten(function: Callable[..., Any], *specs: Any) -> Any:
    """The jax.extend.core.ClosedJaxpr of `function`, without functions inside and with what is constant computed.

    Of `lax.platform_dependent` the default is taken: what is written for one platform is none for others. Specs are
    jax.ShapeDtypeStruct, with symbolic shapes if need be. The outputs are the leaves of what the function returns.
    """
    closed = jax.make_jaxpr(function)(*specs)
    return jax.make_jaxpr(lambda *arrays: _run(closed.jaxpr, closed.consts, arrays))(*jax.tree.leaves(specs))


def _run(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, arrays))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        values |= zip(eqn.outvars, _apply(eqn, given))
    return [read(v) for v in jaxpr.outvars]


def _apply(eqn: Any, given: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    known = not any(isinstance(v, jax.core.Tracer) for v in given)
    if name == "platform_index":
        return [np.int32(next(i for i, platform in enumerate(params["platforms"]) if platform is None))]
    if name == "cond" and not isinstance(given[0], jax.core.Tracer):
        branch = params["branches"][int(given[0])]
        return _run(branch.jaxpr, branch.consts, given[1:])
    if name in _HOLDERS:
        inner = next(params[key] for key in _INNER if key in params)
        if isinstance(inner, core.ClosedJaxpr):
            return _run(inner.jaxpr, inner.consts, given)
        return _run(inner, (), given)
    if known and name != "dim_as_value" and all(isinstance(n, int) for v in eqn.outvars for n in v.aval.shape):
        with jax.ensure_compile_time_eval():
            made = eqn.primitive.bind(*given, **params)
    else:
        made = eqn.primitive.bind(*given, **params)
    return list(made) if eqn.primitive.multiple_results else [made]
