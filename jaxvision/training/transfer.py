"""Transfer of a checkpoint to other data sets: frozen, fine-tuned, and beside training from scratch."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision import metrics
from jaxvision.data import reader
from jaxvision.data.sources import open_source, vtab, with_classes
from jaxvision.errors import UserError
from jaxvision.report import figures
from jaxvision.runtime import paths, sharding
from jaxvision.runtime.paths import write_whole
from jaxvision.runtime.records import Say, read_summary
from jaxvision.task import Metric
from jaxvision.training import build, check, evals, loop, restore
from jaxvision.training.step import TrainState
from jaxvision.weights.published import Published

HOW = ("knn", "probe", "fine-tuned", "from scratch")


class DataSet(NamedTuple):
    """A data set to transfer to.

    It has a name for people and files, the URI to learn from and the URI to test on. With `per_class` above 0 so many
    images of each class are learnt from, other ones for each seed. `whole`: images are seen whole and as they are,
    without crops or augmentation, since where things are may be what is learnt.
    """

    name: str
    train: str
    test: str
    per_class: int = 0
    whole: bool = False

    def draw(self, seed: int) -> str:
        """The URI that a seed learns from."""
        return _with(self.train, f"per_class={self.per_class}&seed={seed}") if self.per_class else self.train


class Options(NamedTuple):
    """Options that are the same for all data sets.

    These are FROM, seeds of each training, its steps and batch, the rates that it chooses from, the share of steps in
    which the last layer learns alone, keys of the config and their text.
    """

    source: str
    seeds: int
    steps: int
    batch_size: int
    rates: list[float]
    freeze: float
    overrides: Mapping[str, str]


def _with(uri: str, more: str) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}{more}"


def data_set(text: str) -> DataSet:
    """TRAIN[,TEST]; without TEST, a fifth of TRAIN, drawn once and the same each time."""
    train, comma, test = text.partition(",")
    if not train:
        raise UserError(f"--to {text!r} names no source to learn from: write TRAIN or TRAIN,TEST")
    if comma and not test:
        raise UserError(f"--to {text}: there is no source after the comma")
    if not comma:
        if train.startswith("tfds:") or "split=" in train:
            raise UserError(f"--to {text}: only a whole source is split here: name what to test on, --to {text},TEST")
        train, test = _with(train, "split=0:80%"), _with(train, "split=80%:100%")
    name = text.partition(",")[0].partition("?")[0]
    return DataSet("".join(c if c.isalnum() else "-" for c in name).strip("-"), train, test)


def vtab_sets(say: Say) -> list[DataSet]:
    """The tasks of VTAB-1k whose data sets are prepared on this machine."""
    there = []
    for name, task in vtab.TASKS.items():
        found = DataSet(f"vtab-{name}", *task.uris, whole=True)
        try:
            for uri in task.uris:
                open_source(uri)
        except UserError as error:
            say(f"vtab: {name} is left out: {str(error).splitlines()[0]}")
            continue
        there.append(found)
    if not there:
        builders = dict.fromkeys(task.name for task in vtab.TASKS.values())
        raise UserError(f"--vtab: none of {', '.join(builders)} is prepared (docs/data.md says how)")
    return there


def compare(
    found: restore.Source | Published,
    sets: list[DataSet],
    out: str,
    options: Options,
    *,
    shots: Iterable[int] = (),
    say: Say,
) -> dict[str, Any]:
    """Measures a checkpoint on data sets and writes transfer.json and transfer.png; what the command prints as JSON.

    shots: so many images of each class are learnt from, a row for each number; none: all. A training that is finished
    in the folder `out` is not done again. Raises UserError.
    """
    if not sets:
        raise UserError("nowhere to go: name a data source, as --to digits:train,digits:test")
    part = next((t.train for t in sets if "part=" in t.train.partition("?")[2]), None)
    if part and len(options.rates) > 1:
        raise UserError(
            f"--to {part} is a part of each class already, of which none is held out to choose a rate by: give one, as "
            "--lr 0.003, or a part by split="
        )
    if shots:
        sets = [t._replace(name=f"{t.name}-{k}-a-class", per_class=k) for t in sets for k in shots]
    names = [t.name for t in sets]
    if len(set(names)) < len(names):
        raise UserError(f"--to names {next(n for n in names if names.count(n) > 1)} twice")
    folder = paths.path(out)
    paths.require_writable(folder)
    results: dict[str, dict[str, list[float]]] = {}
    for data in sets:
        say(f"{data.name}: learns from {data.draw(0)}, is tested on {data.test}")
        config = recipe(found, options, data)
        results[data.name] = {
            **frozen(found, config, data, range(options.seeds) if data.per_class else range(1)),
            **_trained(config, data, folder, options, say),
        }
    text = table(results)
    say(text)
    write_whole(
        folder / "transfer.json", json.dumps({"from": str(found), "seeds": options.seeds, "results": results}, indent=1)
    )
    picture(results, folder / "transfer.png", f"from {options.source}")
    say(f"{folder}: transfer.json, transfer.png, and a workdir for each training")
    return {
        "out": str(folder),
        "results": {name: {how: _mean(v) for how, v in row.items()} for name, row in results.items()},
    }


def recipe(found: restore.Source | Published, options: Options, data: DataSet) -> ConfigDict:
    """The recipe of both trainings: network, pixels and augmentation as those of the checkpoint."""
    config = config_lib.default()
    config.data.transforms = (("random_resized_crop", {}), ("flip", {}))
    if isinstance(found, restore.Source):
        theirs = restore.config_of(found)
        config.model, config.dtype = theirs.model, theirs.dtype
        config.data.transforms = _one_view(theirs.data.transforms)
    else:
        config.model = dict(name=found.model, **found.options)
    contract = found.contract.to_dict()
    config.data.update({k: v for k, v in contract.items() if k in config.data})
    config.data.train = data.train
    if data.whole:
        config.data.transforms = (("resize", {}),)
        if config.data.fit == "crop":
            config.data.resize = max(found.contract.shape[:2])
    config.batch_size, config.steps, config.epochs = options.batch_size, options.steps, 0.0
    config.task = dict(name="classification")
    config.optim.update(name="adamw", weight_decay=1e-4, warmup_share=0.1)
    config.evals = dict(test=dict(metric="topk", data=data.test, every_epochs=0.0, every_steps=options.steps))
    config.checkpoint.update(every_epochs=0.0, keep=1)
    config.log.tensorboard = False
    for key, text in options.overrides.items():
        config_lib.override(config, key, text)
    return config


def _one_view(transforms: tuple) -> tuple:
    """Transforms of the first of several views, which fine-tuning sees; others as they are."""
    if transforms and transforms[-1][0] == "multi_view":
        return (*transforms[:-1], *transforms[-1][1]["views"][0])
    return transforms


def frozen(
    found: restore.Source | Published, config: ConfigDict, data: DataSet, seeds: Iterable[int]
) -> dict[str, list[float]]:
    """Top-1 by the nearest neighbours and by a linear classifier, of features that do not move; of each seed's draw."""
    config = config_lib.as_config({**build.resolve(config).to_dict(), "task": dict(name="linear_probe")})
    draws, test = [open_source(data.draw(seed)) for seed in seeds], open_source(data.test)
    source = draws[0]
    check.kind(config, source)
    draws = [with_classes(draw, source.classes, "the training data") for draw in draws]
    test = with_classes(test, source.classes, "the training data")
    task, mesh = build.task(config, len(source.classes)), sharding.make_mesh()
    plan = restore.load_plan(found, task, config, source.classes)
    params, extra = build.jit_once(task.init, out_shardings=sharding.replicated(mesh))(
        jax.random.key(0), build.zeros(config), plan.given
    )

    def batches(of: Any) -> Any:
        return evals.source_batches(of, reader.contract(config), mesh, config.batch_size, **reader.options(config))

    measures: dict[str, Metric] = {
        name: getattr(metrics, name)(classes=len(source.classes)) for name in ("knn", "probe")
    }
    state = TrainState(jnp.int32(0), params, extra, ())
    update = evals.make_update(task, measures)  # compiled once for all draws
    results = [
        evals.run(task, state, measures, batches(test), {"bank": functools.partial(batches, draw)}, update=update)
        for draw in draws
    ]
    return {name: [result.metrics[name] for result in results] for name in measures}


def _trained(config: ConfigDict, data: DataSet, out: epath.Path, options: Options, say: Say) -> dict[str, list[float]]:
    """Top-1 of each seed, fine-tuned and from scratch, each with the rate that was best on held-out training data.

    A new last layer's first gradients are of noise, and distort what was pretrained (Kumar et al. 2022,
    https://arxiv.org/abs/2202.10054): so it learns alone first.
    """
    results, tuned = {}, config_lib.as_config(config)
    if options.freeze and not config_lib.duration_of(config.optim, "unfreeze")[1]:
        tuned.optim.unfreeze_share = ((build.body(config), options.freeze),)
    for how, init, own in (("fine-tuned", options.source, tuned), ("from scratch", "", config)):
        folder = out / data.name / how.replace(" ", "-")
        rates, best = options.rates, options.rates[0]
        if len(rates) > 1:
            draw = data.draw(0)
            halves = {"train": _with(draw, "part=0:80%"), "test": _with(draw, "part=80%:100%")}
            scores = {r: _top1(own, folder / f"lr-{r:g}", init, r, 0, say, **halves) for r in rates}
            best = max(scores, key=lambda r: scores[r])
            say(f"  {how}: of " + ", ".join(f"lr {r:g} ({s:.4f})" for r, s in scores.items()) + f" takes {best:g}")
        results[how] = [
            _top1(own, folder / f"seed-{seed}", init, best, seed, say, train=data.draw(seed), test=data.test)
            for seed in range(options.seeds)
        ]
        say(f"  {how}: " + ", ".join(f"{v:.4f}" for v in results[how]))
    return results


def _top1(
    config: ConfigDict, workdir: epath.Path, init: str, lr: float, seed: int, say: Say, *, train: str, test: str
) -> float:
    """Test top-1 of one training; one that is finished is not done again."""
    config = config_lib.as_config(config)
    config.seed, config.init, config.optim.lr, config.data.train = seed, init, lr, train
    config.evals.test.data = test
    loop.fit(config, workdir, say=lambda text: None)
    return read_summary(workdir)["evals"]["test"]["top1"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: list[float]) -> float:
    """Standard deviation over the seeds, with n - 1; 0 for one."""
    mean = _mean(values)
    return (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5


def table(results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A line a data set: mean top-1 and, over several seeds, their standard deviation."""
    width = max(len("top-1"), *map(len, results))
    lines = ["top-1".ljust(width) + "".join(f"{how:>17}" for how in HOW)]
    for name, row in results.items():
        cells = [
            f"{_mean(row[how]):.4f}" + (f" ± {_deviation(row[how]):.4f}" if len(row[how]) > 1 else "") for how in HOW
        ]
        lines.append(name.ljust(width) + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def picture(results: Mapping[str, Mapping[str, list[float]]], path: epath.Path, title: str) -> None:
    """Bars of the same, with the standard deviation over the seeds."""
    figure = Figure(figsize=(max(6.0, 1.8 * len(results) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    for k, how in enumerate(HOW):
        values = [row[how] for row in results.values()]
        places = [i + (k - 1.5) * 0.2 for i in range(len(results))]
        errors = [_deviation(v) for v in values] if any(len(v) > 1 for v in values) else None
        bars = axes.bar(places, [_mean(v) for v in values], 0.19, yerr=errors, capsize=3, label=how)
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
    axes.set(title=title, ylabel="top-1", ylim=(0, 1.08))
    axes.set_xticks(range(len(results)), list(results))
    axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    figures.save(figure, path)
