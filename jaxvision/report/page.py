"""The page: what a workdir holds, section by section. Reads the workdir's files, and the data only for pictures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxvision import config as config_lib
from jaxvision.errors import Damaged, UserError
from jaxvision.report import evaluation, training
from jaxvision.report.curves import colours, curves
from jaxvision.report.draw import Html, bar, join, lines, number, share, table, tag
from jaxvision.report.style import CSS, SCRIPT
from jaxvision.runtime.paths import read_json, write_whole
from jaxvision.runtime.records import Say, read_records, read_summary, require_run

STATUS = {  # of summary.json -> (as it is told, the badge's colour)
    "done": ("done", "good"),
    "running": ("running, or killed: the summary is written when a session ends", ""),
    "interrupted": ("interrupted", ""),
    "diverged": ("diverged", "bad"),
    "failed": ("failed", "bad"),
}
# Keys that the page shows by name; what an older version wrote may lack others.
SHOWN = {"model", "task", "wrap", "data", "evals", "batch_size", "dtype", "seed"}


CONFIG = {
    **dict.fromkeys(SHOWN, (str, int, dict)),
    "model": dict,
    "task": {"name": str},
    "wrap": (list, dict),
    "data": {"train": str},
    "evals": {...: dict},
    "batch_size": int,
}
CERTIFICATE = {
    "metrics": {...: (int, float, type(None))},
    "count": int,
    "digest_of_sample_ids": str,
    "data": str,
    "step": int,
    "contract": dict,
    "classes": [str],
    "versions": {...: str},
    "skipped?": [{"sample": int, "reason": str}],
    "files?": {...: str},
    "run?": str,
}


class Run(NamedTuple):
    """Contents of a workdir; `evals`: the certificates by name."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    records: list[dict[str, Any]]
    evals: dict[str, dict[str, Any]]


def write(
    workdir: epath.Path,
    out: epath.Path | None = None,
    sources: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> tuple[epath.Path, int]:
    """Writes the report of a workdir, by default as report.html in it. (where it is, its size in bytes).

    sources: URI -> data that is open already (data.sources.Source); what is not there is opened for the pictures, and
    where that fails the page says so. say: is told of lines of the log that are left out. Raises UserError if that is
    no workdir, one of its files is damaged, or the report cannot be written.
    """
    content = build(workdir, sources, say).encode(errors="replace")  # names of files need not be text
    out = out or workdir / "report.html"
    write_whole(out, content)
    return out, len(content)


def build(workdir: epath.Path, sources: Mapping[str, Any] | None = None, say: Say = lambda text: None) -> Html:
    """The report of a workdir as text, see `write`."""
    run = _read(workdir, say)
    sections = [_head(run), _warnings(run), _results(run), _curves(run), training.section(run.config, sources or {})]
    for name, certificate in run.evals.items():
        outcomes = _outcomes(workdir, name, certificate)
        picture = _picture(workdir, name, certificate)
        sections.append(evaluation.section(name, certificate, outcomes, picture, sources or {}))
    sections += [_time(run), _certificates(run), _config(run)]
    head = Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width">')
    head = join([head, tag("title", f"{run.name} - report"), Html(f"<style>{CSS}</style>")])
    body = tag("body", join(sections), Html(f"<script>{SCRIPT}</script>"))
    return Html(f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n')


def _read(workdir: epath.Path, say: Say) -> Run:
    """Reads the run of a workdir.

    Raises UserError if that is no workdir.
    """
    if not workdir.exists():
        raise UserError(f"{workdir} does not exist: name the --workdir of a training")
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is no workdir, it has no config.json: name the --workdir of a training")
    run = _run_of(workdir)
    try:
        if SHOWN - read_json(workdir / "config.json").keys():
            raise UserError(f"{workdir} is no workdir, its config.json is of something else: name that of a training")
        config = config_lib.translated(read_json(workdir / "config.json", CONFIG))
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in config["wrap"]):
            raise Damaged(f"{workdir / 'config.json'} is damaged (wrap holds no pairs)")
        summary = read_summary(workdir, run)
        evals = {path.stem: _certificate(path, run) for path in sorted((workdir / "eval").glob("*.json"))}
    except Damaged as error:
        raise Damaged(f"{error}: remove it, or write it anew by running its training or evaluation again") from error
    evals = dict(sorted(evals.items(), key=lambda item: (item[0] not in config["evals"], item[0])))
    name = workdir.name or str(workdir)
    return Run(name, config, summary, read_records(workdir, run, say), evals)


def _run_of(workdir: epath.Path) -> str:
    """Name of the run that the newest checkpoint is of; "" where none says it.

    Without checkpoint.py, which loads JAX.
    """
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    for name in sorted(names, key=int, reverse=True):
        with contextlib.suppress(FileNotFoundError, Damaged):
            return read_json(folder / name / "about.json", {"run?": str}).get("run", "")
    return ""


def _certificate(path: epath.Path, run: str) -> dict[str, Any]:
    """Reads a certificate.

    Raises Damaged.
    """
    certificate = read_json(path, CERTIFICATE)
    require_run(path, certificate, run)
    return certificate


def _outcomes(workdir: epath.Path, name: str, certificate: dict[str, Any]) -> dict[str, np.ndarray] | str:
    """The arrays of eval/NAME.npz; else why there are none. Those of older versions do not say whose they are."""
    path = workdir / "eval" / f"{name}.npz"
    if not path.exists():
        return f"{path} is missing" if path.name in certificate.get("files", ()) else ""
    try:
        content = path.read_bytes()
        known = certificate.get("files", {}).get(path.name)
        if known is not None and hashlib.sha256(content).hexdigest() != known:
            return f"{path} is damaged, or of another evaluation: evaluate again"
        with np.load(io.BytesIO(content)) as file:
            return dict(file)
    except Exception as error:  # numpy and zipfile have many for what is no such file
        return f"{path} cannot be read ({error})"


def _picture(workdir: epath.Path, name: str, certificate: dict[str, Any]) -> bytes:
    """eval/NAME.png, if it was written with the certificate; those of older versions do not say."""
    path = workdir / "eval" / f"{name}.png"
    content = path.read_bytes() if path.exists() else b""
    known = certificate.get("files", {path.name: hashlib.sha256(content).hexdigest()})
    return content if known.get(path.name) == hashlib.sha256(content).hexdigest() else b""


# --------------------------------------------------------------------------- what became of the run


def _head(run: Run) -> Html:
    summary, config = run.summary, run.config
    status, colour = STATUS.get(summary.get("status", ""), ("no summary.json", ""))
    status += ", stopped early" if summary.get("stopped_early") else ""
    versions = summary.get("versions", {})
    wall = sum(session["wall_s"] for session in summary.get("sessions", ()))
    options = [f"{k} {v}" for k, v in config["model"].items() if k != "name"]
    model = ", ".join([str(config["model"].get("name")), *options])
    parameters, devices = summary.get("parameters"), summary.get("devices")
    programs = ("jaxvision", "jax", "flax", "optax", "numpy", "python")
    facts = {
        "Model": model,
        "Parameters": f"{parameters:,}" if parameters else "-",
        "Task": ", ".join([config["task"]["name"], *(name for name, _ in config["wrap"])]),
        "Training data": config["data"]["train"],
        "Steps": f"{summary['step']:,} of {summary['steps']:,}" if {"step", "steps"} <= summary.keys() else "-",
        "Batch, computed in": f"{config['batch_size']:,}, {config['dtype']}",
        "Wall clock, all sessions": f"{wall:,.0f} s" + (f" ({wall / 3600:.1f} h)" if wall > 3600 else ""),
        "Training speed": f"{summary['examples_per_s']:,.0f} images/s" if summary.get("examples_per_s") else "-",
        "Device": f"{devices} x {versions.get('device', '?')}" if devices else "-",
        "Seed": config["seed"],
        "Versions": ", ".join(f"{name} {versions[name]}" for name in programs if name in versions) or "-",
    }
    listed = join(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items())
    badge = tag("span", status, cls=f"badge {colour}".strip())
    command = summary.get("command")
    ran = tag("div", tag("code", command), cls="command") if command else ""
    return join([tag("h1", run.name, " ", badge), ran, tag("dl", listed, cls="facts")])


def _warnings(run: Run) -> Html:
    """Alarms and skipped files, where there are any."""
    alarms = run.summary.get("alarms", {})
    items = [join([tag("b", name), f" was raised, first at step {step:,}"]) for name, step in alarms.items()]
    found = {"training": run.summary.get("skipped", [])}
    found |= {name: certificate.get("skipped", []) for name, certificate in run.evals.items()}
    for where, rows in found.items():
        if rows:
            most = join(tag("li", f"sample {row['sample']}: {row['reason']}") for row in rows[:20])
            more = tag("li", f"and {len(rows) - 20:,} more") if len(rows) > 20 else ""
            items.append(join([tag("b", f"{len(rows):,} unreadable images"), f" were left out of {where}",
                               tag("ul", most, more)]))  # fmt: skip
    return tag("div", join(tag("div", item) for item in items), cls="warn") if items else Html("")


def _results(run: Run) -> Html:
    """The last value of each metric, and the best of the run."""
    best, last = run.summary.get("best", {}), run.summary.get("evals", {})
    names = {key.rpartition("/")[0] for key in best} | set(last) | set(run.evals)
    rows, tiles = [], []
    for name in sorted(names, key=lambda n: (list(run.evals).index(n) if n in run.evals else len(run.evals), n)):
        certificate = run.evals.get(name, {})
        values = {k: v for k, v in (last.get(name) or certificate.get("metrics", {})).items() if "/" not in k}
        for key, value in values.items():
            rows.append([name, key, number(value), number(best.get(f"{name}/{key}"))])
        first = next((k for k in values if k != "loss"), None)
        if first:
            tiles.append(tag("div", tag("b", number(values[first])), tag("span", f"{name}: {first}"), cls="tile"))
    if not rows:
        return tag("p", "Nothing was evaluated.", cls="note")
    head = ("evaluation", "metric", "last", "best of the run")
    return join([tag("div", join(tiles), cls="tiles"), table(head, rows)])


def _curves(run: Run) -> Html:
    panels = curves(run.records)
    if not panels:
        return join([tag("h2", "Curves"), tag("p", "No line of the log was written.", cls="note")])
    drawn = [lines(key, panel, colours(run.records), log=key == "loss") for key, panel in panels.items()]
    return join([tag("h2", "Curves"), tag("div", join(drawn), cls="grid")])


def _time(run: Run) -> Html:
    summary = run.summary
    parts: dict[str, float] = summary.get("time", {})
    if not parts:
        return Html("")
    wall = sum(parts.values()) or 1.0
    rows = [[name, f"{spent:,.1f} s", share(spent / wall)] for name, spent in parts.items()]
    first = summary.get("first_step", {}).get("seconds")
    goodput = summary.get("goodput")
    told = []
    if goodput is not None:  # older versions did not count it
        told.append(f"Goodput {share(goodput)}: steps that were kept, of the wall clock of all sessions.")
    told += [f"First step after {first:.1f} s."] if first else []
    saves = summary.get("saves", {})
    told += [f"{saves['count']} saves blocked for {saves['blocked_s']:.2f} s."] if saves.get("count") else []
    sessions = [
        [f"{k + 1}", f"{s['first']:,}", f"{s['last']:,}", f"{s['wall_s']:,.1f} s", f"{s['step_s']:,.1f} s"]
        for k, s in enumerate(summary.get("sessions", ()))
    ]
    content = [
        tag("h2", "Where the time went"),
        tag("p", " ".join(told)),
        bar(parts),
        tag(
            "div",
            table(("part of the last session", "time", "share"), rows),
            table(("session", "from step", "to step", "wall clock", "in steps"), sessions),
            cls="two",
        ),
    ]
    if summary.get("hosts"):
        names = [p for p in parts if any(host["time"].get(p, 0) >= 0.05 for host in summary["hosts"])]
        rows = [
            [f"{h['process']}", h["machine"], *(f"{h['time'].get(p, 0):,.1f} s" for p in names)]
            for h in summary["hosts"]
        ]
        content += [tag("h3", "Hosts"), table(("process", "machine", *names), rows, sort=True)]
    return join(content)


# --------------------------------------------------------------------------- what it was made with


def _certificates(run: Run) -> Html:
    if not run.evals:
        return Html("")
    rows = []
    for name, certificate in run.evals.items():
        versions = ", ".join(f"{k} {v}" for k, v in certificate["versions"].items())
        contract = ", ".join(f"{k} {v}" for k, v in certificate["contract"].items())
        digest = tag("td", tag("code", certificate["digest_of_sample_ids"]), cls="wide")
        rows.append(
            tag("tr", tag("td", tag("b", name)), tag("td", certificate["data"], cls="wide"),
                tag("td", f"{certificate['step']:,}", cls="n"), tag("td", f"{certificate['count']:,}", cls="n"),
                digest, tag("td", contract, cls="wide"), tag("td", versions, cls="wide"))
        )  # fmt: skip
    head = ("evaluation", "data", "step", "samples", "SHA-256 of the sample ids", "pixels", "versions")
    header = tag("thead", tag("tr", join(tag("th", h) for h in head)))
    return join(
        [
            tag("h2", "Evaluation certificates"),
            tag("p", "Every sample counted once. The digest is that of the sorted ids of the samples.", cls="note"),
            tag("div", tag("table", header, tag("tbody", join(rows))), cls="scroll"),
        ]
    )


def _config(run: Run) -> Html:
    """Keys that differ from the defaults; the others folded."""
    defaults = config_lib.flat(json.loads(config_lib.to_json(config_lib.default())))
    changed, same = [], []
    for key, value in config_lib.flat(run.config).items():
        group, _, last = key.rpartition(".")
        known = {**({key: config_lib.EVAL.get(last)} if group.startswith("evals.") else {}), **defaults}
        default = _written(known[key]) if known.get(key) is not None else "none"
        cells = [tag("td", tag("code", key)), tag("td", tag("code", _written(value)), cls="wide")]
        if _written(value) == default:
            same.append(tag("tr", join(cells)))
        else:
            changed.append(tag("tr", join(cells), tag("td", tag("code", default), cls="wide")))

    def listed(rows: list[Html], *head: str) -> Html:
        names = tag("thead", tag("tr", join(tag("th", h) for h in head)))
        return tag("div", tag("table", names, tag("tbody", join(rows)), cls="config"), cls="scroll")

    folded = tag("summary", f"{len(same)} keys that are as the defaults")
    return join(
        [
            tag("h2", "Config"),
            tag("p", f"{len(changed)} keys that differ from the defaults.", cls="note"),
            listed(changed, "key", "value", "default"),
            tag("details", folded, listed(same, "key", "value")),
        ]
    )


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value or '""'
