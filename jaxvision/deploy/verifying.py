"""The trained network and an exported file, side by side: when it is exported, and again where it is deployed."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jaxvision import targets
from jaxvision.data.contract import InputContract
from jaxvision.data.sources import Source, open_source, with_classes
from jaxvision.deploy import certificate, exported, inference
from jaxvision.errors import UserError
from jaxvision.runtime.records import Say, plain
from jaxvision.training import restore
from jaxvision.weights import published

# Of what the trained network makes of the probes: another order of sums, or another device's products; int8 rounds all.
PROBE_LIMIT = {"float32": 1e-2, "int8": 0.5}
PARTS = (("from_crops", "the same crops"), ("from_files", "whole files, resized within"))


def reference(trained: restore.Trained) -> exported.Run:
    """The trained network, as the evaluator asks it."""
    return inference.run_trained(trained, lambda predicted: inference.outputs_of(trained.task, predicted))


def measure(
    about: dict[str, Any], run_file: exported.Run, reference: dict[str, np.ndarray], images: certificate.Images,
    show: certificate.Show,
) -> dict[str, Any]:  # fmt: skip
    target, whole = inference.target_of(about), about["input"]["pixels"] == "images"
    answers = certificate.batched(run_file, images.squares if whole else list(images.crops))
    from_files = None
    if whole and images.source is not None:
        which, rows = certificate.from_files(about["format"], run_file, images, show)
        from_files = certificate.compared(target, {k: v[which] for k, v in reference.items()}, rows)
        from_files["sizes"] = len({images.sizes[k] for k in which})
    return {
        "data": images.source.uri if images.source is not None else None,
        "skipped": images.skipped,
        "from_crops": certificate.compared(target, reference, answers),
        "from_files": from_files,
        "accuracy": {
            "trained": certificate.accuracy(target, reference, images),
            "exported": certificate.accuracy(target, answers, images),
        },
    }


def _with_classes_of(about: dict[str, Any], source: Source, say: Say) -> Source:
    """The source with labels that count in the file's classes.

    They are matched by name where any is the same, else by their numbers, which is said.

    Raises UserError where the names are others, or none is the same and there are more or fewer.
    """
    names, (words, synsets) = tuple(about["classes"]), published.imagenet(len(about["classes"]))
    if names == words and set(source.classes) & set(synsets):
        names = synsets
    if targets.find(source.kind) is None:
        return source
    if not set(names) & set(source.classes) and len(names) == len(source.classes):
        say(f"{source.uri} has none of the file's class names: class k is taken to be the data's class k")
        return source
    return with_classes(source, names, "the exported network")


def agree(path: pathlib.Path, measured: dict[str, Any], bound: float) -> None:
    """Raises UserError if fewer than `bound` of the images are told the same."""
    for part, where in PARTS:
        if measured[part]:
            certificate.check(path, measured[part], bound, where)


def verify(
    name: str, uri: str | None, count: int | None, bound: float | None, say: Say, show: certificate.Show
) -> dict[str, Any]:
    """The certificate's checks of a file, where it is now. Raises UserError if one fails.

    Its digest; the probes, of which the certificate holds what the trained network made; its accuracy on the data, and
    its agreement with the trained network, where those are still there.
    """
    if not pathlib.Path(name).expanduser().exists():
        raise UserError(f"--verify {name!r} does not exist: name a file that export wrote")
    if not exported.is_one(name):
        raise UserError(f"--verify {name!r} is no exported file: one ends in {', '.join(exported.FORMATS.values())}")
    path = pathlib.Path(name).expanduser()
    about = exported.read_certificate(path)
    run_file = inference.run_of(path, about)  # from here on it is known to hold what the file says of itself
    contract = InputContract.from_dict(about["contract"])
    bound = about["bound"] if bound is None else bound
    say(f"{path}: the file that {exported.certificate_of(path).name} certifies, sha256 {about['sha256'][:12]}...")
    unproved = exported.unproved(path, about["format"])
    if unproved:
        say(unproved)

    target = inference.target_of(about)
    squares = certificate.probes(contract)
    whole = about["input"]["pixels"] == "images"
    asked = run_file(squares if whole else certificate.centre(contract, squares))[target.main]
    expected = np.asarray(about["probes"], np.float64).reshape(asked.shape)
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

    if not (uri or about["data"]):
        say("the certificate names no images: give --data URI to compare more")
        return {**result, "compared": "probes"}
    try:
        source = open_source(uri or about["data"])
    except UserError as error:
        if uri:
            raise
        say(f"the data is not here ({error}): nothing more was compared")
        return {**result, "compared": "probes"}
    source = _with_classes_of(about, source, say)
    images = certificate.choose(source, contract, count or about["from_crops"]["images"], show)
    try:
        found = restore.find(about["source"])
        same = restore.digest(found) == about["source_sha256"]
        trained = restore.load_found(found, about["source"]) if same else None
        reason = "it is not the same any more"
    except UserError as error:
        trained, reason = None, str(error)
    if trained is not None:
        theirs = certificate.batched(reference(trained), list(images.crops))
        measured = measure(about, run_file, theirs, images, show)
        agree(path, measured, bound)
        say(told({**about, **measured, "latency_ms": None}))  # that is of where it was exported
        return {**result, "compared": "trained network", **plain(measured)}
    say(f"the trained network is not here ({reason}): its accuracy is the certificate's")
    answers = certificate.batched(run_file, images.squares if whole else list(images.crops))
    now = certificate.accuracy(target, answers, images)
    say(f"{source.uri}: {words(now)} now, {words(about['accuracy']['exported'])} when it was exported")
    return {**result, "compared": "accuracy", "accuracy": now, "certified": about["accuracy"]["exported"]}


def words(accuracy: dict[str, float] | None) -> str:
    return "  ".join(f"{k} {v:.4f}" for k, v in accuracy.items()) if accuracy else "no labels"


def told(about: dict[str, Any]) -> str:
    of = about["data"] or "noise"
    lines = [f"{about['format']} ({about['precision']}) against the trained network, images of {of}:"]
    for part, name in PARTS:
        found = about[part]
        if found:
            ties = f", {found['ties']} of them ties" if found["ties"] else ""
            sizes = f" of {found['sizes']} size{'s' * (found['sizes'] != 1)}" if "sizes" in found else ""
            lines.append(
                f"  {name:<28} {found['agreement']:8.2%} of {found['images']}{sizes} told the same{ties}, largest "
                f"difference {found['largest_difference']:.1e} of the scale"
            )
    trained, deployed = (about["accuracy"][k] for k in ("trained", "exported"))
    if trained:
        lines.append(f"  {'accuracy':<28} trained {words(trained)}, exported {words(deployed)}")
    if about["skipped"]:
        lines.append(f"  warning: {len(about['skipped'])} images could not be read, the certificate lists them")
    if about.get("latency_ms"):
        spent = about["latency_ms"]
        lines.append(f"  {'latency':<28} {spent['1']:.4g} ms for 1 image, {spent['8']:.4g} for 8 ({spent['device']})")
    return "\n".join(lines)
