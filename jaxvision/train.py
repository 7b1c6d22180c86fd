"""python -m jaxvision.train: train a network as a config says, or go on where it stopped."""

from __future__ import annotations

import datetime
import os
import shlex
from typing import Any

from jaxvision import cli
from jaxvision.errors import Interrupted, UserError
from jaxvision.runtime import hosts

# What people read while a run starts up, by the part of the clock.
AT = {
    "start": "opening data, building",
    "restore": "reading the checkpoint",
    "compile": "compiling, about a minute, less where it was compiled before",
    "data": "waiting for the first batch",
}


def train(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.train",
        "Train a network as a config file says. The same command with the same --workdir resumes.",
        [
            "python -m jaxvision.train --config configs/digits.py",
            "python -m jaxvision.train --config configs/digits.py --workdir runs/a --config.optim.lr=0.05",
            "python -m jaxvision.train --config configs/digits.py --config.epochs=0 --config.steps=20 --config.seed=1",
        ],
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file, see configs/; FILE.py:ARGUMENT "
        "is its get_config(ARGUMENT)")  # fmt: skip
    parser.add_argument("--workdir", metavar="DIR", help="where all is written; default runs/CONFIG-TIMESTAMP")
    parser.add_argument(
        "--config.KEY=VALUE", dest="_", action="append", metavar="", help="override any key of the config"
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="STEPS", help="trace so many steps by XLA's profiler into profile/"
    )
    parser.add_argument(
        "--stop-after",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="save and end with code 75 after that time",
    )
    parser.add_wait()
    arguments, overrides = parser.parse(argv, prefix="config")
    say = cli.printer(arguments)

    if arguments.profile < 0:
        raise UserError(f"--profile is {arguments.profile}: it is a number of steps, 0 for none")
    if not 0 <= arguments.stop_after < float("inf"):
        raise UserError(f"--stop-after is {arguments.stop_after:g}: it is a number of minutes, 0 for never")
    from jaxvision import config as config_lib
    from jaxvision.runtime import paths

    if arguments.workdir:
        paths.require_folder(arguments.workdir, "--workdir")
    config = config_lib.load(arguments.config, overrides)  # without JAX
    if not cli.ticker.start(arguments, "importing JAX") and hosts.seems_first():
        say("importing JAX, opening data, compiling: about a minute, less where it was compiled before")
    hosts.join(say, arguments.wait)
    workdir = arguments.workdir or default_workdir(arguments.config)

    from jaxvision.runtime.clock import Clock
    from jaxvision.training import check, loop, results

    check.check(config)
    words = ["python", "-m", "jaxvision.train", "--config", arguments.config, "--workdir", workdir]
    words += [f"--config.{k}={v}" for k, v in overrides.items()]
    resume = shlex.join(words)
    clock = Clock(cli.STARTED, cli.ticker.stop)
    cli.ticker.at = lambda: AT.get(clock.part, clock.part)
    try:
        loop.fit(
            config, workdir, say=say, clock=clock, resume=resume, profile=arguments.profile,
            stop_after=arguments.stop_after,
        )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(f"{error} in {workdir}. To resume: {resume}") from error
    return results.tell(workdir, say) if hosts.index() == 0 else {}


def default_workdir(config: str) -> str:
    """runs/CONFIG-TIMESTAMP, the local time of the first host, whatever clock and time zone others have."""
    from jaxvision.config import split_argument

    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return os.path.join("runs", f"{split_argument(config)[0].stem}-{hosts.allgather('workdir', stamp)[0]}")


if __name__ == "__main__":
    cli.main(train, unheard=True)
