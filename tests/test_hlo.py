"""What a program moves, on programs whose bytes are counted by hand."""

from jaxvision import hlo

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
