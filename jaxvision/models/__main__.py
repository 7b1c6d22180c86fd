"""python -m jaxvision.models: the networks that there are."""

from __future__ import annotations

import fnmatch
import functools
import json
import pathlib
from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError, nearest

# Name to [parameters, FLOP, px] at the default size, which tests/models/sizes.py makes and test_sizes.py counts again.
# Counting all takes minutes.
LARGEST = 2**14  # pixels, as of a config
SIZES = pathlib.Path(__file__).with_name("sizes.json")


def models(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.models",
        "The table of networks: parameters with 1,000 classes, GFLOP of one image forwards (counted by XLA, a\n"
        "multiplication and an addition are two), and where published weights come from. A line of --weights is what\n"
        "--config.init and --from take, with =FILE behind it; timm's also as hf:timm/NAME.TAG, which fetches it.",
        [
            "python -m jaxvision.models",
            "python -m jaxvision.models --filter resnet --size 160",
            "python -m jaxvision.models --filter vit_b_16 --weights",
        ],
    )
    parser.add_argument(
        "--filter", default="*", metavar="PATTERN", help="a name, a part of names, or a pattern with * and ?"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="side of the image; default: what its weights take")
    parser.add_argument("--weights", action="store_true", help="list the sets of published weights, and their pixels")
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "size")
    if arguments.size and arguments.size > LARGEST:
        raise UserError(f"--size is {arguments.size}: it must be at most {LARGEST}")
    say = cli.sayer(arguments)

    import jaxvision.models as zoo

    names = matching(arguments.filter, zoo.__all__)
    width = max(len(name) for name in names)
    header = f"{'name':<{width}}  {'M params':>9}  {'GFLOP':>8}  {'px':>4}  family        weights of"
    rows = []
    for name in names:
        sets = weights(name)
        size = arguments.size or default_size(name)
        parameters, flops = known().get((name, size)) or measure(name, size)
        if header:
            say(header)
            header = ""
        listed = ", ".join(f"{library}:{theirs}" for library, (theirs, _) in sets.items()) or "-"
        family = zoo.family(name)
        say(f"{name:<{width}}  {parameters / 1e6:9.2f}  {flops / 1e9:8.2f}  {size:>4}  {family:<12}  {listed}")
        if arguments.weights:
            _list_weights(sets, say)
        rows.append({"name": name, "parameters": parameters, "flops": flops, "size": size, "family": family,
                     "weights": {library: sorted(tags) for library, (_, tags) in sets.items()}})  # fmt: skip
    return {"models": rows}


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
    import jaxvision.models as zoo
    from jaxvision.weights import npz, published

    found = {
        library: (origin.names[name], published.table().get(library, {}).get(origin.names[name], {}))
        for library, origin in zoo.origins(name).items()
    }
    return {**found, npz.SCHEME: (name, {})} if zoo.family(name) in npz.TABLES else found


def default_size(name: str) -> int:
    """Of the first published weights, else 224."""
    return next((fields["size"] for _, tags in weights(name).values() for fields in tags.values()), 224)


def _list_weights(sets: dict[str, tuple[str, dict[str, dict[str, Any]]]], say: Any) -> None:
    """A line for each set, the libraries apart."""
    from jaxvision.weights import published

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
    import jax
    import jax.numpy as jnp

    import jaxvision.models as zoo

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


if __name__ == "__main__":
    cli.main(models)
