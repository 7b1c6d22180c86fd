"""Checkpoints: Orbax arrays, a description beside them, and digests that are written last.

    checkpoints/STEP/state/         the arrays, written by Orbax in the background
    checkpoints/STEP/about.json     step, input contract, class names, number of samples, config, run, versions
    checkpoints/STEP/digests.json   SHA-256 of every file: written last, so a folder without it is half-written

    checkpoints/scores.json         what decides the best, and step -> score: evaluations may come after the save

A checkpoint counts once digests.json is there, and is used only after every file matches: Orbax restores
flipped bits without a word. Nothing is renamed into place, so the same holds on a bucket.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util

from jaxvision.errors import Damaged, Gone, UserError
from jaxvision.runtime import paths, sharding
from jaxvision.runtime.records import plain, read_records, require_run
from jaxvision.task import PyTree


class Found(NamedTuple):
    """A checkpoint that is whole, and the newer ones that are not, each with the reason."""

    path: epath.Path | None
    broken: list[tuple[epath.Path, str]]


def steps(folder: epath.Path) -> list[int]:
    """All checkpoints in `folder`, whole or not, oldest first."""
    if not folder.exists():
        return []
    try:
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    except NotADirectoryError:
        return []


def about(path: epath.Path) -> dict[str, Any]:
    """Contents of about.json.

    Raises Damaged.
    """
    return paths.read_json(path / "about.json", {"step": int, "contract?": dict, "classes?": [str], "run?": str})


def _files(path: epath.Path) -> dict[str, epath.Path]:
    found = {}
    pending = [path]
    while pending:
        for child in pending.pop().iterdir():
            if child.is_dir():
                pending.append(child)
            elif child != path / "digests.json":
                found[child.relative_to(path).as_posix()] = child
    return found


def _arrays(path: epath.Path) -> epath.Path:
    """The folder of Orbax, as an absolute path: Orbax refuses a relative one."""
    return path / "state" if paths.is_bucket(path) else (path / "state").resolve()


def flaw(path: epath.Path) -> str:
    """Reason why a checkpoint cannot be used; "" if every file is there and matches its digest."""
    marker = path / "digests.json"
    if not marker.exists():
        return "half-written: it has no digests.json"
    try:
        digests = paths.read_json(marker, {...: str})
        files = _files(path)
        for name in sorted(digests.keys() | files.keys()):
            if name not in files:
                return f"{name} is missing"
            if name not in digests:
                return f"{name} does not belong to it"
            if paths.digest(files[name]) != digests[name]:
                return f"{name} was changed or cut short after it was written"
    except (Damaged, OSError) as error:
        return f"unreadable: {error}"
    return ""


def newest(folder: epath.Path) -> Found:
    """The newest whole checkpoint, checked file by file."""
    broken: list[tuple[epath.Path, str]] = []
    for step in reversed(steps(folder)):
        reason = flaw(folder / str(step))
        if not reason:
            return Found(folder / str(step), broken)
        broken.append((folder / str(step), reason))
    return Found(None, broken)


def choose(folder: epath.Path, which: str) -> epath.Path:
    """The checkpoint that "best", "last" or a step number names, checked. Raises UserError."""
    there = [s for s in steps(folder) if (folder / str(s) / "digests.json").exists()]
    if not there:
        raise UserError(f"no checkpoint in {folder}: train first, or name another workdir")
    if which == "last":
        step = there[-1]
    elif which == "best":
        try:
            _require_scores(folder)
            step = _best(folder, there)
        except Damaged as error:
            raise Damaged(
                f"{error}, so the best checkpoint is not known: name one of {', '.join(map(str, there))}, or run the "
                "training again, which writes the scores anew"
            ) from error
    elif which.isdigit() and int(which) in there:
        step = int(which)
    else:
        raise UserError(f"no checkpoint {which!r} in {folder}: there are best, last, {', '.join(map(str, there))}")
    reason = flaw(folder / str(step))
    if reason:
        raise UserError(f"checkpoint {folder / str(step)} is broken, {reason}; choose another: {there}")
    return folder / str(step)


def _require_scores(folder: epath.Path) -> None:
    """Raises Damaged where the log tells of evaluations and there is no score."""
    try:
        known = paths.read_json(folder / "scores.json")
    except FileNotFoundError:
        known = {}
    if not known and any(record["kind"].startswith("eval:") for record in read_records(folder.parent)):
        raise Damaged(f"{folder / 'scores.json'} is missing or empty, though there were evaluations")


def _best(folder: epath.Path, there: list[int]) -> int:
    """The earliest of the highest scores; the last one where nothing was scored. Raises Damaged."""
    scores = _scores(folder, about(folder / str(there[-1])).get("run", ""))
    scored = [s for s in there if s in scores]
    return max(scored, key=lambda s: (scores[s], -s)) if scored else there[-1]


def _scores(folder: epath.Path, run: str) -> dict[int, float]:
    """Step -> score. Scores without a metric, of older versions, count as they stand. Raises Damaged."""
    path = folder / "scores.json"
    try:
        known = paths.read_json(path)
    except FileNotFoundError:
        return {}
    require_run(path, known, run)
    scores = known.get("scores", known)
    numbers = isinstance(scores, dict) and all(isinstance(v, int | float | None) for v in scores.values())
    if not numbers or not all(k.isdigit() for k in scores):
        raise Damaged(f"{path} is damaged (it holds no scores of steps)")
    return {int(k): v for k, v in scores.items() if v is not None}


def write_scores(folder: epath.Path, metric: str, scores: dict[int, float], run: str = "", of: str = "") -> None:
    """Writes which checkpoints are good: step -> score, higher is better, all by one metric.

    Scores of other steps that are there already stay, if they are of the same metric, evaluation and run.

    Args:
      metric: EVALUATION/METRIC.
      run: see `config.run_of`.
      of: what the evaluation measures, see `evals.identity`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by = {"metric": metric, "of": of, "run": run}
    with contextlib.suppress(FileNotFoundError, Damaged):
        known = paths.read_json(folder / "scores.json")
        if all(known.get(key, "") == value for key, value in by.items()):
            scores = {**_scores(folder, run), **scores}
    content = {**by, "scores": {str(step): score for step, score in sorted(scores.items())}}
    paths.write_json(folder / "scores.json", plain(content))


def compile_copy(state: PyTree) -> jax.stages.Compiled:
    """State -> a copy in the memory of the hosts, see `sharding.on_hosts`. `state` may be abstract."""
    shardings = jax.tree.map(sharding.on_hosts, state)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings).lower(state).compile()


class Writer:
    """Saves in the background, keeps the best and the last few."""

    def __init__(self, folder: epath.Path, keep: int, broken: list[epath.Path] | None = None) -> None:
        self.folder, self.keep = folder, keep
        self._drop = list(broken or ())  # removed once a newer checkpoint is whole
        # Over named processes Orbax meets through JAX's service, not on the devices: there, what another thread runs
        # would come in another order on each host.
        everyone = set(range(jax.process_count())) if jax.process_count() > 1 else None
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everyone)
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everyone),
        )
        self._copy: Callable[[PyTree], PyTree] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._writes = jax.process_index() == 0

    def prepare(self, state: PyTree) -> None:
        """Compiles the copy of states of given shapes and shardings, which the first save would do otherwise."""
        self._copy = compile_copy(state)

    def save(
        self, step: int, state: PyTree, description: dict[str, Any], first: Callable[[], None] = lambda: None
    ) -> None:
        """Blocks while the state is copied to the hosts; the rest happens in the background.

        `description` becomes about.json; `first` is done before anything is written.
        Raises UserError if the save before could not be written; `wait` does so for this one.
        """
        self.wait()
        if self._copy is None:
            self.prepare(state)
        assert self._copy
        # a copy, since the next step takes the state's buffers; in a list, to be let go of by the thread
        copies = [jax.block_until_ready(self._copy(state))]
        about = json.dumps(plain({"step": step, **description}), indent=1)
        self._thread = threading.Thread(
            target=self._finish, args=(self.folder / str(step), copies, about, first), name="checkpoint"
        )
        self._thread.start()

    def _finish(self, path: epath.Path, copies: list[PyTree], about: str, first: Callable[[], None]) -> None:
        try:
            first()
            if self._writes:
                if path.exists():
                    _remove(path)
                path.mkdir(parents=True)
                (path / "about.json").write_text(about)
            # Orbax wants plain containers; the leaves' names are those of the dataclass
            tree = serialization.to_state_dict(copies.pop())
            self._orbax.save(_arrays(path), args=ocp.args.PyTreeSave(tree))
            del tree
            self._orbax.wait_until_finished()
            if self._writes:
                digests = {name: paths.digest(file) for name, file in sorted(_files(path).items())}
                paths.write_whole(path / "digests.json", json.dumps(digests, indent=1))
                self._tidy()
        except BaseException as error:
            self._error = error

    def _tidy(self) -> None:
        for path in self._drop:
            if path.exists() and flaw(path):
                _remove(path)
        self._drop = []
        there = [s for s in steps(self.folder) if (self.folder / str(s) / "digests.json").exists()]
        if not there:
            return
        # all that are older than a whole one: also those whose removal a kill cut short, which have no marker any more
        older = {s for s in steps(self.folder) if s < there[-1]}
        try:
            best = _best(self.folder, there)
        except Damaged:  # which of them may go is known again after the next evaluation
            return
        for step in older - {*there[-self.keep :], best}:
            _remove(self.folder / str(step))

    def wait(self) -> None:
        """Waits until the save in the background is whole.

        Raises UserError if it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        """Waits for the last save; removes what was kept for a score that was bettered after that save."""
        try:
            self.wait()
            if self._writes and steps(self.folder):
                self._tidy()
        finally:
            self._orbax.close()


def _remove(path: epath.Path) -> None:
    # the marker first: a kill half-way must not leave a folder that looks whole
    (path / "digests.json").unlink(missing_ok=True)
    path.rmtree()


# How Orbax and TensorStore tell what a disk said.
_REFUSED = ("No space", "RESOURCE_EXHAUSTED", "ermission", "Read-only", "File too large", "quota", "No such file")


def _unwritable(path: epath.Path, error: BaseException) -> BaseException:
    """Error to raise for a failed save: a UserError if the disk refused it, with what is left there."""
    text = str(error) or type(error).__name__
    if isinstance(error, Gone) or not (isinstance(error, UserError | OSError) or any(w in text for w in _REFUSED)):
        return error
    whole = [step for step in steps(path) if (path / str(step) / "digests.json").exists()]
    left = f"the last whole one there is that of step {whole[-1]}" if whole else "no whole one is there"
    if not path.parent.exists():
        left = f"{path.parent} is gone, with all that was saved there"
    return UserError(
        f"cannot write a checkpoint to {path}: {text.splitlines()[0]}; {left}. Make room or choose another --workdir, "
        "then run the same command"
    )


def restore(path: epath.Path, abstract: PyTree) -> PyTree:
    """The arrays of `abstract` (ShapeDtypeStructs with shardings), which may be a part of what was saved.

    Any number of devices and hosts, whatever it was saved on. Call `flaw`, `newest` or `choose` before.
    Raises UserError if the checkpoint holds other shapes.
    """
    target = serialization.to_state_dict(abstract)
    saved = _shapes(path)
    wrong = [
        f"{name}: {list(saved[name].shape) if name in saved else 'absent'} in the checkpoint, {list(leaf.shape)} here"
        for name, leaf in traverse_util.flatten_dict(target, sep="/").items()
        if name not in saved or tuple(saved[name].shape) != tuple(leaf.shape)
    ]
    if wrong:
        raise UserError(f"checkpoint {path} is of another network or optimiser: {'; '.join(wrong[:4])}")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        tree = orbax.restore(
            _arrays(path),
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    return serialization.from_state_dict(abstract, tree)


def read(path: epath.Path, parts: tuple[str, ...]) -> dict[str, PyTree]:
    """Top-level parts ("params", "extra") as numpy arrays, whatever their shapes."""
    nested = traverse_util.unflatten_dict(_shapes(path), sep="/")
    target = {part: nested.get(part, {}) for part in parts}
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        return orbax.restore(
            _arrays(path),
            args=ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True),
        )


@functools.lru_cache(maxsize=4)
def _shapes(path: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and dtype of every array that was saved."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        tree = orbax.metadata(_arrays(path)).item_metadata.tree
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in flat.items() if hasattr(v, "shape")}
