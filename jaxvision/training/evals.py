"""The one evaluator, `run`.

Every sample counts exactly once, on any number of devices and hosts.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.data import reader, transforms
from jaxvision.data.contract import InputContract
from jaxvision.data.pipeline import eval_batches
from jaxvision.data.sample import known
from jaxvision.data.sources import Source, absent
from jaxvision.errors import UserError
from jaxvision.report.figures import png
from jaxvision.runtime import sharding, versions
from jaxvision.runtime.paths import write_json, write_whole
from jaxvision.runtime.records import plain
from jaxvision.task import OUTCOMES, Batch, Metric, PyTree, Task

# (params, extra, batch) -> (sums, rows), of all metrics of an evaluation
Update = Callable[[PyTree, PyTree, Batch], tuple[PyTree, PyTree]]
# (place in the source, (height, width) of the file or None) -> what the source knows of a sample, and its "warp"
Truth = Callable[[int, Sequence[int] | None], dict[str, Any]]


# A picture without ground, whose grey text is read on a light page and on a dark one.
_TEXT = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_GROUND = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
ON_ANY_PAGE: Any = {**dict.fromkeys(_TEXT, "#7a828a"), **dict.fromkeys(_GROUND, "none"), "legend.frameon": False}


class Evaluation(NamedTuple):
    """metrics: name -> value; samples: how many were seen, each once; digest: SHA-256 over their sorted ids; drawings:
    of the metrics that draw, functions of (matplotlib axes, class names); outcomes: the rows of the metric OUTCOMES,
    and of each the sample's id `index` and its `place` in the source, int64; skipped: unreadable images, which are in
    none of the figures, as (sample, reason) rows, which have "bank", too, if they are the bank's; absent: the classes
    without a sample, see `sources.absent`."""

    metrics: dict[str, float]
    samples: int
    digest: str
    drawings: tuple[Callable[..., None], ...] = ()
    outcomes: Mapping[str, np.ndarray] = MappingProxyType({})
    skipped: Sequence[dict[str, Any]] = ()
    absent: tuple[str, ...] = ()


def make_update(task: Task, metrics: Mapping[str, Metric]) -> Update:
    """One batch: the sums of the summing metrics; the rows of the gathering ones, with index and mask."""

    def update(params: PyTree, extra: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
        predictions, batch = task.predict(params, extra, batch), task.truth(batch)
        values = {name: m.update(predictions, batch) for name, m in metrics.items()}
        sums = {n: v for n, v in values.items() if not metrics[n].gather}
        rows = {n: v for n, v in values.items() if metrics[n].gather}
        place = {name: batch[name] for name in ("index", "mask", "size") if name in batch}
        return sums, {**place, "rows": rows}

    return jax.jit(update)


def compile_update(task: Task, metrics: Mapping[str, Metric], state: Any, batch: Batch) -> Update:
    """`make_update`, compiled ahead of time for the shapes and shardings of `state` and `batch` (may be abstract)."""
    return make_update(task, metrics).lower(state.params, state.extra, batch).compile()  # type: ignore[attr-defined]


def padded_size(batch_size: int, mesh: Mesh) -> int:
    """The next multiple of the number of devices: evaluation pads, training does not."""
    return -(-batch_size // mesh.size) * mesh.size


def run(
    task: Task,
    state: Any,
    metrics: Mapping[str, Metric],
    batches: Iterable[Batch],
    banks: Mapping[str, Callable[[], Iterable[Batch]]] | None = None,
    *,
    update: Update | None = None,
    truth: Truth | None = None,
) -> Evaluation:
    """Evaluates `state` (anything with `params` and `extra`) on batches of global arrays, masked rows left out.

    `banks`: for each name in a metric's `bank`, a function that gives that source's batches.
    `update`: the compiled `make_update(task, metrics)`, where the caller keeps it from one call to the next.
    `truth`: (a sample's place in the source, its file's (height, width)) -> what metrics that `compact` compare with.
    Raises UserError if there is no sample, or one comes twice.
    """
    update = update or make_update(task, metrics)
    compact = {name: m.compact for name, m in metrics.items() if m.compact is not None}
    sums, rows, ids, places = _collect(update, state, batches, compact, truth)
    if not len(ids):
        raise UserError("nothing to evaluate: the source gave no sample")
    if len(np.unique(ids)) != len(ids):
        raise UserError(
            f"evaluation saw {len(ids) - len(np.unique(ids))} samples twice: ids must be unique in a source"
        )
    bank_rows = {
        bank: _collect(update, state, (banks or {})[bank](), {}, None)[1]
        for bank in dict.fromkeys(m.bank for m in metrics.values() if m.bank)
    }
    values: dict[str, float] = {}
    drawings: list[Callable[..., None]] = []
    for name, metric in metrics.items():
        trees = [rows[name] if metric.gather else sums[name]]
        trees += [bank_rows[metric.bank][name]] if metric.bank else []
        result = metric.finish(*trees)
        if metric.draw is not None:
            drawings.append(lambda axes, classes, m=metric, t=trees: m.draw(axes, *t, classes))
        for key in result.keys() & values.keys():
            raise ValueError(f"two metrics of one evaluation are called {key!r}")
        values.update(result)
    digest = hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()
    told = rows.get(OUTCOMES, {})
    told = _stacked(told) if OUTCOMES in compact else told
    outcomes = {**told, "index": ids, "place": places} if OUTCOMES in metrics else {}
    return Evaluation(values, len(ids), digest, tuple(drawings), outcomes)


def _collect(
    update: Update, state: Any, batches: Iterable[Batch], compact: Mapping[str, Callable], truth: Truth | None
) -> tuple[PyTree, PyTree, np.ndarray, np.ndarray]:
    """Collects the sums and rows of all batches, as numpy.

    Returns the sums added up, the rows concatenated, the rows' ids, and which rows of all batches they are, padding
    counted: in a source that comes in order, the samples' places. At most two batches are pending.
    """
    total: PyTree = None
    kept: list[PyTree] = []
    places: list[np.ndarray] = []
    small: dict[str, list[tuple[int, Any]]] = {name: [] for name in compact}
    seen = 0
    pending: deque = deque()

    def drain() -> None:
        nonlocal total, seen
        sums, rows = pending.popleft()
        # float64 on the host: a float32 sum over a million samples would lose digits
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        for name, make in compact.items():
            mine = {key: rows[key] for key in ("mask", "size") if key in rows} | {"rows": rows["rows"].pop(name)}
            small[name] += _compacted(make, *_local(mine), seen, truth)
        rows.pop("size", None)
        rows = multihost_utils.process_allgather(rows, tiled=True)
        mask = np.asarray(rows["mask"], bool)
        kept.append(jax.tree.map(lambda x: np.asarray(x)[mask], {"index": rows["index"], "rows": rows["rows"]}))
        places.append(seen + np.flatnonzero(mask))
        seen += len(mask)

    for batch in batches:
        pending.append(update(state.params, state.extra, batch))
        if len(pending) > 2:
            drain()
    while pending:
        drain()
    if not kept:
        return {}, {}, np.zeros(0, np.int64), np.zeros(0, np.int64)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    gathered = {name: _of_all_hosts(made) for name, made in small.items()}
    rows = {**joined["rows"], **gathered}
    return total, rows, joined["index"].astype(np.int64), np.concatenate(places).astype(np.int64)


def _local(tree: PyTree) -> tuple[PyTree, np.ndarray]:
    """(this host's rows of global arrays, as numpy; which rows of the global batch they are)."""
    first = jax.tree.leaves(tree)[0]
    shards = {s.index[0].indices(first.shape[0])[0]: s.index[0] for s in first.addressable_shards}
    numbers = np.concatenate([np.arange(first.shape[0])[shards[start]] for start in sorted(shards)])

    def rows(array: jax.Array) -> np.ndarray:
        parts = {s.index[0].indices(array.shape[0])[0]: s.data for s in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(rows, tree), numbers


def _compacted(
    make: Callable[[PyTree, list[dict[str, Any]]], Sequence[Any]],
    rows: dict[str, Any],
    numbers: np.ndarray,
    seen: int,
    truth: Truth | None,
) -> list[tuple[int, Any]]:
    """(place, what `Metric.compact` makes of it) of this host's samples of a batch."""
    mask = rows["mask"].astype(bool)
    places = (seen + numbers[mask]).tolist()
    sizes = rows["size"][mask].tolist() if "size" in rows else [None] * len(places)
    samples = [truth(place, size) if truth else {} for place, size in zip(places, sizes, strict=True)]
    made = make(jax.tree.map(lambda x: x[mask], rows["rows"]), samples)
    return list(zip(places, made, strict=True))


def _of_all_hosts(made: list[tuple[int, Any]]) -> list[Any]:
    """Results that every host made of its samples, in the order of their places."""
    if jax.process_count() > 1:
        mine = np.frombuffer(pickle.dumps(made), np.uint8)
        lengths = np.asarray(multihost_utils.process_allgather(np.array([len(mine)])))[:, 0]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(mine)] = mine
        parts = np.asarray(multihost_utils.process_allgather(padded))
        made = [pair for part, length in zip(parts, lengths, strict=True) for pair in pickle.loads(part[:length])]
    return [value for _, value in sorted(made, key=lambda pair: pair[0])]


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as arrays, one of each name."""
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def source_batches(
    source: Any, contract: InputContract, mesh: Mesh, batch_size: int, **options: Any
) -> Iterator[Batch]:
    """A source in order as global device batches; `batch_size` is rounded up to what the devices divide.

    `options` are those of `eval_batches`: threads, processes, prefetch, skips.
    """
    split = sharding.batch_sharding(mesh)
    size = padded_size(batch_size, mesh)
    rows = sharding.local_rows(split, size).tolist()
    host = eval_batches(source, contract, batch_size=size, rows=rows, **options)
    for batch in host:
        yield sharding.put_batch(batch, split, size)


def identity(options: Mapping[str, Any], source: Source) -> str:
    """Digest of what an evaluation measures, in sixteen letters.

    It covers the data, how many samples and which classes they have, and the metric. options: of `config.eval_options`.
    """
    what = [options["data"], len(source), source.classes, config_lib.measured(options)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def measure(
    config: ConfigDict,
    task: Task,
    state: Any,
    metrics: Mapping[str, Metric],
    source: Source,
    bank: Source | None,
    contract: InputContract,
    mesh: Mesh,
    *,
    batch_size: int = 0,
    update: Update | None = None,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> Evaluation:
    """Evaluates `state` on a source, read as the config says.

    metrics: of `build.measures`; bank: the source that they compare with; batch_size: 0 for the config's; update: see
    `run`; watch: stands between the batches and the devices, and may raise to end the evaluation.
    """

    def batches(of: Source, skips: Any) -> Iterator[Batch]:
        size, reading = batch_size or config.batch_size, reader.options(config)
        return watch(source_batches(of, contract, mesh, size, skips=skips, **reading))

    skips, of_bank = reader.skips(config), reader.skips(config)
    banks = {"bank": lambda: batches(bank, of_bank)} if bank is not None else {}

    def truth(place: int, size: Sequence[int] | None) -> dict[str, Any]:
        sample = known(source, place)
        return sample if size is None else {**sample, "warp": transforms.warp(contract, *size)}

    result = run(task, state, metrics, batches(source, skips), banks, update=update, truth=truth)
    skipped = skips.rows() if skips else []
    skipped += [{**row, "bank": True} for row in of_bank.rows()] if of_bank else []
    return result._replace(skipped=skipped, absent=absent(source))


def write(
    workdir: epath.Path,
    name: str,
    evaluation: Evaluation,
    *,
    options: Mapping[str, Any],
    step: int,
    contract: InputContract,
    classes: tuple[str, ...],
    run: str = "",
) -> tuple[epath.Path, str]:
    """Writes eval/NAME.json, the certificate, and what belongs to it. (its path, a warning or "").

    The certificate says what was measured, on which samples, through which pixels, with what. Before it come
    eval/NAME.npz, the outcomes of the samples, and eval/NAME.png, what the metrics have to show; the certificate holds
    the SHA-256 of both, so that files of two evaluations are never taken for one. A picture that cannot be drawn is a
    warning. options: of `config.eval_options`, with the data that was measured. run: of the checkpoint, see
    `config.run_of`; "" where it does not say.
    """
    path = workdir / "eval" / f"{name}.json"
    files, warning = {}, ""
    if evaluation.outcomes:
        file = io.BytesIO()
        np.savez_compressed(file, step=step, digest=evaluation.digest, **evaluation.outcomes)  # type: ignore[arg-type]
        files[f"{name}.npz"] = file.getvalue()
    try:
        title = f"{name} ({options['data']}) at step {step}"
        files |= {f"{name}.png": _picture(evaluation, classes, title)} if evaluation.drawings else {}
    except Exception as error:
        warning = f"warning: no picture of {name} was drawn ({type(error).__name__}: {error})"
    for ending in ("npz", "png"):
        file_name = f"{name}.{ending}"
        if file_name in files:
            write_whole(path.parent / file_name, files[file_name])
        else:
            (path.parent / file_name).unlink(missing_ok=True)
    content = {
        "metrics": evaluation.metrics,
        "count": evaluation.samples,
        "digest_of_sample_ids": evaluation.digest,
        "data": options["data"],
        "metric": config_lib.measured(options),
        "step": step,  # the weights are those of checkpoints/STEP, where it was saved
        "contract": contract.to_dict(),
        "classes": list(classes),  # among which the answer is
        "classes_absent": list(evaluation.absent),  # of those without a sample, which are in no mean over classes
        "versions": versions.of_figures(),
        "skipped": list(evaluation.skipped),  # unreadable, in none of the figures above; "bank": in the bank
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        **({"run": run} if run else {}),
    }
    write_json(path, plain(content))
    return path, warning


def _picture(evaluation: Evaluation, classes: tuple[str, ...], title: str) -> bytes:
    """PNG of what the metrics of the evaluation have to show."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(ON_ANY_PAGE):
        figure = Figure(figsize=(6.4 * len(evaluation.drawings), 5.6), layout="constrained")
        figure.suptitle(title)
        for axes, draw in zip(figure.subplots(1, len(evaluation.drawings), squeeze=False)[0], evaluation.drawings):
            draw(axes, classes)
        return png(figure)
