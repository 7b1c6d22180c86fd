"""What a person and a script see of a run: the clock, the log files, the progress display, the curves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from etils import epath

from jaxvision import paths
from jaxvision.config import WANDB_HAS_NO
from jaxvision.errors import Damaged, UserError
from jaxvision.task import LOWER

Say = Callable[[str], None]
ALARM = "alarm_"  # a training log of this name is above 0 where something is wrong
PARTS = ("start", "restore", "compile", "data", "copy", "step", "evaluate", "checkpoint", "log", "other")


class Clock:
    """Where the main thread's wall-clock time goes: one hand, always on exactly one part.

    `with clock("data"):` moves the hand there and back again; outside any such block it stands on "other".
    Every part is therefore measured, none is computed from the others.
    """

    def __init__(self, started: float | None = None, begun: Callable[[], None] = lambda: None) -> None:
        """`begun` is called when start-up is over."""
        self._begun = begun
        self.started = self._since = time.perf_counter() if started is None else started
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.part = "start"  # until `begin`: imports, opening data, building

    def _turn(self, part: str) -> str:
        now = time.perf_counter()
        self.parts[self.part] += now - self._since
        before, self.part, self._since = self.part, part, now
        return before

    def begin(self) -> None:
        """Start-up is over."""
        self._turn("other")
        self._begun()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before = self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the start, and of each part."""
        self._turn(self.part)
        return time.perf_counter() - self.started, dict(self.parts)


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
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


def _line(record: dict[str, Any], run: str) -> str:
    """A line of metrics.jsonl; `check` ties it to its run and tells a changed one."""
    return json.dumps({**record, "check": _check(record, run)} if run else record)


def _check(record: dict[str, Any], run: str) -> str:
    return hashlib.sha256((run + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:8]


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """One training in a workdir at a time: two would write over each other. Raises UserError.

    Only on a local disk (a bucket has no locks). A killed process leaves none behind.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if paths.is_bucket(workdir):
        yield
        return
    import fcntl

    with open(str(workdir / ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {workdir}: stop it, or name another --workdir") from error
        yield


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
        lines = "".join(_line(r, run) + "\n" for r in self.records)
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
        self._file.write(_line(record, self.run))
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
        """All records are in the workdir: what a resumed run goes on from must be there before its checkpoint is."""
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
        """What was raised so far -> the step at which it was first."""
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
                    plot_curves(self.records, self.workdir / "curves.png")
                except Exception as error:  # whatever goes wrong with a picture must not spoil a run that is saved
                    self.say(f"warning: no curves.png was written ({type(error).__name__}: {error})")


def _alarms(values: dict[str, Any]) -> dict[str, float]:
    """Those that more than half of the steps behind these means raised."""
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


_NOT_DRAWN = ("step", "kind", "of", "count", "grad_norm", "param_norm", "images_per_s", "time", "mfu", "goodput")


def curves(records: list[dict[str, Any]]) -> dict[str, dict[str, tuple[list, list]]]:
    """Quantity -> kind of record, as in metrics.jsonl -> (steps, values): the loss first, the learning rate last.

    In each quantity training comes first. Kinds stay as they are recorded, "train" and "eval:NAME", so that an
    evaluation of whatever name is not training; `named` says what people read. Of an evaluation that measured something
    else before, the older values are a curve of their own.
    """
    found: dict[str, dict[str, tuple[list, list]]] = {}
    for kind, record in sorted(zip(_kinds(records), records), key=lambda pair: pair[0] != "train"):
        for key, value in record.items():
            if key in _NOT_DRAWN or key.startswith(ALARM) or "/" in key or value is None:
                continue
            xs, ys = found.setdefault(key, {}).setdefault(kind, ([], []))
            xs.append(record["step"])
            ys.append(value)
    return {key: found[key] for key in sorted(found, key=lambda k: (k != "loss", k == "lr", k))}


def colours(records: list[dict[str, Any]]) -> dict[str, int]:
    """Kind of record -> number of its colour: training has 0 in every run, evaluations follow as they first come."""
    return {kind: k for k, kind in enumerate(dict.fromkeys(["train", *_kinds(records)]))}


def _kinds(records: list[dict[str, Any]]) -> list[str]:
    """What each record is of; values of an evaluation that has measured something else since then are marked."""
    latest = {r["kind"]: r.get("of") for r in records}
    return [r["kind"] + (", as before" if r.get("of") != latest[r["kind"]] else "") for r in records]


def limits(values: list[float]) -> tuple[float, float]:
    """Lowest and highest value, (low, high) with low < high; around a constant from 0 on, so that its size is seen."""
    low, high = min(values), max(values)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return low, high
    return min(0.0, 2 * low), max(0.0, 2 * high) or float(not low)


def named(kind: str) -> str:
    """What people read for a kind of record: an evaluation's own name, unless that is "train"."""
    name = kind.removeprefix("eval:")
    return kind if name == "train" else name


def plot_curves(records: list[dict[str, Any]], path: epath.Path) -> None:
    """One panel a quantity: training loss beside each evaluation's loss, the other metrics, the learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    panels = curves(records)
    if not panels:
        return
    colour = colours(records)
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width, height = 4.2 * columns, 3.4 * rows  # inches
    figure = Figure(figsize=(width, height))
    places = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    # Margins by hand: layout="constrained" draws everything twice, and this is drawn again and again during a run.
    left, right, top, bottom = 0.7, 0.15, 0.35, 0.55
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height,
        wspace=(left + right) / (4.2 - left - right), hspace=(top + bottom) / (3.4 - top - bottom),
    )  # fmt: skip
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, key in zip(places, panels):
        for kind, (xs, ys) in panels[key].items():
            marker = "." if len(xs) < 40 else None
            axes.plot(xs, ys, label=named(kind), color=f"C{colour[kind] % 10}", linewidth=1.4, marker=marker)
        axes.set(title=key, xlabel="step")
        values = [y for _, ys in panels[key].values() for y in ys]
        if limits(values) != (min(values), max(values)):
            axes.set_ylim(*limits(values))
        elif key == "loss" and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # 0.1, not a power of ten, which is wider
            axes.yaxis.set_minor_formatter("{x:g}" if max(values) < 10 * min(values) else NullFormatter())
        axes.grid(alpha=0.3)
        if key != "lr":
            axes.legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure: Any, path: epath.Path) -> None:
    """A matplotlib figure as PNG, under its final name only when whole."""
    paths.write_whole(path, png(figure))


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG. A dollar sign in it is a dollar sign: names of classes and files are no formulas."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    file = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):  # some labels are made while it is drawn
        figure.savefig(file, dpi=110, format="png")
    return file.getvalue()
