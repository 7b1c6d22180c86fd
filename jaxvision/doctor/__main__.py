"""python -m jaxvision.doctor: check whether hosts, devices, storage and a config are fit for a long run."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.doctor import findings
from jaxvision.errors import Unfit, UserError
from jaxvision.runtime import hosts


def doctor(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.doctor",
        "Before an expensive run, started as the run will be: what each host has, the clocks, the all-reduce, the "
        "workdir, and for a config whether data or the step is the bottleneck and how long it all takes. Ends with a "
        "list of what is wrong and what to do; exits with 2 if something would stop or spoil the run.",
        [
            "python -m jaxvision.doctor",
            "python -m jaxvision.doctor --config configs/resnet50.py --workdir gs://bucket/r50",
            "srun python -m jaxvision.doctor --config configs/resnet50.py --workdir /shared/r50",
        ],
    )
    parser.add_argument("--config", default="", metavar="FILE", help="a config file, as train takes it")
    parser.add_argument("--workdir", default="runs", metavar="DIR", help="that of the run; default %(default)s")
    parser.add_argument("--config.KEY=VALUE", dest="_", action="append", metavar="", help="override any key of it")
    parser.add_wait()
    arguments, overrides = parser.parse(argv, prefix="config")
    if overrides and not arguments.config:
        raise UserError(f"--config.{next(iter(overrides))} overrides a key of a config: name it with --config FILE")
    say = cli.printer(arguments)

    from jaxvision import config as config_lib
    from jaxvision.doctor.measure import examine

    config = config_lib.load(arguments.config, overrides) if arguments.config else None
    hosts.join(say, arguments.wait)
    facts = examine(config, arguments.workdir, say)
    found = findings.judge(facts)
    say("" if found else "\nnothing is wrong")
    for finding in found:
        say(f"{finding.level}: {finding.what}\n  next: {finding.next}")
    result = {**facts, "findings": [finding._asdict() for finding in found]}
    wrong = [f"{f.what}; next: {f.next}" for f in found if f.level == "problem"]
    if wrong:
        many = f"{len(wrong)} problems" if len(wrong) > 1 else "1 problem"
        error = Unfit(f"{many} would stop or spoil a run: " + ("\n".join(wrong) if arguments.json else "see above"))
        error.result = result if hosts.index() == 0 else None
        raise error
    return result


if __name__ == "__main__":
    cli.main(doctor)
