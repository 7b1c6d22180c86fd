"""python -m jaxvision.report: write the report of a run anew."""

from __future__ import annotations

from typing import Any

from jaxvision import cli


def report(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.report",
        "Write report.html of a workdir: curves, mistakes, calibration, time and config in one file. A training\n"
        "writes it when it ends; this writes it anew, after an evaluation or of a run that was killed.",
        [
            "python -m jaxvision.report runs/a",
            "python -m jaxvision.report gs://bucket/a --out a.html",
        ],
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="the --workdir of a training")
    parser.add_argument("--out", metavar="FILE", help="where it is written; default: report.html in the workdir")
    arguments, _ = parser.parse(argv)
    say = cli.printer(arguments)

    from jaxvision.report import page
    from jaxvision.runtime import paths

    workdir = paths.path(arguments.workdir)
    out, size = page.write(workdir, paths.path(arguments.out) if arguments.out else None, say=say)
    say(f"report {out} ({size / 1e6:.2f} MB)")
    return {"report": str(out), "bytes": size}


if __name__ == "__main__":
    cli.main(report)
