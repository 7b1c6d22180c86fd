"""python -m jaxvision.transfer: what a checkpoint is worth on other data sets, beside training from scratch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxvision import cli
from jaxvision.errors import UserError

HOW = ("knn", "probe", "fine-tuned", "from scratch")


class Target(NamedTuple):
    """A data set: its name for people and files, the URI to learn from and the URI to test on; with `per_class` above 0
    so many images of each class are learnt from, other ones for each seed. `whole`: images are seen whole and as they
    are, without crops or augmentation, since where things are may be what is learnt."""

    name: str
    train: str
    test: str
    per_class: int = 0
    whole: bool = False

    def draw(self, seed: int) -> str:
        """The URI that a seed learns from."""
        return _with(self.train, f"per_class={self.per_class}&seed={seed}") if self.per_class else self.train


def _with(uri: str, more: str) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}{more}"


def transfer(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.transfer",
        "Measure one checkpoint on several data sets: k-NN and linear probe on its frozen features, and fine-tuning\n"
        "beside training the same network from scratch with the same budget, over several seeds.",
        [
            "python -m jaxvision.transfer --from runs/simclr --to digits:train,digits:test",
            "python -m jaxvision.transfer --from runs/a --to folder:pets --to 'csv:cells.csv' --seeds 5 --steps 1000",
            "python -m jaxvision.transfer --from runs/simclr --to digits:train,digits:test --per-class 5,10 --seeds 5",
            "python -m jaxvision.transfer --from timm:resnet50.a1_in1k=model.safetensors --vtab",
        ],
    )
    parser.add_from()
    add = parser.add_argument
    add("--to", action="append", default=[], metavar="TRAIN[,TEST]", help="learn from one source and test on another; "
        "without TEST a fifth is held out")  # fmt: skip
    add("--vtab", action="store_true", help="add the tasks of VTAB-1k whose data sets are prepared")
    add("--per-class", default="", metavar="A,B", help="learn from so many images of each class, "
        "other ones for each seed; several numbers are several rows")  # fmt: skip
    add("--out", default="runs/transfer", metavar="DIR", help="default runs/transfer; goes on there")
    add("--seeds", type=int, default=3, metavar="N", help="of fine-tuning and of scratch; default 3")
    add("--steps", type=int, default=500, metavar="N", help="of each training; default 500")
    add("--batch-size", type=int, default=64, metavar="N", help="default 64")
    add("--lr", default="0.003,0.03", metavar="A,B", help="rates that both choose from, by a fifth of the training "
        "data held out; default 0.003,0.03")  # fmt: skip
    add("--freeze", type=float, default=0.5, metavar="SHARE", help="of the steps of fine-tuning in which the new last "
        "layer learns alone; default 0.5")  # fmt: skip
    add("--config.KEY=VALUE", dest="_", action="append", metavar="", help="override a key of both trainings' config")
    arguments, overrides = parser.parse(argv, prefix="config")
    parser.need_positive(arguments, "seeds", "steps", "batch_size")
    if not 0 <= arguments.freeze < 1:
        raise UserError(f"--freeze is {arguments.freeze}: it is a share of the steps, in [0, 1)")
    say = cli.sayer(arguments)
    rates, shots = _rates(arguments.lr), _shots(arguments.per_class)
    if len(rates) > 1 and shots and min(shots) < 5:
        raise UserError(
            f"--per-class {arguments.per_class}: of fewer than 5 images a class none are held out to choose a rate by: "
            "give one, as --lr 0.003"
        )

    from jaxvision.runtime import paths
    from jaxvision.runtime.paths import write_whole
    from jaxvision.training import restore

    found = restore.find(arguments.source, arguments.checkpoint, say)
    targets = [_target(text) for text in arguments.to] + (_vtab(say) if arguments.vtab else [])
    if not targets:
        raise UserError("nowhere to go: name a data source, as --to digits:train,digits:test")
    part = next((t.train for t in targets if "part=" in t.train.partition("?")[2]), None)
    if part and len(rates) > 1:
        raise UserError(
            f"--to {part} is a part of each class already, of which none is held out to choose a rate by: give one, as "
            "--lr 0.003, or a part by split="
        )
    if shots:
        targets = [t._replace(name=f"{t.name}-{k}-a-class", per_class=k) for t in targets for k in shots]
    names = [t.name for t in targets]
    if len(set(names)) < len(names):
        raise UserError(f"--to names {next(n for n in names if names.count(n) > 1)} twice")
    out = paths.path(arguments.out)
    paths.require_writable(out)
    results: dict[str, dict[str, list[float]]] = {}
    for target in targets:
        say(f"{target.name}: learns from {target.draw(0)}, is tested on {target.test}")
        config = _config(found, arguments, overrides, target)
        results[target.name] = {
            **_frozen(found, config, target, range(arguments.seeds) if target.per_class else range(1)),
            **_trained(config, target, out, rates, arguments, say),
        }
    text = table(results)
    say(text)
    write_whole(
        out / "transfer.json", json.dumps({"from": str(found), "seeds": arguments.seeds, "results": results}, indent=1)
    )
    picture(results, out / "transfer.png", f"from {arguments.source}")
    say(f"{out}: transfer.json, transfer.png, and a workdir for each training")
    return {
        "out": str(out),
        "results": {name: {how: _mean(v) for how, v in row.items()} for name, row in results.items()},
    }


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--lr {text}: expected numbers like 0.003,0.03") from None
    if not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--lr {text}: rates must be above 0, and finite")
    return rates


def _shots(text: str) -> list[int]:
    shots = text.split(",") if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in shots):
        raise UserError(f"--per-class {text}: expected numbers like 1,5,10")
    return [int(part) for part in shots]


def _target(text: str) -> Target:
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
    return Target("".join(c if c.isalnum() else "-" for c in name).strip("-"), train, test)


def _vtab(say: Callable[[str], None]) -> list[Target]:
    """The tasks of VTAB-1k whose data sets are prepared on this machine."""
    from jaxvision.data.sources import open_source, vtab

    there = []
    for name, task in vtab.TASKS.items():
        target = Target(f"vtab-{name}", *task.uris, whole=True)
        try:
            for uri in task.uris:
                open_source(uri)
        except UserError as error:
            say(f"vtab: {name} is left out: {str(error).splitlines()[0]}")
            continue
        there.append(target)
    if not there:
        builders = dict.fromkeys(task.name for task in vtab.TASKS.values())
        raise UserError(f"--vtab: none of {', '.join(builders)} is prepared (docs/data.md says how)")
    return there


def _config(found: Any, arguments: Any, overrides: Mapping[str, str], target: Target) -> Any:
    """The recipe of both trainings: network, pixels and augmentation as those of the checkpoint."""
    from jaxvision import config as config_lib
    from jaxvision.config import Config
    from jaxvision.training import restore

    config = config_lib.default()
    config.data.transforms = (("random_resized_crop", {}), ("flip", {}))
    if isinstance(found, restore.Source):
        theirs = restore.config_of(found)
        config.model, config.dtype = theirs.model, theirs.dtype
        config.data.transforms = _one_view(theirs.data.transforms)
    else:
        config.model = Config(dict(name=found.model, **found.options))
    contract = found.contract.to_dict()
    config.data.update({k: v for k, v in contract.items() if k in config.data})
    config.data.train = target.train
    if target.whole:
        config.data.resize, config.data.transforms = config.data.size, (("resize", {}),)
    config.batch_size, config.steps, config.epochs = arguments.batch_size, arguments.steps, 0.0
    config.task = dict(name="classification")
    config.optim.update(name="adamw", weight_decay=1e-4, warmup=0.1)
    config.evals = dict(test=dict(metric="topk", data=target.test, every_epochs=0.0, every_steps=arguments.steps))
    config.checkpoint.update(every_epochs=0.0, keep=1)
    config.log.tensorboard = False
    for key, text in overrides.items():
        config_lib.override(config, key, text)
    return config


def _one_view(transforms: tuple) -> tuple:
    """Of several views, the first: what fine-tuning sees."""
    if transforms and transforms[-1][0] == "multi_view":
        return (*transforms[:-1], *transforms[-1][1]["views"][0])
    return transforms


def _frozen(found: Any, config: Any, target: Target, seeds: Iterable[int]) -> dict[str, list[float]]:
    """Top-1 by the nearest neighbours and by a linear classifier, of features that do not move; of each seed's draw."""
    import jax
    import jax.numpy as jnp

    from jaxvision import metrics
    from jaxvision.config import Config
    from jaxvision.data import reader
    from jaxvision.data.sources import open_source, with_classes
    from jaxvision.runtime import sharding
    from jaxvision.training import build, evals, restore
    from jaxvision.training.step import TrainState

    config = Config({**build.resolve(config).to_dict(), "task": dict(name="linear_probe")})
    draws, test = [open_source(target.draw(seed)) for seed in seeds], open_source(target.test)
    source = draws[0]
    build.check_kind(config, source)
    draws = [with_classes(draw, source.classes, "the training data") for draw in draws]
    test = with_classes(test, source.classes, "the training data")
    task, mesh = build.task(config, len(source.classes)), sharding.make_mesh()
    plan = restore.load_plan(found, task, config, source.classes)
    params, extra = build.jit_once(task.init, out_shardings=sharding.replicated(mesh))(
        jax.random.key(0), build.zeros(config), plan.given
    )

    def batches(of: Any) -> Any:
        return evals.source_batches(of, reader.contract(config), mesh, config.batch_size, **reader.options(config))

    measures = {name: getattr(metrics, name)(classes=len(source.classes)) for name in ("knn", "probe")}
    state = TrainState(jnp.int32(0), params, extra, ())
    update = evals.make_update(task, measures)  # compiled once for all draws
    results = [
        evals.run(task, state, measures, batches(test), {"bank": functools.partial(batches, draw)}, update=update)
        for draw in draws
    ]
    return {name: [result.metrics[name] for result in results] for name in measures}


def _trained(
    config: Any, target: Target, out: Any, rates: list[float], arguments: Any, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Top-1 of each seed, fine-tuned and from scratch, each with the rate that was best on held-out training data.

    A new last layer's first gradients are of noise, and distort what was pretrained (Kumar et al. 2022,
    https://arxiv.org/abs/2202.10054): so it learns alone first.
    """
    from jaxvision.config import Config
    from jaxvision.training import build

    results, tuned = {}, Config(config.to_dict())
    if arguments.freeze and not config.optim.unfreeze:
        tuned.optim.unfreeze = ((build.body(config), arguments.freeze),)
    for how, init, own in (("fine-tuned", arguments.source, tuned), ("from scratch", "", config)):
        folder = out / target.name / how.replace(" ", "-")
        best = rates[0]
        if len(rates) > 1:
            draw = target.draw(0)
            halves = {"train": _with(draw, "part=0:80%"), "test": _with(draw, "part=80%:100%")}
            scores = {r: _run(own, folder / f"lr-{r:g}", init, r, 0, say, **halves) for r in rates}
            best = max(scores, key=lambda r: scores[r])
            say(f"  {how}: of " + ", ".join(f"lr {r:g} ({s:.4f})" for r, s in scores.items()) + f" takes {best:g}")
        results[how] = [
            _run(own, folder / f"seed-{seed}", init, best, seed, say, train=target.draw(seed), test=target.test)
            for seed in range(arguments.seeds)
        ]
        say(f"  {how}: " + ", ".join(f"{v:.4f}" for v in results[how]))
    return results


def _run(
    config: Any, workdir: Any, init: str, lr: float, seed: int, say: Callable[[str], None], *, train: str, test: str
) -> float:
    """Test top-1 of one training; one that is finished is not done again."""
    from jaxvision.config import Config
    from jaxvision.runtime.records import read_summary
    from jaxvision.training import loop

    config = Config(config.to_dict())
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


def picture(results: Mapping[str, Mapping[str, list[float]]], path: Any, title: str) -> None:
    """Bars of the same, with the standard deviation over the seeds."""
    from matplotlib.figure import Figure

    from jaxvision.report import figures

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


if __name__ == "__main__":
    cli.main(transfer, unheard=True)
