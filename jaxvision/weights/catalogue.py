"""The table of networks: their sizes, and whose weights there are for each."""

from __future__ import annotations

import fnmatch
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

import jaxvision.models as zoo
from jaxvision.errors import UserError, nearest
from jaxvision.runtime.records import Say
from jaxvision.weights import npz, published

# Name to [parameters, FLOP, px] at the default size, which tests/models/sizes.py makes and test_sizes.py counts again.
# Counting all takes minutes.
SIZES = pathlib.Path(zoo.__file__).with_name("sizes.json")


def matching(pattern: str, names: list[str]) -> list[str]:
    """Names that a pattern with * and ? matches; of a word without them the name that it is, else those it is part of.

    Neither case nor _ count in a part. Raises UserError, with the nearest one, if there is none.
    """
    found = [name for name in names if fnmatch.fnmatch(name, pattern.lower())]
    if not found and not set(pattern) & set("*?["):
        part = pattern.lower().replace("_", "")
        found = [name for name in names if part in name.replace("_", "")]
    if not found:
        raise UserError(f"no network matches {pattern!r}: {nearest(pattern, names)}")
    return found


def weights(name: str) -> dict[str, tuple[str, dict[str, dict[str, Any]]]]:
    """Library to (its name of the network, tag to fields of an InputContract)."""

    found = {
        library: (origin.names[name], published.table().get(library, {}).get(origin.names[name], {}))
        for library, origin in zoo.origins(name).items()
    }
    return {**found, npz.SCHEME: (name, {})} if zoo.family(name) in npz.TABLES else found


def default_size(name: str) -> int:
    """Side in pixels that the first published weights take, else 224."""
    return next((fields["size"] for _, tags in weights(name).values() for fields in tags.values()), 224)


def say_weights(sets: dict[str, tuple[str, dict[str, dict[str, Any]]]], say: Say) -> None:
    """A line for each set, the libraries apart."""

    rows = []
    for library, (theirs, tags) in sets.items():
        for tag, fields in tags.items():
            c = published.contract_of(fields)
            mean, std = (" ".join(f"{v:.3f}" for v in values) for values in (c.mean, c.std))
            crop = (
                f"squashed to {c.size} px {c.filter}"
                if "squash" in fields
                else f"{c.resize} px {c.filter}, centre {c.size}"
            )
            pixels = f"{crop}, mean {mean}, std {std}"
            rows.append((f"{library}:{theirs}.{tag}", pixels))
    width = max((len(first) for first, _ in rows), default=0)
    for first, pixels in rows:
        say(f"    {first:<{width}}  {pixels}")


@functools.cache
def known() -> dict[tuple[str, int], tuple[int, float]]:
    """(name, px) to what `measure` gave."""
    rows = json.loads(SIZES.read_text())
    return {(name, size): (parameters, float(flops)) for name, (parameters, flops, size) in rows.items()}


@functools.cache
def measure(name: str, size: int) -> tuple[int, float]:
    """(parameters with 1,000 classes, FLOP of an image forwards), from shapes alone. Raises UserError."""

    jax.config.update("jax_platforms", "cpu")  # nothing is computed: an accelerator that trains is left alone
    model = getattr(zoo, name)(classes=1000)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    try:
        variables = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} at {size} px: {error}") from error
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"]).lower(variables, image)
    cost = lowered.cost_analysis() or {}
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), float(cost.get("flops", 0.0))
