"""What each wrapper is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision import targets, tasks
from jaxvision.task import Task
from jaxvision.tasks.adversarial import attack
from jaxvision.training.step import init_state, make_step
from tests.tasks.test_contract import CLASSES, batch, classification, ready


def test_ema_is_the_average_of_the_formula():
    task = tasks.ema(classification("batch"), decay=0.9)
    tx = optax.sgd(0.1)
    state = init_state(task, tx, jax.random.key(0), batch(), None)
    step = jax.jit(make_step(task, tx, seed=0))
    leaf = lambda s: np.asarray(s.params["model"]["fc"]["bias"], np.float64)  # noqa: E731
    stats = lambda s: np.asarray(s.extra["model"]["batch_stats"]["bn1"]["mean"], np.float64)  # noqa: E731
    want, want_stats = leaf(state), stats(state)
    for t in range(4):
        state, _ = step(state, batch())
        d = min(0.9, (1 + t) / (10 + t))
        want, want_stats = d * want + (1 - d) * leaf(state), d * want_stats + (1 - d) * stats(state)
    np.testing.assert_allclose(state.extra["ema"]["params"]["model"]["fc"]["bias"], want, rtol=1e-5)
    np.testing.assert_allclose(
        state.extra["ema"]["model"]["batch_stats"]["bn1"]["mean"], want_stats, rtol=1e-5, atol=1e-7
    )
    plain = classification("batch")
    averaged = plain.predict(state.extra["ema"]["params"], state.extra["ema"], batch())["logits"]
    np.testing.assert_allclose(task.predict(state.params, state.extra, batch())["logits"], averaged, rtol=1e-5)


def test_ema_moves_once_a_step_under_accumulation():
    task = tasks.ema(classification("none"), decay=0.9)
    tx = optax.sgd(0.1)
    state = init_state(task, tx, jax.random.key(0), batch(), None)
    after, _ = jax.jit(make_step(task, tx, seed=0, accumulate=4))(state, batch())
    old, new = state.params["model"]["fc"]["bias"], after.params["model"]["fc"]["bias"]
    np.testing.assert_allclose(after.extra["ema"]["params"]["model"]["fc"]["bias"], 0.1 * old + 0.9 * new, rtol=1e-5)


@pytest.mark.parametrize("wrap", [tasks.mixup, tasks.cutmix])
def test_mixing_with_probability_0_changes_nothing(wrap):
    plain, params, extra, _ = ready("classification", "none")
    task = wrap(classification("none", label_smoothing=0.1), classes=CLASSES, probability=0.0)
    arguments = dict(key=jax.random.key(3), step=jnp.int32(0))
    assert task.loss(params, extra, batch(), **arguments)[0] == pytest.approx(
        float(plain.loss(params, extra, batch(), **arguments)[0]), rel=1e-6
    )


def test_the_unknown_tags_of_a_partner_spoil_mixtures_alone():
    """A tag of a mixture is unknown where it is of either image; what is not mixed keeps its own."""
    from jaxvision.task import Task

    labels = np.eye(8, 3, dtype=np.float32)
    labels[7, 1] = np.nan
    data = {**batch(), "label": labels, "mask": np.arange(8) != 6}  # the partner of row 1 is padding

    def spy(params, extra, data, *, key, step):
        return data["label"], (extra, {})

    task = Task(None, spy, None, learns=targets.tags)
    for probability in (1.0, 0.0):
        wrapped = tasks.mixup(task, classes=3, alpha=0.4, probability=probability)
        mixed, _ = wrapped.loss({}, {}, data, key=jax.random.key(3), step=jnp.int32(0))
        unknown = np.zeros((8, 3), bool)
        unknown[7, 1] = True
        unknown[0, 1] = probability == 1.0
        np.testing.assert_array_equal(np.isnan(mixed), unknown)
        np.testing.assert_array_equal(mixed[1], labels[1])


def test_mixup_loss_is_the_mixture_of_two_losses():
    """Cross-entropy is linear in the target: lam * CE(x, y) + (1 - lam) * CE(x, y of the partner)."""
    from jaxvision.losses import softmax_cross_entropy

    plain, params, extra, _ = ready("classification", "none")
    seen = []

    def spy(params, extra, data, *, key, step):
        seen.append(data)
        return plain.loss(params, extra, data, key=key, step=step)

    task = tasks.mixup(plain._replace(loss=spy), classes=CLASSES, alpha=0.4)
    data = batch()
    task.loss(params, extra, data, key=jax.random.key(3), step=jnp.int32(0))
    (mixed,) = seen
    own = float(mixed["label"][0, data["label"][0]])
    assert 0 < own < 1
    logits = plain.predict(params, extra, mixed)["logits"]
    first = softmax_cross_entropy(logits, jnp.asarray(data["label"]))
    second = softmax_cross_entropy(logits, jnp.asarray(data["label"][::-1]))
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, mixed["label"]), own * first + (1 - own) * second, rtol=1e-4
    )
    np.testing.assert_allclose(
        mixed["image"],
        own * data["image"].astype(np.float32) + (1 - own) * data["image"][::-1],
        rtol=1e-4,
        atol=1e-2,
    )


def test_mixup_with_cutmix_mixes_each_batch_in_one_of_the_two_ways():
    from jaxvision.task import Task

    data = batch()
    plain = Task(None, lambda params, extra, data, *, key, step: (data["image"], data["label"]), None)._replace(
        learns=targets.class_
    )
    task = tasks.mixup(plain, classes=CLASSES, alpha=0.8, cutmix_alpha=1.0)
    keys = jax.random.split(jax.random.key(0), 100)
    images, labels = jax.jit(jax.vmap(lambda key: task.loss({}, {}, data, key=key, step=0)))(keys)
    one, two = (np.asarray(x, np.float32) for x in (data["image"], data["image"][::-1]))
    one_hot = np.eye(CLASSES)[data["label"]]
    own = np.asarray(labels)[:, 0, data["label"][0]]  # row 0's partner has another class
    pasted = np.array([np.all((x == one) | (x == two)) for x in np.asarray(images)])
    assert 35 <= pasted.sum() <= 65
    for image, share, paste in zip(np.asarray(images), own, pasted):
        if paste:
            assert np.mean(image[0] == one[0]) >= share - 1e-6  # more where both images have the same level
        else:
            np.testing.assert_allclose(image, share * one + (1 - share) * two, atol=1e-2)
    want = own[:, None, None] * one_hot + (1 - own[:, None, None]) * one_hot[::-1]
    np.testing.assert_allclose(labels, want, atol=1e-6)
    with pytest.raises(ValueError, match="cutmix_alpha must be positive"):
        tasks.mixup(plain, classes=CLASSES, cutmix_alpha=-1.0)


def attacked(data, made=None, **options):
    task, params, extra = made or ready("classification", "batch")[:3]
    return jax.jit(lambda d, k: attack(task, params, extra, d, k, **options))(data, jax.random.key(5))


def linear():
    """The cheapest network, since each epsilon is compiled; they are few, so that the cache has them all."""

    def predict(params, extra, batch):
        x = batch["image"] / 255
        return {"logits": jnp.einsum("bhwc,hwco->bo", x, params) + extra}

    return (
        Task(None, None, predict, learns=targets.class_),
        jax.random.normal(jax.random.key(0), (8, 8, 3, CLASSES)),
        jnp.zeros(CLASSES),
    )


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.sampled_from([0.25, 0.3, 1 / 3, 1.0, 4.0, 5.1, 8.0, 63.9, 255.0]),
    steps=st.sampled_from([1, 3]),
    start=st.booleans(),
)
def test_epsilon_is_never_exceeded(seed, epsilon, steps, start):
    data = batch(4, seed)
    data["image"][0] = 0
    data["image"][1] = 255
    check_epsilon(data, attacked(data, linear(), epsilon=epsilon, steps=steps, random_start=start), epsilon)


def check_epsilon(data, images, epsilon):
    images = np.asarray(images, np.float64)
    assert images.min() >= 0
    assert images.max() <= 255
    assert np.abs(images - data["image"]).max() <= epsilon  # exactly: no tolerance


@pytest.mark.parametrize("epsilon", [0.3, 4.0])
def test_epsilon_is_never_exceeded_on_a_network(epsilon):
    data = batch(4)
    check_epsilon(data, attacked(data, epsilon=epsilon, steps=3), epsilon)


@pytest.mark.parametrize("steps", [1, 5])
def test_attack_raises_the_loss_more_than_noise(steps):
    task, params, extra, _ = ready("classification", "batch")
    data = batch(8)

    def loss(images):
        from jaxvision.losses import softmax_cross_entropy

        return float(
            softmax_cross_entropy(task.predict(params, extra, {"image": images})["logits"], data["label"]).mean()
        )

    adversarial = loss(attacked(data, epsilon=8.0, steps=steps))
    noise = np.clip(data["image"] + np.random.default_rng(0).choice([-8.0, 8.0], data["image"].shape), 0, 255)
    assert adversarial > loss(noise.astype(np.float32)) + 0.05
    assert adversarial > loss(data["image"]) + 0.05


def test_fgsm_without_random_start_is_the_sign_of_the_gradient():
    task, params, extra, _ = ready("classification", "batch")
    data = batch(4)

    def total(x):
        logits = task.predict(params, extra, {"image": x})["logits"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(data["label"])[:, None], 1).sum()

    x = data["image"].astype(np.float32)
    want = np.clip(x + 4 * np.sign(jax.grad(total)(x)), 0, 255)
    got = attacked(data, epsilon=4.0, steps=1, random_start=False)
    assert np.mean(np.asarray(got) == want) > 0.999  # the sign of a gradient of ~1e-9 may differ


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(epsilon=4 / 255), "give 4"), (dict(epsilon=0), "epsilon"), (dict(epsilon=4.0, steps=0), "at least one step"),
     (dict(epsilon=4.0, step_size=-1.0), "step_size")],
)  # fmt: skip
def test_impossible_attacks_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        tasks.adversarial(classification("batch"), **options)


def test_attack_leaves_statistics_alone():
    """The inner gradients are in evaluation mode: the statistics move once, by the attacked batch."""
    _, params, extra, _ = ready("adversarial")
    plain = ready("classification")[0]
    seen = []

    def spy(params, extra, data, *, key, step):
        seen.append(data["image"])
        return plain.loss(params, extra, data, key=key, step=step)

    spied = tasks.adversarial(plain._replace(loss=spy), epsilon=4.0, steps=2)
    _, (after, _) = spied.loss(params, extra, batch(), key=jax.random.key(1), step=jnp.int32(0))
    _, (want, _) = plain.loss(params, extra, {**batch(), "image": seen[0]}, key=jax.random.key(1), step=jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, after["model"], want["model"])
    assert len(seen) == 1
