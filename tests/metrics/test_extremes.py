"""Every metric of metrics.__all__ beside a plain reading in float64, where numbers are extreme.

Extreme but legal: logits of 1e4, temperatures of 0.001, features of zeros, that are constant, or whose squares no
float32 holds, labels of one class, unknown labels, predictions in bfloat16, a million rows. A new metric adds a line to
CASES.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
from sklearn import metrics as sk

from jaxvision import metrics
from tests.metrics.test_contract import measure

KINDS = ("plain", "huge", "constant", "offset", "tiny", "zero")
NAN = float("nan")


def top(logits, label, k=1):
    """Share of rows in which fewer than k others score at least as high as the label."""
    return np.mean([sum(~(np.delete(x, y) < x[y])) < k for x, y in zip(logits, label, strict=True)])


def area(scores, positive):
    """The share of pairs (positive, negative) that are in order, a tie counts half."""
    a, b = scores[positive][:, None], scores[~positive][None]
    return float(((a > b) + (a == b) / 2).mean()) if a.size and b.size else NAN


def average_precision(scores, positive):
    return float(sk.average_precision_score(positive, scores)) if positive.any() else NAN


def best_f1(scores, positive):
    cuts = [sk.f1_score(positive, scores >= t) for t in np.unique(scores)]
    return max(cuts) if positive.any() else NAN


def bce(logits, positive):
    return float(np.logaddexp(0, np.where(positive, -logits, logits)).mean())


def mean(values):
    values = [v for v in values if not np.isnan(v)]
    return float(np.mean(values)) if values else NAN


def cross_entropy(logits, label):
    return float(-log_softmax(logits, -1)[np.arange(len(label)), label].mean())


def topk(logits, label):
    return {"top1": top(logits, label), "top5": top(logits, label, 5), "loss": cross_entropy(logits, label)}


def per_class(logits, label):
    each = {c: top(logits[label == c], label[label == c]) for c in np.unique(label)}
    return {"balanced_accuracy": mean(each.values()), "absent_classes": 6 - len(each), "top1": top(logits, label),
            **{f"accuracy/{c}": v for c, v in each.items()}}  # fmt: skip


def ordinal(logits, label):
    rank = (softmax(logits, -1).cumsum(-1)[:, :-1] < 0.5 - 1e-6).sum(-1)
    one = len(np.unique(label)) == len(np.unique(rank)) == 1 and label[0] == rank[0]
    kappa = NAN if one else sk.cohen_kappa_score(label, rank, weights="quadratic", labels=range(6))
    return {"top1": top(logits, label), "loss": cross_entropy(logits, label), "kappa": kappa,
            "mae": np.abs(rank - label).mean()}  # fmt: skip


def auroc(logits, label):
    others = [logsumexp(np.delete(logits, c, 1), -1) for c in range(6)]
    each = {f"auroc/{c}": area(logits[:, c] - others[c], label == c) for c in range(6)}
    return {"auroc": mean(each.values()), "top1": top(logits, label),
            "absent_classes": sum(np.isnan(v) for v in each.values()),
            **{k: v for k, v in each.items() if not np.isnan(v)}}  # fmt: skip


def binary(logits, label):
    odds, positive = logits[:, 1] - logits[:, 0], label == 1
    return {"auroc": area(odds, positive), "ap": average_precision(odds, positive), "f1": best_f1(odds, positive),
            "top1": top(logits, label), "loss": bce(odds, positive)}  # fmt: skip


def multilabel(logits, label):
    known = ~np.isnan(label)
    each = {"ap": [], "auroc": [], "f1": []}
    for k in range(6):
        x, y = logits[known[:, k], k], label[known[:, k], k] == 1
        if y.any() and not y.all():
            for name, of in (("ap", average_precision), ("auroc", area), ("f1", best_f1)):
                each[name].append(of(x, y))
    return {"map": mean(each["ap"]), "auroc": mean(each["auroc"]), "f1": mean(each["f1"]),
            "absent_classes": 6 - len(each["ap"]), "map_micro": average_precision(logits[known], label[known] == 1),
            "loss": bce(logits[known], label[known] == 1) if known.any() else NAN}  # fmt: skip


def regression(values, label):
    error = values - label
    total = np.square(label - label.mean(0)).sum(0)
    with np.errstate(all="ignore"):
        r2 = np.where(total > 0, 1 - np.square(error).sum(0) / total, (error == 0).all(0))
    return {"mse": np.square(error).mean(), "mae": np.abs(error).mean(), "r2": r2.mean()}


def unit(x):
    return x / np.where(np.linalg.norm(x, axis=1) > 0, np.linalg.norm(x, axis=1), 1)[:, None]


def knn(features, label, bank, bank_label, temperature):
    """Top-1; votes by the logarithm of their sum. None where neighbours or votes are as good as equal."""
    right = []
    for x, y in zip(unit(features), label, strict=True):
        cosine = np.sort(unit(bank) @ x)
        order = np.argsort(unit(bank) @ x)[-3:]
        votes = [np.logaddexp.reduce([-np.inf, *(unit(bank) @ x)[order[bank_label[order] == c]] / temperature])
                 for c in range(6)]  # fmt: skip
        second, first = np.sort(votes)[-2:]
        if cosine[-3] - cosine[-4] < 1e-5 or first < second + 1e-5 / temperature:
            return None
        right.append(np.argmax(votes) == y)
    return {"knn": np.mean(right)}


class Draw:
    """Predictions and labels of one kind of extremes, float32 values that the dtype holds."""

    def __init__(self, seed, kind, dtype, one_class):
        self.rng, self.kind, self.dtype, self.one_class = np.random.default_rng(seed), kind, dtype, one_class

    def rows(self, count, width, *, features=False):
        x = self.rng.normal(size=(count, width))
        if self.kind == "huge":
            x = x * 1e25 if features else np.clip(x, -1, 1) * 1e4
        elif self.kind == "constant":
            x = np.full_like(x, x[0, 0])
        elif self.kind == "offset":
            x = 1e4 + 0.01 * x
        elif self.kind == "tiny":
            x = x * 1e-25
        elif self.kind == "zero":
            x = x * (self.rng.random((count, 1)) < 0.5)
        return np.asarray(jnp.asarray(x, self.dtype).astype(jnp.float32))

    def labels(self, classes, count=12):
        labels = self.rng.integers(0, classes, count).astype(np.int32)
        return np.full_like(labels, labels[0]) if self.one_class else labels

    def tags(self):
        tags = self.rng.choice([0.0, 1.0, 1.0, np.nan], (12, 6)).astype(np.float32)
        return np.where(np.isnan(tags), tags, tags[:1]) if self.one_class else tags


# name -> (width of what is predicted, by which name, draw -> labels, the reference)
CASES = {
    "topk": (6, "logits", lambda d: d.labels(6), topk),
    "per_class": (6, "logits", lambda d: d.labels(6), per_class),
    "ordinal": (6, "logits", lambda d: d.labels(6), ordinal),
    "auroc": (6, "logits", lambda d: d.labels(6), auroc),
    "binary": (2, "logits", lambda d: d.labels(2), binary),
    "multilabel": (6, "logits", lambda d: d.tags(), multilabel),
    "regression": (6, "values", lambda d: d.rows(12, 6), regression),
}
OF_FEATURES = ("knn", "probe")


def test_every_metric_is_here():
    assert {*CASES, *OF_FEATURES} == set(metrics.__all__)


def batch(label):
    return {"label": label, "mask": np.ones(len(label), bool), "index": np.arange(len(label))}


def each_kind(test):
    for kind in KINDS:
        test = example(seed=0, kind=kind, dtype=jnp.float32, one_class=False)(test)
    return test


DRAWS = dict(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    one_class=st.booleans(),
)


@pytest.mark.parametrize("name", sorted(CASES))
@settings(deadline=None, max_examples=8)
@each_kind
@given(**DRAWS)
def test_is_float64s_answer_at_extremes(name, seed, kind, dtype, one_class):
    width, predicted, labels, reference = CASES[name]
    draw = Draw(seed, kind, dtype, one_class)
    x, label = draw.rows(12, width), labels(draw)
    got = measure(getattr(metrics, name)(classes=width), ({predicted: jnp.asarray(x, dtype)}, batch(label)))
    want = reference(x.astype(np.float64), label.astype(np.float64) if label.dtype == np.float32 else label)
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)


@settings(deadline=None, max_examples=25)
@each_kind
@given(**DRAWS)
def test_knn_is_float64s_answer_at_extremes(seed, kind, dtype, one_class):
    draw = Draw(seed, kind, dtype, one_class)
    x, bank = (draw.rows(count, 5, features=True) for count in (12, 30))
    label, theirs = draw.labels(6), draw.labels(6, 30)
    for temperature in (0.001, 0.01, 0.07, 100.0):
        want = knn(x.astype(np.float64), label, bank.astype(np.float64), theirs, temperature)
        metric = metrics.knn(classes=6, k=3, temperature=temperature)
        got = metric.finish({"features": x, "label": label}, {"features": bank, "label": theirs})
        assert np.isfinite(list(got.values())).all()
        if want is not None:
            assert got["knn"] == pytest.approx(want["knn"])


def test_a_temperature_of_a_hundredth_still_votes():
    """cosine / temperature is 100: its exponential is no float32, and the maximum was not taken off once."""
    rng = np.random.default_rng(0)
    label = np.arange(300) % 3
    rows = {"features": (np.eye(3)[label] + 0.5 * rng.normal(size=(300, 3))).astype(np.float32), "label": label}
    query, bank = ({k: v[s] for k, v in rows.items()} for s in (slice(0, 100), slice(100, None)))
    near = metrics.knn(classes=3, k=200, temperature=0.0001).finish(query, bank)["knn"]
    assert near == metrics.knn(classes=3, k=1).finish(query, bank)["knn"]
    assert metrics.knn(classes=3, k=200, temperature=0.01).finish(query, bank)["knn"] > 0.7


@settings(deadline=None, max_examples=15)
@each_kind
@given(**DRAWS)
def test_probe_does_not_depend_on_the_scale_of_features(seed, kind, dtype, one_class):
    """The features are standardised, so of any scale it finds what it finds at an ordinary one."""
    draw = Draw(seed, kind, dtype, one_class)
    x, bank = (draw.rows(count, 5, features=True) for count in (12, 30))
    label, theirs = draw.labels(3), draw.labels(3, 30)

    def measured(scale):
        rows = ({"features": v * np.float32(scale), "label": y} for v, y in ((x, label), (bank, theirs)))
        return metrics.probe(classes=3).finish(*rows)["probe"]

    assert 0 <= measured(1) <= 1
    assert measured(1) == measured(2.0**-10)  # exact, so the fit is the same
    if len(set(theirs)) == 1:
        assert measured(1) == np.mean(label == theirs[0])
    if kind == "constant":
        assert measured(1) == np.mean(label == np.bincount(theirs).argmax()) or len(set(theirs)) > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_wrong_and_raise_nothing(bad):
    label = np.arange(30) % 3
    good = {"features": np.eye(3, dtype=np.float32)[label], "label": label}
    broken = {**good, "features": np.where(np.arange(30)[:, None] < 6, np.float32(bad), good["features"])}
    for name, metric in (("knn", metrics.knn(classes=3)), ("probe", metrics.probe(classes=3))):
        assert metric.finish(broken, good)[name] == pytest.approx(0.8)
    assert metrics.knn(classes=3, k=5).finish(good, broken)["knn"] == 1.0
    assert np.isnan(metrics.probe(classes=3).finish(good, broken)["probe"])
    assert np.isnan(metrics.knn(classes=3).finish(broken, good)["effective_rank"])


def test_a_million_rows():
    """Sums of a batch are float32 or int32 on the device: of as many as fit into none they lose digits."""
    count = 1_000_000
    label = (np.arange(count) % 10 == 0).astype(np.int32)
    logits = np.stack([np.full(count, 0.1), np.where(np.arange(count) % 4 == 0, 0.3, -0.3)], -1).astype(np.float32)
    loss = cross_entropy(logits.astype(np.float64), label)
    right = np.mean((logits[:, 1] > logits[:, 0]) == label)
    for name in ("topk", "per_class", "ordinal", "auroc", "binary"):
        got = measure(getattr(metrics, name)(classes=2), ({"logits": logits}, batch(label)))
        assert got["top1"] == pytest.approx(right, abs=1e-9), name
        assert got.get("loss", loss) == pytest.approx(loss, rel=1e-6), name
    values = np.stack([logits[:, 1]] * 2, -1)
    got = measure(metrics.regression(classes=2), ({"values": values + 1000}, batch(values + 999)))
    assert got["mae"] == pytest.approx(1, rel=1e-4)
    assert got["mse"] == pytest.approx(1, rel=1e-4)
