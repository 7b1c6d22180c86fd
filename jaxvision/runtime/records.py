"""Readers of a run's files for people and scripts: summary.json and metrics.jsonl."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from etils import epath

from jaxvision.errors import Damaged
from jaxvision.runtime import paths

Say = Callable[[str], None]
_NUMBER = (int, float, type(None))
_TIMES = {...: (int, float)}
SUMMARY = {  # what is read of summary.json; what an older version wrote may lack some
    "status?": str,
    "step?": int,
    "steps?": int,
    "stopped_early?": bool,
    "parameters?": int,
    "devices?": int,
    "wall_s?": _NUMBER,
    "examples_per_s?": _NUMBER,
    "goodput?": _NUMBER,
    "first_step?": _TIMES,
    "time?": _TIMES,
    "sessions?": [{"first": int, "last": int, "wall_s": (int, float), "step_s": (int, float)}],
    "saves?": {"count": int, "blocked_s": (int, float)},
    "hosts?": [{"process": int, "machine": str, "time": _TIMES}],
    "evals?": {...: {...: _NUMBER}},
    "best?": {...: _NUMBER},
    "alarms?": {...: int},
    "skipped?": [{"sample": int, "reason": str}],
    "versions?": {...: str},
    "run?": str,
}


def plain(value: Any) -> Any:
    """A value of JSON with null in place of NaN and infinity, which JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def in_words(values: dict[str, Any]) -> str:
    """ "top1 0.9000  loss 0.1000", without what is only of one class."""
    shown = {k: math.nan if v is None else v for k, v in values.items() if "/" not in k}
    return "  ".join(f"{k} {v:.4f}" for k, v in shown.items())


def read_summary(workdir: epath.Path, run: str = "") -> dict[str, Any]:
    """The content of summary.json, {} where there is none. Raises Damaged, also where it is of another run.

    run: which run the workdir's checkpoints are of, "" where they do not say; see `config.run_of`.
    """
    path = workdir / "summary.json"
    try:
        summary = paths.read_json(path, SUMMARY)
    except FileNotFoundError:
        return {}
    require_run(path, summary, run)
    return summary


def require_run(path: epath.Path, content: dict[str, Any], run: str) -> None:
    """Raises Damaged if a file says that it is of another run; older versions do not say."""
    if run and content.get("run", run) != run:
        raise Damaged(f"{path} is damaged (it is of another run)")


def read_records(workdir: epath.Path, run: str = "", say: Say = lambda text: None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without those that are damaged or of another run: `say` is told of them.

    Nothing is told of a last line that a kill cut short. `run`: as in `read_summary`.
    """
    path = workdir / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = [_record(line, run) for line in lines if line]
    damaged = sum(record is None for record in found) - (bool(lines[-1]) and found[-1] is None)
    if damaged:
        say(f"warning: {damaged} of {len(found)} lines of {path} are damaged or of another run, and are left out")
    return [record for record in found if record is not None]


def _record(line: bytes, run: str) -> dict[str, Any] | None:
    """The record of a line; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    check = record.pop("check", None)
    if run and check is not None and check != _check(record, run):
        return None
    times = record.get("time", {})
    values = [*record.values(), *(times.values() if isinstance(times, dict) else [[]])]
    fits = all(isinstance(v, (*_NUMBER, str)) for v in values if v is not times)
    return record if fits else None


def line(record: dict[str, Any], run: str) -> str:
    """A line of metrics.jsonl; `check` ties it to its run and tells a changed one."""
    return json.dumps({**record, "check": _check(record, run)} if run else record)


def _check(record: dict[str, Any], run: str) -> str:
    return hashlib.sha256((run + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:8]
