"""Single changes of the shipped configs, drawn at random: each trains, diverges, or is refused in one paragraph.

A change sets, adds or removes one key, at any depth, to one of the values that people and programs write by mistake.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import time

import jax
import numpy as np
import pytest

from jaxvision import config as config_lib
from jaxvision import metrics, models, tasks
from jaxvision.config import PROVIDED, as_config
from jaxvision.data import reader
from jaxvision.data.sample import fields_of
from jaxvision.errors import Diverged, UserError
from jaxvision.training import build, check, evals, loop, optim, restore
from jaxvision.training.setup import Setup
from jaxvision.training.step import make_step
from tests import mutations
from tests.test_configs import CONFIGS, small

VALUES = (
    0, 1, 2, 3, 7, -1, -2, 10**12, 0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 5.0, -0.1, 1e-12, 1e30, float("inf"), float("nan"),
    True, False, None, "", "x", "nan", "(", "*", "../x", "a/b", "test", "batch", "none", "auto", "cosine", "bicubic",
    "digits:train", "fake:8x8?classes=3", (), (0,), (1,), (-1,), (2, 2), (0.5, 0.5, 0.5), (0.0, 1.0), (1.0, 0.5),
    ("x",), (("x", 1.0),), (("conv", 0.5),), (("(", 1.0),), (("flip", {}),), (("multi_view", {}), ("flip", {})),
    (("ema", {}),), (("mixup", {}),), (("adversarial", {}),), {},
    {"x": 1},
)  # fmt: skip
PAIRS = ("transforms", "wrap")  # keys whose values are tuples of (name, arguments) pairs
REFUSED_WITHIN = 10.0  # seconds of this process


def places(node, prefix=()):
    """Paths of all keys: of groups, and of transforms and their arguments."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict) or key in PAIRS or prefix[-1:] in [(name,) for name in PAIRS]:
            yield from places(value, (*prefix, key))


def changed(node, path, value):
    """A copy of a tree of dicts and tuples with one place changed, or removed by `...`."""
    key, *rest = path
    if isinstance(node, tuple):
        inner = changed(node[key], rest, value) if rest else value
        return node[:key] + (() if inner is ... else (inner,)) + node[key + 1 :]
    copy = dict(node)
    inner = changed(node.get(key, {}), rest, value) if rest else value
    if inner is ...:
        copy.pop(key, None)
    else:
        copy[key] = inner
    return copy


def at(node, path):
    """What is there now, None for nothing."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else node[key]
    return node


def arguments_of(space, name):
    found = inspect.signature(getattr(space, name)).parameters.values()
    return [
        p.name
        for p in found
        if p.kind is p.KEYWORD_ONLY and p.name not in PROVIDED and p.name not in ("parent", "name")
    ]


def more_places(config):
    """Keys that the config could have and has not: arguments of what it names, wrappers, another evaluation."""
    for group, space in (("model", models), ("task", tasks), ("optim", optim)):
        yield from ((group, name) for name in arguments_of(space, config[group].name) if name not in config[group])
    for place, (name, _) in enumerate(config.wrap):
        yield from (("wrap", place, 1, key) for key in arguments_of(tasks, name))
    for name, entry in config.evals.items():
        yield from (
            ("evals", name, key) for key in (*config_lib.EVAL, *arguments_of(metrics, entry.get("metric", "topk")))
        )
    yield from (("evals", name) for name in ("train", "../x", "other"))
    yield ("no_such_key",)


def names_for(path):
    """Names that exist, for keys that hold one."""
    spaces = {("model", "name"): models.__all__, ("task", "name"): tasks.__all__, ("optim", "name"): optim.__all__}
    if path[-1:] == ("metric",):
        return metrics.__all__
    return spaces.get(path[:2], ())


def mutation(seed, configs):
    """(the config's file, path, value, changed config) of a seed."""
    rng = np.random.default_rng(seed)
    file = configs[rng.integers(len(configs))]
    config = small(file)
    paths = [*places(config.to_dict()), *more_places(config)]
    path = paths[rng.integers(len(paths))]
    values = [*VALUES, ..., *3 * list(names_for(path))]
    if rng.random() < 0.6:  # else most are refused for their type
        now = type(at(config.to_dict(), path))
        kinds = (int, float) if now in (int, float, type(None)) else (now,)
        values = [v for v in values if type(v) in kinds] or values
    value = values[rng.integers(len(values))]
    return file, path, value, changed(config.to_dict(), path, value)


@contextlib.contextmanager
def at_most(seconds):
    def ring(*_):
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def rehearse(config):
    """All of a training but compiling: the data of two steps is read, the step and the evaluations are traced."""
    run = Setup(config)
    if run.config.init:
        restore.find(run.config.init)
    state = run.abstract_state()
    reading = run.reader(0, min(2, run.total_steps), reader.skips(run.config))
    with contextlib.closing(reading):
        batches = list(reading)
    for batch in batches:
        after, _ = jax.eval_shape(
            make_step(run.task, run.tx, seed=0, accumulate=run.config.accumulate), state,
            {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()},
        )  # fmt: skip
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    for name, measures in run.metrics.items():
        source = run.eval_sources[name]
        batch = build.example(run.config, 8, fields=fields_of(source), classes=len(source.classes))
        jax.eval_shape(evals.make_update(run.task, measures), state.params, state.extra, batch)


def outcome(tree, workdir):
    """What becomes of a config: "refused", "diverged" or "trained"; `workdir` None: trained without compiling."""
    start = time.process_time()
    try:
        config = as_config(tree)
        check.check(config)
        if workdir is None:
            rehearse(config)
        else:
            loop.fit(config, workdir, say=lambda text: None)
    except Diverged:
        return "diverged"
    except UserError as error:
        said = str(error)
    else:
        return "trained"
    assert time.process_time() - start < REFUSED_WITHIN, "refused late"
    assert "\n\n" not in said
    assert 10 < len(said) < 2000, said
    return "refused"


def tried(seeds, workdir, configs, monkeypatch):
    """How often each outcome came, and a line for each seed whose change ended otherwise."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    ends, failures = dict.fromkeys(("trained", "diverged", "refused"), 0), []
    for seed in seeds:
        file, path, value, tree = mutation(seed, configs)
        try:
            with at_most(600):
                ends[outcome(tree, workdir and workdir / str(seed))] += 1
        except (Exception, TimeoutError) as error:  # all are seen at once
            last = inspect.trace()[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            failures.append(f"{seed}: {file.stem}, {'.'.join(map(str, path))} = {value!r}: {type(error).__name__} "
                            f"at {where}: {str(error).splitlines()[:1]}")  # fmt: skip
    return ends, failures


def test_50_changes(monkeypatch):
    """Nothing is compiled: the data is read and the step is traced."""
    ends, failures = tried(range(50), None, CONFIGS, monkeypatch)
    assert not failures, "\n".join(failures)
    assert ends["refused"] > 10, ends
    assert ends["trained"] > 5, ends


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_2000_changes(tmp_path, monkeypatch, first):
    """Each is trained for two steps, if it is not refused."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        ends, failures = tried(range(first, first + 100), tmp_path, CONFIGS, monkeypatch)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
    print(f"\nseeds {first} to {first + 99}: {ends}")
    assert not failures, "\n".join(failures)
    assert ends["refused"] > 20, ends
    assert ends["trained"] > 5, ends


def test_every_line_that_is_changed_is_there_once():
    """Of `python -m tests.mutations`, which changes code; it would stop there."""
    for mutation in mutations.MUTATIONS:
        assert mutations.located(mutation) > 0
