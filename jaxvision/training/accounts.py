"""Accounts of a training's time: images/s, MFU, goodput, and who holds the others up."""

from __future__ import annotations

import platform
import resource
import time
from typing import Any

import jax

from jaxvision.data.sources.common import left_out
from jaxvision.runtime import goodput, hosts, versions
from jaxvision.runtime.clock import Clock
from jaxvision.training.log import Log
from jaxvision.training.session import Session


class Accounts:
    """Accounts of one session, read from the clock: for each line of the log, and for summary.json."""

    def __init__(self, session: Session, clock: Clock, log: Log) -> None:
        self._session, self._clock, self._log = session, clock, log
        self._pace = (0.0, session.start)  # seconds spent on training at the last line, and its step
        self._seen: dict[int, dict[str, float]] = {}  # the hosts' time at the last line
        self._named = -1  # the host that was said to hold the others up

    def line(self, step: int, means: dict[str, float]) -> None:
        """A line of the log: `means` over the steps since the last, the learning rate, speed and time."""
        session, setup = self._session, self._session.setup
        with self._clock("log"):
            values = {**means, "lr": float(session.learning_rate(step - 1))}
            spent = self.training_seconds()
            rate = (step - self._pace[1]) * setup.config.batch_size / max(spent - self._pace[0], 1e-9)
            more: dict[str, Any] = {"goodput": round(goodput.fraction(self.sessions(step)), 4)}
            if session.chip and session.flops:
                more["mfu"] = round(rate * session.flops / (session.chip.flops * setup.mesh.size), 4)
            more["time"] = {k: round(v, 3) for k, v in self._clock.read()[1].items()}
            self._log.train(step, values, rate, **more)
            self._pace = (spent, step)
            self.publish()
            self._name_straggler()

    def publish(self, *, last: bool = False) -> None:
        """Publishes where this host's time went, for the other hosts to read."""
        hosts.publish("time", {"machine": platform.node(), "time": self._clock.read()[1], "last": last})

    def _name_straggler(self) -> None:
        """Says, once, who holds the others up."""
        now = {k: host["time"] for k, host in hosts.published("time").items()} if self._session.leader else {}
        found, self._seen = goodput.behind(now, self._seen), now
        if found and found[0] != self._named:
            self._named, part, share = found
            self._log.tell(f"warning: process {self._named} holds the others up: {share:.0%} of its time is {part}")

    def sessions(self, step: int) -> list[dict[str, Any]]:
        """The sessions before and this one, see runtime/goodput.py."""
        wall, parts = self._clock.read()
        first = self._session.start
        this = {"first": first, "last": step, "wall_s": round(wall, 3), "step_s": round(parts["step"], 3)}
        return [*self._session.earlier, this]

    def training_seconds(self) -> float:
        """Seconds since the start without start-up, compiling and evaluating."""
        wall, parts = self._clock.read()
        return wall - sum(parts[k] for k in ("start", "restore", "compile", "evaluate"))

    def summary(self, step: int, saves: list[float], *, wait: bool) -> dict[str, Any]:
        """Time, speed and memory, as summary.json has them.

        saves: seconds that each save blocked; wait: for up to 5 s until all hosts have published their time.
        """
        session, setup = self._session, self._session.setup
        seconds = self.training_seconds()
        wall, parts = self._clock.read()
        done = (step - session.start) * setup.config.batch_size
        memory = jax.local_devices()[0].memory_stats() or {}
        return {
            "resumed_at": session.start,
            "steps": setup.total_steps,
            "parameters": setup.parameters,
            "wall_s": round(wall, 3),
            "examples_per_s": round(done / seconds, 1) if done else 0.0,
            "programs": dict(session.programs),
            "time": {k: round(v, 3) for k, v in parts.items()},
            "hosts": self._hosts(wait=wait),
            "goodput": round(goodput.fraction(self.sessions(step)), 4),
            "sessions": self.sessions(step),
            "saves": {
                "count": len(saves),
                "blocked_s": round(sum(saves), 3),
                "longest_s": round(max(saves, default=0.0), 3),
            },
            "flops_per_image": session.flops if session.chip else None,
            "skipped": session.skips.rows() if session.skips else [],
            "left_out": left_out(setup.sources()),
            "devices": setup.mesh.size,
            "versions": versions.of_figures(),
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": memory.get("peak_bytes_in_use"),
        }

    def _hosts(self, *, wait: bool) -> list[dict[str, Any]]:
        """The time of each host, where there are several. wait: up to 5 s, until all have published their last."""
        deadline = time.monotonic() + (5.0 if wait else 0.0)
        found = hosts.published("time")
        while not all(host["last"] for host in found.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
            found = hosts.published("time")
        return [
            {"process": k, "machine": host["machine"], "time": {p: round(v, 3) for p, v in host["time"].items()}}
            for k, host in sorted(found.items())
        ]
