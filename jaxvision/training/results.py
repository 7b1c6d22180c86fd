"""Results of a training, for people and scripts."""

from __future__ import annotations

import shlex
from typing import Any

from jaxvision.runtime import goodput, paths
from jaxvision.runtime.records import Say, in_words, read_summary


def tell(workdir: str, say: Say) -> dict[str, Any]:
    """Says what a training reached, where it lies, and what to do with it; what the command prints as JSON."""
    summary = read_summary(paths.path(workdir))
    say(f"done: {summary['step']} steps in {summary['wall_s']:.1f} s, {summary['examples_per_s']:.0f} images/s")
    for name, values in summary["evals"].items():
        say(f"  {name}: {in_words(values)}")
    say("  time: " + "  ".join(f"{k} {v:.1f} s" for k, v in summary["time"].items() if v >= 0.05))
    hosts_ = {host["process"]: host for host in summary["hosts"]}
    if hosts_:
        times, machines = ({k: host[what] for k, host in hosts_.items()} for what in ("time", "machine"))
        say(goodput.table(times, machines))
    say(
        f"  {workdir}: report.html, checkpoints, curves.png, metrics.jsonl, summary.json\n"
        f"evaluate: python -m jaxvision.evaluate --from {shlex.quote(workdir)}\n"
        f"predict:  python -m jaxvision.predict --from {shlex.quote(workdir)} IMAGE_OR_FOLDER...\n"
        f"export:   python -m jaxvision.export --from {shlex.quote(workdir)} --out exported/model.onnx"
    )
    return {
        "workdir": workdir,
        **{k: summary[k] for k in ("status", "step", "wall_s", "examples_per_s", "evals")},
    }
