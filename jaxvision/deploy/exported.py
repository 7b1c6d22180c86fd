"""An exported file and its certificate, beside it and within: what it is, and how to run it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from etils import epath

from jaxvision.errors import Damaged, UserError
from jaxvision.runtime import machine, paths
from jaxvision.weights import published

FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx", "litert": ".tflite", "safetensors": ".safetensors"}
# What a file takes.
INPUTS = {
    "images": "whole images of any size, as decoded: resized and cropped within",
    "crops": "images that are resized and cropped already",
}
# The share of images that a file must tell the same as the trained network, unless it is said otherwise.
BOUND = {"float32": 0.99, "int8": 0.95}
EXTRA = 'pip install "jaxvision[{}]"'  # of a format

# What a StableHLO program may call by name: assertions on the sizes of what it is given, which jax removes.
CALLS = ("shape_assertion",)
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def is_one(name: str) -> bool:
    """Whether a FROM names an exported file."""
    return name.endswith(tuple(FORMATS.values())) and pathlib.Path(name).expanduser().is_file()


def certificate_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def read_certificate(path: pathlib.Path) -> dict[str, Any]:
    """The certificate beside an exported file. Raises UserError where it is missing, damaged or of another file."""
    beside = certificate_of(path)
    try:
        about = paths.read_json(epath.Path(beside), {"format": str, "sha256": str, "bytes": int})
    except FileNotFoundError:
        others = f", or, if they are another's weights, name the network: timm:NAME={path}"
        raise UserError(
            f"{beside} is missing: it says what {path.name} takes and what its classes are; copy it from where "
            f"{path.name} was exported, or export again{others if path.suffix == '.safetensors' else ''}"
        ) from None
    except Damaged as error:
        raise Damaged(f"{error}, so it is no certificate of jaxvision.export: copy it again") from error
    found, expected, size = paths.digest(path), about["sha256"], about["bytes"]
    if found != expected:
        raise UserError(
            f"{path} is not the file that {beside.name} certifies: it has {path.stat().st_size:,} bytes and SHA-256 "
            f"{found[:12]}..., certified are {size:,} bytes and {expected[:12]}...: copy both again, or export again"
        )
    return about


# --------------------------------------------------------------------------- the certificate within the file

# Of the certificate beside the file, what the one within does not hold: what says which file it is, and where the
# network and the images lay, which are moved.
_FREE = ("file", "bytes", "sha256", "source", "data")
_KEY = "certificate"  # in an ONNX file's metadata and the header of safetensors
_MEMBER = "certificate.json"  # in the archive at the end of other files


def embed(path: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes a certificate, of JSON's types, into a program. What the file computes stays.

    ONNX: one more entry of the metadata (protobuf: messages one after the other are one message). StableHLO and LiteRT:
    a zip archive after the end of the flatbuffer, which readers of flatbuffers leave alone, as TensorFlow Lite keeps
    its own metadata's files.
    """
    text = _text(about)
    if about["format"] == "onnx":
        import onnx

        more = onnx.ModelProto()
        more.metadata_props.add(key=_KEY, value=text)
        with path.open("ab") as file:
            file.write(more.SerializeToString())
        return
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_MEMBER), text)


def _text(about: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in about.items() if key not in _FREE})


def header(about: dict[str, Any]) -> dict[str, str]:
    """Entries for the header of a safetensors file that say what `embed` writes into a file of another format."""
    return {_KEY: _text(about)}


def carried(path: pathlib.Path, format: str) -> dict[str, Any]:
    """The certificate that an exported file carries.

    Of a file that an earlier version wrote, a part of it; of any other file, {}.
    """
    try:
        if format == "onnx":
            with path.open("rb") as file:
                found = dict(_onnx_metadata(file, path.stat().st_size))
        elif format == "safetensors":
            found = published.header(path)
        else:
            with zipfile.ZipFile(path) as archive:
                found = {_KEY: archive.read(_MEMBER).decode()}
        if _KEY in found:
            return json.loads(found[_KEY])
        # "format" is torch's there, and no classes are those of weights that name none
        return {key: _value(text) for key, text in found.items() if key != "format" and text != "[]"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # cut off, or none of ours: what reads it says so
        return {}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def unproved(path: pathlib.Path, format: str) -> str:
    """A line of warning where a file does not carry its certificate; else ""."""
    if "probes" in carried(path, format):
        return ""
    return (
        f"warning: {path} was exported by an earlier version and does not carry its certificate: what "
        f"{certificate_of(path).name} says of classes and pixels is taken on trust"
    )


def agree(path: pathlib.Path, about: dict[str, Any]) -> None:
    """Raises UserError where the certificate beside a file says something else than the file says itself."""
    within = carried(path, about["format"])
    known = within.keys() if "probes" in within else (within.keys() & about.keys()) - set(_FREE)
    pairs = [pair for key in sorted(known) for pair in _differences(key, within[key], about.get(key))]
    if pairs:
        told = "; ".join(f"{key} is {_short(a)} in the file, {_short(b)} beside it" for key, a, b in pairs[:4])
        more = f"; and {len(pairs) - 4} more" if len(pairs) > 4 else ""
        raise UserError(
            f"{certificate_of(path)} was changed, or is of another file: {told}{more}. Copy both again from where "
            f"{path.name} was exported, or export again"
        )


def _differences(key: str, within: Any, beside: Any) -> Iterator[tuple[str, Any, Any]]:
    """(where, within, beside) of each value that differs."""
    if isinstance(within, dict) and isinstance(beside, dict):
        for name in sorted(within.keys() | beside.keys()):
            yield from _differences(f"{key}.{name}", within.get(name), beside.get(name))
    elif isinstance(within, list) and isinstance(beside, list) and len(within) == len(beside):
        for k, pair in enumerate(zip(within, beside)):
            yield from _differences(f"{key}[{k}]", *pair)
    elif within != beside:
        yield key, within, beside


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _onnx_metadata(file: IO[bytes], size: int) -> Iterator[tuple[str, str]]:
    """The entries of metadata_props, field 14 of ONNX's ModelProto, by protobuf's wire format; all else is passed over.

    So a file is held against its certificate before a library that runs it opens it.
    """
    while file.tell() < size:
        field, wire = divmod(_varint(file), 8)
        if wire == 0:
            _varint(file)
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length = _varint(file) if wire == 2 else {1: 8, 5: 4}[wire]
        if field != 14 or wire != 2:
            file.seek(length, os.SEEK_CUR)
            continue
        end, entry = file.tell() + length, {1: "", 2: ""}
        while file.tell() < end:
            inner = _varint(file) // 8
            entry[inner] = file.read(_varint(file)).decode()
        yield entry[1], entry[2]


def _varint(file: IO[bytes]) -> int:
    value = shift = 0
    while True:
        (byte,) = file.read(1)  # ValueError at the end
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7


# --------------------------------------------------------------------------- running it


def runner(path: pathlib.Path, format: str) -> Run:
    """Returns the function that an exported program ("stablehlo", "onnx" or "litert") computes.

    The function takes uint8 [B, H, W, C] and returns the program's outputs.

    Raises UserError if it cannot be read, or what reads it is not installed.
    """
    return {"stablehlo": _stablehlo, "onnx": _onnx, "litert": _litert}[format](path)


def _stablehlo(path: pathlib.Path) -> Run:
    import jax
    import jax.export

    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        program = exported.mlir_module()  # what comes from a newer jax fails only here
    except Exception as error:  # whatever the bytes make flatbuffers, MLIR or jax raise
        raise UserError(
            f"{path} cannot be read by jax {jax.__version__} ({error}): it takes the jax that exported it or a newer "
            "one; install that, or export again with this one"
        ) from error
    _refuse_calls(path, program)
    takes = [str(aval) for aval in exported.in_avals]
    if len(takes) != 1 or not takes[0].startswith("uint8[") or len(exported.in_avals[0].shape) != 4:
        raise UserError(
            f"{path} takes {', '.join(takes) or 'nothing'}, and an exported network uint8[B,H,W,C]: name one"
        )
    call = jax.jit(exported.call)
    return lambda images: {name: np.asarray(value) for name, value in call(images).items()}


def _refuse_calls(path: pathlib.Path, program: str) -> None:
    """Raises UserError where a StableHLO program leaves StableHLO: it could run code of this process, or crash it."""
    for found in _LEAVES.finditer(program):
        name = found["name"] or found["quoted"] or found["attribute"] or found["op"]
        if name not in CALLS or found["op"] != "custom_call":
            raise UserError(
                f"{path} calls {name!r}, which no file of jaxvision.export does (they call {', '.join(CALLS)}): it is "
                "not run; copy it again from where it was exported, or export again"
            )


# By both spellings of MLIR's text: stablehlo.custom_call @name(...), "stablehlo.custom_call"(...) <{... = "name"}>. An
# operation's attributes are on its line.
_LEAVES = re.compile(
    r'stablehlo\.(?P<op>custom_call|infeed|outfeed|send|recv)\b"?'
    r'(?: @(?P<name>[\w.$-]+)\(| @"(?P<quoted>[^"]*)"\(|[^\n]*?call_target_name = "(?P<attribute>[^"]*)")?'
)


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
    """Runs a LiteRT program one image after the other.

    The program is written for one image, and most networks hold shapes that refuse more at once.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(f"{path} is run by ai-edge-litert, which is not installed: {EXTRA.format('litert')}") from error
    try:
        program = Interpreter(model_path=str(path), num_threads=machine.cores()).get_signature_runner()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read by ai-edge-litert: {error}") from error

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = [program(images=image[None]) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return run
