"""Goodput: what became of the time of all sessions of a run, and of all its hosts.

Pure functions over what was measured.
"""

from __future__ import annotations

import statistics
from typing import Any

# A host that holds the others up is seen by what it does while they wait in their steps for it.
OWN = ("data", "copy", "checkpoint", "log", "other")
BEHIND = 0.1  # of the wall clock that a host spends on these beyond the others' median: then it is named


def earlier_sessions(summary: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sessions before this one: first and last step, seconds of wall clock and of steps.

    summary: of the session before, {} if there was none; a killed one wrote it when it began. records: of
    metrics.jsonl, which go on after it.
    """
    trained = [r for r in records if r["kind"] == "train" and "time" in r]
    sessions = [dict(s) for s in summary.get("sessions", [])] or _sessions(trained)
    if sessions and trained and trained[-1]["step"] >= sessions[-1]["last"]:
        time, last = trained[-1]["time"], sessions[-1]
        if sum(time.values()) > last["wall_s"]:
            last.update(last=trained[-1]["step"], wall_s=round(sum(time.values()), 3), step_s=time.get("step", 0.0))
    return sessions


def _sessions(trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sessions that records of training tell of, where the summary is lost: in each the times begin anew."""
    sessions: list[dict[str, Any]] = []
    reached = 0
    for record in trained:
        wall = round(sum(record["time"].values()), 3)
        if not sessions or wall < sessions[-1]["wall_s"]:
            sessions.append({"first": reached})
        reached = record["step"]
        sessions[-1].update(last=reached, wall_s=wall, step_s=record["time"].get("step", 0.0))
    return sessions


def fraction(sessions: list[dict[str, Any]]) -> float:
    """Share of the wall clock of all sessions that went into steps whose result was kept, 0 to 1.

    Not kept are steps after the last whole checkpoint of a session that was killed; the next does them again. The time
    between sessions does not count.
    """
    kept, wall = 0.0, 0.0
    for k, session in enumerate(sessions):
        done = session["last"] - session["first"]
        end = min([session["last"], *(later["first"] for later in sessions[k + 1 :])])
        kept += session["step_s"] * max(end - session["first"], 0) / done if done else 0.0
        wall += session["wall_s"]
    return kept / wall if wall else 0.0


def behind(hosts: dict[int, dict[str, float]], before: dict[int, dict[str, float]]) -> tuple[int, str, float] | None:
    """(host, what it was at, share of the wall clock) of the one that the others waited for, or None.

    hosts: seconds of each part on each host; before: the same, earlier.
    """
    spent: dict[int, dict[str, float]] = {}
    for k, parts in hosts.items():
        since = {part: value - before.get(k, {}).get(part, 0.0) for part, value in parts.items()}
        wall = sum(since.values())
        if wall > 0:
            spent[k] = {part: since[part] / wall for part in OWN}
    if len(spent) < 2:
        return None
    sums = {k: sum(parts.values()) for k, parts in spent.items()}
    slowest = max(sums, key=lambda k: sums[k])
    others = statistics.median(value for k, value in sums.items() if k != slowest)
    if sums[slowest] - others < BEHIND:
        return None
    part = max(OWN, key=lambda p: spent[slowest][p])
    return slowest, part, spent[slowest][part]


def table(hosts: dict[int, dict[str, float]], machines: dict[int, str]) -> str:
    """Table of time in seconds: a line a host, a column a part.

    Of many hosts it shows those that waited least for others, who wait in `step`: stragglers come first.
    """
    parts = [part for part in next(iter(hosts.values())) if any(h[part] >= 0.05 for h in hosts.values())]
    order = sorted(hosts, key=lambda k: hosts[k]["step"])[:16]
    name = max(len(machines[k]) for k in order)
    lines = ["  process  " + "machine".ljust(name) + "".join(f"{part:>12}" for part in parts)]
    lines += [
        f"  {k:>7}  {machines[k].ljust(name)}" + "".join(f"{hosts[k][part]:>10.1f} s" for part in parts) for k in order
    ]
    return "\n".join(lines + ([f"  and {len(hosts) - 16} more"] if len(hosts) > 16 else []))
