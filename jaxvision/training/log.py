"""The log of a run: metrics.jsonl, TensorBoard, W&B, the progress display."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from etils import epath

from jaxvision.config import WANDB_HAS_NO
from jaxvision.errors import UserError
from jaxvision.report import curves
from jaxvision.runtime import paths
from jaxvision.runtime.records import Say, in_words, line, plain, read_records
from jaxvision.task import ALARM, LOWER


class Log:
    """metrics.jsonl, TensorBoard and W&B, the progress display, and curves.png at the end.

    On a resumed run, records after the restored `step` are dropped: those steps will be done again.
    `writes` is False on all hosts but the first, which then only take part in nothing here.

    of: evaluation -> what it measures now; before: the same of the session before, which records of an older version
    do not say. A value counts as one of this run's only where both say the same. run: as in `read_summary`.
    """

    def __init__(
        self, workdir: epath.Path, config: Any, *, step: int, total: int, say: Say, writes: bool = True,
        of: Mapping[str, str] = MappingProxyType({}), before: Mapping[str, str] = MappingProxyType({}), run: str = "",
    ) -> None:  # fmt: skip
        self.workdir, self.total, self.say, self.writes, self.of, self.run = workdir, total, say, writes, of, run
        self.batch_size = config.batch_size
        self.records = [r for r in read_records(workdir, run, say) if r["step"] <= step]
        last = max((r["step"] for r in self.records if r["kind"] == "train"), default=0)
        if step - last >= config.log.every_steps:
            say(f"warning: metrics.jsonl has no lines of training between step {last} and {step}: they are lost")
        for record in self.records:
            name = record["kind"].removeprefix("eval:")
            if name != record["kind"]:
                record.setdefault("of", before.get(name, ""))
        self._best: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._began, self._first = time.perf_counter(), step
        self._board = self._wandb = self._bar = None
        if not writes:
            return
        lines = "".join(line(r, run) + "\n" for r in self.records)
        self._file = paths.Lines(workdir / "metrics.jsonl", lines)
        for record in self.records:
            self._note_best(record)
        if config.log.tensorboard:
            from tensorboardX import SummaryWriter

            # what it writes grows, as nothing in a bucket does
            self._events = epath.Path(tempfile.mkdtemp()) if paths.is_bucket(workdir) else workdir / "tensorboard"
            self._board = SummaryWriter(str(self._events), purge_step=step + 1)
        if config.log.wandb:
            self._wandb = _start_wandb(workdir, config)

    def progress(self, step: int) -> None:
        """Shows the live display, or moves it; nothing where standard error is no terminal."""
        if self._bar is None and self.writes and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=step, unit="step", dynamic_ncols=True, leave=False)
        elif self._bar is not None:
            self._bar.n = step
            self._bar.refresh() if step >= self.total else self._bar.update(0)

    def train(self, step: int, values: dict[str, float], images_per_s: float, **more: Any) -> None:
        """`more` goes into the record: `mfu` and `goodput` (0 to 1), seconds of each part of `time`."""
        self._last = values
        for name in _alarms(values).keys() - self.alarms().keys():
            others = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if not k.startswith(ALARM))
            self.tell(f"warning: {name} at step {step}: {others}")
        self._write({"step": step, "kind": "train", **values, "images_per_s": round(images_per_s, 1), **more})
        if self._bar is not None:
            shown = {"loss": f"{values['loss']:.4f}", "images/s": f"{images_per_s:.0f}"}
            shown |= {"MFU": f"{more['mfu']:.0%}"} if "mfu" in more else {}
            shown |= {f"best {k}": v for k, v in self._shown_best().items()}
            self._bar.set_postfix(shown, refresh=False)
        elif self.writes:
            best = "".join(f" | best {k} {v}" for k, v in self._shown_best().items())
            mfu = f" | MFU {more['mfu']:.0%}" if "mfu" in more else ""
            width = len(str(self.total))
            self.say(
                f"step {step:>{width}}/{self.total} | loss {values['loss']:.4f} | lr {values['lr']:.3g} | "
                f"{images_per_s:.0f} images/s{mfu} | {self._left(step)} left{best}"
            )

    def evaluation(self, step: int, name: str, values: dict[str, float]) -> None:
        record = {"step": step, "kind": f"eval:{name}", "of": self.of.get(name, ""), **values}
        self._write(record)
        self._note_best(record)
        self.tell(f"  {name} at step {step}: {in_words(values)}")

    def tell(self, text: str) -> None:
        """A line for people that does not tear the progress display."""
        if not self.writes:
            return
        if self._bar is not None:
            self._bar.clear()
        self.say(text)

    def evaluations(self, name: str) -> dict[int, dict[str, float]]:
        """Step -> what this evaluation gave, in this session or before it, where it measured the same."""
        return {
            r["step"]: {k: v for k, v in r.items() if k not in ("step", "kind", "of")}
            for r in self.records
            if r["kind"] == f"eval:{name}" and r["of"] == self.of.get(name, "")
        }

    def _write(self, record: dict[str, Any]) -> None:
        record = plain(record)
        self.records.append(record)
        if not self.writes:
            return
        self._file.write(line(record, self.run))
        kind = record["kind"].replace("eval:", "eval/")
        numbers = {
            f"{kind}/{k}": v for k, v in record.items() if k not in ("step", "kind") and isinstance(v, int | float)
        }
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def flush(self) -> None:
        """Waits until all records are in the workdir.

        What a resumed run goes on from must be there before its checkpoint is.
        """
        if not self.writes:
            return
        self._file.flush()
        if self._board is not None and self._events != self.workdir / "tensorboard":
            self._board.flush()
            for file in self._events.iterdir():
                paths.write_whole(self.workdir / "tensorboard" / file.name, file.read_bytes())

    def there(self) -> bool:
        """Whether metrics.jsonl is where it was; True on hosts that do not write, and in a bucket."""
        return not self.writes or self._file.there()

    def _note_best(self, record: dict[str, Any]) -> None:
        name = record["kind"].removeprefix("eval:")
        if name != record["kind"] and record["of"] == self.of.get(name, ""):
            for key, value in record.items():
                if key in ("step", "kind", "of", "count") or "/" in key or value is None:
                    continue
                name, pick = f"{record['kind'][5:]}/{key}", min if key in LOWER else max
                self._best[name] = pick(self._best.get(name, value), value)

    def alarms(self) -> dict[str, int]:
        """Alarm -> the step at which it was raised first, of all raised so far."""
        first: dict[str, int] = {}
        for record in self.records:
            if record["kind"] == "train":
                first = {**dict.fromkeys(_alarms(record), record["step"]), **first}
        return first

    def best(self) -> dict[str, float]:
        """EVAL/METRIC -> the best value so far."""
        return dict(self._best)

    def _shown_best(self) -> dict[str, str]:
        first = next((k for k in self._best if not k.endswith("/loss")), None)
        return {first: f"{self._best[first]:.4f}"} if first else {}

    def _left(self, step: int) -> str:
        pace = (time.perf_counter() - self._began) / max(step - self._first, 1)
        left = int(pace * (self.total - step))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}" if left >= 3600 else f"{left // 60}:{left % 60:02}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self.flush()
            self._board.close()
            if paths.is_bucket(self.workdir):
                self._events.rmtree()
        if self._wandb is not None:
            self._wandb.finish()
        if self.writes:
            drawn = self.records and self.there()
            self._file.close()
            if drawn:
                try:
                    curves.plot(self.records, self.workdir / "curves.png")
                except Exception as error:  # whatever goes wrong with a picture must not spoil a run that is saved
                    self.say(f"warning: no curves.png was written ({type(error).__name__}: {error})")


def _alarms(values: dict[str, Any]) -> dict[str, float]:
    """Alarms that more than half of the steps behind these means raised."""
    return {k.removeprefix(ALARM): v for k, v in values.items() if k.startswith(ALARM) and (v or 0) > 0.5}


def _start_wandb(workdir: epath.Path, config: Any) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError('log.wandb is set, but wandb is not installed: pip install "jaxvision[wandb]"') from error
    # the same id each time, so that a resumed run goes on in the same place; not that of another folder's run
    digest = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:8]
    return wandb.init(
        project=config.log.wandb,
        dir=tempfile.mkdtemp() if paths.is_bucket(workdir) else str(workdir),
        id=f"{re.sub(WANDB_HAS_NO, '-', workdir.name)[:100]}-{digest}",
        resume="allow",
        config=config.to_dict(),
    )
