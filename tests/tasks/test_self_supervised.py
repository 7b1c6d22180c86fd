"""What the self-supervised tasks promise beyond the contract: where gradients are zero, how targets move, alarms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision import tasks
from jaxvision.errors import UserError
from jaxvision.losses import info_nce, normalised
from jaxvision.runtime import sharding
from jaxvision.tasks.encoder import COLLAPSED, momentum_at, spread, without_drops
from jaxvision.tasks.mae import patches_of
from jaxvision.tasks.projector import Projector
from jaxvision.training import build
from jaxvision.training.step import init_state, make_step
from tests.tasks.test_contract import CONTRACT, VIEWS, batch, model, ready, transformer

AVERAGED = {"byol": "target", "moco": "target", "dino": "ema"}


@pytest.mark.parametrize("name", sorted(AVERAGED))
def test_no_gradient_reaches_the_average(name):
    task, params, extra, _ = ready(name)
    copy = extra[AVERAGED[name]]

    @jax.jit
    def gradient(weights):
        def loss(weights):
            given = {**extra, AVERAGED[name]: {**copy, "params": weights}}
            return task.loss(params, given, batch(name=name), key=jax.random.key(1), step=jnp.int32(0))[0]

        return jax.grad(loss)(weights)

    assert optax.global_norm(gradient(copy["params"])) == 0


def test_dinos_teacher_drops_nothing():
    """The centre is a mean of what the teacher makes; the loss depends on the student's random drops."""
    net = transformer().clone(drop_path=0.5, dropout=0.5)
    assert (without_drops(net).drop_path, without_drops(net).dropout) == (0, 0)
    task = tasks.dino(net, CONTRACT, outputs=16, hidden=16, bottleneck=8)
    data = batch(name="dino")
    params, extra = build.jit_once(task.init)(jax.random.key(0), data)
    loss = jax.jit(lambda key: task.loss(params, extra, data, key=key, step=jnp.int32(0)))
    (one, (first, _)), (two, (second, _)) = loss(jax.random.key(1)), loss(jax.random.key(2))
    assert one != two
    np.testing.assert_array_equal(first["centre"], second["centre"])
    assert np.abs(first["centre"]).max() > 0


def test_simsiams_targets_get_no_gradient():
    """The gradient of the loss is that of the predictions alone: projections as targets are constants."""
    _, params, extra, gradients = ready("simsiam", "none")
    _, full = gradients(params, extra, batch(name="simsiam"))
    free = tasks.simsiam(model("none"), CONTRACT, width=16, bottleneck=8, norm="none", stop_gradient=False)
    loss = jax.jit(
        jax.value_and_grad(
            lambda p: free.loss(p, extra, batch(name="simsiam"), key=jax.random.key(1), step=jnp.int32(0))[0]
        )
    )
    value, with_targets = loss(params)
    np.testing.assert_allclose(value, gradients(params, extra, batch(name="simsiam"))[0][0], rtol=1e-6)
    # the predictor only makes predictions: nothing of its gradient comes through the targets
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        full["predictor"],
        with_targets["predictor"],
    )
    assert optax.global_norm(jax.tree.map(np.subtract, full["model"], with_targets["model"])) > 1e-3


PAIRS = {
    "byol": lambda p, z: 2 - 2 * jnp.sum(normalised(p) * normalised(z), -1),
    "simsiam": lambda p, z: -jnp.sum(normalised(p) * normalised(z), -1) / 2,
    "moco": lambda p, z: info_nce(p, z, jnp.ones(8, bool), temperature=1.0),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_view_is_compared_with_the_targets_other_view(name):
    """Each prediction with the projection of the other view, which is the idea of all three; never with its own."""
    from jaxvision.tasks.encoder import encoder

    _, params, extra, gradients = ready(name, "none")
    data = batch(name=name)
    data["image"][:, 1] //= 8  # dark, so that a view's own projection is another than the other view's
    heads = {
        "byol": (Projector((16, 8), "none"), Projector((16, 8), "none")),
        "moco": (Projector((16, 8), "none"), Projector((16, 8), "none")),
        "simsiam": (Projector((16, 16, 16), "none"), Projector((8, 16), "none")),
    }[name]
    noise = iter(jax.random.split(jax.random.key(5), 100))
    other = lambda tree: jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), tree)  # noqa: E731
    target = params = other(params)  # fresh ones make nearly one thing of all images
    if "target" in extra:  # an average that is no copy any more
        average = other(extra["target"]["params"])
        extra = {**extra, "target": {**extra["target"], "params": average}}
        target = {**params, **average}
    net = encoder(model("none"), CONTRACT, projector=heads[0], predictor=heads[1])
    made = lambda weights, head: [  # noqa: E731
        net.train(weights, extra, data["image"][:, k], jax.random.key(0))[0][head] for k in (0, 1)
    ]
    p, z = made(params, "predictor"), made(target, "projector")
    want = float(jnp.mean(PAIRS[name](p[0], z[1]) + PAIRS[name](p[1], z[0])))
    own = float(jnp.mean(PAIRS[name](p[0], z[0]) + PAIRS[name](p[1], z[1])))
    assert float(gradients(params, extra, data)[0][0]) == pytest.approx(want, rel=2e-5)
    assert abs(want - own) > 2e-4 * abs(want)


@pytest.mark.parametrize("name", sorted(AVERAGED))
def test_the_average_moves_by_its_momentum_and_stops_at_the_end(name):
    options = {
        "byol": dict(hidden=16, width=8),
        "moco": dict(widths=(16, 8)),
        "dino": dict(outputs=16, hidden=16, bottleneck=8),
    }
    task = getattr(tasks, name)(model("batch"), CONTRACT, momentum=0.9, total_steps=100, **options[name])
    _, params, extra, _ = ready(name)
    new = jax.tree.map(lambda x: x + 1.0, params)
    own = extra[AVERAGED[name]]["params"]
    for step, share in ((0, 0.1), (50, 0.05), (100, 0.0)):
        moved = task.after_step(new, extra, jnp.int32(step))[AVERAGED[name]]["params"]
        for part in own:
            for a, b in zip(jax.tree.leaves(moved[part]), jax.tree.leaves(own[part])):
                np.testing.assert_allclose(a - b, share, atol=2e-6)
    assert float(momentum_at(0.99, jnp.int32(7), 0)) == pytest.approx(0.99)


def test_every_students_view_meets_each_other_teachers_view():
    """DINO's pairs: (1 global view of 2, and 1 local) for each of 2 teacher's views; a plain sum over them."""
    from jaxvision.losses import dino_cross_entropy
    from jaxvision.tasks.encoder import encoder
    from jaxvision.tasks.projector import Prototypes

    _, params, extra, gradients = ready("dino", "none")
    data = batch(name="dino")
    net = encoder(model("none"), CONTRACT, projector=Prototypes(16, 16, bottleneck=8))
    out = lambda image: net.train(params, extra, image, jax.random.key(0))[0]["projector"]  # noqa: E731
    one, two, small = out(data["image"][:, 0]), out(data["image"][:, 1]), out(data["local"][:, 0])
    pairs = [(two, one), (small, one), (one, two), (small, two)]
    want = np.mean([
        dino_cross_entropy(s, t, jnp.zeros(16), student_temperature=0.1, teacher_temperature=jnp.float32(0.04)).mean()
        for s, t in pairs
    ])  # fmt: skip
    (loss, (after, _)), _ = gradients(params, extra, data)
    assert float(loss) == pytest.approx(want, rel=1e-4)
    np.testing.assert_allclose(after["centre"], 0.1 * (one.mean(0) + two.mean(0)) / 2, atol=1e-5)


def test_dinos_centre_stays_without_centring():
    task = tasks.dino(model("none"), CONTRACT, outputs=16, hidden=16, bottleneck=8, centre_momentum=1.0)
    _, params, extra, _ = ready("dino", "none")
    _, (after, _) = task.loss(params, extra, batch(name="dino"), key=jax.random.key(1), step=jnp.int32(0))
    np.testing.assert_array_equal(after["centre"], 0)


def test_mae_sees_a_quarter_and_is_judged_on_the_rest():
    """Other pixels in hidden patches change the loss and nothing that the network makes; in seen ones, both."""
    _, params, extra, gradients = ready("mae")
    data = batch(name="mae")
    order = jnp.argsort(jax.random.uniform(jax.random.split(jax.random.key(1))[0], (8, 16)), axis=1)
    seen = np.zeros((8, 16), bool)
    np.put_along_axis(seen, np.asarray(order[:, :4]), True, 1)
    seen = seen.reshape(8, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]  # of pixels
    (loss, (_, logs)), _ = gradients(params, extra, data)
    for where, same in ((~seen, True), (seen, False)):
        image = np.where(where, 255 - data["image"], data["image"])
        (other, (_, others)), _ = gradients(params, extra, {**data, "image": image})
        assert (logs["feature_std"] == others["feature_std"]) == same
        assert abs(float(other - loss)) > 1e-3


def test_patches_are_row_by_row():
    image = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patches_of(jnp.asarray(image), 2)
    assert got.shape == (2, 6, 12)
    np.testing.assert_array_equal(got[1, 4], image[1, 2:4, 2:4].reshape(-1))


def test_a_rotation_is_counted_in_quarter_turns():
    from jaxvision.losses import softmax_cross_entropy
    from jaxvision.tasks.encoder import encoder
    from jaxvision.tasks.projector import Projector

    _, params, extra, gradients = ready("rotation", "none")
    data = batch(name="rotation")
    net = encoder(model("none"), CONTRACT, head=Projector((4,)))
    losses, right = [], []
    for turns in range(4):
        image = np.rot90(data["image"], turns, axes=(1, 2)).copy()
        logits = net.train(params, extra, image, jax.random.key(0))[0]["head"]
        losses.append(softmax_cross_entropy(logits, jnp.full(8, turns)))
        right.append(jnp.argmax(logits, -1) == turns)
    (loss, (_, logs)), _ = gradients(params, extra, data)
    assert float(loss) == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert float(logs["rotation_top1"]) == pytest.approx(float(np.mean(right)))


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_batch_without_two_views_is_refused(name):
    task, params, extra, _ = ready(name)
    for data in (batch(), {**batch(), "image": batch()["image"][:, None]}):
        with pytest.raises(UserError, match=rf"task {name} compares 2 views.*give 1: end them with \(\"multi_view\""):
            task.loss(params, extra, data, key=jax.random.key(0), step=jnp.int32(0))


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_a_batch_of_one_has_no_negatives(name):
    task, params, extra, _ = ready(name)
    with pytest.raises(UserError, match=f"task {name} tells each image from the others.*is 1: make it at least 2"):
        task.loss(params, extra, batch(1, name=name), key=jax.random.key(0), step=jnp.int32(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tasks.simclr(model("none"), CONTRACT, temperature=0.0), "temperature must be positive"),
        (lambda: tasks.moco(model("none"), CONTRACT, temperature=-1.0), "temperature must be positive"),
        (lambda: tasks.byol(model("none"), CONTRACT, momentum=1.5), "byol momentum must be in"),
        (lambda: tasks.dino(model("none"), CONTRACT, teacher_temperature=0.0), "teacher_temperature must be positive"),
        (lambda: tasks.dino(model("none"), CONTRACT, teacher_warmup_share=2.0), "teacher_warmup_share must be in"),
        (lambda: tasks.mae(model("none"), CONTRACT), "from a Vision Transformer, and this is a ResNet"),
        (lambda: tasks.mae(transformer(), CONTRACT, hidden=1.0), "in \\(0, 1\\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_dinos_warm_up_is_the_same_in_every_form():
    """Of the teacher's temperature, 40 of 100 steps; eight are an epoch. Without one it is another loss."""
    forms = [dict(teacher_warmup_steps=40), dict(teacher_warmup_epochs=5.0), dict(teacher_warmup_share=0.4), {}]
    losses = []
    for form in forms:
        task = tasks.dino(
            model("none"), CONTRACT, outputs=16, hidden=16, bottleneck=8, teacher_temperature_start=0.01,
            total_steps=100, steps_per_epoch=8.0, **form,
        )  # fmt: skip
        data = batch(name="dino")
        params, extra = task.init(jax.random.key(0), data)
        losses.append(float(task.loss(params, extra, data, key=jax.random.key(0), step=jnp.int32(10))[0]))
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_mae_of_too_few_patches_says_so():
    task = tasks.mae(transformer(), CONTRACT, hidden=0.99)
    with pytest.raises(ValueError, match=r"of 16 patches 0 would be seen at hidden=0\.99: take smaller patches"):
        jax.eval_shape(task.init, jax.random.key(0), batch())


def test_spread_of_known_rows():
    mask = jnp.ones(512, bool)
    rows = jax.random.normal(jax.random.key(0), (512, 16))
    logs = spread(rows, mask)
    assert float(logs["feature_std"]) == pytest.approx(1, abs=0.02)
    assert float(logs["participation_ratio"]) == pytest.approx(16, rel=0.05)
    assert float(logs["alarm_collapse"]) == 0
    alike = spread(jnp.ones((512, 16)) + 1e-3 * rows, mask)
    assert float(alike["feature_std"]) < COLLAPSED
    assert float(alike["alarm_collapse"]) == 1
    line = spread(rows[:, :1] * jnp.ones(16), mask)  # a deviation of 1, and one dimension
    assert float(line["feature_std"]) == pytest.approx(1, abs=0.02)
    assert float(line["participation_ratio"]) == pytest.approx(1, abs=0.01)
    assert float(line["alarm_collapse"]) == 1
    assert float(spread(rows[:2], mask[:2])["alarm_collapse"]) == 0  # two rows have one dimension between them
    padded = spread(jnp.concatenate([rows, jnp.full((8, 16), jnp.nan)]), jnp.arange(520) < 512)
    assert {k: float(v) for k, v in padded.items()} == pytest.approx({k: float(v) for k, v in logs.items()})
    wide = spread(rows[:8], jnp.ones(8, bool))  # more dimensions than rows: the smaller product
    assert 1 < float(wide["participation_ratio"]) <= 7


def digits(step, count=64):
    """Two shifted views of so many digits."""
    from jaxvision.data.sources import open_source

    source = open_source("digits:train")
    image = np.stack([source[step * count + i]["image"] for i in range(count)])
    views = np.stack([image, np.roll(image, 1, axis=1 + step % 2)], 1)
    return {**batch(count), "image": views}


def test_negatives_are_gathered_from_all_devices():
    """SimCLR on 1 and 4 devices, at ten states of a run: the same loss and gradients, so each row met all others."""
    task = tasks.simclr(model("batch"), CONTRACT, widths=(32, 16), temperature=0.5)
    tx = optax.sgd(0.05, momentum=0.9)
    state = build.jit_once(lambda k, b: init_state(task, tx, k, b, None))(jax.random.key(0), digits(0))

    @jax.jit
    def gradients(params, extra, data):
        loss = lambda p: task.loss(p, extra, data, key=jax.random.key(1), step=jnp.int32(0))[0]  # noqa: E731
        return jax.value_and_grad(loss)(params)

    meshes = [sharding.make_mesh(devices=jax.devices()[:n]) for n in (1, 4)]
    step = jax.jit(make_step(task, tx, seed=0))
    for k in range(10):
        data, results = digits(k), []
        for mesh in meshes:
            rows = sharding.put_batch(data, sharding.batch_sharding(mesh), 64)
            copies = jax.device_put((state.params, state.extra), sharding.replicated(mesh))
            results.append(jax.device_get(gradients(*copies, rows)))
        (one, grads_one), (four, grads_four) = results
        assert float(one) == pytest.approx(float(four), abs=1e-5)
        difference = optax.global_norm(jax.tree.map(np.subtract, grads_one, grads_four))
        assert difference <= 1e-3 * optax.global_norm(grads_one)
        state, _ = step(state, data)


def test_the_head_is_left_out():
    params = ready("simclr")[1]
    assert "fc" not in params["model"]
