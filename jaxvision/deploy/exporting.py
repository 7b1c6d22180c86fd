"""The work of `python -m jaxvision.export`: write, compare, certify."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from jaxvision import config as config_lib
from jaxvision import targets
from jaxvision.data.contract import InputContract
from jaxvision.data.sources import Source, open_source, with_classes
from jaxvision.deploy import certificate, exported, formats, inference, network, torch_names, verifying
from jaxvision.errors import UserError
from jaxvision.runtime import paths, versions
from jaxvision.runtime.paths import require_writable, write_whole
from jaxvision.runtime.records import Say, plain
from jaxvision.task import Target
from jaxvision.training import build, check, restore

IMAGES = 200


def run(arguments: Any, say: Say, show: certificate.Show) -> dict[str, Any]:
    """Writes FILE and FILE.json. Raises UserError, and leaves nothing, if they do not agree."""
    out = pathlib.Path(arguments.out).expanduser()
    pixels = "crops" if arguments.format in ("safetensors", "litert") else arguments.pixels or "images"
    precision = "int8" if arguments.int8 else "float32"
    _check_free(out, *_beside(out, arguments.format, arguments.names))
    found = restore.find(arguments.source, arguments.checkpoint, say)
    trained = restore.load_found(found, arguments.source)
    target = inference.predicted_by(trained)
    about = plain(_about(arguments, trained, found, target, pixels, precision))
    say(f"from {trained.source}, step {trained.step}\npixels: {trained.contract}")

    state = None
    if arguments.format == "safetensors":
        state = torch_names.state_dict(trained, arguments.names, {"source_sha256": about["source_sha256"]})
        about |= {"library": state.library, "architecture": state.theirs}
        say(torch_names.table(state))
    beside = _beside(out, arguments.format, state and state.library)
    source = _data(arguments.data, trained, say)
    images = _images(source, trained, arguments.images or IMAGES, show)
    probes = certificate.centre(trained.contract, certificate.probes(trained.contract))
    asked = certificate.batched(verifying.reference(trained), [*images.crops, *probes])
    reference = {name: rows[: len(images.crops)] for name, rows in asked.items()}
    answers = asked[target.main][len(images.crops) :]
    with _whole(out) as written:
        if state is not None:
            torch_names.write(written, state)
        else:
            _write_program(arguments, written, trained, about, pixels, show)
        run_file = inference.run_of(written, about)
        measured = verifying.measure(about, run_file, reference, images, show)
        bound = exported.BOUND[precision] if arguments.agreement is None else arguments.agreement
        verifying.agree(out, measured, bound)
        about |= {
            "bound": bound,
            **measured,
            "probes": [[float(f"{v:.9g}") for v in row] for row in answers.reshape(len(answers), -1).tolist()],
        }
        about["latency_ms"] = None if state is not None else _latency(about, run_file)
        about = plain(about)
        if state is not None:
            torch_names.write(written, state._replace(header=state.header | exported.header(about)))
        else:
            exported.embed(written, about)
        inference.run_of(written, about)  # it is still read, and says what its certificate says
        about |= {"file": out.name, "bytes": written.stat().st_size, "sha256": paths.digest(written)}
        content = {exported.certificate_of(out): json.dumps(about, indent=1) + "\n"}
        if state is not None:
            texts = [json.dumps(state.config, indent=2) + "\n"] if state.config else []
            texts.append(_card(out, about, state, trained))
            content |= dict(zip(beside, texts))
        for path, text in content.items():  # before the file itself, which nobody takes without its certificate
            write_whole(path, text)
    say(verifying.told(about))
    say(f"  {out}: {about['bytes'] / 1e6:.1f} MB, sha256 {about['sha256']}")
    say(f"  certificate: {exported.certificate_of(out)}")
    if state is not None and state.config:
        say(f"  {beside[0]}: what timm reads beside it")
    if state is not None:
        say(f"  {beside[-1]}: a model card")
    say(f"load: {_how_to_load(out, about, trained)}")
    return _result(out, about, state)


# --------------------------------------------------------------------------- what is known before


def _data(uri: str | None, trained: restore.Trained, say: Say) -> Source | None:
    """Images for the certificate; None where none are named. Raises UserError if their classes are others."""
    entry = trained.config.evals.get(config_lib.deciding(trained.config), {})
    uri = uri or entry.get("data")
    if not uri:
        say("warning: no images are named (--data URI): the file is compared on four pictures of noise")
        return None
    source = open_source(uri)
    if targets.find(source.kind) is not None:
        check.kind(trained.config, source, "the certificate's images")
        source = with_classes(source, trained.classes_of(uri, source.classes, say), "the training data")
    return source


def _about(arguments: Any, trained: Any, found: Any, target: Target, pixels: str, precision: str) -> dict[str, Any]:
    """What the file is: the first part of its certificate."""
    contract = trained.contract
    batch = 1 if arguments.format == "litert" else "batch"
    rows = [batch, *(["height", "width", contract.channels] if pixels == "images" else contract.shape)]
    predicted = jax.eval_shape(trained.task.predict, trained.params, trained.extra, build.example(trained.config, 1))
    return {
        "format": arguments.format,
        "precision": precision,
        "model": trained.config.model.name,
        "task": trained.config.task.name,
        "kind": target.name,
        "classes": list(trained.classes),
        "named": trained.named,
        "scores": target.scores(list(predicted)) if target.scores else "",
        "input": {"name": "images", "dtype": "uint8", "shape": rows, "pixels": pixels, "what": exported.INPUTS[pixels]},
        "outputs": {name: [batch, *shape] for name, shape in target.outputs(len(trained.classes)).items()},
        "contract": contract.to_dict(),
        "trained_in": trained.config.dtype,
        "step": trained.step,
        "source": trained.source,
        "source_sha256": restore.digest(found),
        "versions": _versions(arguments.format),
    }


def _versions(format: str) -> dict[str, str]:
    packages = {"onnx": ("onnx", "onnxruntime"), "litert": ("litert-converter", "ai-edge-litert")}.get(format, ())
    for name in packages:
        formats.needed(name.replace("-", "_"), format)
    return {**versions.of_figures(), **versions.installed(*packages)}


# --------------------------------------------------------------------------- writing


def _beside(out: pathlib.Path, format: str, library: str | None) -> list[pathlib.Path]:
    """What else is written: beside weights what timm reads, unless they are torchvision's, and a model card, called as
    the Hugging Face hub wants it where the weights are."""
    if format != "safetensors":
        return []
    card = out.with_name("README.md") if out.name == "model.safetensors" else out.with_suffix(".md")
    return [*([out.with_name("config.json")] if library != "torchvision" else []), card]


def _check_free(*wanted: pathlib.Path) -> None:
    for there in (*wanted, exported.certificate_of(wanted[0])):
        if there.exists():
            raise UserError(f"{there} is there already: remove it, or choose an --out in another folder")
    require_writable(epath.Path(wanted[0].parent))


@contextlib.contextmanager
def _whole(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place beside `out` to write to, see `paths.whole`. Raises UserError for the disk's errors."""
    try:
        with paths.whole(out, synced=True, shared=True) as written:
            yield written
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error}. Nothing is left of it; make room or choose another --out"
        ) from error


def _write_program(
    arguments: Any, written: pathlib.Path, trained: Any, about: dict[str, Any], pixels: str, show: certificate.Show
) -> None:
    function = network.function(trained, pixels)
    if arguments.format == "litert":
        formats.write_litert(written, function, network.one(trained.contract))
        return
    spec = network.symbolic(trained, pixels)
    if arguments.format == "stablehlo":
        formats.write_stablehlo(written, function, spec)
        return
    inside = ("model", "task", "kind", "classes", "scores", "contract", "input", "source", "source_sha256", "precision")
    properties = {key: about[key] for key in inside}
    if not arguments.int8:
        formats.write_onnx(written, function, spec, properties)
        return
    calibration = _images(open_source(arguments.int8), trained, arguments.calibration, show)
    chosen = calibration.squares if pixels == "images" else calibration.crops
    about["calibration"] = {"data": arguments.int8, "images": len(chosen), "skipped": calibration.skipped}
    plain_file = written.with_name(f".{written.name}.float32.onnx")
    try:
        formats.write_onnx(plain_file, function, spec, properties)
        about["float32_bytes"] = plain_file.stat().st_size
        formats.write_int8(written, plain_file, (image[None] for image in show(iter(chosen), len(chosen), "int8")))
    finally:
        plain_file.unlink(missing_ok=True)


# --------------------------------------------------------------------------- for the certificate


def _images(source: Source | None, trained: restore.Trained, count: int, show: certificate.Show) -> certificate.Images:
    contract = trained.contract
    if source is not None:
        return certificate.choose(source, contract, count, show, trained.config.data.max_pixels)
    squares = certificate.probes(contract)
    return certificate.Images(None, contract, certificate.centre(contract, squares), list(squares), None, [], [], [])


def _latency(about: dict[str, Any], run_file: exported.Run) -> dict[str, Any]:
    own = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}.get(about["format"])
    device = own or jax.devices()[0].device_kind
    contract = InputContract.from_dict(about["contract"])
    shape = certificate.probes(contract).shape[1:] if about["input"]["pixels"] == "images" else contract.shape
    return {"device": device, **certificate.latency(run_file, shape)}


# --------------------------------------------------------------------------- telling


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
        ("measured on", f"{crops['images']} images of {about['data'] or 'noise'}: "
         f"{verifying.words(about['accuracy']['exported'])}"),
        ("against the trained network", f"{crops['agreement']:.2%} told the same, largest difference "
         f"{crops['largest_difference']:.1e} of the scale"),
        ("weights", f"SHA-256 {about['sha256']}"),
    ]  # fmt: skip
    escaped = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return (
        f"---\nlibrary_name: {state.library}\ntags:\n- image-classification\n- {state.library}\n---\n"
        f"# {about['model']}\n\n| | |\n|---|---|\n{escaped}\n\n```python\n{_how_to_load(out, about, trained)}\n```\n\n"
        f"Exported by jaxvision {about['versions']['jaxvision']}; {exported.certificate_of(out).name} has the whole "
        "certificate.\n"
    )


def _result(out: pathlib.Path, about: dict[str, Any], state: torch_names.StateDict | None) -> dict[str, Any]:
    keys = ("format", "precision", "bytes", "sha256", "step", "source", "source_sha256", "from_crops", "from_files",
            "accuracy", "latency_ms")  # fmt: skip
    result = {"out": str(out), "certificate": str(exported.certificate_of(out)), "classes": len(about["classes"])}
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
