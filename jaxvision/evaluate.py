"""python -m jaxvision.evaluate: measure a trained network; every sample counts once."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError


def evaluate(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.evaluate",
        "Evaluate a checkpoint on each evaluation of its config, or on another source.",
        [
            "python -m jaxvision.evaluate --from runs/a",
            "python -m jaxvision.evaluate --from runs/a --checkpoint best --data folder:/pets/val",
        ],
    )
    parser.add_from()
    parser.add_argument("--data", metavar="URI", help="another source, with the metric of the first evaluation")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: that of the training")
    arguments, _ = parser.parse(argv)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size is {arguments.batch_size}: it must be at least 1")
    say = cli.sayer(arguments)

    from jaxvision import build, evals
    from jaxvision.data.sources import open_source

    trained = build.load(arguments.source, arguments.checkpoint)
    metrics = build.metrics(trained.config, len(trained.classes))
    if not metrics:
        raise UserError(f"the config in {arguments.source} has no evals: it does not say how to measure")
    jobs = {name: trained.config.evals[name].data for name in metrics}
    if arguments.data:
        jobs = {next(iter(jobs)): arguments.data}
    say(f"checkpoint {trained.source.checkpoint}")
    results = {}
    for name, uri in jobs.items():
        source = open_source(uri)
        build.check_classes(uri, source.classes, trained.classes)
        skips = build.skips(trained.config)
        batches = evals.source_batches(
            source,
            trained.contract,
            trained.mesh,
            arguments.batch_size or trained.config.batch_size,
            skips=skips,
            **build.reading(trained.config),
        )
        result = evals.run(trained.task, trained, {name: metrics[name]}, batches)
        assert trained.source.workdir is not None  # build.load saw its config.json
        path = evals.write_certificate(
            trained.source.workdir,
            name if uri == trained.config.evals[name].data else f"{name}-other",
            result,
            data=uri,
            step=trained.step,
            contract=trained.contract,
            classes=trained.classes,
            skips=skips,
        )
        values = "  ".join(f"{k} {v:.4f}" for k, v in result.metrics.items())
        say(f"{name} ({uri}): {values}  ({result.samples} samples)\ncertificate {path}")
        if skips and skips.seen:
            say(f"warning: {len(skips.seen)} unreadable images are left out, the certificate lists them")
        results[name] = {**result.metrics, "count": result.samples, "digest": result.digest}
    return {"checkpoint": str(trained.source.checkpoint), "step": trained.step, "evals": results}


if __name__ == "__main__":
    cli.main(evaluate)
