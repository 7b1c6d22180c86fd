"""The law of a run: known answers, weights, classes, repeats, replacements, threads."""

import math
import pickle
import sys
import threading
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxvision.data import Order, class_weights, open_source, permutation
from jaxvision.data.order import Generators, Weights, generator
from jaxvision.errors import UserError

EXTREME = st.one_of(st.just(0.0), st.floats(-12, 12).map(lambda e: 10.0**e), st.sampled_from([1e-12, 1.0, 1e12]))


class Labelled:
    """What `class_weights` looks at."""

    kind, uri = "class", "labelled:"

    def __init__(self, labels, classes):
        self.labels, self.classes = np.asarray(labels, np.int32), tuple(classes)


def epoch(order, number=0):
    length = order.length * order.repeats
    return [order(n) for n in range(number * length, (number + 1) * length)]


def between(count, expected):
    """count is floor or ceil of expected, but for the rounding of float64."""
    return math.floor(expected - 1e-9) <= count <= math.ceil(expected + 1e-9)


def expected(weights):
    whole = sum(map(Fraction, weights))
    return [float(len(weights) * Fraction(w) / whole) for w in weights]


# --------------------------------------------------------------------------- known answers


def test_known_answers():
    """Computed once: another numpy must not change the order of a run that will be resumed."""
    assert permutation(2**63, 10**9, 12).tolist() == [1, 6, 9, 7, 8, 11, 3, 5, 0, 4, 2, 10]
    weighted = Order(3, 10, np.array([0, 1, 2, 3, 4, 0, 0.5, 0.25, 8, 0.1]))
    assert epoch(weighted, 0) == [8, 6, 3, 2, 8, 8, 8, 4, 1, 4]
    assert epoch(weighted, 7) == [4, 8, 1, 2, 8, 6, 8, 3, 8, 4]
    labels = [0, 1, 0, 0, 2, 0, 1, 0, 0, 0]
    assert epoch(Order(11, 10, Weights(np.array([1, 5, 10])[labels], np.array(labels)))) == [
        4,
        4,
        3,
        1,
        0,
        6,
        4,
        8,
        6,
        1,
    ]
    assert [Order(4, 1000).replacement(n, attempt) for n in (0, 1, 10**12) for attempt in range(3)] == [
        706,
        30,
        211,
        201,
        103,
        199,
        263,
        728,
        807,
    ]
    assert [weighted.replacement(n, attempt) for n in (0, 1, 10**12) for attempt in range(3)] == [
        8,
        8,
        8,
        4,
        8,
        8,
        3,
        6,
        8,
    ]
    assert [int(generator(5, n, 2).bit_generator.random_raw()) for n in (0, 1)] == [
        568258257682433795,
        6425906243578262961,
    ]


def test_generators_give_what_generator_gives():
    moved = Generators()
    for seed, n, position in ((0, 0, 0), (5, 2**40, 3), (2**32 - 1, 7, 1), (5, 2**40, 3)):
        rng = moved.at(seed, n, position)
        assert rng.random(5).tolist() == generator(seed, n, position).random(5).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(0, 10**18))
@settings(max_examples=50, deadline=None)
def test_without_weights_it_is_the_permutation(seed, length, n):
    number, place = divmod(n, length)
    assert Order(seed, length)(n) == permutation(seed, number, length)[place]


def test_far_away_is_quick():
    for order in (Order(0, 10_000), Order(0, 10_000, np.arange(10_000.0)), Order(0, 10_000, repeats=3)):
        begin = time.perf_counter()
        order(10**15)
        assert time.perf_counter() - begin < 60  # a walk there would take years


# --------------------------------------------------------------------------- weights


@given(st.lists(EXTREME, min_size=1, max_size=60).filter(any), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
@example([1e-12], 0, 0)
@example([1e12, 1e-12], 0, 0)
@example([0.0, 1.0, 0.0], 1, 2)
@example([0.1] * 60, 5, 5)
@settings(max_examples=200, deadline=None)
def test_each_sample_comes_as_often_as_its_share_says(weights, seed, number):
    got = Counter(epoch(Order(seed, len(weights), np.array(weights)), number))
    assert sum(got.values()) == len(weights)
    for i, share in enumerate(expected(weights)):
        assert between(got[i], share), (i, got[i], share)
        assert weights[i] or not got[i], "a sample of weight 0 came"


@pytest.mark.parametrize("weights", [[1e308] * 4, [5e-324] * 4, [1e-300] * 4])
def test_only_ratios_count(weights):
    assert epoch(Order(9, 4, np.array(weights))) == epoch(Order(9, 4, np.ones(4)))


def test_equal_weights_are_none():
    """Whatever the rounding, every sample comes once."""
    for length in (1, 7, 49, 1000):
        assert sorted(epoch(Order(1, length, np.full(length, 0.1)))) == list(range(length))


def test_long_run_frequency_is_the_weight():
    """The mean over independent epochs; each count's standard deviation is at most 1/2."""
    weights = np.array([0.3, 1, 1.7, 0, 2.5, 0.01, 4])
    epochs = 4000
    order = Order(2, len(weights), weights)
    counts = np.zeros(len(weights))
    for n in range(epochs * len(weights)):
        counts[order(n)] += 1
    assert counts / epochs == pytest.approx(expected(weights), abs=5 * 0.5 / epochs**0.5)


def test_epochs_and_seeds_differ_and_are_shuffled():
    weights = 1 + np.arange(1000) % 3
    order = Order(0, 1000, weights)
    first, second, other = epoch(order, 0), epoch(order, 1), epoch(Order(1, 1000, weights), 0)
    assert np.mean(np.equal(first, second)) < 0.02
    assert np.mean(np.equal(first, other)) < 0.02
    # As places in an epoch are random, the samples of each tenth of it come from everywhere.
    means = np.reshape(first, (10, 100)).mean(1)
    assert np.all(np.abs(means - 500) < 5 * 1000 / 12**0.5 / 10)


def test_what_has_no_weight_never_comes_however_the_ends_are_rounded():
    """The last point of the line belongs to the last sample that has a weight."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = int(rng.integers(2, 50))
        weights = rng.random(length)
        weights[-int(rng.integers(1, length)) :] = 0
        order = Order(0, length, weights)
        assert weights[order._at(np.nextafter(length, 0))] > 0


def test_one_sample_dominates():
    weights = np.ones(1000)
    weights[17] = 999.0
    drawn = np.array(epoch(Order(0, 1000, weights)))
    assert (drawn == 17).sum() in (500, 501)
    assert Counter(drawn[drawn != 17]).most_common(1)[0][1] == 1
    assert 200 < (drawn[:500] == 17).sum() < 300  # not one after the other


@pytest.mark.parametrize(
    "weights",
    [[1, 2], [1, 2, np.nan], [1, 2, np.inf], [1, 2, -1e-9], [0, 0, 0], [[1], [2], [3]], []],
)
def test_bad_weights(weights):
    with pytest.raises(UserError, match="sampling weights must be 3 finite numbers, none negative, not all 0"):
        Order(0, 3, np.array(weights, float))


def test_an_empty_source_is_left_to_train_batches():
    Order(0, 0, class_weights(Labelled([], "ab"), "balanced"))


# --------------------------------------------------------------------------- classes


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=120),
    st.lists(EXTREME, min_size=6, max_size=6),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_each_class_comes_as_often_as_its_share_says(labels, weights, seed, number):
    """Floor or ceil, too, wherever in the source its samples are.

    The samples of a class lie side by side on a line of length N, so the class is one interval of it, of length
    e = N * (its weight) / (all weight). The draws are the points start, start + 1, ...: a half-open interval of
    length e holds floor(e) or ceil(e) of them. If samples lay in the source's order, a class would be up to as many
    intervals as it has samples, and with the period of the points it could be off by a third of the epoch.
    """
    source = Labelled(labels, "abcdef")
    present = set(labels)
    balanced = Counter(labels[i] for i in epoch(Order(seed, len(labels), class_weights(source, "balanced")), number))
    assert all(between(balanced[c], len(labels) / len(present)) for c in present)
    named = dict(zip("abcdef", weights))
    if not any(weights[c] for c in labels):
        return
    order = Order(seed, len(labels), class_weights(source, "weighted", named))
    got = Counter(epoch(order, number))
    shares = expected([weights[c] for c in labels])
    assert all(between(got[i], share) for i, share in enumerate(shares))
    for c in present:
        share = math.fsum(s for s, label in zip(shares, labels) if label == c)
        assert between(sum(k for i, k in got.items() if labels[i] == c), share)


@pytest.mark.parametrize("pattern", [[0, 0, 1], [0, 1, 0, 0], [0, 1, 2, 0, 0, 0]])
def test_classes_in_turn_are_balanced(pattern):
    """The points' period meets that of the source."""
    labels = np.tile(pattern, 100)
    order = Order(0, len(labels), class_weights(Labelled(labels, "abc"[: max(pattern) + 1]), "balanced"))
    for number in range(5):
        counts = np.bincount(labels[epoch(order, number)])
        assert np.all(counts == len(labels) / len(counts))


def test_digits_are_balanced():
    source = open_source("digits:train")
    order = Order(0, len(source), class_weights(source, "balanced"))
    for number in range(3):
        counts = np.bincount(source.labels[epoch(order, number)], minlength=10)
        assert set(counts) <= {143, 144}  # 1437 / 10


def test_one_class_dominates():
    source = open_source("digits:train")
    order = Order(0, len(source), class_weights(source, "weighted", {"3": 1e9, "4": 0.0}))
    counts = np.bincount(source.labels[epoch(order)], minlength=10)
    assert counts[3] >= 1436
    assert counts[4] == 0


def test_uniform_is_none():
    source = open_source("digits:train")
    assert class_weights(source, "uniform") is None
    assert class_weights(source, "uniform", {}) is None


def test_classes_without_samples_and_not_named():
    weights = class_weights(Labelled([0, 2, 2], ["a", "b", "c"]), "balanced")
    assert weights.samples.tolist() == [1, 0.5, 0.5]
    weights = class_weights(Labelled([0, 2, 2], ["a", "b", "c"]), "weighted", {"c": 4})
    assert weights.samples.tolist() == [1, 4, 4]


@pytest.mark.parametrize(
    ("sampling", "weights", "wanted"),
    [
        ("balance", {}, "data.sampling is \"balance\": did you mean 'balanced'"),
        ("weighted", {"cta": 2.0}, "data.weights names 'cta', no class of labelled:: did you mean 'cat'"),
        ("weighted", {"zebra": 2.0}, "known: cat, dog"),
        ("weighted", {"cat": -1.0}, "gives 'cat' -1.0: it must be at least 0"),
        ("weighted", {"cat": math.nan}, "gives 'cat' nan"),
        ("weighted", {}, 'goes with data.sampling="weighted", and only with it'),
        ("uniform", {"cat": 2.0}, 'goes with data.sampling="weighted", and only with it'),
        ("balanced", {"cat": 2.0}, 'goes with data.sampling="weighted", and only with it'),
    ],
)
def test_bad_class_weights(sampling, weights, wanted):
    with pytest.raises(UserError) as error:
        class_weights(Labelled([0, 1], ["cat", "dog"]), sampling, weights)
    assert wanted in str(error.value)


@pytest.mark.parametrize("kind", ["tags", "values"])
def test_other_labels_have_no_classes(kind):
    source = Labelled([0, 1], ["cat", "dog"])
    source.kind = kind
    for sampling, weights in (("balanced", {}), ("weighted", {"cat": 1.0})):
        with pytest.raises(UserError, match=f"needs classes, and the labels of labelled: are {kind}"):
            class_weights(source, sampling, weights)
    assert class_weights(source, "uniform") is None


def test_weights_all_0():
    with pytest.raises(UserError, match="not all 0"):
        Order(0, 2, class_weights(Labelled([0, 0], ["cat", "dog"]), "weighted", {"cat": 0.0}))


# --------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 13)])
@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_repeats(repeats, weights):
    """Each sample so many times in a row; so length draws see length / repeats samples."""
    once, order = Order(3, 12, weights), Order(3, 12, weights, repeats)
    assert [order(n) for n in range(36 * repeats)] == [once(n // repeats) for n in range(36 * repeats)]
    if weights is None:
        assert len({order(n) for n in range(12)}) == -(-12 // repeats)
    assert sorted(epoch(order)) == sorted(i for i in epoch(once) for _ in range(repeats))


@pytest.mark.parametrize("repeats", [0, -1])
def test_bad_repeats(repeats):
    with pytest.raises(UserError, match=f"data.repeats is {repeats}: it must be at least 1"):
        Order(0, 3, repeats=repeats)


# --------------------------------------------------------------------------- replacements


def test_replacements_are_deterministic_uniform_and_differ():
    order, again = Order(1, 10), Order(1, 10)
    table = np.array([[order.replacement(n, attempt) for attempt in range(10)] for n in range(1000)])
    assert [again.replacement(n, 3) for n in range(1000)] == table[:, 3].tolist()
    counts = np.bincount(table.ravel(), minlength=10)
    assert np.all(np.abs(counts - 1000) < 5 * (1000 * 0.9) ** 0.5)
    assert len({tuple(row) for row in table}) == 1000  # another sequence for each n
    assert (np.array([Order(2, 10).replacement(n, 0) for n in range(1000)]) == table[:, 0]).mean() < 0.2
    # The later ones of a sequence do not follow from the first.
    assert abs(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) < 0.15


def test_replacements_follow_the_weights():
    order = Order(1, 4, np.array([0, 1, 0, 3.0]))
    counts = np.bincount([order.replacement(n, attempt) for n in range(1000) for attempt in range(2)], minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[3] / 2000 == pytest.approx(0.75, abs=0.05)


# --------------------------------------------------------------------------- threads and processes


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 98)])
def test_threads_read_what_one_thread_reads(weights):
    """Across epochs, so that the drawn ones are replaced under the others' feet."""
    wanted = [Order(0, 97, weights)(n) for n in range(97 * 40)]
    order, got = Order(0, 97, weights), {}

    def read(k):
        rng = np.random.Generator(np.random.Philox(k))
        near = np.sort((np.arange(97 * 40) + rng.integers(-97, 97, 97 * 40)).clip(0, 97 * 40 - 1))
        got[k] = [(int(n), order(int(n))) for n in near]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(got) == 8
    assert all(wanted[n] == i for pairs in got.values() for n, i in pairs)


def test_few_epochs_are_kept():
    order = Order(0, 50, np.arange(50.0))
    for number in (*range(20), 3, 0, 10**6):
        order(number * 50)
        assert len(order._drawn) <= 3


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 21), Weights(np.arange(1.0, 21), np.arange(20) % 3)])
def test_pickles(weights):
    order = Order(6, 20, weights, repeats=2)
    order(0)
    again = pickle.loads(pickle.dumps(order))
    assert [again(n) for n in range(200)] == [order(n) for n in range(200)]
    assert again.replacement(5, 1) == order.replacement(5, 1)


def test_partners_are_of_the_same_epoch_and_any_of_it():
    """Another epoch's order would be made anew for each."""
    order = Order(3, 10, repeats=2)
    found = {n: [order.partner(n, j) for j in range(40)] for n in (0, 7, 19, 20, 1005)}
    for n, partners in found.items():
        assert {m // 20 for m in partners} == {n // 20}
        assert len(set(partners)) > 12
    assert order.partner(7, 3) == Order(3, 10, repeats=2).partner(7, 3) == found[7][3]
    assert found[0] != [m - 20 for m in found[20]]
