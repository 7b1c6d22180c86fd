"""What self-supervision is worth on the digits: several seeds, the same budget for both sides; prints JSON.

    python benchmarks/self_supervised.py --out runs/worth            # everything, more than an hour on two cores
    python benchmarks/self_supervised.py --out runs/worth --only simclr byol --seeds 2

1. `probe`: pretrain without labels on digits:train, then fit a linear classifier to frozen features of five images a
   class (five draws a seed), test on digits:test; beside the same network with random weights, and beside the pixels.
2. `fine-tuned`: five labels a class (other ones for each seed), from each pretraining and from scratch, with the same
   steps and augmentation; each side has the best of the same rates, by its mean over the seeds. What was pretrained
   stays frozen under its new last layer for half of the steps.
3. `distilled`: a narrow network learns ten images a class from a teacher that saw all labels, and from labels alone.

A training that is finished in --out is not done again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.data import reader
from jaxvision.data.sources import open_source
from jaxvision.metrics import representation
from jaxvision.runtime import sharding, versions
from jaxvision.training import build, evals, loop
from jaxvision.training.step import TrainState

HERE = pathlib.Path(__file__).parent.parent
METHODS = ("simclr", "byol", "dino")
RATES = (0.003, 0.01, 0.03)
STEPS = 150
AUGMENTED = (("affine", dict(degrees=10.0, share=0.1, scale=(0.9, 1.1))),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[*METHODS, "distilled"])
    arguments = parser.parse_args()
    seeds, out = range(arguments.seeds), arguments.out
    methods = [m for m in METHODS if m in arguments.only]
    result: dict = {"device": jax.devices()[0].device_kind, "versions": versions.of_figures(), "seeds": len(seeds)}
    for method in methods:
        for seed in seeds:
            train(pretraining(method, seed), out / f"{method}-{seed}")
    result["probe"] = {"pixels": spread([few_shot(pixels("digits:train"), pixels("digits:test"))])}
    result["probe"]["random"] = spread([few_shot(*features(None, seed)) for seed in seeds])
    for method in methods:
        result["probe"][method] = spread([few_shot(*features(out / f"{method}-{seed}", seed)) for seed in seeds])
        result.setdefault("alarms", {})[method] = [summary(out / f"{method}-{seed}")["alarms"] for seed in seeds]
    result["fine-tuned"] = {
        name: best({
            rate: [train(few_labels(seed, rate, out / f"{name}-{seed}" if name in methods else None),
                         out / f"tuned-{name}-{rate:g}-{seed}") for seed in seeds]
            for rate in RATES
        })
        for name in (*methods, "scratch")
    }  # fmt: skip
    if "distilled" in arguments.only:
        teacher = out / "teacher"
        result["teacher"] = train(labelled("digits:train", 0, 0.01, width=16, steps=440), teacher)
        result["distilled"] = {
            name: best({
                rate: [train(student(seed, rate, teacher if name == "distilled" else None),
                             out / f"student-{name}-{rate:g}-{seed}") for seed in seeds]
                for rate in RATES
            })
            for name in ("distilled", "alone")
        }  # fmt: skip
    print(json.dumps(result))


def pretraining(method: str, seed: int) -> ConfigDict:
    config = config_lib.load(str(HERE / "configs" / f"digits_{method}.py"))
    config.seed, config.evals = seed, {}
    return config


def labelled(train_on: str, seed: int, rate: float, *, width: int, steps: int = STEPS) -> ConfigDict:
    config = config_lib.load(str(HERE / "configs" / "digits_simclr.py"))
    config.update(seed=seed, batch_size=50, epochs=0.0, steps=steps, task=dict(name="classification"))
    config.data.update(train=train_on, transforms=AUGMENTED)
    config.model.width = width
    config.optim.lr = rate
    config.evals = dict(test=dict(metric="topk", data="digits:test", every_epochs=0.0, every_steps=steps))
    return config


def few_labels(seed: int, rate: float, init: pathlib.Path | None) -> ConfigDict:
    config = labelled(f"digits:train?per_class=5&seed={seed}", seed, rate, width=16)
    if init:
        config.init = str(init)
        config.optim.unfreeze_share = ((build.body(config), 0.5),)
    return config


def student(seed: int, rate: float, teacher: pathlib.Path | None) -> ConfigDict:
    config = labelled(f"digits:train?per_class=10&seed={seed}", seed, rate, width=8, steps=2 * STEPS)
    if teacher:
        config.task = dict(name="distillation", teacher=str(teacher), temperature=2.0)
    return config


def train(config: ConfigDict, workdir: pathlib.Path) -> float:
    """Test top-1 in the end, where there is a test."""
    config.checkpoint.update(every_epochs=0.0, keep=1)
    config.log.update(tensorboard=False, every_steps=50)
    done = workdir / "summary.json"
    if not (done.exists() and summary(workdir)["status"] == "done"):
        loop.fit(config, workdir, say=lambda text: None)
    top1 = summary(workdir)["evals"].get("test", {}).get("top1", 0.0)
    print(workdir.name, top1 or "", file=sys.stderr, flush=True)
    return top1


def summary(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def features(workdir: pathlib.Path | None, seed: int) -> tuple[dict, dict]:
    """Of digits:train and digits:test, by a pretrained network, or by one with random weights, whose normalisations
    use the statistics of the training images (those it starts with are of nothing)."""
    from jaxvision.training import restore

    if workdir is not None:
        trained = restore.load(str(workdir))
        task, params, extra, config = trained.task, trained.params, trained.extra, trained.config
    else:
        config = build.resolve(pretraining("simclr", seed))
        task = build.task(config, 10)
        params, extra = build.jit_once(task.init)(jax.random.key(seed), build.zeros(config), None)
        images = np.stack([open_source("digits:train")[i]["image"] for i in range(1437)])
        batch = {"image": jnp.stack([images, images], 1), "mask": jnp.ones(1437, bool)}
        settle = jax.jit(lambda e: task.loss(params, e, batch, key=jax.random.key(0), step=0)[1][0])
        for _ in range(60):  # the stored statistics move a tenth of the way each time
            extra = settle(extra)
    state, mesh = TrainState(jnp.int32(0), params, extra, ()), sharding.make_mesh()
    kept: list[dict] = []
    metric = representation.probe(classes=10)._replace(finish=lambda rows: kept.append(rows) or {}, bank="")
    for uri in ("digits:train", "digits:test"):
        batches = evals.source_batches(open_source(uri), reader.contract(config), mesh, 256, threads=1)
        evals.run(task, state, {"rows": metric}, batches)
    return kept[0], kept[1]


def pixels(uri: str) -> dict:
    source = open_source(uri)
    image = np.stack([source[i]["image"][..., 0].reshape(-1) for i in range(len(source))]) / 255.0
    return {"features": image.astype(np.float32), "label": source.labels}


def few_shot(bank: dict, rows: dict) -> float:
    return representation.probe(classes=10, per_class=5).finish(rows, bank)["probe"]


def spread(values: list[float]) -> dict:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "deviation": round(deviation, 4), "all": values}


def best(by_rate: dict[float, list[float]]) -> dict:
    rate = max(by_rate, key=lambda r: statistics.mean(by_rate[r]))
    means = {f"{r:g}": round(statistics.mean(v), 4) for r, v in by_rate.items()}
    return {**spread(by_rate[rate]), "rate": rate, "means": means}


if __name__ == "__main__":
    main()
