"""What a plan says, against counts by hand and against the compiler's own refusal.

Programs for TPUs take a minute each and need libtpu (the extra plan): slow.
"""

import importlib.util
import math
import types

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxvision.config
from jaxvision.errors import UserError
from jaxvision.plan import plan
from jaxvision.runtime import chips, hlo, sharding
from jaxvision.runtime.chips import Chip
from jaxvision.task import Task
from jaxvision.training import capacity, step
from jaxvision.weights import checkpoint
from tests.tiny import make_tiny_config

ROWS, IN, HIDDEN, OUT = 64, 48, 32, 8


def two_layers():
    def init(key, batch, given):
        return {"a": jnp.zeros((IN, HIDDEN)), "b": jnp.zeros((HIDDEN, OUT))}, {}

    def loss(params, extra, batch, *, key, step):
        hidden = batch["image"].astype(jnp.float32) @ params["a"]
        return jnp.mean((hidden @ params["b"]) ** 2), (extra, {})

    return Task(init=init, loss=loss, predict=lambda *a: {}, after_step=lambda params, extra, step: extra)


def lowered_two_layers(mesh):
    task, tx = two_layers(), optax.sgd(0.1)
    batch = {"image": jax.ShapeDtypeStruct((ROWS, IN), jnp.uint8, sharding=sharding.batch_sharding(mesh))}
    plain = step.make_step(task, tx, seed=0)
    return step.lower_step(
        lambda state, batch, _: plain(state, batch), step.abstract_state(task, tx, batch, mesh), batch, {}
    )


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_two_layers_by_hand(devices):
    """Products forward, for both kernels' gradients and for that of the hidden values; the step's all-reduces add up
    the gradients of both kernels."""
    lowered = lowered_two_layers(sharding.make_mesh(devices=jax.devices()[:devices]))
    compiled = lowered.compile()
    products = 2 * ROWS // devices * (2 * IN * HIDDEN + 3 * HIDDEN * OUT)
    # a few for each parameter (the update, two norms) and for each value
    elementwise = 8 * (IN * HIDDEN + HIDDEN * OUT) + 8 * ROWS // devices * (IN + HIDDEN + OUT)
    gpus = [types.SimpleNamespace(platform="gpu")] * devices  # their compiler's count is not asked for
    for counted in (hlo.flops(lowered, compiled, jax.devices()), hlo.flops(lowered, None, gpus)):
        assert products <= counted <= products + elementwise
    found = hlo.collectives(compiled.as_text())
    if devices == 1:
        assert found == {}
        return
    assert set(found) == {"all-reduce"}
    gradients = 4 * (IN * HIDDEN + HIDDEN * OUT)
    assert gradients <= found["all-reduce"][1] <= gradients + 16  # and the loss


class Compiler:
    """Memory of a batch by a formula, and which batches were asked for. `tells`: what does not fit is told, too."""

    def __init__(self, used, limit, *, tells=True):
        self.used, self.limit, self.tells, self.tries = used, limit, tells, []

    def __call__(self, images):
        self.tries.append(images)
        used = self.used(images)
        return used <= self.limit, used if used <= self.limit or self.tells else 0.0


CASES = dict(
    first=st.integers(1, 600),
    constant=st.floats(0, 8e9),
    slope=st.floats(1e5, 3e9),
    limit=st.floats(1e9, 1e11),
    tells=st.booleans(),
)


@settings(deadline=1000, max_examples=300)
@given(bend=st.floats(0, 1e5), **CASES)
def test_the_largest_that_fits_is_found_exactly_where_that_is_asked_for(first, constant, slope, bend, limit, tells):
    memory = Compiler(lambda n: constant + slope * n + bend * n**1.1, limit, tells=tells)
    low, high = capacity.largest_that_fits(memory, first, lambda: limit, math.inf)
    assert len(set(memory.tries)) == len(memory.tries)
    assert len(memory.tries) <= 6 + 2 * math.log2(max(limit / slope, 1) + first)
    assert low == 0 or memory(low)[0]
    assert not memory(int(high))[0]
    assert high - low <= capacity.unit_of(first)
    assert low % capacity.unit_of(first) == 0


@settings(deadline=1000, max_examples=300)
@given(**CASES)
def test_four_programs_are_enough_where_memory_is_linear(first, constant, slope, limit, tells):
    """From a batch that fits, or from one that does not if the compiler tells what it would need."""
    memory = Compiler(lambda n: constant + slope * n, limit, tells=tells)
    low, high = capacity.largest_that_fits(memory, first, lambda: limit)
    assert len(memory.tries) <= 4
    assert low == 0 or memory(low)[0]
    assert high == math.inf or not memory(int(high))[0]
    if tells or memory(first)[0]:
        assert high - low <= capacity.unit_of(first)


def test_four_programs_are_the_most_where_it_is_not():
    """Near the limit the compiler computes again what it has no room for: more fits than the line says."""
    memory = Compiler(lambda n: 1e9 + 1e7 * min(n, 1400) + 1e6 * max(n - 1400, 0), 16e9)
    low, high = capacity.largest_that_fits(memory, 128, lambda: 16e9)
    assert len(memory.tries) == 4
    assert memory(low)[0]
    assert high == math.inf
    assert capacity.in_words(low, high, 128, 4) == (
        f"largest batch that was seen to fit: {low:,} images a chip, {4 * low:,} in all; more was not tried, "
        "--exact goes on"
    )


def test_a_small_first_batch_that_says_little():
    """As the compiler told of a small network for a v5e: next to nothing at 1,024 images, a line only far above."""
    memory = Compiler(lambda n: 0.07 * 2**30 if n < 2000 else (0.027 + 1.5536e-4 * n) * 2**30, 15.75 * 2**30)
    low, high = capacity.largest_that_fits(memory, 1024, lambda: 15.75 * 2**30)
    assert len(memory.tries) == 4
    assert low > 0.97 * high
    assert memory(low)[0]


def test_what_was_found_in_words():
    assert capacity.in_words(1720, 1728, 128, 4) == "largest batch that fits: 1,720 images a chip, 6,880 in all"
    assert "1,744 does not, --exact goes on" in capacity.in_words(1720, 1744, 128, 4)
    assert "1,721 does not" in capacity.in_words(1719, 1721, 5, 4)
    assert capacity.in_words(0, 16, 128, 4).endswith("none was found, the smallest that was tried is 16 images a chip")


def test_bytes_as_the_compiler_writes_them():
    assert [capacity.in_bytes(t) for t in ("18.5G", "512K", "1M", "odd")] == [18.5 * 2**30, 2**19, 2**20, 0.0]


def test_a_plan_tells_each_row_with_the_time_left_and_the_largest_before_the_rest(monkeypatch):
    """ResNet-50 of a described slice, but for the compiler, which takes minutes: six programs instead of twelve."""
    said = []
    config = make_tiny_config()
    config.model = dict(name="resnet50")
    planner = capacity.Planner(config, 10, said.append, lambda at: None)
    chip = Chip(memory=16e9, bandwidth=1e12, flops=2e14, links=1e11)
    monkeypatch.setattr(capacity.Slice, "find", lambda name: capacity.Slice(name, jax.devices()[:4], 4, chip))

    def compiled(where, images, remat, fsdp):
        used = 1e9 + 1.1e7 * images
        bad = dict(problem="no", room=15.75e9) if used > 15.75e9 else {}
        return capacity.Row(images, remat, fsdp, 140.0, memory=used, flops=1e9, traffic=1e7, **bad)

    monkeypatch.setattr(planner, "compile", compiled)
    found = planner.study("v5e:2x2", 128, only=False)
    assert (found["largest"], found["too_large"]) == (1336, 1344)
    table = said[-1 - len(planner.rows) - 1 :]
    assert "v5e:2x2: 4 chips" in table[0]
    others = len(planner.policies()) - 1 + 1
    assert len(planner.rows) == 4 + others
    assert table[1].endswith(f"(at most {3 + others} more, {(3 + others) * 140 // 60}:{(3 + others) * 140 % 60:02})")
    assert table[5] == "largest batch that fits: 1,336 images a chip, 5,344 in all"
    assert "more" not in table[-1]
    said.clear()
    assert planner.study("v5e:2x2", 128, only=True)["largest"] is None
    assert len(planner.rows) == 4 + others


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5", "did you mean 'v5"),
        ("v5e", r"expected a grid of chips after v5e:, like v5e:4x4"),
        ("v5e:4", "expected a grid"),
        ("v5e:4x", "expected a grid"),
        ("h100:2x2", "known: v4, v5e, v5p, v6e"),
    ],
)
def test_a_topology_that_is_none(name, words):
    with pytest.raises(UserError, match=words):
        chips.slice_of(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install \"jaxvision\[plan\]\""):
        capacity.Slice.find("v5e:2x2")


def test_the_devices_that_are_here(tmp_path, capsys):
    """No speed is known of them, so no bound is told; memory and traffic are."""
    path = tmp_path / "tiny.py"
    path.write_text("from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\n")
    result = plan(["--config", str(path)])
    here = result["topologies"]["here"]
    assert here["chips"] == jax.device_count() == 8
    (row,) = here["rows"]
    assert row["images"] == make_tiny_config().batch_size // 8
    assert row["fits"]
    assert row["memory"] > 1e4
    assert row["flops"] > 1e5
    assert set(row["collectives"]) == {"all-reduce"}
    out = capsys.readouterr().out
    assert "here: 8 devices" in out
    assert "each step every chip puts" in out


def test_data_that_is_not_here_is_said(capsys):
    config = make_tiny_config()
    config.data.train = "folder:/nowhere"
    planner = capacity.Planner(config, 17, print, lambda at: None)
    assert planner.data.classes == 17
    assert "planned with 17 classes (--classes)" in capsys.readouterr().out


# --------------------------------------------------------------------------- programs for TPUs


@pytest.fixture
def described(monkeypatch):
    """As the command does before JAX starts. The flags that tests give XLA for CPUs make libtpu abort."""
    assert jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    chips.only_described()


@pytest.mark.slow
def test_two_layers_on_tpus(described):
    mesh = sharding.make_mesh(devices=capacity.Slice.find("v5e:2x2").devices)
    found = hlo.collectives(lowered_two_layers(mesh).compile().as_text())
    gradients = 4 * (IN * HIDDEN + HIDDEN * OUT)
    assert gradients <= sum(size for _, size in found.values()) <= gradients + 1024


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_a_save_copies_to_the_hosts_each_its_share(described, fsdp):
    """No second copy of the state on the chips, no word between them."""
    mesh = sharding.make_mesh(-1, fsdp, capacity.Slice.find("v5e:2x2").devices)
    shapes = {f"w{k}": jax.ShapeDtypeStruct((64, 3, 3, 512), jnp.float32) for k in range(8)}
    state = sharding.with_shardings({**shapes, "bias": jax.ShapeDtypeStruct((10,), jnp.float32)}, mesh)
    copy = checkpoint.compile_copy(state)
    assert hlo.collectives(copy.as_text()) == {}
    memory, whole = copy.memory_analysis(), sum(math.prod(leaf.shape) * 4 for leaf in shapes.values())
    assert memory.output_size_in_bytes < 1e4
    assert whole / 4 <= memory.host_output_size_in_bytes < 1.05 * whole / 4
    assert memory.temp_size_in_bytes <= whole / 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("vit_b_16", 1720), ("resnet50", 1000)])
def test_the_largest_batch_compiles_and_the_next_does_not(described, name, first):
    """On 4 chips and on 256; a chip puts hardly more into collectives among 256. `first`: what was found from 128 in
    half an hour: a program that fits takes minutes, one that does not seconds."""
    config = jaxvision.config.default()
    config.data.train = "fake:1000x224?classes=1000"
    config.model = dict(name=name)
    config.steps = 100
    if name != "resnet50":
        config.optim.update(name="adamw", lr=1e-3)
    planner = capacity.Planner(config, 1000, lambda line: print(line, flush=True), lambda at: None, exact=True)
    sent = []
    for topology in ("v5e:2x2", "v5e:16x16"):
        where = capacity.Slice.find(topology)
        largest, too_large = planner.largest(where, first, "", 1)
        assert too_large == largest + 8
        rows = {row.images: row for (at, *_), row in planner.rows.items() if at == topology}
        assert rows[largest].memory <= where.chip.memory
        assert not rows[largest + 8].fits
        print(f"{name} on {topology}: {largest} images a chip, {rows[largest].memory / 2**30:.2f} GiB", flush=True)
        sent.append({images: sum(size for _, size in row.collectives.values()) for images, row in rows.items()})
    print(sent)
    both = [images for images in sent[0].keys() & sent[1].keys() if sent[0][images]]
    assert both
    for images in both:
        assert sent[0][images] > 5e7  # the gradients, some in bfloat16
        assert sent[1][images] < 1.05 * sent[0][images]


def test_numbers_are_those_of_a_chip():
    row = capacity.Row(
        10, "", 1, 0.0, flops=2e9, traffic=1e7, collectives={"all-reduce": (3, 10**6), "all-gather": (1, 10**6)}
    )
    chip = Chip(memory=1e9, bandwidth=1e9, flops=1e12, links=1e8)
    assert row.seconds(chip) == {"compute": 0.02, "memory": pytest.approx(0.1), "links": pytest.approx(0.03)}
    assert capacity.as_json(row, chip)["images_per_s_a_chip"] == pytest.approx(100)
    assert capacity.line(row, chip).split()[-4:-2] == ["100", "memory"]
