"""Lines whose change would spoil results in silence: each is changed alone, and a test must notice.

    python -m tests.mutations                    # all, as many at a time as there are cores
    python -m tests.mutations --only order.py    # those whose file, old or new text match the pattern

Works on copies of the tree in the temporary folder. Before anything is changed the tests that are asked must pass.
Prints a table, then a line of JSON; exits with code 1 if a change is noticed by none of its tests and nothing says why
it changes no result. tests/test_mutations.py, which pytest collects, changes configs; this changes code.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
FAILED, INTERRUPTED = 1, 2  # exit codes of pytest: a test failed, a file could not be imported


class Mutation(NamedTuple):
    """A change of one line.

    file: below jaxvision/. old: text that occurs there once. new: what takes its place. tests: files and tests below
    tests/, separated by blanks, that ought to notice. equivalent: why nothing can, where that is so.
    """

    file: str
    old: str
    new: str
    tests: str
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"


SELF = "tasks/test_self_supervised.py"
MUTATIONS = (
    # ------------------------------------------------------------------- which sample, with what randomness
    Mutation("data/order.py", "divmod(n // self.repeats, self.length)", "divmod(n, self.length)", "data/test_order.py"),
    Mutation("data/order.py", "permutation(self.seed, epoch, self.length)", "permutation(self.seed, 0, self.length)",
             "data/test_order.py"),
    Mutation("data/order.py", '["key"][:] = (seed % 2**64, n)', '["key"][:] = (seed % 2**64, 0)', "data/test_order.py"),
    Mutation("data/order.py", "ends[np.flatnonzero(weights)[-1] :]", "ends[-1:]", "data/test_order.py"),
    Mutation("data/order.py", "np.arange(self.length) + start", "np.arange(self.length) + 0.5", "data/test_order.py"),
    Mutation("data/pipeline.py", "n = step * self.batch_size + row", "n = step * len(self.rows) + row",
             "data/test_pipeline.py"),
    Mutation("data/pipeline.py", "at(self.seed, number, position, place)", "at(self.seed, number, 0, place)",
             "data/test_pipeline.py"),
    Mutation("data/warp.py", "move.matrix @ self.matrix", "self.matrix @ move.matrix", "data/test_warp.py"),
    Mutation("data/sample.py", "(left >= keep * area)", "(left >= keep * left)", "data/test_warp.py"),
    Mutation("data/order.py", "n // epoch * epoch + word", "n // epoch + word", "data/test_order.py"),
    Mutation("targets/tags.py", '["probabilities"] >= 0.5)).all(-1)', '["probabilities"] >= 0.5)).any(-1)',
             "targets/test_contract.py"),
    Mutation("data/packing.py", "[k * len(self.source) // self.shards for",
             "[k * (len(self.source) // self.shards) for", "test_pack.py::test_kept_bytes_and_the_result"),
    Mutation("data/sources/subset.py", "number * length // 100", "-(-number * length // 100)", "data/test_subset.py"),
    Mutation("data/sources/subset.py", "(pairs[:, 1], -counts,", "(pairs[:, 1], counts,",
             "data/test_subset.py data/test_labels.py"),
    # ------------------------------------------------------------------- pixels
    Mutation("data/decode.py", ".astype(np.uint32) + 128)", ".astype(np.uint32))", "data/test_decode.py"),
    Mutation("data/decode.py", "height // k >= sides[0] and width", "height // k >= sides[0] or width",
             "data/test_jpeg.py"),
    Mutation("data/transforms/pixels.py", "round((width - right) / 2)", "(width - right) // 2",
             "data/test_golden.py data/test_transforms.py"),
    Mutation("data/transforms/pixels.py", "(size, int(size * width / height))", "(size, round(size * width / height))",
             "data/test_golden.py data/test_transforms.py"),
    Mutation("data/transforms/geometry.py", "area * aspect)), round(math.sqrt(area / aspect))",
             "area / aspect)), round(math.sqrt(area * aspect))", "data/test_transforms.py"),
    Mutation("data/transforms/erasing.py", "(area[0] / count,", "(area[0],", "data/test_erasing.py"),
    Mutation("ops/resize.py", "(jax.lax.rem(spare, 2) & jax.lax.rem(first, 2))", "jax.lax.rem(spare, 2)",
             "deploy/test_resize.py::test_pixels_are_pillows_but_for_halves"),
    Mutation("tasks/common.py", "std = 255.0 * jnp", "std = jnp", "tasks/test_supervised.py"),
    # ------------------------------------------------------------------- labels and records
    Mutation("data/sources/csv.py", "zero_one[:, np.argsort(order)]", "zero_one[:, order]", "data/test_csv.py"),
    Mutation("data/sources/csv.py", "order[zero_one.argmax(1)]", "zero_one.argmax(1)", "data/test_csv.py"),
    Mutation("data/sources/records.py", '(*image.shape, 1)', "image.shape", "data/test_records.py"),
    Mutation("runtime/records.py", 'content.get("run", run) != run', 'content.get("run", run) is None',
             "test_damaged.py training/test_restore.py weights/test_checkpoint.py"),
    # ------------------------------------------------------------------- losses
    Mutation("losses/classification.py", "/ logits.shape[-1]\n    return", "/ (logits.shape[-1] - 1)\n    return",
             "losses/test_classification.py"),
    Mutation("losses/classification.py", "gamma * log_rest", "gamma * log_p", "losses/test_classification.py"),
    Mutation("losses/classification.py", "negative * jnp.exp(gamma * log_p)", "negative * jnp.exp(gamma * log_not)",
             "losses/test_classification.py"),
    Mutation("losses/ordinal.py", "labels[:, None] > jnp", "labels[:, None] >= jnp", "losses/test_ordinal.py"),
    Mutation("losses/regression.py", "(error - near / 2)", "(error - near) / 2", "losses/test_regression.py"),
    Mutation("losses/self_supervised.py", "_products(query, keys)", "_products(keys, query)",
             "losses/test_self_supervised.py"),
    Mutation("losses/self_supervised.py", "at_least_float32(teacher) - centre", "at_least_float32(teacher) + centre",
             "losses/test_self_supervised.py"),
    Mutation("losses/self_supervised.py", "to_own = jnp.where(mask & ~same", "to_own = jnp.where(mask",
             "losses/test_self_supervised.py"),
    Mutation("ops/reduce.py", "jnp.maximum(jnp.sum(mask), 1)", "mask.size", "ops/test_mixing.py ops/test_reduce.py"),
    # ------------------------------------------------------------------- metrics
    Mutation("metrics/classification.py", "(rank < k) & mask", "rank < k", "metrics/test_topk.py"),
    Mutation("metrics/classification.py", "~(logits < right)", "(logits > right)", "metrics/test_topk.py"),
    Mutation("metrics/ranking.py", "np.append(scores[1:] != scores[:-1], True)", "np.ones(len(scores), bool)",
             "metrics/test_ranking.py"),
    Mutation("metrics/ordinal.py", "label < classes / 2", "label > classes / 2", "metrics/test_ordinal.py"),
    Mutation("metrics/representation.py", "known, query = unit(", "known, query = (",
             "metrics/test_representation.py metrics/test_extremes.py"),
    Mutation("report/analysis.py", "np.ceil(p * bins).astype(int) - 1", "np.floor(p * bins).astype(int)",
             "report/test_page.py::test_calibration_by_hand"),
    Mutation("training/evals.py", "np.asarray(x)[mask]", "np.asarray(x)", "training/test_evals.py"),
    # ------------------------------------------------------------------- the step
    Mutation("training/step.py", "lambda x: x / count", "lambda x: x", "training/test_step.py"),
    Mutation("training/step.py", "micro, jax.random.fold_in(key, a)", "micro, key", "training/test_step.py"),
    Mutation("training/step.py", "jnp.uint32)), state.step)", "jnp.uint32)), 0)", "training/test_step.py"),
    Mutation("training/step.py", "step, donate_argnums=0,", "step,", "training/test_step.py"),
    Mutation("training/loop.py", "MAX_PENDING = 2", "MAX_PENDING = 64",
             "training/test_loop.py::test_at_most_two_steps_are_in_flight"),
    Mutation("tasks/ema.py", "rate * a + (1.0 - rate) * b", "rate * b + (1.0 - rate) * a",
             "tasks/test_wrappers.py::test_ema_is_the_average_of_the_formula"),
    Mutation("training/optim.py", "leaf.ndim > 1 and", "leaf.ndim > 0 and", "training/test_optim.py"),
    Mutation("training/optim.py", "decay ** (top - depth", "decay ** (depth",
             "training/test_optim.py::test_layer_decay_of_vit_b_16_is_maes"),
    Mutation("training/optim.py", "(step + 1) * (1.0 / (warmup + 1))", "step * (1.0 / warmup)",
             "training/test_optim.py::test_cosine_with_warmup training/test_optim.py::test_linear_and_step"),
    Mutation("training/optim.py", "b2, eps), decay, scaled)", "b2, eps), scaled, decay)",
             "training/test_optim.py::test_lamb_first_step"),
    Mutation("training/optim.py", "chain(decay, scaled, optax", "chain(scaled, decay, optax",
             "training/test_optim.py::test_lars_first_step"),
    Mutation("training/optim.py", "hold(by_leaf, at) if config.clip", "optax.identity() if config.clip",
             "training/test_optim.py::test_still_frozen_leaves_do_not_count_in_the_clipped_norm"),
    Mutation("training/hyper.py", '})", function(other, self.value))', '})", function(self.value, other))',
             "training/test_hyper.py::test_arithmetic_is_pythons_and_what_meets_an_array_is_an_argument"),
    Mutation("runtime/sharding.py", "[(n, -d) for d, n in", "[(-n, -d) for d, n in", "runtime/test_sharding.py"),
    # ------------------------------------------------------------------- layers
    Mutation("ops/batch_norm.py", "jnp.maximum(squares / count - mean * mean, 0)", "squares / count - mean * mean",
             "ops/test_batch_norm.py"),
    Mutation("models/layers.py", "self.momentum * leaves.var.value + (1 - self.momentum) * var",
             "self.momentum * var + (1 - self.momentum) * leaves.var.value", "ops/test_batch_norm.py"),
    Mutation("models/layers.py", "x / (1.0 - self.rate)", "x", "models/test_options.py::test_dropped_branches"),
    Mutation("models/vit.py", "in (column, row)]", "in (row, column)]", "models/test_vit.py"),
    Mutation("weights/resize.py", '"bicubic")).reshape(1, new', '"linear")).reshape(1, new', "weights/test_plan.py"),
    # ------------------------------------------------------------------- tasks and wrappers
    Mutation("tasks/siamese.py", "first, goals[1], mask) + pair_loss(second, goals[0], mask)",
             "first, goals[0], mask) + pair_loss(second, goals[1], mask)",
             f"{SELF}::test_a_view_is_compared_with_the_targets_other_view"),
    Mutation("tasks/encoder.py", "momentum * a + (1 - momentum) * b", "momentum * b + (1 - momentum) * a",
             f"{SELF}::test_the_average_moves_by_its_momentum_and_stops_at_the_end"),
    Mutation("tasks/dino.py", "if v != g", "if v != 1 - g",
             f"{SELF}::test_every_students_view_meets_each_other_teachers_view"),
    Mutation("tasks/dino.py", 'moved(extra["centre"], mean,', 'moved(mean, extra["centre"],',
             f"{SELF}::test_every_students_view_meets_each_other_teachers_view"),
    Mutation("tasks/mae.py", "axis=1) >= seen", "axis=1) < seen",
             f"{SELF}::test_mae_sees_a_quarter_and_is_judged_on_the_rest"),
    Mutation("tasks/mixing.py", "own * labels + (1.0 - own) * labels[::-1]",
             "own * labels[::-1] + (1.0 - own) * labels",
             "tasks/test_wrappers.py::test_mixup_loss_is_the_mixture_of_two_losses"),
    Mutation("ops/mixing.py", "mixed, 1.0 - jnp.mean(paste", "mixed, jnp.mean(paste", "ops/test_mixing.py"),
    Mutation("tasks/adversarial.py", "x + step_size * jnp", "x - step_size * jnp",
             "tasks/test_wrappers.py::test_attack_raises_the_loss_more_than_noise"),
    Mutation("tasks/adversarial.py", "jnp.minimum(image + epsilon, 255.0)", "jnp.minimum(image + 2 * epsilon, 255.0)",
             "tasks/test_wrappers.py::test_epsilon_is_never_exceeded"),
    # ------------------------------------------------------------------- what is kept, and what others get
    Mutation("weights/checkpoint.py", "paths.digest(files[name]) != digests[name]", "name not in digests",
             "weights/test_checkpoint.py"),
    Mutation("weights/checkpoint.py", "(scores[s], -s)", "(scores[s], s)", "weights/test_checkpoint.py"),
    Mutation("weights/checkpoint.py", "{*there[-self.keep :], best}", "{*there[-self.keep :]}",
             "weights/test_checkpoint.py"),
    Mutation("weights/plan.py", "            missing.append(name if", "            (lambda _: None)(name if",
             "weights/test_plan.py"),
    Mutation("training/restore.py", 'tuple(source.about["classes"]) == tuple(classes)',
             'len(source.about["classes"]) == len(classes)',
             "training/test_loop.py::test_same_names_in_another_order_replace_the_head"),
    Mutation("training/evaluations.py", "sign = -1 if", "sign = 1 if",
             "training/test_loop.py::test_the_best_is_by_one_metric"),
    Mutation("errors.py", "exit_code = 75", "exit_code = 2",
             "runtime/test_stop.py::test_a_lost_terminal_saves_and_exits_75"),
    Mutation("runtime/goodput.py", 'min([session["last"], *(', 'max([session["last"], *(', "runtime/test_goodput.py"),
    Mutation("targets/class_.py", "behind <= TIE * scale, int", "behind <= 1e3 * TIE * scale, int",
             "deploy/test_certificate.py deploy/test_exporting.py::test_ties_and_differences"),
    Mutation("deploy/certificate.py", 'agreement["agreement"] >= bound', 'agreement["agreement"] >= 0',
             "deploy/test_exporting.py::test_ties_and_differences"),
    Mutation("targets/class_.py", 'predicted["logits"], "softmax"', 'predicted["logits"], "sigmoid"',
             "deploy/test_inference.py::test_a_workdir_says_what_its_network_makes_of_pillows_pixels"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a pattern (re.search) of the file, the old or the new text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="changes that are tried at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a test that hangs has noticed")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if re.search(options.only, str(mutation))]
    if not chosen:
        parser.error(f"--only {options.only!r} matches none of {len(MUTATIONS)} changes")
    changed = [(mutation, located(mutation)) for mutation in chosen]  # all are looked up before anything runs

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jaxvision-mutations-") as folder:
        copies: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        for k in range(min(options.jobs, len(chosen))):
            tree = pathlib.Path(folder) / str(k)
            copies.put(shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs")))
        tree = copies.get()
        asked = sorted({test for mutation in chosen for test in mutation.tests.split()})
        code, output = pytest(tree, asked, 60 * options.timeout, processes=options.jobs)
        if code:
            print(output, f"\nthe tests fail before anything is changed (exit code {code}): mend them first", sep="\n")
            return 2
        copies.put(tree)
        print(f"{len(asked)} files and tests pass as the tree is, {time.monotonic() - began:.0f} s", flush=True)

        def one(pair: tuple[Mutation, int]) -> dict[str, object]:
            mutation, line = pair
            tree = copies.get()
            try:
                row = {"place": f"{mutation.file}:{line}", **tried(tree, mutation, options.timeout)}
            finally:
                copies.put(tree)
            print(f"{row['fate']:<9} {row['seconds']:>5.0f} s  {row['place']:<34} {mutation.old!r} -> {mutation.new!r}",
                  *([f"\n{'':19}{row['by']}"] if row["by"] else []), sep="", flush=True)  # fmt: skip
            return row

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(one, changed))
    survived = [row for row in rows if row["fate"] == "SURVIVED"]
    for (mutation, _), row in zip(changed, rows, strict=True):
        if row["fate"] == "SURVIVED":
            print(f"\n{row['place']}: {mutation.equivalent or 'no test notices; write one'}")
    unexplained = [row["place"] for (m, _), row in zip(changed, rows) if row in survived and not m.equivalent]
    print(json.dumps({
        "mutations": len(rows), "noticed": len(rows) - len(survived), "survived": [row["place"] for row in survived],
        "unexplained": unexplained, "seconds": round(time.monotonic() - began, 1),
    }))  # fmt: skip
    return 1 if unexplained else 0


def located(mutation: Mutation) -> int:
    """The line of the change. Exits unless its old text is there once."""
    text = (ROOT / "jaxvision" / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        sys.exit(f"the line has moved: {mutation.old!r} is {count} times in jaxvision/{mutation.file}: correct it in "
                 "tests/mutations.py")  # fmt: skip
    return text[: text.index(mutation.old)].count("\n") + 1


def tried(tree: pathlib.Path, mutation: Mutation, timeout: float) -> dict[str, object]:
    """What becomes of a change in a copy of the tree, which is as before afterwards."""
    path = tree / "jaxvision" / mutation.file
    before, times = path.read_text(), path.stat()
    began = time.monotonic()
    path.write_text(before.replace(mutation.old, mutation.new))
    try:
        code, output = pytest(tree, mutation.tests.split(), timeout)
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # by which Python knows what it compiled
    if code not in (0, FAILED, INTERRUPTED, None):
        raise SystemExit(f"{mutation}: pytest ended with code {code}\n{output}")
    by = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", output, re.MULTILINE)
    fate = "SURVIVED" if code == 0 else "hangs" if code is None else "noticed"
    return {"fate": fate, "seconds": time.monotonic() - began, "by": by[1] if by else ""}


def pytest(tree: pathlib.Path, tests: Sequence[str], timeout: float, processes: int = 0) -> tuple[int | None, str]:
    """Exit code and output of these tests on a copy of the tree, without those that are marked slow; the code is None
    where they ran too long."""
    command = [sys.executable, "-m", "pytest", "-x", "-n", str(processes), "-p", "no:cacheprovider", "--durations=0"]
    with subprocess.Popen(
        [*command, "--durations-min=1e9", *(f"tests/{test}" for test in tests)],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""},
        text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
    return process.returncode, output


if __name__ == "__main__":
    sys.exit(main())
