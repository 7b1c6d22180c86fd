"""What each option of the tasks that learn from labels is for."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import tasks
from jaxvision.data.contract import InputContract
from jaxvision.losses import sigmoid_cross_entropy, sigmoid_focal, softmax_cross_entropy
from jaxvision.tasks.common import normalise
from tests.tasks.test_contract import CONTRACT, batch

LOGITS = np.random.default_rng(0).normal(0, 2, (8, 3)).astype(np.float32)
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 2], np.int32)


class Fixed(nn.Module):
    """A network that gives the same outputs whatever it sees."""

    logits: tuple
    classes: int = 0

    @nn.compact
    def __call__(self, image, *, train):
        self.param("kernel", nn.initializers.zeros, (1,))
        return {"logits": jnp.asarray(self.logits), "features": jnp.zeros((len(self.logits), 1))}


def fixed(logits):
    return Fixed(tuple(map(tuple, np.asarray(logits).tolist())))


def measured(factory, label, logits=LOGITS, **options):
    """(loss, logs, predictions) of fixed outputs."""
    task = factory(fixed(logits), CONTRACT, **options)
    data = {**batch(len(logits)), "label": jnp.asarray(label)}
    params, extra = task.init(jax.random.key(0), data)
    loss, (_, logs) = task.loss(params, extra, data, key=jax.random.key(1), step=jnp.int32(0))
    return float(loss), {k: float(v) for k, v in logs.items()}, task.predict(params, extra, data)


def test_pixels_are_normalised_as_the_contract_says():
    contract = InputContract(size=8, resize=8, mean=(0.5, 0.0, 0.2), std=(0.25, 1.0, 0.1))
    images = np.array([[0, 0, 0], [255, 255, 255], [127.5, 51, 51]], np.float32)[:, None, None]
    want = np.array([[-2, 0, -2], [2, 1, 8], [0, 0.2, 0]])[:, None, None]
    np.testing.assert_allclose(normalise(images, contract), want, atol=1e-6)
    np.testing.assert_allclose(normalise(images[:2].astype(np.uint8), contract), want[:2], atol=1e-6)


def test_class_weights():
    plain = softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    loss, _, _ = measured(tasks.classification, LABELS, class_weights=(1, 2.0, 0), classes=3)
    assert loss == pytest.approx(float(np.mean(plain * np.array([1, 2.0, 0])[LABELS])), rel=1e-5)
    # inverse frequency, of mean 1 over the samples: 8 / (3 * n)
    balanced = dict(class_weights="balanced", classes=3, labels=lambda: LABELS)
    loss, _, _ = measured(tasks.classification, LABELS, **balanced)
    want = np.array([8 / 18, 8 / 3, 8 / 3])
    assert want[LABELS].mean() == pytest.approx(1)
    assert loss == pytest.approx(float(np.mean(plain * want[LABELS])), rel=1e-5)
    soft, _, _ = measured(tasks.classification, np.eye(3, dtype=np.float32)[LABELS], **balanced)
    assert soft == pytest.approx(loss, rel=1e-6)


def test_sigmoid_loss_is_the_mean_over_the_classes():
    """As timm's BinaryCrossEntropy, smoothing spread over the classes."""
    soft = np.array([[0.7, 0.3, 0], [0.1, 0, 0.9]], np.float32)
    for smoothing, label in ((0.0, soft), (0.3, soft), (0.3, LABELS[:2])):
        target = (np.eye(3)[label] if label.ndim == 1 else label) * (1 - smoothing) + smoothing / 3
        options = dict(loss="sigmoid", label_smoothing=smoothing)
        loss, _, predicted = measured(tasks.classification, label, LOGITS[:2], **options)
        want = sigmoid_cross_entropy(jnp.asarray(LOGITS[:2]), jnp.asarray(target)).mean()
        assert loss == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(predicted["probabilities"], 1 / (1 + np.exp(-LOGITS[:2])), rtol=1e-5)
    loss, _, _ = measured(tasks.classification, soft, LOGITS[:2], loss="sigmoid", target_threshold=0.2)
    both = np.array([[1, 1, 0], [0, 0, 1]], np.float32)
    want = sigmoid_cross_entropy(jnp.asarray(LOGITS[:2]), jnp.asarray(both)).mean()
    assert loss == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_focal_makes_sure_samples_count_less(loss):
    sure = [[6.0, 0, 0]]
    for label, least in ((0, 100), (1, 1)):  # right and sure; wrong and sure
        plain = measured(tasks.classification, np.array([label]), sure, loss=loss)[0]
        focal = measured(tasks.classification, np.array([label]), sure, loss=loss, focal=2.0)[0]
        assert 0 < focal * (least if loss == "softmax" else 1) < plain


def test_binary_is_softmax_over_0_and_the_output():
    odds = LOGITS[:, :1]
    labels = np.arange(8, dtype=np.int32) % 2
    both = np.concatenate([0 * odds, odds], -1)
    loss, logs, predicted = measured(tasks.binary, labels, odds)
    np.testing.assert_array_equal(predicted["logits"], both)
    assert loss == pytest.approx(float(softmax_cross_entropy(jnp.asarray(both), jnp.asarray(labels)).mean()), rel=1e-5)
    assert logs["top1"] == np.mean(both.argmax(-1) == labels)
    soft, _, _ = measured(tasks.binary, np.eye(2, dtype=np.float32)[labels], odds)
    assert soft == pytest.approx(loss, rel=1e-6)
    # six of the first class for two of the second: a positive counts three times
    labels = np.array([0, 1, 0, 0, 0, 0, 1, 0], np.int32)
    balanced, _, _ = measured(tasks.binary, labels, odds, pos_weight="balanced", labels=lambda: labels)
    cross_entropy = softmax_cross_entropy(jnp.asarray(both), jnp.asarray(labels))
    assert balanced == pytest.approx(float(np.mean(cross_entropy * np.where(labels, 3, 1))), rel=1e-5)


def test_multilabel_is_the_mean_over_classes():
    tags = (LOGITS > 1).astype(np.float32)
    loss, logs, predicted = measured(tasks.multilabel, tags, label_smoothing=0.2, pos_weight=(1.0, 2.0, 3.0))
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    target = 0.8 * tags + 0.1
    want = -np.array([1, 2, 3]) * target * np.log(p) - (1 - target) * np.log(1 - p)
    assert loss == pytest.approx(want.mean(), rel=1e-5)
    assert logs["accuracy"] == pytest.approx(np.mean((LOGITS > 0) == tags))
    np.testing.assert_allclose(predicted["probabilities"], p, rtol=1e-5)


def test_unknown_tags_are_left_out_of_the_loss():
    """NaN is unknown: the loss is that of the known tags, no gradient comes of the others, nor of a sample of none."""
    tags = (LOGITS > 1).astype(np.float32)
    unknown = np.random.default_rng(0).random(tags.shape) < 0.4
    unknown[0], unknown[1] = True, False
    label = np.where(unknown, np.nan, tags)
    options = dict(label_smoothing=0.2, pos_weight=(1.0, 2.0, 3.0), focal=1.0)
    loss, logs, _ = measured(tasks.multilabel, label, **options)
    rows = [measured(tasks.multilabel, tags[i : i + 1][:, ~u], LOGITS[i : i + 1][:, ~u],
                     **{**options, "pos_weight": tuple(np.array(options["pos_weight"])[~u])})
            for i, u in enumerate(unknown) if not u.all()]  # fmt: skip
    assert loss == pytest.approx(sum(value for value, _, _ in rows) / len(tags), rel=1e-5)
    assert logs["accuracy"] == pytest.approx(sum(log["accuracy"] for _, log, _ in rows) / len(tags))
    slopes = jax.grad(lambda x: jnp.sum(sigmoid_focal(x, jnp.asarray(label), gamma=1.0)))(jnp.asarray(LOGITS))
    assert np.isfinite(slopes).all()
    assert ((slopes == 0) == unknown).all()


@pytest.mark.parametrize("loss", ["mse", "huber", "mae"])
def test_regression_learns_standardised_labels_and_predicts_in_their_units(loss):
    train = np.array([[0, 5, 2], [10, 5, 6]], np.float32)  # means 5, 5, 4; deviations 5, 0 (so 1), 2
    mean, std = np.array([5, 5, 4]), np.array([5, 1, 2])
    labels = np.random.default_rng(1).normal(0, 10, (8, 3)).astype(np.float32)
    got, logs, predicted = measured(tasks.regression, labels, loss=loss, classes=3, labels=lambda: train, delta=2.0)
    np.testing.assert_allclose(predicted["values"], LOGITS * std + mean, rtol=1e-5)
    d = np.abs(LOGITS - (labels - mean) / std)
    want = {"mse": d**2, "mae": d, "huber": np.where(d <= 2, d**2 / 2, 2 * (d - 1))}[loss]
    assert got == pytest.approx(want.mean(), rel=1e-4)
    assert logs["mae"] == pytest.approx(np.abs(LOGITS * std + mean - labels).mean(), rel=1e-4)


@pytest.mark.parametrize("classes", [3, 5])
def test_ordinal_begins_with_all_classes_as_likely_and_falls_whatever_the_thresholds(classes):
    task = tasks.ordinal(fixed([[0.0], [3.0]]), CONTRACT, classes=classes)
    params, extra = task.init(jax.random.key(0), batch(2))
    logits = task.predict(params, extra, batch(2))["logits"]
    np.testing.assert_allclose(np.exp(logits[0]), 1 / classes, rtol=1e-4)
    for seed in range(3):
        wild = {**params, "thresholds": 5 * jax.random.normal(jax.random.key(seed), (classes - 1,))}
        logits = task.predict(wild, extra, batch(2))["logits"]
        assert jnp.all(jnp.isfinite(logits))
        np.testing.assert_allclose(np.exp(logits).sum(-1), 1, atol=1e-4)
        rank = (np.exp(logits).cumsum(-1)[:, :-1] < 0.5).sum(-1)
        assert rank[1] >= rank[0]  # a larger output is never a lower rank


@pytest.mark.parametrize("wrap", [tasks.mixup, tasks.cutmix])
@pytest.mark.parametrize("name", ["binary", "multilabel", "ordinal", "regression"])
def test_mixing_takes_every_kind_of_label(name, wrap):
    """Outputs that stand still show what becomes of the labels: their loss is linear in them, but for regression."""
    data = batch(name=name)
    classes = {"binary": 2, "regression": 2}.get(name, 3)
    outputs = LOGITS[:, : {"binary": 1, "ordinal": 1}.get(name, classes)]
    task = getattr(tasks, name)(fixed(outputs), CONTRACT, classes=classes)
    params, extra = task.init(jax.random.key(0), data)
    seen = []

    def spy(params, extra, data, *, key, step):
        seen.append(data["label"])
        return task.loss(params, extra, data, key=key, step=step)

    def loss(task, label):
        return float(task.loss(params, extra, {**data, "label": label}, key=jax.random.key(3), step=jnp.int32(0))[0])

    mixed = loss(wrap(task._replace(loss=spy), classes=classes), data["label"])
    flipped = data["label"][::-1].copy()
    plain, partner = loss(task, data["label"]), loss(task, flipped)
    soft = np.eye(classes)[data["label"]] if data["label"].ndim == 1 else data["label"]
    difference = soft - soft[::-1]
    own = float(((seen[0] - soft[::-1]) * difference).sum() / np.square(difference).sum())
    if name == "regression":
        assert np.isfinite(mixed)
    else:
        assert mixed == pytest.approx(own * plain + (1 - own) * partner, rel=1e-4)
    assert loss(wrap(task, classes=classes, probability=0.0), data["label"]) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        (tasks.classification, dict(loss="sigmod"), "loss is 'sigmod': did you mean 'sigmoid'"),
        (tasks.classification, dict(label_smoothing=1.0), "label_smoothing must be in"),
        (tasks.classification, dict(focal=-1.0), "focal is the exponent"),
        (tasks.classification, dict(target_threshold=0.2), 'goes with loss="sigmoid"'),
        (tasks.classification, dict(class_weights="balance"), "did you mean 'balanced'"),
        (tasks.classification, dict(class_weights=(1.0,), classes=3), "has 1 numbers, there are 3 classes"),
        (tasks.classification, dict(class_weights=(1, -1, 1), classes=3), "none negative"),
        (tasks.classification, dict(class_weights="balanced", classes=4, labels=lambda: LABELS), "class 3 has no"),
        (tasks.binary, dict(classes=3), "there are 3: take classification"),
        (tasks.binary, dict(pos_weight=0.0), "pos_weight must be above 0"),
        (tasks.binary, dict(pos_weight="balanced", labels=lambda: 0 * LABELS), "class 1 has no training sample"),
        (tasks.multilabel, dict(pos_weight=(1.0, 2.0), classes=3), "has 2 numbers, there are 3 classes"),
        (tasks.multilabel, dict(pos_weight=-1.0), "pos_weight must be above 0"),
        (tasks.regression, dict(loss="l2", classes=1), "loss is 'l2': known: huber, mae, mse"),
        (tasks.regression, dict(loss="huber", delta=0.0, classes=1), "delta must be above 0"),
        (tasks.ordinal, dict(classes=2), "there are 2: take binary"),
    ],
)
def test_options_that_make_no_sense(factory, options, words):
    with pytest.raises(ValueError, match=words):
        factory(fixed(LOGITS), CONTRACT, **options)


@pytest.mark.parametrize(("factory", "key"), [(tasks.classification, "class_weights"), (tasks.binary, "pos_weight")])
def test_balanced_without_labels_predicts_and_does_not_learn(factory, key):
    options = types.MappingProxyType({key: "balanced"})
    task = factory(fixed(LOGITS[:, :1]), CONTRACT, **options)
    params, extra = task.init(jax.random.key(0), batch(8))
    assert task.predict(params, extra, batch(8))["logits"].shape[0] == 8
    with pytest.raises(ValueError, match=f'{key}="balanced" needs the training labels'):
        task.loss(params, extra, batch(8), key=jax.random.key(0), step=jnp.int32(0))
