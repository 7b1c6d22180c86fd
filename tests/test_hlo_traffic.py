"""The count of device memory in benchmarks/, on a program whose bytes are counted by hand."""

import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "hlo_traffic.py"
_SPEC = importlib.util.spec_from_file_location("hlo_traffic", _PATH)
assert _SPEC
assert _SPEC.loader
hlo_traffic = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hlo_traffic)

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
    assert hlo_traffic.device_memory_bytes(PROGRAM) == fusion + copy + two + kernel
