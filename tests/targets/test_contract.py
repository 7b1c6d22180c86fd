"""What every kind of labels and predictions must keep to, over targets.__all__."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import targets
from jaxvision.data.sample import GEOMETRIES, batch_spec
from jaxvision.data.warp import Warp
from jaxvision.report.draw import join

CLASSES, ROWS = 3, 8
RNG = np.random.default_rng(0)
SHARP = np.where(np.eye(CLASSES, dtype=bool)[np.arange(ROWS) % CLASSES], 4.0, -4.0).astype(np.float32)
# Labels of ROWS samples, and what a task predicts that has them right.
CASES = {
    "class_": (np.arange(ROWS, dtype=np.int32) % CLASSES, {"logits": SHARP}),
    "tags": ((SHARP > 0).astype(np.float32), {"logits": SHARP, "probabilities": 1 / (1 + np.exp(-SHARP))}),
    "values": (SHARP * 10, {"values": SHARP * 10}),
}
NAMES = ("cat", "dog, or wolf", "=1+1")


def outputs(name, chosen=slice(None)):
    """All that is exported, of a task that has the labels right."""
    target = getattr(targets, name)
    return {k: np.asarray(v)[chosen] for k, v in target.complete(jax.tree.map(jnp.asarray, CASES[name][1])).items()}


def rows(name):
    """The rows of a report."""
    label, predicted = CASES[name]
    batch = {"label": jnp.asarray(label)}
    found = getattr(targets, name).per_sample(CLASSES).update(jax.tree.map(jnp.asarray, predicted), batch)
    return {k: np.asarray(v) for k, v in found.items()} | {"index": np.arange(ROWS), "place": np.arange(ROWS)}


def test_every_kind_is_here():
    assert set(CASES) == set(targets.__all__)
    assert len({target.name for target in targets.every()}) == len(targets.every())
    assert targets.find("none") is None


@pytest.mark.parametrize("name", targets.__all__)
def test_a_kind_is_found_by_its_name_and_by_its_rows(name):
    target = getattr(targets, name)
    assert targets.find(target.name) is target
    assert targets.of_rows(rows(name)) is target


@pytest.mark.parametrize("name", targets.__all__)
def test_fields_make_a_batch(name):
    target = getattr(targets, name)
    spec = batch_spec({"image": (4, 4, 3)}, target.fields, ROWS, classes=CLASSES, slots=2)
    assert all(array.shape[0] == ROWS for array in spec.values())
    assert all(field.geometry in GEOMETRIES for field in target.fields)
    if spec.get("label"):
        assert (CASES[name][0].shape, CASES[name][0].dtype) == (spec["label"].shape, spec["label"].dtype)


@pytest.mark.parametrize("name", targets.__all__)
def test_outputs_are_those_that_are_named(name):
    target = getattr(targets, name)
    assert {k: v.shape[1:] for k, v in outputs(name).items()} == target.outputs(CLASSES)
    assert target.main in target.outputs(CLASSES)
    if target.of_logits is not None:
        scores = target.scores(list(CASES[name][1]))
        made = target.of_logits(jnp.asarray(CASES[name][1].get("logits", SHARP)), scores)
        assert set(made) == set(target.outputs(CLASSES))


@pytest.mark.parametrize("name", targets.__all__)
def test_a_prediction_is_told_in_json_in_words_and_in_a_table(name):
    target = getattr(targets, name)
    for k in range(ROWS):
        found = target.prediction(NAMES, {key: values[k] for key, values in outputs(name).items()}, Warp.identity(4, 4))
        answer = found.to_dict(**target.options)
        assert json.loads(json.dumps(answer)) == answer
        assert isinstance(found.text(**target.options), str)
        assert repr(found).startswith(f"<{target.name}: ")
        heads = target.columns(NAMES, **target.options)
        assert len(target.cells(answer)) == len(heads) == len(set(heads))


@pytest.mark.parametrize("name", targets.__all__)
def test_the_same_is_the_same_and_another_is_not(name):
    target, mine = getattr(targets, name), outputs(name)
    same, ties = target.same(mine, mine, 1.0)
    assert (same.dtype, same.tolist(), ties) == (bool, [True] * ROWS, 0)
    other = outputs(name, (np.arange(ROWS) + 1) % ROWS)  # of the next sample, which is of another class
    same, _ = target.same(mine, other, 1.0)
    assert same.sum() <= 1


@pytest.mark.parametrize("name", targets.__all__)
def test_a_score_is_of_the_samples(name):
    target, label = getattr(targets, name), CASES[name][0]
    samples = [{"label": label[k], "index": k} for k in range(ROWS)]
    right, wrong = target.score(outputs(name), samples), target.score(outputs(name), samples[1:] + samples[:1])
    assert right.keys() == wrong.keys() != set()
    assert all(np.isfinite(v) for v in right.values())
    assert right != wrong


@pytest.mark.parametrize("name", [n for n in targets.__all__ if getattr(targets, n).objective])
def test_an_objective_is_larger_where_the_prediction_is_wrong(name):
    label, predicted = CASES[name]
    goal = getattr(targets, name).objective
    predicted = jax.tree.map(jnp.asarray, predicted)
    right = goal(predicted, {"label": jnp.asarray(label)})
    wrong = goal(predicted, {"label": jnp.asarray(np.roll(label, 1, 0))})
    assert right.shape == (ROWS,)
    assert (np.asarray(wrong > right) | (np.roll(label, 1, 0) == label).reshape(ROWS, -1).all(-1)).all()


@pytest.mark.parametrize("name", [n for n in targets.__all__ if getattr(targets, n).soft])
def test_soft_labels_stay_what_they_are(name):
    target, label = getattr(targets, name), jnp.asarray(CASES[name][0])
    soft = target.soft(label, CLASSES)
    assert soft.shape == (ROWS, CLASSES)
    np.testing.assert_array_equal(target.soft(soft, CLASSES), soft)


@pytest.mark.parametrize("name", targets.__all__)
def test_a_report_escapes_names(name):
    class Nothing:
        def both(self, by, worst, best, caption):
            return [caption(int(row)) for row in worst]

    target, label = getattr(targets, name), CASES[name][0]
    names = ("<b>cat</b>", "dog", "owl")
    page = join(target.section({"classes": names, "metrics": {}}, rows(name), Nothing()))
    source = type("Source", (), {"classes": names, "labels": label, "__len__": lambda self: ROWS})()
    page = join([page, *target.counts(source), target.words(names, {"label": label[0]})])
    assert "<b>cat" not in page
    assert "&lt;b&gt;cat" in page
    assert isinstance(target.lacking(1, CLASSES), str)
