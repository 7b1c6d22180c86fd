"""python -m jaxvision.models: list the networks that there are."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError

LARGEST = 2**14  # pixels, as of a config


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
    say = cli.printer(arguments)

    from jaxvision import models as zoo
    from jaxvision.weights import catalogue

    names = catalogue.matching(arguments.filter, zoo.__all__)
    width = max(len(name) for name in names)
    header = f"{'name':<{width}}  {'M params':>9}  {'GFLOP':>8}  {'px':>4}  family        weights of"
    rows = []
    for name in names:
        sets = catalogue.weights(name)
        size = arguments.size or catalogue.default_size(name)
        parameters, flops = catalogue.known().get((name, size)) or catalogue.measure(name, size)
        if header:
            say(header)
            header = ""
        listed = ", ".join(f"{library}:{theirs}" for library, (theirs, _) in sets.items()) or "-"
        family = zoo.family(name)
        say(f"{name:<{width}}  {parameters / 1e6:9.2f}  {flops / 1e9:8.2f}  {size:>4}  {family:<12}  {listed}")
        if arguments.weights:
            catalogue.say_weights(sets, say)
        rows.append({"name": name, "parameters": parameters, "flops": flops, "size": size, "family": family,
                     "weights": {library: sorted(tags) for library, (_, tags) in sets.items()}})  # fmt: skip
    return {"models": rows}


if __name__ == "__main__":
    cli.main(models)
