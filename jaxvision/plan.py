"""python -m jaxvision.plan: tell whether a config's train step fits chips that are not here, and what bounds it."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.config.ranges import at_least
from jaxvision.runtime import chips
from jaxvision.runtime.chips import TPUS


def plan(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.plan",
        "Compile the train step of a config ahead of time for a slice of TPU chips that is only described (needs the "
        "extra plan: libtpu, on Linux x86-64) or for the devices that are here: memory, traffic, what bounds it.",
        [
            "python -m jaxvision.plan --config configs/resnet50.py --topology v5e:2x2",
            "python -m jaxvision.plan --config configs/vit_b16_deit.py --topology v5e:16x16 --config.mesh.fsdp=8",
            "python -m jaxvision.plan --config configs/resnet50.py --table v5e:2x2,v5e:16x16,v4:4x4x4",
        ],
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file, as train takes it")
    parser.add_argument("--config.KEY=VALUE", dest="_", action="append", metavar="", help="override any key of it")
    parser.add_argument(
        "--topology", default="", metavar="CHIP:AxB", help=f"chips are {', '.join(TPUS)}; default: the devices here"
    )
    parser.add_argument(
        "--table", default="", metavar="T,T", help="how the config scales over several topologies (same batch in all)"
    )
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="images a chip; default: its share")
    parser.add_argument(
        "--classes", type=int, default=1000, metavar="N", help="where the data is not here; default 1000"
    )
    parser.add_argument("--only", action="store_true", help="the asked batch alone: no other batch, remat or fsdp")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="search the largest batch until the next does not fit; else a few programs are compiled (minutes each)",
    )
    arguments, overrides = parser.parse(argv, prefix="config")
    at_least(0).check("--batch", arguments.batch)
    at_least(1).check("--classes", arguments.classes)
    say = cli.printer(arguments)
    topologies = [t for t in (arguments.table or arguments.topology).split(",") if t]
    for name in topologies:
        chips.slice_of(name)
    if topologies:
        chips.only_described()

    from jaxvision import config as config_lib
    from jaxvision.training import capacity, check

    config = config_lib.load(arguments.config, overrides)
    check.check(config)
    planner = capacity.Planner(config, arguments.classes, say, cli.ticker.tell, exact=arguments.exact)
    cli.ticker.start(arguments, "compiling")
    only = arguments.only or bool(arguments.table)
    found = {name: planner.study(name, arguments.batch, only=only) for name in topologies or ["here"]}
    if arguments.table:
        say(capacity.scaling_table(planner))
    return {"config": arguments.config, "topologies": found}


if __name__ == "__main__":
    cli.main(plan)
