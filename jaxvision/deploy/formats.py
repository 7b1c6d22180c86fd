"""A trained network's function as a file: StableHLO, ONNX in float32 or int8, or LiteRT (TensorFlow Lite)."""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxvision.deploy import exported
from jaxvision.deploy.jaxpr import flatten
from jaxvision.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")

Function = Callable[[jax.Array], dict[str, jax.Array]]


def write_stablehlo(path: pathlib.Path, function: Function, spec: Any) -> None:
    """One file for PLATFORMS, by jax.export: `jax.export.deserialize` reads it for 6 months of releases at least.

    It names source files, for error messages, without the folders of this machine.
    """
    before = jax.config.jax_hlo_source_file_canonicalization_regex  # type: ignore[attr-defined]
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    try:
        program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(spec)
    finally:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", before)
    path.write_bytes(program.serialize())


def write_onnx(path: pathlib.Path, function: Function, spec: Any, about: dict[str, Any]) -> None:
    """Writes a function as an ONNX file, with `about` in the file's metadata.

    Raises UserError where onnx is missing or knows no such network.
    """
    onnx = needed("onnx")
    from jaxvision.deploy.onnx_graph import to_onnx

    names = sorted(jax.eval_shape(function, spec))  # the order of a dict's leaves
    model = to_onnx(flatten(function, spec), ["images"], names, about["model"])
    onnx.helper.set_model_props(model, {key: _text(value) for key, value in about.items()})
    onnx.save(model, str(path))


def write_litert(path: pathlib.Path, function: Function, spec: Any) -> None:
    """Writes a function as a LiteRT file, for a `spec` without symbols.

    Raises UserError where litert-converter is missing or cannot convert it.

    litert-converter is the end of Google's litert-torch. Its bindings, which this calls as that does, are not
    documented and less than a year old: the extra names a minor version.
    """
    converter = needed("litert_converter.converter_api_ext", "litert")
    from litert_converter.mlir import ir, passmanager

    flat = flatten(function, spec)  # what is written for XLA's CPU compiler has products that the converter refuses
    names = sorted(jax.eval_shape(function, spec))  # the order of a dict's leaves
    program = jax.export.export(jax.jit(lambda images: core.jaxpr_as_fun(flat)(images)), platforms=("cpu",))(spec)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            module = ir.Module.parse(program.mlir_module_serialized)
            passmanager.PassManager.parse(_FROM_JAX).run(module.operation)
            converter.set_signature(module.operation, "serving_default", ["images"], names)
            passes = passmanager.PassManager()
            converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
            made = converter.export_flatbuffer_to_bytes(module.operation)
    except (ValueError, ir.MLIRError) as error:
        raise UserError(
            f"litert-converter cannot convert this network, choose another --format: {str(error)[:500]}"
        ) from error
    path.write_bytes(made)


# from the portable form of StableHLO, all in one function
_FROM_JAX = """builtin.module(
    vhlo-legalize-stablehlo, reconcile-unrealized-casts, func.func(stablehlo-legalize-composite-to-call), inline,
    symbol-dce
)"""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_int8(path: pathlib.Path, source: pathlib.Path, images: Iterator[np.ndarray]) -> None:
    """The ONNX file `source` with convolutions and products in int8, by onnxruntime's static quantisation.

    Weights are symmetric, a scale for each channel; activations asymmetric, a scale for each tensor, from the smallest
    and largest values that `images` (uint8 [1, H, W, C] each) give. What comes before the first convolution, the
    resizing, stays as it is. Raises UserError if onnxruntime is missing.
    """
    onnx = needed("onnx")
    needed("onnxruntime")
    with _silent():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            prepared = pathlib.Path(folder) / "prepared.onnx"
            # its symbolic shape inference wants sympy and knows no shape that this one does not
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(str(prepared)).graph
            before: list[str] = []
            for node in graph.node:
                if node.op_type == "Conv":
                    break
                before.append(node.name)
            quantization.quantize_static(
                str(prepared),
                str(path),
                _Images(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # 7 bits of weights: processors without VNNI add two products in 16 bits
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add", "MaxPool", "Relu"],
                nodes_to_exclude=before,
                extra_options={
                    # fails in 1.32 for a product with a bias and a scale for each channel
                    "QDQDisableWeightAdjustForInt32Bias": True,
                    # the classifier: no image of the calibration shows how large a logit can be
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],
                },
            )
    model = onnx.load(str(path))
    properties = {entry.key: entry.value for entry in onnx.load(str(source), load_external_data=False).metadata_props}
    onnx.helper.set_model_props(model, {**properties, "precision": "int8"})
    onnx.save(model, str(path))


class _Images:
    """Images for calibration as onnxruntime's CalibrationDataReader.

    onnxruntime asks it for the next inputs until there are none.
    """

    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silences the advice that onnxruntime's quantisation logs at the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def needed(name: str, format: str = "onnx") -> Any:
    """Imports the module of a name.

    Raises UserError where it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0].replace("_", "-")
        extra = exported.EXTRA.format(format)
        raise UserError(f"--format {format} needs {package}, which is not installed: {extra}") from error
