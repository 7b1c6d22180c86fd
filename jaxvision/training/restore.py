"""FROM: a workdir, a checkpoint in one, or weights that others published; to a load plan, or to a trained network."""

from __future__ import annotations

import json
import pathlib
import shlex
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision import models
from jaxvision.config.ranges import one_of
from jaxvision.data import reader
from jaxvision.data.contract import InputContract
from jaxvision.data.sources.classes import classes_differ
from jaxvision.errors import Damaged, UserError
from jaxvision.runtime import paths, sharding
from jaxvision.runtime.records import Say
from jaxvision.task import PyTree, Task
from jaxvision.tasks.common import network
from jaxvision.training import build, check
from jaxvision.weights import checkpoint, npz, plan, published, torch
from jaxvision.weights.published import Published

_NETWORK = ("params/model/", "extra/model/")  # where a task has its network
_MEANING = {"distillation": "classification"}  # tasks whose last layer means the same
_ANEW = "copy it again, or run its training again, which writes it anew"  # a config.json
_LEARNT = "classification"  # by published weights, and by checkpoints that do not say it


class Source(NamedTuple):
    """A checkpoint to start from, checked."""

    checkpoint: epath.Path
    workdir: epath.Path | None
    about: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.checkpoint}, its step {self.about['step']}"

    @property
    def contract(self) -> InputContract:
        return InputContract.from_dict(self.about["contract"])


def find(source: str, which: str = "", say: Say = lambda text: None) -> Source | Published:
    """FROM to a checkpoint that was checked, or to a file of published weights. Raises UserError.

    `say` is told of a later checkpoint that is half-written: it is being saved, or a kill cut it off.
    """
    file = published.find(source)
    if file is not None:
        if which:
            raise UserError(f"{source!r} is one set of weights: leave out --checkpoint {which}")
        return file
    path = _folder(source)
    if (path / "about.json").exists():
        if which:
            raise UserError(
                f"{source!r} is one checkpoint already: leave out --checkpoint {which}, or name its workdir"
            )
        reason = checkpoint.flaw(path)
        if reason:
            raise UserError(f"checkpoint {path} is broken: {reason}")
        workdir = path.parent.parent
        return Source(path, workdir if (workdir / "config.json").exists() else None, checkpoint.about(path))
    if not (path / "checkpoints").exists():
        above = "".join(f"; name {p}" for p in (path.parent, path.parent.parent) if (p / "checkpoints").is_dir())
        raise UserError(
            f"no checkpoints in {path}: it is no workdir of jaxvision.train, or nothing was saved there yet{above}"
        )
    chosen = checkpoint.choose(path / "checkpoints", which or "last")
    for step in checkpoint.steps(path / "checkpoints") if which in ("", "last") else ():
        if step > int(chosen.name):
            later = path / "checkpoints" / str(step)
            say(f"warning: checkpoint {later} is not used, {checkpoint.flaw(later)}")
    return Source(chosen, path, checkpoint.about(chosen))


_NAME_ONE = (
    "name a workdir that train printed, a checkpoint folder in it, or published weights, as "
    "timm:resnet50.a1_in1k=/path/model.safetensors"
)


def _folder(source: str) -> epath.Path:
    """The path that a FROM names. Raises UserError where that is no folder, with what it is instead."""
    if not source.strip():
        raise UserError(f"{source!r} names nothing to start from: {_NAME_ONE}")
    path = paths.path(source)
    try:
        if path.is_dir():
            return path
        there = path.exists()
    except Exception as error:
        if not paths.is_bucket(source) and not isinstance(error, OSError | ValueError):
            raise
        raise UserError(f"{source!r} cannot be read ({' '.join(str(error).split())[:300]}): {_NAME_ONE}") from error
    if not there:
        raise UserError(f"{source!r} does not exist: {_NAME_ONE}")
    suffix = path.suffix.lower()
    published.refuse_pickle(pathlib.Path(source), then="; then say whose weights they are: timm:NAME={out}")
    if suffix in (".safetensors", ".npz"):
        schemes = f"{npz.SCHEME}:NAME={source}"
        if suffix == ".safetensors":
            schemes = " or ".join(f"{library}:NAME={source}" for library in published.LIBRARIES)
        raise UserError(
            f"{source!r} is a file of weights, which does not say of which network: write {schemes}, NAME as "
            "python -m jaxvision.models lists them"
        )
    if suffix in (".onnx", ".tflite", ".stablehlo"):
        raise UserError(
            f"{source!r} is an exported file, which predict, export --verify and jaxvision.load take: name the "
            "workdir that it was exported from"
        )
    inside = next((p for p in (path.parent, path.parent.parent) if (p / "checkpoints").is_dir()), None)
    if inside is not None:
        raise UserError(f"{source!r} is a file in a workdir: name the workdir, {inside}")
    raise UserError(f"{source!r} is a file, and none of weights: {_NAME_ONE}")


def config_of(source: Source) -> ConfigDict:
    """The config.json of the checkpoint's workdir. Raises UserError where there is none, or it is of another run."""
    if source.workdir is None:
        raise UserError(
            f"{source.checkpoint} lies in no workdir with a config.json, which says what network this is: name the "
            "workdir that it was saved in"
        )
    path = source.workdir / "config.json"
    try:
        config = config_lib.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, which says what network this is: {_ANEW}") from error
    except Damaged as error:
        raise Damaged(f"{error}: {_ANEW}") from error
    lines = checkpoint_mismatch(source.about, config)
    if lines:
        more = f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise UserError(
            f"{path} is not the config that {source.checkpoint} was trained with (checkpoint -> config.json): "
            f"{'; '.join(lines[:4])}{more}. Put back the config.json that the training wrote, or name a checkpoint of "
            "this run: one of the two was edited, or copied from another run"
        )
    return config


def checkpoint_mismatch(about: dict[str, Any], config: ConfigDict, classes: tuple[str, ...] | None = None) -> list[str]:
    """Lines "key: in the checkpoint -> here" where a checkpoint and a run disagree; none where they agree.

    Args:
      about: of the checkpoint, see `checkpoint.about`. One that was saved before checkpoints held their config says
        only its contract, task and classes.
      config: of the run, resolved. What may change in a run (`config.MAY_CHANGE`) may differ, and so may `data.train`,
        since data are moved.
      classes: of the run's data, in their order, where they are known.
    """
    pairs = {}
    if "config" in about:
        pairs = config_lib.changes(config_lib.from_json(json.dumps(about["config"])), config)
        pairs.pop("data.train", None)
    theirs = InputContract.from_dict(about["contract"])
    pairs |= {f"data.{field}": pair for field, pair in theirs.differences(reader.contract(config)).items()}
    if about.get("task", config.task.name) != config.task.name:
        pairs["task.name"] = (about["task"], config.task.name)
    lines = [f"{key}: {a!r} -> {b!r}" for key, (a, b) in sorted(pairs.items())]
    if classes is not None and tuple(about["classes"]) != classes:
        lines.append(f"classes: {classes_differ(tuple(about['classes']), classes, 'the checkpoint', 'the data')}")
    return lines


def load_plan(source: Source | Published, task_: Task, config: ConfigDict, classes: tuple[str, ...]) -> plan.Plan:
    """How the weights of `source` fill this config's task; see `weights.plan.match`. Raises UserError."""
    _check_made_for(source, config)
    fresh, head = _leaves(task_, config)
    spare = _spare_head(config, head)
    head = head | spare.keys()
    if isinstance(source, Published):
        loaded = _published_leaves(source, {**traverse_util.flatten_dict(fresh, sep="/"), **spare}, config)
        same = source.classes == tuple(classes) if source.classes else _class_count(loaded.leaves, head) == len(classes)
        learnt = _LEARNT
    else:
        loaded = plan.averaged(checkpoint.read(source.checkpoint, ("params", "extra")))
        same = tuple(source.about["classes"]) == tuple(classes)
        learnt = source.about.get("task", _LEARNT)
    if _MEANING.get(learnt, learnt) != _MEANING.get(
        config.task.name, config.task.name
    ):  # then its last layer means something else, and its own leaves have no place
        own = [name for name in loaded.leaves if not name.startswith(_NETWORK)]
        loaded = loaded._replace(
            leaves={name: leaf for name, leaf in loaded.leaves.items() if name not in own},
            dropped=[*loaded.dropped, *own],
        )
        same = False
    policy = config.init_policy
    return plan.match(fresh, loaded, head, same, begin_afresh=policy.fresh, ignore=policy.ignore)


_MAY_DIFFER = one_of("mean", "std", "filter", "range", "background")  # fields of a contract


def _check_made_for(source: Source | Published, config: ConfigDict) -> None:
    """Raises UserError, all in one, unless the network (of published weights) and the pixels are those that the weights
    were made for, but for what `init_policy.contract` names. Sizes and crops may differ."""
    for field in config.init_policy.contract:
        _MAY_DIFFER.check("init_policy.contract", field)
    wrong: dict[str, tuple[Any, Any]] = {}  # key: (what the weights want, what the config has)
    if isinstance(source, Published):
        wrong["model.name"] = (source.model, config.model.name)
        same = config.model.name == source.model
        network = build.model(config, 1) if same else None
        wrong |= {
            f"model.{key}": (value, getattr(network, key) if same else config.model.get(key))
            for key, value in source.options.items()
        }
    mine, theirs = reader.contract(config), source.contract
    fields = ["filter"] if mine.channels != theirs.channels else ["mean", "std", "filter"]
    # files of other libraries say neither, and were made from 8 bits
    said = not isinstance(source, Published)
    fields += [field for field in ("range", "background") if said or getattr(theirs, field)]
    fields = [field for field in fields if field not in config.init_policy.contract]
    wrong |= {f"data.{field}": (getattr(theirs, field), getattr(mine, field)) for field in fields}
    wrong = {key: (wanted, given) for key, (wanted, given) in wrong.items() if wanted != given}
    if not wrong:
        return
    differ = "; ".join(f"{key} {wanted!r}, this config has {given!r}" for key, (wanted, given) in wrong.items())
    lines = ", ".join(f"config.{key} = {wanted!r}" for key, (wanted, _) in wrong.items())
    flags = " ".join(shlex.quote(f"--config.{key}={wanted}") for key, (wanted, _) in wrong.items())
    pixels = tuple(key.removeprefix("data.") for key in wrong if key.startswith("data."))
    meant = f"; or config.init_policy.contract = {pixels!r} if you mean other pixels" if pixels else ""
    raise UserError(f"init: the weights in {source} want {differ}: set {lines} (flags: {flags}){meant}")


def _leaves(task_: Task, config: ConfigDict) -> tuple[dict[str, PyTree], set[str]]:
    """The task's abstract leaves that are loaded, and the names of those that go with its classes: the network's last
    layer, whose shape depends on the number of its outputs, and what the task has beside the network."""
    params, extra = build.abstract_init(task_, config)
    fresh = {"params": params, "extra": {name: extra[name] for name in ("model", "scale") if name in extra}}
    trees = []
    for outputs in (2, 3):
        net = network(build.model(config, outputs), reader.contract(config))
        params, extra = jax.eval_shape(net.init, jax.random.key(0), build.example(config)["image"])
        trees.append({"params": {"model": params}, "extra": {"model": extra}})
    last = plan.head_names(*trees)
    return fresh, {n for n in traverse_util.flatten_dict(fresh, sep="/") if n in last or not n.startswith(_NETWORK)}


def _spare_head(config: ConfigDict, head: set[str]) -> dict[str, Any]:
    """Abstract leaves of the network's own head where the task has the network without one: the source's is dropped."""
    if any(name.startswith("params/model/") for name in head):
        return {}
    plain = config_lib.as_config({**config.to_dict(), "task": dict(name="classification"), "wrap": ()})
    whole, names = _leaves(build.task(plain, 1), plain)
    return {name: leaf for name, leaf in traverse_util.flatten_dict(whole, sep="/").items() if name in names}


def _published_leaves(source: Published, fresh: dict[str, Any], config: ConfigDict) -> plan.Source:
    """A file's tensors by our names, of the network's abstract leaves by theirs. Raises UserError."""
    names = {variable(n): n for n in fresh if n.startswith(("params/model/", "extra/model/"))}
    want = {v: fresh[n] for v, n in names.items()}
    model = build.model(config, 1000)
    if source.origin is None:
        theirs = npz.from_npz(npz.read(source.path), want, model, models.family(source.model), source.path)
        return plan.Source(
            {names[v]: array for v, array in theirs.leaves.items()},
            theirs.unused,
            {names[v]: name for v, name in theirs.called.items()},
            {names[v]: how for v, how in theirs.made.items()},
            theirs.dropped,
        )
    found = torch.from_state_dict(published.read(source.path), want, source.origin, model)
    return plan.Source(
        {names[v]: array for v, array in found.leaves.items()},
        found.unused,
        {names[v]: torch.torch_name(v, source.origin) for v in want},
    )


def standalone(trained: Trained, leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves of `plan.averaged` of a network that says by itself what its task predicts: one output a class or
    value, in the labels' units. Raises UserError where the task's own leaves do not fit into the last layer."""
    own = sorted(name for name in leaves if not name.startswith(_NETWORK))
    name = trained.config.task.name
    alone = trained.task.standalone
    if own and alone is None:
        raise UserError(
            f"{trained.source} is of task {name}, which has leaves beside the network's ({', '.join(own)}): no other "
            "library has a place for them, so use the workdir itself as --from"
        )
    _, head = _leaves(trained.task, trained.config)
    made = {n: np.asarray(leaf) for n, leaf in leaves.items() if n not in own}
    for n in head & made.keys():
        made[n] = made[n] if alone is None else alone(made[n], leaves)
    return made


def variable(name: str) -> str:
    """ "params/model/fc/kernel" to "params/fc/kernel", "extra/model/batch_stats/..." to "batch_stats/..."."""
    return name.replace("params/model/", "params/", 1).removeprefix("extra/model/")


def _class_count(leaves: dict[str, Any], head: set[str]) -> int:
    """Of the loaded head: its bias has one entry a class. 0 if there is none."""
    return next((leaves[n].shape[0] for n in sorted(head) if n in leaves and leaves[n].ndim == 1), 0)


def digest(found: Source | Published) -> str:
    """SHA-256 of a file of weights; of a checkpoint, that of its digests.json, which holds those of all its files."""
    return paths.digest(found.path if isinstance(found, Published) else found.checkpoint / "digests.json")


class Trained(NamedTuple):
    """A finished or running training, or published weights, loaded for evaluation."""

    config: ConfigDict
    contract: InputContract
    classes: tuple[str, ...]
    named: bool  # whether the classes are names; if not, they are "0", "1", ... in the order of the weights
    task: Task
    params: PyTree
    extra: PyTree
    step: int
    mesh: Mesh
    source: str
    workdir: epath.Path | None
    synsets: tuple[str, ...] = ()  # of ImageNet's classes, their WordNet ids
    run: str = ""  # see `config.run_of`; "" where the checkpoint does not say

    def classes_of(self, uri: str, theirs: tuple[str, ...], say: Say = lambda text: None) -> tuple[str, ...]:
        """The classes of the weights, in their order, by the names that the data `uri` have: `theirs`.

        Data name ImageNet's classes by WordNet ids or by words. Class k of weights without names, or of published
        ones that the data name otherwise, is taken to be the data's class k, and said so. Raises UserError where
        the numbers of classes differ, too.
        """
        alike = [names for names in (self.classes, self.synsets) if set(theirs) & set(names)]
        if self.named and (alike or not self.synsets):
            return alike[0] if alike else self.classes
        if len(theirs) != len(self.classes):
            raise UserError(f"{uri} has {len(theirs)} classes, the weights in {self.source} {len(self.classes)}")
        reason = "the data name ImageNet's classes otherwise" if self.named else "the weights name no classes"
        say(f"{reason}: class k is taken to be the data's class k ({theirs[0]}, ..., {theirs[-1]})")
        return theirs


def load(source: str, which: str = "", say: Say = lambda text: None) -> Trained:
    """What evaluate and predict start from; `say` as in `find`. Raises UserError."""
    return load_found(find(source, which, say), source)


def load_found(found: Source | Published, source: str) -> Trained:
    """A trained network from what `find` found for `source`. Raises UserError."""
    if isinstance(found, Published):
        return _load_published(found)
    config = config_of(found)
    classes = build.names(config, tuple(found.about["classes"]))
    built = build.task(config, len(classes))
    mesh = sharding.make_mesh()
    params, extra = build.abstract_init(built, config)
    tree = checkpoint.restore(found.checkpoint, sharding.with_shardings({"params": params, "extra": extra}, mesh))
    step = int(found.about["step"])
    path = str(found.checkpoint)
    contract = found.contract
    return Trained(
        config, contract, classes, True, built, tree["params"], tree["extra"], step, mesh, path, found.workdir,
        run=found.about.get("run", ""),
    )  # fmt: skip


def _load_published(found: Published) -> Trained:
    """In the compute dtype float32, with the config's defaults for all that the weights do not say."""
    config = config_lib.default()
    config.model = dict(name=found.model, **found.options)
    config.dtype = "float32"
    config.data.update({k: v for k, v in found.contract.to_dict().items() if k in config.data})
    config.evals = dict(data=dict(config_lib.EVAL))
    fresh, head = _leaves(build.task(config, 1000), config)
    state = _published_leaves(found, traverse_util.flatten_dict(fresh, sep="/"), config)
    count = _class_count(state.leaves, head)
    if found.doubt:
        raise UserError(found.doubt)
    names, synsets = published.imagenet(count)
    classes = found.classes or names or tuple(str(k) for k in range(count))
    if len(classes) != count:
        raise UserError(f"{found.source}: the file names {len(classes)} classes, its last layer has {count}")
    if not classes:
        raise UserError(f"{found.source}: the file holds no last layer, so it names no classes: fine-tune it first")
    built = build.task(config, len(classes))
    loaded = load_plan(found, built, config, classes)
    mesh = sharding.make_mesh()
    params, extra = build.jit_once(built.init, out_shardings=sharding.replicated(mesh))(
        jax.random.key(0), build.zeros(config), loaded.given
    )
    named = bool(found.classes or names)
    synsets = synsets if classes in (names, synsets) else ()
    return Trained(config, found.contract, classes, named, built, params, extra, 0, mesh, found.source, None, synsets)


class Teacher(NamedTuple):
    """A trained network that another one learns from."""

    task: Task
    leaves: dict[str, PyTree]  # "params" and "extra", numpy
    source: str

    def join(self, given: dict[str, PyTree] | None) -> dict[str, PyTree]:
        """What `Task.init` takes, of a load plan's."""
        given = given or {}
        return {**given, "extra": {**given.get("extra", {}), "teacher": self.leaves}}


def teacher(config: ConfigDict, classes: tuple[str, ...]) -> Teacher | None:
    """What config.task.teacher names, for a run on data of these classes; None where the task has no teacher.

    With its averaged weights where it kept some, in this run's compute dtype. Raises UserError where its pixels or
    classes are not those of this run.
    """
    source = config.task.get("teacher", "")
    if not source:
        return None
    trained = load(source)
    mine, theirs = reader.contract(config), trained.contract
    for field in ("size", "channels", "range", "background"):
        if getattr(mine, field) != getattr(theirs, field):
            raise UserError(
                f"task.teacher: {trained.source} takes images of {field} {getattr(theirs, field)}, this config has "
                f"{field} {getattr(mine, field)}: set config.data.{field} = {getattr(theirs, field)}, or name another "
                "teacher"
            )
    if len(trained.classes) != len(classes) and not trained.named:
        raise UserError(
            f"task.teacher: {trained.source} tells {len(trained.classes)} classes apart, the training data has "
            f"{len(classes)}: choose a teacher that was trained on these classes"
        )
    check.classes(f"the teacher {trained.source}", trained.classes_of(config.data.train, classes), classes)
    # Without its wrappers: what they keep beside the network (averages, anchors) is not carried along.
    own = config_lib.as_config({**trained.config.to_dict(), "wrap": (), "dtype": config.dtype})
    task_ = build.task(own, len(classes))
    params, extra = build.abstract_init(task_, own)
    if "logits" not in jax.eval_shape(task_.predict, params, extra, build.example(own)):
        raise UserError(f"task.teacher: {trained.source} was trained by {own.task.name}, which predicts no logits")
    average = trained.extra.get("ema", {"params": trained.params, "model": trained.extra["model"]})
    kept = {**{k: trained.extra[k] for k in extra}, "model": average["model"]}
    return Teacher(task_, jax.device_get({"params": average["params"], "extra": kept}), trained.source)
