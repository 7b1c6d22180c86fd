"""python -m jaxvision.evaluate: measure a trained network; every sample counts once."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError
from jaxvision.runtime import hosts


def evaluate(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.evaluate",
        "Evaluate a checkpoint on each evaluation of its config, or on another source.",
        [
            "python -m jaxvision.evaluate --from runs/a",
            "python -m jaxvision.evaluate --from runs/a --checkpoint best --data folder:/pets/val",
            "python -m jaxvision.evaluate --from timm:resnet50.a1_in1k=model.safetensors --data folder:/imagenet/val",
        ],
    )
    parser.add_from()
    parser.add_argument("--data", metavar="URI", help="another source, with the metric of the evaluation that decides "
        "what the best checkpoint is")  # fmt: skip
    parser.add_argument("--classes", choices=("all", "subset"), help="subset: the answer is one of the classes that "
        "the data has samples of, as for ImageNet-A and -R; default: as the config says")  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: that of the training")
    parser.add_max_pixels()
    parser.add_argument("--out", metavar="DIR", help="where eval/NAME.json goes; default: the workdir, if FROM has one")
    parser.add_wait()
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "batch_size")
    say = cli.printer(arguments)
    cli.ticker.start(arguments, "importing JAX, reading the network, compiling, evaluating")

    from jaxvision import config as config_lib
    from jaxvision.data import survey
    from jaxvision.data.sources import open_source
    from jaxvision.data.sources.common import notes
    from jaxvision.runtime import paths
    from jaxvision.runtime.records import in_words, plain
    from jaxvision.training import build, check, evals, restore

    hosts.join(say, arguments.wait)
    trained = restore.load(arguments.source, arguments.checkpoint, say)
    if arguments.max_pixels is not None:
        trained.config.data.max_pixels = arguments.max_pixels
    if not trained.config.evals:
        raise UserError(f"the config in {arguments.source} has no evals: it does not say how to measure")
    jobs = {name: entry.data for name, entry in trained.config.evals.items()}
    if not arguments.data and not any(jobs.values()):
        raise UserError(f"{arguments.source} are weights without data: give --data URI")
    workdir = paths.path(arguments.out) if arguments.out else trained.workdir
    workdir = workdir if hosts.index() == 0 else None  # one of several writes
    if workdir:
        paths.require_writable(workdir / "eval")  # before all is measured
    if arguments.data:
        jobs = {config_lib.deciding(trained.config): arguments.data}
    for name in jobs if arguments.classes else ():
        trained.config.evals[name].classes = arguments.classes
    say(f"checkpoint {trained.source}\npixels: {trained.contract}")
    results = {}
    for name, uri in jobs.items():
        options = {**config_lib.eval_options(trained.config.evals[name]), "data": uri}
        source, bank = open_source(uri), open_source(options["bank"]) if options["bank"] else None
        classes = trained.classes_of(uri, source.classes, say)
        source, bank = check.eval_data(trained.config, name, source, bank, classes)
        lines = notes([source] if bank is None else [source, bank])
        lines += survey.levels_told(uri, survey.encoded(source), trained.contract)
        for line in (*lines, *check.eval_lines(trained.config, name, source, bank, classes)):
            say(line)
        result = evals.measure(
            trained.config, trained.task, trained, build.measures(trained.config, name, source.classes, classes),
            source, bank, trained.contract, trained.mesh, batch_size=arguments.batch_size or 0,
        )  # fmt: skip
        values = in_words(result.metrics)
        say(f"{name} ({uri}): {values}  ({result.samples} samples)")
        if workdir:
            as_trained = uri == trained.config.evals[name].data and not arguments.classes
            own = as_trained or trained.workdir is None
            path, warning = evals.write(
                workdir, name if own else f"{name}-other", result, options=options, step=trained.step,
                contract=trained.contract, classes=build.among(trained.config, source.classes, classes),
                run=trained.run,
            )  # fmt: skip
            say(f"certificate {path}" + (f"\n{warning}" if warning else ""))
        if result.skipped:
            say(f"warning: {len(result.skipped)} unreadable images are left out, the certificate lists them")
        results[name] = {**plain(result.metrics), "count": result.samples, "digest": result.digest}
    return {"checkpoint": trained.source, "step": trained.step, "evals": results}


if __name__ == "__main__":
    cli.main(evaluate)
