"""python -m jaxvision.export: a trained network as a file that other libraries load."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError, nearest

FORMATS = ("safetensors",)
PLANNED = ("stablehlo", "onnx")
LIBRARIES = ("timm", "torchvision")
# Arguments of a model that change how it is trained, not what it computes.
_TRAINING_ONLY = ("classes", "dtype", "dropout", "drop_path", "remat", "zero_init", "momentum", "layer_scale")
# Families that timm builds for one size of image.
_ONE_SIZE = ("vit", "mixer", "swin")


def export(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.export",
        "Write a trained network's weights for timm or torchvision: averaged ones where the training kept some.\n"
        "PATH gets the state dict, with the input contract and class names in its header; with timm's names a\n"
        "config.json beside it lets timm load the folder. Neither is overwritten.",
        [
            "python -m jaxvision.export --from runs/a --format safetensors --out exported/model.safetensors",
            "python -m jaxvision.export --from runs/a --checkpoint best --format safetensors --names torchvision \\\n"
            "      --out resnet50.safetensors",
            "python -m jaxvision.evaluate --from timm:resnet50=exported/model.safetensors --data folder:/pets/val",
        ],
    )
    parser.add_from()
    parser.add_argument("--format", required=True, metavar="F", help="safetensors")
    parser.add_argument("--out", required=True, metavar="PATH", help="the file to write, NAME.safetensors")
    parser.add_argument("--names", metavar="LIBRARY", help="timm or torchvision; default: timm if it has the network")
    arguments, _ = parser.parse(argv)
    out = _check(arguments.format, arguments.out, arguments.names)
    say = cli.sayer(arguments)

    import numpy as np
    from flax import traverse_util

    from jaxvision import build, models, pretrained, statedict, weights

    found = pretrained.find(arguments.source, arguments.checkpoint)
    trained = pretrained.load_found(found, arguments.source)
    if "head" in trained.params:
        raise UserError(
            f"{trained.source} was trained by {trained.config.task.name}, whose last layer lies beside the network: "
            "other libraries have no place for it, so use the workdir itself as --from"
        )
    library, theirs = _library(trained.config.model.name, arguments.names, models)
    _check_options(trained, library, theirs, models)
    origin, family = models.origins(trained.config.model.name)[library], models.family(trained.config.model.name)
    tree = pretrained.standalone(trained, weights.averaged({"params": trained.params, "extra": trained.extra}).leaves)
    leaves = {pretrained.variable(name): np.asarray(leaf, np.float32) for name, leaf in tree.items()}
    damaged = [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if damaged:
        raise UserError(f"{trained.source}: {damaged[0]} holds values that are not finite: choose another --checkpoint")
    model = build.model(trained.config, len(trained.classes))
    standard = traverse_util.flatten_dict(_standard(trained, library, models), sep="/")
    _check_leaves(trained, leaves, standard, library, theirs)
    state = statedict.to_state_dict(leaves, origin, model)
    mine = {statedict.torch_name(leaf, origin) for leaf in leaves}
    regenerated = sorted(state.keys() - mine)

    beside = out.with_name("config.json") if library == "timm" else None
    config = _timm_config(trained, theirs, origin, models) if beside else None
    header = {
        "format": "pt",
        "jaxvision": _version(),
        "model": trained.config.model.name,
        "contract": json.dumps(trained.contract.to_dict()),
        "classes": json.dumps(trained.classes if trained.named else ()),
        "step": str(trained.step),
        "source": trained.source,
        "source_sha256": pretrained.digest(found),
    }
    size, digest = _write(out, state, header, beside, config)
    say(f"from {trained.source}, step {trained.step}\npixels: {trained.contract}")
    say(_table(state, mine, library, theirs))
    say(f"  {out}: {size / 1e6:.1f} MB, sha256 {digest}")
    say(
        (f"  {beside}: what timm reads beside it\n" if beside else "")
        + _how_to_load(trained, out, library, theirs, family)
    )
    return {
        "out": str(out),
        "config": str(beside) if beside else None,
        "names": library,
        "architecture": theirs,
        "classes": len(trained.classes),
        "step": trained.step,
        "tensors": len(mine),
        "regenerated": len(regenerated),
        "bytes": size,
        "sha256": digest,
        "source": trained.source,
        "source_sha256": header["source_sha256"],
    }


# --------------------------------------------------------------------------- checks


def _check(format: str, out: str, names: str | None) -> pathlib.Path:
    """Before anything slow: the flags, and that the place is free."""
    if format in PLANNED:
        raise UserError(f"--format {format} is not there yet: there is {', '.join(FORMATS)}")
    if format not in FORMATS:
        raise UserError(f"unknown --format {format!r}: {nearest(format, FORMATS)}")
    if names is not None and names not in LIBRARIES:
        raise UserError(f"unknown --names {names!r}: {nearest(names, LIBRARIES)}")
    path = pathlib.Path(out).expanduser()
    if "://" in out or path.suffix != ".safetensors":
        raise UserError(f"--out {out!r} must be a path on this machine that ends in .safetensors")
    for there in (path, path.with_name("config.json") if names != "torchvision" else path):
        if there.exists():
            raise UserError(f"{there} is there already: remove it, or choose an --out in another folder")
    return path


def _library(name: str, asked: str | None, models: Any) -> tuple[str, str]:
    """(library, its name of our network). Raises UserError if it has none."""
    origins = models.origins(name)
    library = asked or next((known for known in LIBRARIES if known in origins), "")
    if library not in origins:
        raise UserError(f"{library or 'no library here'} has no {name}: it is of {', '.join(origins) or 'none'}, so "
                        f"leave out --names or take --names {next(iter(origins), 'none')}")  # fmt: skip
    return library, origins[library].names[name]


def _check_options(trained: Any, library: str, theirs: str, models: Any) -> None:
    """Refuses arguments with which the network computes something else than the library's of that name."""
    name = trained.config.model.name
    standard = getattr(models, name)(classes=len(trained.classes))
    for key, value in trained.config.model.items():
        if key != "name" and key not in _TRAINING_ONLY and value != getattr(standard, key):
            raise _other(trained, f"{key} = {value!r}", library, theirs, f"config.model.{key}")


def _check_leaves(trained: Any, leaves: dict[str, Any], standard: dict[str, Any], library: str, theirs: str) -> None:
    """The same by what shows: names and shapes of the leaves of the variant as the library has it."""
    wrong = sorted(leaves.keys() ^ standard.keys())
    wrong += [n for n in sorted(leaves.keys() & standard.keys()) if leaves[n].shape != standard[n].shape]
    if not wrong:
        return
    if trained.contract.channels != 3 and library == "torchvision":
        raise _other(trained, f"{trained.contract.channels} channel", library, theirs, "config.data.channels")
    given = ", ".join(f"{k} = {v!r}" for k, v in trained.config.model.items() if k != "name")
    raise _other(trained, f"{given or 'leaves of its own'} ({wrong[0]} differs)", library, theirs, "it")


def _other(trained: Any, option: str, library: str, theirs: str, key: str) -> UserError:
    return UserError(
        f"{trained.source} is {trained.config.model.name} with {option}, which {library}'s {theirs} has not, so "
        f"{library} could not load these weights: train without {key}, or use the workdir itself as --from"
    )


def _standard(trained: Any, library: str, models: Any) -> dict[str, Any]:
    """Abstract variables of the variant as it is without options, for the same classes and images."""
    import jax
    import jax.numpy as jnp

    contract = trained.contract
    channels = contract.channels if library == "timm" else 3  # torchvision's take no other number
    model = getattr(models, trained.config.model.name)(classes=len(trained.classes))
    image = jax.ShapeDtypeStruct((1, contract.size, contract.size, channels), jnp.float32)
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)


# --------------------------------------------------------------------------- timm's config.json


def _timm_config(trained: Any, theirs: str, origin: Any, models: Any) -> dict[str, Any]:
    """What timm reads beside the weights: architecture, classes, and how it wants its pixels."""
    contract, classes = trained.contract, len(trained.classes)
    cfg = {
        "input_size": [contract.channels, contract.size, contract.size],
        "fixed_input_size": models.family(trained.config.model.name) in _ONE_SIZE,
        "interpolation": contract.filter,
        "crop_pct": crop_share(contract.size, contract.resize),
        "crop_mode": "center",
        "mean": list(contract.mean),
        "std": list(contract.std),
        "num_classes": classes,
        **_ends(trained, origin, models),
    }
    config = {"architecture": theirs, "num_classes": classes, "pretrained_cfg": cfg}
    return {**config, "label_names": list(trained.classes)} if trained.named else config


def crop_share(size: int, resize: int) -> float:
    """size / resize, as a float of which floor(size / it) is `resize`: what timm computes from it."""
    share = size / resize
    while math.floor(size / share) < resize:
        share = math.nextafter(share, 0.0)
    return share


def _ends(trained: Any, origin: Any, models: Any) -> dict[str, str]:
    """Their names of the first convolution and the last layer: those whose shape follows channels and classes."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from jaxvision import statedict

    def shapes(channels: int, classes: int) -> dict[str, tuple[int, ...]]:
        size = trained.contract.size
        model = getattr(models, trained.config.model.name)(classes=classes)
        image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        variables = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
        return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items()}

    base, names = shapes(3, 10), {}
    for key, other in (("first_conv", shapes(1, 10)), ("classifier", shapes(3, 11))):
        leaf = next(n for n in base if n.endswith("/kernel") and base[n] != other[n])
        names[key] = statedict.torch_name(f"params/{leaf}", origin).removesuffix(".weight")
    return names


# --------------------------------------------------------------------------- writing and telling


def _version() -> str:
    import jaxvision

    return jaxvision.__version__


def _write(
    out: pathlib.Path, state: dict, header: dict[str, str], beside: pathlib.Path | None, config: dict | None
) -> tuple[int, str]:
    """(bytes, SHA-256). Either both files appear under their names, whole, or none stays behind."""
    import hashlib

    import safetensors.numpy

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(state, temporary, header)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if beside:
            _place(beside, json.dumps(config, indent=2) + "\n")
        temporary.replace(out)
    except Exception as error:  # the disk's, or safetensors' own for it
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | safetensors.SafetensorError):
            raise
        raise UserError(
            f"cannot write {out}: {error}. Nothing is left of it; make room or choose another --out"
        ) from error
    return size, digest


def _place(path: pathlib.Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text)
    beside.replace(path)


def _table(state: dict[str, Any], mine: set[str], library: str, theirs: str) -> str:
    """A line for each module at the top, and one for what was made again."""
    rows: dict[str, list[int]] = {}
    for name in state:
        if name in mine:
            row = rows.setdefault(name.partition(".")[0], [0, 0])
            row[0] += 1
            row[1] += state[name].size
    width = max(len(name) for name in rows)
    lines = [f"as {library} names {theirs}:"]
    lines += [
        f"  written      {name:<{width}}  {n:>4} tensors  {values:>13,} values" for name, (n, values) in rows.items()
    ]
    n, values = len(mine), sum(row[1] for row in rows.values())
    lines.append(f"  written      {'all':<{width}}  {n:>4} tensors  {values:>13,} values")
    again = sorted(state.keys() - mine)
    counters = [name for name in again if name.endswith("num_batches_tracked")]
    if counters:
        lines.append(f"  regenerated  {len(counters)} counters, num_batches_tracked = 0")
    lines += [f"  regenerated  {name} {list(state[name].shape)}" for name in again if name not in counters]
    return "\n".join(lines)


def _how_to_load(trained: Any, out: pathlib.Path, library: str, theirs: str, family: str) -> str:
    """The line of Python."""
    if library == "timm" and out.name == "model.safetensors":
        return f'load: timm.create_model("local-dir:{out.parent}", pretrained=True)'
    contract = trained.contract
    options = [f"num_classes={len(trained.classes)}"]
    if contract.size != 224 and family in (_ONE_SIZE if library == "timm" else ("vit",)):
        options.append(f"{'img' if library == 'timm' else 'image'}_size={contract.size}")
    if library == "timm":
        options += [f"in_chans={contract.channels}"] if contract.channels != 3 else []
        return f'load: timm.create_model("{theirs}", {", ".join(options)}, checkpoint_path="{out}")'
    return (
        f'load: torchvision.models.get_model("{theirs}", {", ".join(options)}).load_state_dict('
        f'safetensors.torch.load_file("{out}"))'
    )


if __name__ == "__main__":
    cli.main(export)
