"""What a program moves, on programs whose bytes are counted by hand, and what a GPU's computes."""

import types

import jax
import pytest

import jaxvision.config
from jaxvision.runtime import hlo
from jaxvision.training import build, optim
from jaxvision.training.step import init_state, make_step
from jaxvision.weights.catalogue import known

PROGRAM = """HloModule jit_step, entry_computation_layout={...}

%fused_computation (param: bf16[4,8]) -> bf16[4,8] {
  ROOT %not_counted = bf16[4,8]{1,0} add(%param, %param)
}

ENTRY %main (x: bf16[4,8], y: f32[8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[8]{0:T(128)} parameter(1)
  %fusion.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %y), kind=kLoop, calls=%fused_computation
  %copy-start = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[4,8]{1,0:S(1)} copy-done(%copy-start)
  %two = (f32[8]{0:T(128)}, bf16[4,8]{1,0:T(8,128)}) fusion(%copy-done, %fusion.1), calls=%fused_computation
  %gte = bf16[4,8]{1,0:T(8,128)} get-tuple-element(%two), index=1
  ROOT %kernel = bf16[4,8]{1,0:T(8,128)} custom-call(%gte, %y), custom_call_target="tpu_custom_call"
}
"""


def test_device_memory_is_counted_once_and_the_chip_not():
    x, y = 4 * 8 * 2, 8 * 4
    fusion, copy, two, kernel = x + y, x, y + x, x + y + x
    assert hlo.device_memory_bytes(PROGRAM) == fusion + copy + two + kernel


STEP = """HloModule jit_step

ENTRY %main (x: bf16[4,8], y: f32[8]) -> f32[8] {
  %x = bf16[4,8]{1,0:T(8,128)} parameter(0)
  %y = f32[8]{0:T(128)} parameter(1)
  %all-reduce.1 = (f32[8]{0}, bf16[4,8]{1,0}) all-reduce(%y, %x), channel_id=1, to_apply=%add
  %all-reduce-start = f32[8]{0} all-reduce-start(%y), channel_id=2, to_apply=%add
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)
  %all-gather.7 = bf16[16,8]{1,0} all-gather(%x), channel_id=3, dimensions={0}
  ROOT %add.2 = f32[8]{0} add(%y, %all-reduce-done)
}
"""


def test_collectives_and_the_bytes_that_go_into_them():
    x, y = 4 * 8 * 2, 8 * 4
    assert hlo.collectives(STEP) == {"all-reduce": (2, y + x + y), "all-gather": (1, x)}
    assert hlo.collectives(PROGRAM) == {}


@pytest.mark.parametrize("name", [pytest.param("resnet50", marks=pytest.mark.slow), "vit_small_patch16_224"])
def test_a_train_step_for_a_gpu_is_lowered_and_counted(name):
    """Without a GPU. Forwards, and twice that backwards; of the first layer half of it is not needed."""
    config = jaxvision.config.default()
    config.update(model=dict(name=name), dtype="bfloat16", steps=10)
    task = build.task(config, 1000)
    tx, _ = optim.make(config.optim, config.steps, build.abstract_init(task, config)[0])
    batch = build.example(config, 64)
    state = jax.eval_shape(lambda key, batch: init_state(task, tx, key, batch, None), jax.random.key(0), batch)
    lowered = jax.jit(make_step(task, tx, seed=0)).trace(state, batch).lower(lowering_platforms=("cuda",))
    counted = hlo.flops(lowered, None, [types.SimpleNamespace(platform="gpu")]) / 64
    _, forwards = known()[name, 224]
    assert 2.9 * forwards < counted < 3.3 * forwards
