"""python -m jaxvision.models: the networks that there are."""

from __future__ import annotations

import fnmatch
import functools
from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError, nearest


def models(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.models",
        "The table of networks: parameters, GFLOP of one image forwards (counted by XLA, a multiplication and an\n"
        "addition are two), and where published weights come from: init=LIBRARY:NAME.TAG=FILE.",
        [
            "python -m jaxvision.models",
            "python -m jaxvision.models --filter 'resnet*' --size 160",
            "python -m jaxvision.models --filter vit_b_16 --weights",
        ],
    )
    parser.add_argument("--filter", default="*", metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the image; default: what its weights take")
    parser.add_argument("--weights", action="store_true", help="list the tags of published weights too")
    arguments, _ = parser.parse(argv)
    if arguments.size is not None and arguments.size < 1:
        raise UserError(f"--size is {arguments.size}: it must be at least 1")
    say = cli.sayer(arguments)

    import jaxvision.models as zoo
    from jaxvision import published

    names = [name for name in zoo.__all__ if fnmatch.fnmatch(name, arguments.filter)]
    if not names:
        raise UserError(f"no network matches {arguments.filter!r}: {nearest(arguments.filter, zoo.__all__)}")
    width = max(len(name) for name in names)
    say(f"{'name':<{width}}  {'M params':>9}  {'GFLOP':>8}  {'px':>4}  family        weights of")
    rows = []
    for name in names:
        tags = {
            library: published.table().get(library, {}).get(origin.names[name], {})
            for library, origin in zoo.origins(name).items()
        }
        first = next((contract for found in tags.values() for contract in found.values()), {"size": 224})
        size = arguments.size or first["size"]
        parameters, flops = measure(name, size)
        theirs = {library: origin.names[name] for library, origin in zoo.origins(name).items()}
        family = zoo.family(name)
        listed = ", ".join(f"{library}:{theirs[library]}" for library in theirs) or "-"
        say(f"{name:<{width}}  {parameters / 1e6:9.2f}  {flops / 1e9:8.2f}  {size:>4}  {family:<12}  {listed}")
        if arguments.weights:
            for library, found in tags.items():
                for tag, contract in found.items():
                    say(f"{'':<{width}}    {library}:{theirs[library]}.{tag}: {published.InputContract(**contract)}")
        rows.append({"name": name, "parameters": parameters, "flops": flops, "size": size, "family": family,
                     "weights": {library: sorted(found) for library, found in tags.items()}})  # fmt: skip
    return {"models": rows}


@functools.cache
def measure(name: str, size: int) -> tuple[int, float]:
    """(parameters with 1,000 classes, FLOP of an image forwards), from shapes alone. Raises UserError."""
    import jax
    import jax.numpy as jnp

    import jaxvision.models as zoo

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
