"""A checkpoint counts once it is whole, and is used only if every file matches."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxvision.errors import UserError
from jaxvision.runtime import hlo, sharding
from jaxvision.weights import checkpoint


def tree(value):
    return {
        "step": jnp.int32(value),
        "params": {"model": {"kernel": jnp.full((8, 16), float(value)), "bias": jnp.arange(3.0) + value}},
        "extra": {},
    }


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints: steps 10, 20 and 30."""
    writer = checkpoint.Writer(epath.Path(tmp_path) / "c", keep=5)
    for step in (10, 20, 30):
        writer.save(step, tree(step), {"classes": ["a", "b"]})
    writer.close()
    return epath.Path(tmp_path) / "c"


def abstract(mesh=None):
    like = jax.eval_shape(lambda: tree(0))
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        like,
        sharding.state_shardings(mesh, like),
    )


def arrays(path):
    """The largest file that Orbax wrote: where the numbers are."""
    return max(checkpoint._files(path / "state").values(), key=lambda f: f.stat().length)


def test_round_trip_on_other_devices(folder):
    for mesh in (
        sharding.make_mesh(devices=jax.devices()[:1]),
        sharding.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8]),
    ):
        found = checkpoint.newest(folder)
        assert found == (folder / "30", [])
        state = checkpoint.restore(found.path, abstract(mesh))
        jax.tree.map(np.testing.assert_array_equal, state, tree(30))
        kernel = state["params"]["model"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // mesh.shape["fsdp"]


def test_parts(folder):
    part = checkpoint.restore(folder / "20", {"params": abstract()["params"]})
    np.testing.assert_array_equal(part["params"]["model"]["bias"], [20, 21, 22])
    loaded = checkpoint.read(folder / "20", ("params", "extra"))
    assert isinstance(loaded["params"]["model"]["kernel"], np.ndarray)
    assert loaded["extra"] == {}
    assert checkpoint.about(folder / "20") == {"step": 20, "classes": ["a", "b"]}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "bit-flipped": (lambda c: flip(arrays(c)), "was changed or cut short"),
    "truncated": (lambda c: arrays(c).write_bytes(arrays(c).read_bytes()[:-7]), "was changed or cut short"),
    "emptied": (lambda c: arrays(c).write_bytes(b""), "was changed or cut short"),
    "file lost": (lambda c: arrays(c).unlink(), "is missing"),
    "about changed": (lambda c: (c / "about.json").write_text("{}"), "was changed or cut short"),
    "half-written": (lambda c: (c / "digests.json").unlink(), "half-written"),
    "marker cut": (lambda c: (c / "digests.json").write_text('{"about'), "unreadable"),
    "stray file": (lambda c: (c / "state" / "other").write_text("x"), "does not belong"),
    "arrays gone": (lambda c: (c / "state").rmtree(), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_is_reported_and_the_one_before_used(folder, damage):
    do, words = DAMAGE[damage]
    do(folder / "30")
    found = checkpoint.newest(folder)
    assert found.path == folder / "20"
    ((path, reason),) = found.broken
    assert path == folder / "30"
    assert words in reason
    with pytest.raises(UserError):
        checkpoint.choose(folder, "30")


def test_a_broken_one_is_written_anew(folder):
    flip(arrays(folder / "30"))
    writer = checkpoint.Writer(folder, keep=5, broken=[folder / "30"])
    writer.save(25, tree(25), {})
    writer.close()
    assert checkpoint.steps(folder) == [10, 20, 25]
    writer = checkpoint.Writer(folder, keep=5)
    writer.save(30, tree(30), {})
    writer.close()
    assert checkpoint.newest(folder).path == folder / "30"


def test_keeps_the_best_and_the_last(tmp_path):
    folder = epath.Path(tmp_path) / "c"
    writer = checkpoint.Writer(folder, keep=2)
    scores = {}
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.7), (5, None), (6, 0.1)):
        if score is not None:
            scores[step] = score
            checkpoint.write_scores(folder, "test/top1", scores)
        writer.save(step, tree(step), {})
    writer.close()
    assert checkpoint.steps(folder) == [2, 5, 6]
    assert checkpoint.choose(folder, "best") == folder / "2"
    assert checkpoint.choose(folder, "last") == folder / "6"
    assert checkpoint.choose(folder, "5") == folder / "5"
    with pytest.raises(UserError, match=r"no checkpoint '4'.*best, last, 2, 5, 6"):
        checkpoint.choose(folder, "4")


def test_a_score_that_comes_after_the_last_save_decides_what_is_kept(tmp_path):
    folder = epath.Path(tmp_path) / "c"
    writer = checkpoint.Writer(folder, keep=1)
    for step, score in ((1, 0.5), (2, 0.1), (3, 0.9)):
        writer.save(step, tree(step), {})
        checkpoint.write_scores(folder, "test/top1", {1: 0.5, step: score})
    writer.close()
    assert checkpoint.steps(folder) == [3]


def test_scores_outlive_a_lost_log_but_not_another_measure(tmp_path):
    folder = epath.Path(tmp_path) / "c"
    checkpoint.write_scores(folder, "test/top1", {1: 0.5}, run="r", of="a")
    checkpoint.write_scores(folder, "test/top1", {2: 0.25}, run="r", of="a")
    assert checkpoint._scores(folder, "r") == {1: 0.5, 2: 0.25}
    for other in (dict(run="r", of="b"), dict(run="s", of="a")):
        checkpoint.write_scores(folder, "test/top1", {3: 0.1}, **other)
        assert checkpoint._scores(folder, other["run"]) == {3: 0.1}
    checkpoint.write_scores(folder, "test/loss", {4: -2.0}, run="s", of="a")
    assert checkpoint._scores(folder, "s") == {4: -2.0}


def test_scores_of_an_older_version_still_count(folder):
    (folder / "scores.json").write_text('{"10": 0.25, "20": 0.75, "30": null}')
    assert checkpoint.choose(folder, "best") == folder / "20"


def test_what_a_kill_left_of_a_removal_goes_with_the_next_save(folder):
    """The marker goes first, so such a folder looks like one that is being written, but for newer whole ones."""
    for step in (10, 20):
        (folder / str(step) / "digests.json").unlink()
    (folder / "20" / "state").rmtree()
    writer = checkpoint.Writer(folder, keep=2)
    writer.save(40, tree(40), {})
    writer.close()
    assert checkpoint.steps(folder) == [30, 40]
    assert checkpoint.newest(folder) == (folder / "40", [])


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """The step donates its state right after the save began: the saved numbers must be those from before."""
    folder = epath.Path(tmp_path) / "c"
    writer = checkpoint.Writer(folder, keep=50)
    step = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
    state = {"params": {f"w{i}": jnp.full((256, 256), 0.0) for i in range(20)}}
    for n in range(8):
        writer.save(n, state, {})
        for _ in range(5):
            state = step(state)
    writer.close()
    for n in range(8):
        for leaf in checkpoint.read(folder / str(n), ("params",))["params"].values():
            assert np.all(leaf == 5 * n)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_the_copy_on_the_hosts_is_split_over_all_devices(fsdp):
    """Of what was copied to each device, each host copies and writes its share."""
    mesh = sharding.make_mesh(-1, fsdp)
    shapes = {"kernel": (8, 16), "odd": (3, 5), "wide": (2, 24), "scalar": ()}
    state = {k: jnp.arange(float(np.prod(shape))).reshape(shape) for k, shape in shapes.items()}
    state = jax.device_put(state, sharding.state_shardings(mesh, state))
    compiled = checkpoint.compile_copy(state)
    assert hlo.collectives(compiled.as_text()) == {}
    copy = compiled(state)
    jax.tree.map(np.testing.assert_array_equal, copy, state)
    for leaf, parts in (("kernel", 8), ("wide", 8), ("odd", 1), ("scalar", 1)):
        assert copy[leaf].addressable_shards[0].data.size * parts == state[leaf].size
        assert copy[leaf].addressable_shards[0].data.unsafe_buffer_pointer() not in {
            shard.data.unsafe_buffer_pointer() for shard in state[leaf].addressable_shards
        }


def test_other_shapes_are_named(folder):
    wrong = abstract()
    wrong["params"]["model"]["kernel"] = jax.ShapeDtypeStruct((8, 17), jnp.float32, sharding=wrong["step"].sharding)
    with pytest.raises(UserError, match=r"params/model/kernel: \[8, 16\] in the checkpoint, \[8, 17\] here"):
        checkpoint.restore(folder / "30", wrong)


def test_no_checkpoint(tmp_path):
    assert checkpoint.newest(epath.Path(tmp_path) / "none") == (None, [])
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.choose(epath.Path(tmp_path), "last")


def test_failed_write_is_a_user_error(tmp_path):
    (tmp_path / "c").write_text("a file where the folder should be")
    writer = checkpoint.Writer(epath.Path(tmp_path) / "c", keep=2)
    writer.save(1, tree(1), {})
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        writer.wait()


def test_digests_are_sha256_of_the_files(folder):
    import hashlib

    digests = json.loads((folder / "30" / "digests.json").read_text())
    for name, value in digests.items():
        assert hashlib.sha256((folder / "30" / name).read_bytes()).hexdigest() == value
    assert "about.json" in digests
