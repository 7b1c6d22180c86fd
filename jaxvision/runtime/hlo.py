"""Memory and traffic of a compiled program, counted in its text (`compiled.as_text()`, anybody's for a TPU).

The compiler's own count ("bytes accessed" of `cost_analysis`) also counts what stays on the chip: operands and results
in vector memory, which are marked S(1), and each copy into or out of it up to four times. Here an operand or result
counts once, and only where it lies in device memory; a copy between the two counts once. Custom kernels count like any
other instruction: each operand and result once, which is what ours do (each block is fetched once).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64}
_NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"),
    *("opt-barrier", "copy-done", "slice-done", "async-done", "all-reduce-done", "all-gather-done"),
}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


def memory_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes of a device.

    Counted are its arguments, results that are not in their place, what lives in between, and the program itself.
    """
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def flops(lowered: Any, compiled: Any, devices: Sequence[Any]) -> float:
    """FLOPs of one run on each of the devices, a loop's body counted once; 0.0 where nobody counts them.

    The compiler's count, but on GPUs: there it leaves out what it made calls of cuBLAS and cuDNN, so nearly all
    (https://github.com/jax-ml/jax/issues/22249). Then those of the program before its optimisation, counted by the
    client of a CPU, since JAX has that of a GPU count none; a CPU there is unless JAX_PLATFORMS leaves it out.
    """
    if devices[0].platform != "gpu":
        return float((compiled.cost_analysis() or {}).get("flops", 0.0))
    import jax
    from jax._src.lib import _jax  # no public function counts a program that is not compiled for a CPU

    try:
        client = jax.local_devices(backend="cpu")[0].client
    except RuntimeError:
        return 0.0
    module = lowered.compiler_ir("hlo").as_hlo_module()
    return float(_jax.hlo_module_cost_analysis(client, module)["flops"]) / len(devices)


def device_memory_bytes(program: str) -> int:
    """Bytes of one run on one chip, of the entry computation; a loop's body is not entered (a train step has none)."""
    arrays: dict[str, list[tuple[int, bool]]] = {}
    total = 0
    for line in program[program.index("\nENTRY ") :].splitlines():
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        arrays[name] = results = [_size(*array) for array in _ARRAY.findall(shape)]
        if operation in _NO_TRAFFIC or "ConcatBitcast" in rest:
            continue
        if operation in ("copy-start", "slice-start"):  # (source and target, or the reverse), and a context
            moved = min(size for size, _ in results[:2])
            total += moved * sum(in_device_memory for _, in_device_memory in results[:2])
            continue
        operands = re.findall(r"%([\w.\-]+)", rest[: _end(rest)])
        touched = results + [array for operand in operands for array in arrays.get(operand, [])]
        total += sum(size for size, in_device_memory in touched if in_device_memory)
    return total


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Kind of collective -> (count, bytes of its operands on one chip) of one run.

    A loop's body counts once (a train step that does not accumulate has none).
    """
    found: dict[str, tuple[int, int]] = {}
    arrays: dict[str, list[tuple[int, bool]]] = {}
    for line in program.splitlines():
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        name, shape, operation, rest = instruction.groups()
        arrays[name] = [_size(*array) for array in _ARRAY.findall(shape)]
        kind = operation.removesuffix("-start")
        if kind in _COLLECTIVES:
            operands = re.findall(r"%([\w.\-]+)", rest[: _end(rest)])
            size = sum(array for operand in operands for array, _ in arrays.get(operand, []))
            count, before = found.get(kind, (0, 0))
            found[kind] = (count + 1, before + size)
    return found


def _size(kind: str, shape: str, layout: str) -> tuple[int, bool]:
    """Bytes, and whether it lies in device memory."""
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
    count = 1
    for side in filter(None, shape.split(",")):
        count *= int(side)
    return count * bits // 8, "S(1)" not in layout


def _end(rest: str) -> int:
    """Index in `rest` at which the operands end: the bracket that closes the one before `rest`."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(rest)
