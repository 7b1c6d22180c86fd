"""An exported file and the certificate beside it: what it is, and how to run it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvision.errors import UserError

FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx", "litert": ".tflite", "safetensors": ".safetensors"}
# What a file takes.
INPUTS = {
    "images": "whole images of any size, as decoded: resized and cropped within",
    "crops": "images that are resized and cropped already",
}
# The share of images that a file must tell the same as the trained network, unless it is said otherwise.
BOUND = {"float32": 0.99, "int8": 0.95}
EXTRA = 'pip install "jaxvision[{}]"'  # of a format

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def is_one(name: str) -> bool:
    """Whether a FROM names an exported file."""
    return name.endswith(tuple(FORMATS.values())) and pathlib.Path(name).expanduser().is_file()


def certificate_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def read_certificate(path: pathlib.Path) -> dict[str, Any]:
    """Of an exported file, which it must be the certificate of. Raises UserError."""
    beside = certificate_of(path)
    try:
        about = json.loads(beside.read_text())
        expected, size = about["sha256"], about["bytes"]
    except FileNotFoundError:
        others = f", or, if they are another's weights, name the network: timm:NAME={path}"
        raise UserError(
            f"{beside} is missing: it says what {path.name} takes and what its classes are; copy it from where "
            f"{path.name} was exported, or export again{others if path.suffix == '.safetensors' else ''}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} is no certificate of jaxvision.export ({error}): copy it again") from None
    found = digest(path)
    if found != expected:
        raise UserError(
            f"{path} is not the file that {beside.name} certifies: it has {path.stat().st_size:,} bytes and SHA-256 "
            f"{found[:12]}..., certified are {size:,} bytes and {expected[:12]}...: copy both again, or export again"
        )
    return about


def digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def runner(path: pathlib.Path, format: str) -> Run:
    """What a program, "stablehlo", "onnx" or "litert", computes: uint8 [B, H, W, C] to its outputs.

    Raises UserError if it cannot be read, or what reads it is not installed.
    """
    return {"stablehlo": _stablehlo, "onnx": _onnx, "litert": _litert}[format](path)


def _stablehlo(path: pathlib.Path) -> Run:
    import jax
    import jax.export

    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        exported.mlir_module()  # what comes from a newer jax fails only here
    except Exception as error:  # whatever the bytes make flatbuffers, MLIR or jax raise
        raise UserError(
            f"{path} cannot be read by jax {jax.__version__} ({error}): it takes the jax that exported it or a newer "
            "one; install that, or export again with this one"
        ) from error
    call = jax.jit(exported.call)
    return lambda images: {name: np.asarray(value) for name, value in call(images).items()}


def _onnx(path: pathlib.Path) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} is run by onnxruntime, which is not installed: {EXTRA.format('onnx')}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        providers = [p for p in PROVIDERS if p in onnxruntime.get_available_providers()]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has a class of its own for each code
        raise UserError(f"{path} cannot be read by onnxruntime {onnxruntime.__version__}: {error}") from error
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images})))


def _litert(path: pathlib.Path) -> Run:
    """One image after the other: it is written for one, and most networks hold shapes that refuse more at once."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(f"{path} is run by ai-edge-litert, which is not installed: {EXTRA.format('litert')}") from error
    try:
        program = Interpreter(model_path=str(path), num_threads=os.cpu_count()).get_signature_runner()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read by ai-edge-litert: {error}") from error

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = [program(images=image[None]) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return run
