"""A trained network's weights as timm or torchvision name them: a state dict in safetensors."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any, NamedTuple

from jaxvision.errors import UserError
from jaxvision.weights.plan import averaged

LIBRARIES = ("timm", "torchvision")
# Arguments of a model that change how it is trained, not what it computes.
_TRAINING_ONLY = ("classes", "dtype", "dropout", "drop_path", "remat", "zero_init", "momentum", "layer_scale")
# Families that timm builds for one size of image.
_ONE_SIZE = ("vit", "mixer", "swin")


class StateDict(NamedTuple):
    """A network in another library's names, as `write` writes it.

    tensors: by the library's names; mine: those of them that the training holds, the others are made again; theirs: the
    library's name of the network; header: the file's metadata; config: timm's config.json, None for torchvision.
    """

    tensors: dict[str, Any]
    mine: set[str]
    library: str
    theirs: str
    header: dict[str, str]
    config: dict[str, Any] | None


def state_dict(trained: Any, names: str | None, about: dict[str, str]) -> StateDict:
    """State dict of a trained network in the library's names; of averaged weights where the training kept some.

    `about` goes into the header. Raises UserError.
    """
    import numpy as np
    from flax import traverse_util

    from jaxvision import models
    from jaxvision.training import build, restore
    from jaxvision.weights import torch

    if "head" in trained.params:
        raise UserError(
            f"{trained.source} was trained by {trained.config.task.name}, whose last layer lies beside the network: "
            "other libraries have no place for it, so use the workdir itself as --from"
        )
    library, theirs = _library(trained.config.model.name, names, models)
    _check_options(trained, library, theirs, models)
    origin = models.origins(trained.config.model.name)[library]
    tree = restore.standalone(trained, averaged({"params": trained.params, "extra": trained.extra}).leaves)
    leaves = {restore.variable(name): np.asarray(leaf, np.float32) for name, leaf in tree.items()}
    damaged = [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if damaged:
        raise UserError(f"{trained.source}: {damaged[0]} holds values that are not finite: choose another --checkpoint")
    model = build.model(trained.config, len(trained.classes))
    standard = traverse_util.flatten_dict(_standard(trained, library, models), sep="/")
    _check_leaves(trained, leaves, standard, library, theirs)
    tensors = torch.to_state_dict(leaves, origin, model)
    mine = {torch.torch_name(leaf, origin) for leaf in leaves}
    header = {
        "format": "pt",
        "jaxvision": _version(),
        "model": trained.config.model.name,
        "contract": json.dumps(trained.contract.to_dict()),
        "classes": json.dumps(trained.classes if trained.named else ()),
        "step": str(trained.step),
        "source": trained.source,
        **about,
    }
    config = _timm_config(trained, theirs, origin, models) if library == "timm" else None
    return StateDict(tensors, mine, library, theirs, header, config)


# --------------------------------------------------------------------------- checks


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
    """Raises UserError where names or shapes of leaves differ from the variant as the library has it."""
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
    """Abstract variables of the plain variant, without options, for the same classes and images."""
    import jax
    import jax.numpy as jnp

    contract = trained.contract
    channels = contract.channels if library == "timm" else 3  # torchvision's take no other number
    model = getattr(models, trained.config.model.name)(classes=len(trained.classes))
    image = jax.ShapeDtypeStruct((1, contract.height, contract.width, channels), jnp.float32)
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)


# --------------------------------------------------------------------------- timm's config.json


def _timm_config(trained: Any, theirs: str, origin: Any, models: Any) -> dict[str, Any]:
    """timm's config.json beside the weights: architecture, classes, and how the network wants its pixels."""
    contract, classes = trained.contract, len(trained.classes)
    square = contract.height == contract.width
    if contract.filter == "linear" or not (contract.fit == "stretch" or (contract.fit == "crop" and square)):
        raise UserError(
            f"{trained.source} makes its pixels so: {contract}. timm's config.json has no words for that: take "
            "--format onnx or stablehlo, or the workdir itself as --from"
        )
    cfg = {
        "input_size": [contract.channels, contract.height, contract.width],
        "fixed_input_size": models.family(trained.config.model.name) in _ONE_SIZE,
        "interpolation": contract.filter,
        "crop_pct": 1.0 if contract.fit == "stretch" else crop_share(max(contract.shape[:2]), contract.resize),
        "crop_mode": "squash" if contract.fit == "stretch" else "center",
        "mean": list(contract.mean),
        "std": list(contract.std),
        "num_classes": classes,
        **_ends(trained, origin, models),
    }
    config = {"architecture": theirs, "num_classes": classes, "pretrained_cfg": cfg}
    return {**config, "label_names": list(trained.classes)} if trained.named else config


def crop_share(size: int, resize: int) -> float:
    """Crop share size / resize, as a float of which floor(size / share) is `resize`: what timm computes from it."""
    share = size / resize
    while math.floor(size / share) < resize:
        share = math.nextafter(share, 0.0)
    return share


def _ends(trained: Any, origin: Any, models: Any) -> dict[str, str]:
    """The library's names of the first convolution and the last layer, whose shapes follow channels and classes."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from jaxvision.weights import torch

    def shapes(channels: int, classes: int) -> dict[str, tuple[int, ...]]:
        size = trained.contract.shape[:2]
        model = getattr(models, trained.config.model.name)(classes=classes)
        image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
        variables = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
        return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items()}

    base, names = shapes(3, 10), {}
    for key, other in (("first_conv", shapes(1, 10)), ("classifier", shapes(3, 11))):
        leaf = next(n for n in base if n.endswith("/kernel") and base[n] != other[n])
        names[key] = torch.torch_name(f"params/{leaf}", origin).removesuffix(".weight")
    return names


# --------------------------------------------------------------------------- writing and telling


def _version() -> str:
    import jaxvision

    return jaxvision.__version__


def write(path: pathlib.Path, state: StateDict) -> None:
    """Writes the tensors and their header, on the disk when it returns.

    Raises UserError where the disk does not take them.
    """
    import safetensors.numpy

    try:
        safetensors.numpy.save_file(state.tensors, path, state.header)
    except safetensors.SafetensorError as error:  # its own for the disk's
        raise UserError(f"cannot write {path}: {error}") from error


def table(state: StateDict) -> str:
    """A line for each module at the top, and one for what was made again."""
    tensors, mine = state.tensors, state.mine
    rows: dict[str, list[int]] = {}
    for name in tensors:
        if name in mine:
            row = rows.setdefault(name.partition(".")[0], [0, 0])
            row[0] += 1
            row[1] += tensors[name].size
    width = max(len(name) for name in rows)
    lines = [f"as {state.library} names {state.theirs}:"]
    lines += [
        f"  written      {name:<{width}}  {n:>4} tensors  {values:>13,} values" for name, (n, values) in rows.items()
    ]
    n, values = len(mine), sum(row[1] for row in rows.values())
    lines.append(f"  written      {'all':<{width}}  {n:>4} tensors  {values:>13,} values")
    again = sorted(tensors.keys() - mine)
    counters = [name for name in again if name.endswith("num_batches_tracked")]
    if counters:
        lines.append(f"  regenerated  {len(counters)} counters, num_batches_tracked = 0")
    lines += [f"  regenerated  {name} {list(tensors[name].shape)}" for name in again if name not in counters]
    return "\n".join(lines)


def how_to_load(trained: Any, out: pathlib.Path, library: str, theirs: str) -> str:
    """The line of Python that loads the file."""
    from jaxvision import models

    family = models.family(trained.config.model.name)
    if library == "timm" and out.name == "model.safetensors":
        return f'timm.create_model("local-dir:{out.parent}", pretrained=True)'
    contract = trained.contract
    options = [f"num_classes={len(trained.classes)}"]
    if contract.size != 224 and family in (_ONE_SIZE if library == "timm" else ("vit",)):
        options.append(f"{'img' if library == 'timm' else 'image'}_size={contract.size}")
    if library == "timm":
        options += [f"in_chans={contract.channels}"] if contract.channels != 3 else []
        return f'timm.create_model("{theirs}", {", ".join(options)}, checkpoint_path="{out}")'
    return (
        f'torchvision.models.get_model("{theirs}", {", ".join(options)}).load_state_dict('
        f'safetensors.torch.load_file("{out}"))'
    )
