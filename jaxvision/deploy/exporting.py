"""The work of `python -m jaxvision.export`: write, compare, certify; and compare again."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxvision import build, evals, pretrained
from jaxvision.data.contract import InputContract
from jaxvision.data.sources import Source, open_source
from jaxvision.deploy import artefact, certificate, inference, network, programs, torch_names
from jaxvision.errors import UserError
from jaxvision.log import Say, plain

# Of what the trained network makes of the probes: another order of sums, or another device's products; int8 rounds all.
PROBE_LIMIT = {"float32": 1e-2, "int8": 0.5}


def run(arguments: Any, say: Say, show: certificate.Show) -> dict[str, Any]:
    """Writes FILE and FILE.json. Raises UserError, and leaves nothing, if they do not agree."""
    out = pathlib.Path(arguments.out).expanduser()
    pixels = "crops" if arguments.format in ("safetensors", "litert") else arguments.pixels or "images"
    precision = "int8" if arguments.int8 else "float32"
    found = pretrained.find(arguments.source, arguments.checkpoint)
    trained = pretrained.load_found(found, arguments.source)
    kind = inference.kind_of(trained)
    source = _data(arguments.data, trained, say)
    about = _about(arguments, trained, found, kind, pixels, precision)
    say(f"from {trained.source}, step {trained.step}\npixels: {trained.contract}")

    state = None
    if arguments.format == "safetensors":
        state = torch_names.state_dict(trained, arguments.names, {"source_sha256": about["source_sha256"]})
        about |= {"library": state.library, "architecture": state.theirs}
        say(torch_names.table(state))
    beside = _beside(out, state)
    _check_free(out, *beside)
    with _temporary(out) as written:
        if state is not None:
            torch_names.write(written, state)
            run_file = _weights(written, about, trained)
        else:
            _write_program(arguments, written, trained, about, pixels, show)
            run_file = artefact.runner(written, arguments.format)
        images = certificate.choose(source, trained.contract, arguments.images, show)
        reference = certificate.batched(_reference(trained), images.crops)
        measured = _measure(about, run_file, reference, images, show)
        bound = artefact.BOUND[precision] if arguments.agreement is None else arguments.agreement
        for part, where in (("from_crops", "from the same crops"), ("from_files", "from whole files")):
            if measured[part]:
                certificate.check(out, measured[part], bound, where)
        about |= {"bound": bound, **measured, "probes": _probes(trained, kind)}
        about["latency_ms"] = _latency(about, run_file)
        about |= {"file": out.name, "bytes": written.stat().st_size, "sha256": artefact.digest(written)}
        content = {artefact.certificate_of(out): json.dumps(plain(about), indent=1) + "\n"}
        if state is not None:
            texts = [json.dumps(state.config, indent=2) + "\n"] if state.config else []
            texts.append(_card(out, about, state, trained))
            content |= dict(zip(beside, texts))
        _place(written, out, content)
    say(_told(about))
    say(f"  {out}: {about['bytes'] / 1e6:.1f} MB, sha256 {about['sha256']}")
    say(f"  certificate: {artefact.certificate_of(out)}")
    if state is not None and state.config:
        say(f"  {beside[0]}: what timm reads beside it")
    say(f"load: {_how_to_load(out, about, trained)}")
    return _result(out, about, state)


# --------------------------------------------------------------------------- what is known before


def _data(uri: str | None, trained: pretrained.Trained, say: Say) -> Source:
    """Images for the certificate. Raises UserError if there are none, or their classes are others."""
    uri = uri or next((entry.data for entry in trained.config.evals.values() if entry.data), None)
    if not uri:
        raise UserError(f"{trained.source} names no data of its own: give --data URI, whose images are compared")
    source = open_source(uri)
    if source.kind != "none":
        build.check_kind(trained.config, source)
        if trained.named:
            build.check_classes(uri, source.classes, trained.classes)
        elif len(source.classes) != len(trained.classes):
            raise UserError(f"{uri} has {len(source.classes)} classes, {trained.source} has {len(trained.classes)}")
    return source


def _about(arguments: Any, trained: Any, found: Any, kind: str, pixels: str, precision: str) -> dict[str, Any]:
    """What the file is: the first part of its certificate."""
    contract, side = trained.contract, {"images": ["height", "width"]}
    batch = 1 if arguments.format == "litert" else "batch"
    rows = [batch, *side.get(pixels, [contract.size, contract.size]), contract.channels]
    names = ["values"] if kind == "values" else ["logits", "probabilities"]
    options = trained.config.task.get(trained.config.task.name, {}) if kind == "class" else {}
    sigmoid = kind == "tags" or trained.config.task.get("loss", options.get("loss")) == "sigmoid"
    return {
        "format": arguments.format,
        "precision": precision,
        "model": trained.config.model.name,
        "task": trained.config.task.name,
        "kind": kind,
        "classes": list(trained.classes),
        "named": trained.named,
        "scores": "values" if kind == "values" else "sigmoid" if sigmoid else "softmax",
        "input": {"name": "images", "dtype": "uint8", "shape": rows, "pixels": pixels, "what": network.INPUTS[pixels]},
        "outputs": {name: [batch, len(trained.classes)] for name in names},
        "contract": contract.to_dict(),
        "trained_in": trained.config.dtype,
        "step": trained.step,
        "source": trained.source,
        "source_sha256": pretrained.digest(found),
        "versions": _versions(arguments.format),
    }


def _versions(format: str) -> dict[str, str]:
    found = evals.versions()
    import importlib.metadata

    packages = {"onnx": ("onnx", "onnxruntime"), "litert": ("litert-converter", "ai-edge-litert")}.get(format, ())
    for name in packages:
        programs.needed(name.replace("-", "_"), format)
        found[name] = importlib.metadata.version(name)
    return found


# --------------------------------------------------------------------------- writing


def _beside(out: pathlib.Path, state: torch_names.StateDict | None) -> list[pathlib.Path]:
    if state is None:
        return []
    return [*([out.with_name("config.json")] if state.config else []), out.with_name("README.md")]


def _check_free(*wanted: pathlib.Path) -> None:
    for there in (*wanted, artefact.certificate_of(wanted[0])):
        if there.exists():
            raise UserError(f"{there} is there already: remove it, or choose an --out in another folder")


@contextlib.contextmanager
def _temporary(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name beside `out` to write to; what is left under it is removed. Raises UserError for the disk's errors."""
    written = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield written
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error}. Nothing is left of it; make room or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


def _place(written: pathlib.Path, out: pathlib.Path, beside: dict[pathlib.Path, str]) -> None:
    """All under their final names, the file itself last and safe on the disk."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    for path, text in beside.items():
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        temporary.write_text(text)
        temporary.replace(path)
    written.replace(out)


def _write_program(
    arguments: Any, written: pathlib.Path, trained: Any, about: dict[str, Any], pixels: str, show: certificate.Show
) -> None:
    function = network.function(trained, pixels)
    if arguments.format == "litert":
        programs.write_litert(written, function, network.one(trained.contract))
        return
    spec = network.symbolic(trained, pixels)
    if arguments.format == "stablehlo":
        programs.write_stablehlo(written, function, spec)
        return
    inside = ("model", "task", "kind", "classes", "scores", "contract", "input", "source", "source_sha256", "precision")
    properties = {key: about[key] for key in inside}
    if not arguments.int8:
        programs.write_onnx(written, function, spec, properties)
        return
    calibration = certificate.choose(open_source(arguments.int8), trained.contract, arguments.calibration, show)
    chosen = calibration.squares if pixels == "images" else calibration.crops
    about["calibration"] = {"data": arguments.int8, "images": len(chosen), "skipped": calibration.skipped}
    plain_file = written.with_name(f".{written.name}.float32.onnx")
    try:
        programs.write_onnx(plain_file, function, spec, properties)
        about["float32_bytes"] = plain_file.stat().st_size
        programs.write_int8(written, plain_file, (image[None] for image in show(iter(chosen), len(chosen), "int8")))
    finally:
        plain_file.unlink(missing_ok=True)


def _weights(path: pathlib.Path, about: dict[str, Any], trained: Any) -> artefact.Run:
    """What a file of weights computes, read back by the library's names."""
    loaded = pretrained.load(f"{about['library']}:{about['architecture']}={path}")
    return inference.run_weights(loaded, about["scores"])


# --------------------------------------------------------------------------- comparing


def _reference(trained: pretrained.Trained) -> artefact.Run:
    """The trained network, as the evaluator asks it."""
    program = jax.jit(lambda params, extra, images: trained.task.predict(params, extra, {"image": images}))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = program(trained.params, trained.extra, images)
        return {k: np.asarray(v, np.float32) for k, v in found.items() if k != "features"}

    return run


def _measure(
    about: dict[str, Any], run_file: artefact.Run, reference: dict[str, np.ndarray], images: certificate.Images,
    show: certificate.Show,
) -> dict[str, Any]:  # fmt: skip
    kind, whole = about["kind"], about["input"]["pixels"] == "images"
    exported = certificate.batched(run_file, images.squares if whole else images.crops)
    from_files = None
    if whole:
        which, rows = certificate.from_files(about["format"], run_file, images, show)
        from_files = certificate.compared(kind, {k: v[which] for k, v in reference.items()}, rows)
        from_files["sizes"] = len({images.sizes[k] for k in which})
    return {
        "data": images.source.uri,
        "skipped": images.skipped,
        "from_crops": certificate.compared(kind, reference, exported),
        "from_files": from_files,
        "accuracy": {
            "trained": certificate.accuracy(kind, reference, images.labels),
            "exported": certificate.accuracy(kind, exported, images.labels),
        },
    }


def _side(about: dict[str, Any]) -> int:
    """Of what an image is for the file when it is resized already."""
    return about["contract"]["resize" if about["input"]["pixels"] == "images" else "size"]


def _probes(trained: pretrained.Trained, kind: str) -> list[list[float]]:
    """What the trained network makes of `certificate.probes`."""
    key = "values" if kind == "values" else "logits"
    squares = certificate.probes(trained.contract, trained.contract.resize)
    found = _reference(trained)(certificate.centre(trained.contract, squares))[key]
    return [[float(f"{v:.9g}") for v in row] for row in found.tolist()]


def _latency(about: dict[str, Any], run_file: artefact.Run) -> dict[str, Any]:
    own = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}.get(about["format"])
    device = own or jax.devices()[0].device_kind
    return {"device": device, **certificate.latency(run_file, _side(about), about["contract"]["channels"])}


# --------------------------------------------------------------------------- once more


def verify(
    name: str, uri: str | None, count: int, bound: float | None, say: Say, show: certificate.Show
) -> dict[str, Any]:
    """The certificate's checks of a file, where it is now. Raises UserError if one fails.

    Its digest; the probes, of which the certificate holds what the trained network made; its accuracy on the data, and
    its agreement with the trained network, where those are still there.
    """
    if not artefact.is_one(name):
        raise UserError(f"--verify {name!r} is no exported file: it ends in {', '.join(artefact.FORMATS.values())}")
    path = pathlib.Path(name).expanduser()
    about = artefact.read_certificate(path)
    contract = InputContract.from_dict(about["contract"])
    bound = about["bound"] if bound is None else bound
    run_file = inference.run_of(path, about)
    say(f"{path}: the file that {artefact.certificate_of(path).name} certifies, sha256 {about['sha256'][:12]}...")

    key = "values" if about["kind"] == "values" else "logits"
    squares = certificate.probes(contract, contract.resize)
    whole = about["input"]["pixels"] == "images"
    asked = run_file(squares if whole else certificate.centre(contract, squares))[key]
    expected = np.asarray(about["probes"], np.float64)
    scale = float(np.abs(expected).max()) or 1.0
    largest = float(np.abs(asked - expected).max()) / scale
    limit = PROBE_LIMIT[about["precision"]] if about["trained_in"] == "float32" else PROBE_LIMIT["int8"]
    if not largest <= limit:
        raise UserError(
            f"{path} computes something else here than the trained network did: on {len(expected)} probes the largest "
            f"difference is {largest:.1e} of the logits' scale, {limit:.0e} is allowed; versions then: "
            f"{about['versions']}"
        )
    say(f"probes: {len(expected)}, largest difference {largest:.1e} of the scale (at most {limit:.0e})")
    result: dict[str, Any] = {"file": str(path), "sha256": about["sha256"], "probes_largest_difference": largest}

    try:
        source = open_source(uri or about["data"])
    except UserError as error:
        if uri:
            raise
        say(f"the data is not here ({error}): nothing more was compared")
        return {**result, "compared": "probes"}
    images = certificate.choose(source, contract, count, show)
    try:
        found = pretrained.find(about["source"])
        trained = (
            pretrained.load_found(found, about["source"])
            if pretrained.digest(found) == about["source_sha256"]
            else None
        )
        reason = "it is not the same any more"
    except UserError as error:
        trained, reason = None, str(error)
    if trained is not None:
        reference = certificate.batched(_reference(trained), images.crops)
        measured = _measure(about, run_file, reference, images, show)
        for part, where in (("from_crops", "from the same crops"), ("from_files", "from whole files")):
            if measured[part]:
                certificate.check(path, measured[part], bound, where)
        say(_told({**about, **measured}))
        return {**result, "compared": "trained network", **plain(measured)}
    say(f"the trained network is not here ({reason}): its accuracy is the certificate's")
    exported = certificate.batched(run_file, images.squares if whole else images.crops)
    now = certificate.accuracy(about["kind"], exported, images.labels)
    say(f"{source.uri}: {_words(now)} now, {_words(about['accuracy']['exported'])} when it was exported")
    return {**result, "compared": "accuracy", "accuracy": now, "certified": about["accuracy"]["exported"]}


# --------------------------------------------------------------------------- telling


def _words(accuracy: dict[str, float] | None) -> str:
    return "  ".join(f"{k} {v:.4f}" for k, v in accuracy.items()) if accuracy else "no labels"


def _told(about: dict[str, Any]) -> str:
    lines = [f"{about['format']} ({about['precision']}) against the trained network, images of {about['data']}:"]
    for part, words in (("from_crops", "the same crops"), ("from_files", "whole files, resized within")):
        found = about[part]
        if found:
            ties = f", {found['ties']} of them ties" if found["ties"] else ""
            sizes = f" of {found['sizes']} sizes" if "sizes" in found else ""
            lines.append(
                f"  {words:<28} {found['agreement']:8.2%} of {found['images']}{sizes} told the same{ties}, largest "
                f"difference {found['largest_difference']:.1e} of the scale"
            )
    trained, exported = (about["accuracy"][k] for k in ("trained", "exported"))
    if trained:
        lines.append(f"  {'accuracy':<28} trained {_words(trained)}, exported {_words(exported)}")
    if about["skipped"]:
        lines.append(f"  warning: {len(about['skipped'])} images could not be read, the certificate lists them")
    if "latency_ms" in about:
        spent = about["latency_ms"]
        lines.append(f"  {'latency':<28} {spent['1']:.4g} ms for 1 image, {spent['8']:.4g} for 8 ({spent['device']})")
    return "\n".join(lines)


def _how_to_load(out: pathlib.Path, about: dict[str, Any], trained: Any) -> str:
    """A line of Python."""
    if about["format"] == "safetensors":
        return torch_names.how_to_load(trained, out, about["library"], about["architecture"])
    if about["format"] == "onnx":
        return f'onnxruntime.InferenceSession("{out}").run(["{next(iter(about["outputs"]))}"], {{"images": pixels}})'
    if about["format"] == "litert":
        return f'ai_edge_litert.interpreter.Interpreter("{out}").get_signature_runner()(images=pixels)'
    return f'jax.export.deserialize(open("{out}", "rb").read()).call(pixels)'


def _card(out: pathlib.Path, about: dict[str, Any], state: torch_names.StateDict, trained: Any) -> str:
    """A model card, as the Hugging Face hub reads them."""
    contract, crops = trained.contract, about["from_crops"]
    classes = ", ".join(about["classes"][:20]) + (", ..." if len(about["classes"]) > 20 else "")
    rows = [
        ("network", f"{about['model']} ({state.library}'s {state.theirs})"),
        ("trained for", f"{about['task']}, {about['step']} steps"),
        ("pixels", str(contract)),
        (f"{len(about['classes'])} {about['kind']}", classes if about["named"] else "not named"),
        ("measured on", f"{crops['images']} images of {about['data']}: {_words(about['accuracy']['exported'])}"),
        ("against the trained network", f"{crops['agreement']:.2%} told the same, largest difference "
         f"{crops['largest_difference']:.1e} of the scale"),
        ("weights", f"SHA-256 {about['sha256']}"),
    ]  # fmt: skip
    escaped = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return (
        f"---\nlibrary_name: {state.library}\ntags:\n- image-classification\n- {state.library}\n---\n"
        f"# {about['model']}\n\n| | |\n|---|---|\n{escaped}\n\n```python\n{_how_to_load(out, about, trained)}\n```\n\n"
        f"Exported by jaxvision {about['versions']['jaxvision']}; {artefact.certificate_of(out).name} has the whole "
        "certificate.\n"
    )


def _result(out: pathlib.Path, about: dict[str, Any], state: torch_names.StateDict | None) -> dict[str, Any]:
    keys = ("format", "precision", "bytes", "sha256", "step", "source", "source_sha256", "from_crops", "from_files",
            "accuracy", "latency_ms")  # fmt: skip
    result = {"out": str(out), "certificate": str(artefact.certificate_of(out)), "classes": len(about["classes"])}
    result |= {key: about[key] for key in keys}
    if state is not None:
        result |= {
            "names": state.library,
            "architecture": state.theirs,
            "config": str(out.with_name("config.json")) if state.config else None,
            "tensors": len(state.mine),
            "regenerated": len(state.tensors) - len(state.mine),
        }
    return plain(result)
