"""Weights that others published: where they are, what pixels they want, and their arrays.

    timm:NAME[.TAG]=FILE.safetensors         torchvision:NAME[.TAG]=FILE.safetensors
    hf:timm/NAME.TAG                         fetched from the Hugging Face hub, once
    augreg:NAME[.TAG]=FILE.npz               Google's: ViT and MLP-Mixer of vision_transformer, AugReg and big_vision

NAME is the library's. Google's files have none, so there it is ours or timm's ("vit_b_16", "vit_base_patch16_224"),
and TAG is timm's for the same weights ("augreg_in21k_ft_in1k"). A file that `jaxvision.export` wrote brings its
contract and its class names along; they count before any table.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxvision import models
from jaxvision.data.contract import InputContract
from jaxvision.errors import UserError, nearest
from jaxvision.models.origin import Origin
from jaxvision.runtime import paths
from jaxvision.weights import npz

LIBRARIES = ("timm", "torchvision")
SCHEMES = (*LIBRARIES, "hf", npz.SCHEME)
_TABLE = pathlib.Path(models.__file__).with_name("published.json")
_CLASSES = _TABLE.with_name("imagenet.tsv.gz")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_DTYPES |= {"BOOL": "?", "BF16": "<u2"}
# Of timm's tags, those of weights that Google trained; mean, std and filter are alike in all of them.
_GOOGLE_TAGS = ("augreg_", "goog_", "orig_", "sam_")


class Published(NamedTuple):
    """A file of weights, found but not read."""

    source: str  # as the user named it
    library: str
    model: str  # our name of the network
    tag: str  # which of the library's weights, "a1_in1k"; "" if not said
    origin: Origin | None  # None: Google's, whose names jaxvision.weights.npz knows
    path: pathlib.Path
    contract: InputContract
    options: dict[str, Any] = {}  # noqa: RUF012  arguments of the model that show in the file
    classes: tuple[str, ...] = ()  # their names, if the file says them
    doubt: str = ""  # why the crop of `contract` may not be what the weights were published with, and what to do

    def __str__(self) -> str:
        return f"{self.path} ({self.library} {self.model}{self.tag and ' ' + self.tag})"


def find(source: str) -> Published | None:
    """The published weights that a FROM names; None if it has none of the schemes.

    Raises UserError.
    """
    scheme, colon, rest = source.partition(":")
    if not colon or scheme not in SCHEMES:
        return None
    if scheme == "hf":
        return _from_hub(source, rest)
    name, equals, path = rest.partition("=")
    if not equals or not path:
        example = "vit_base_patch16_224=B_16.npz" if scheme == npz.SCHEME else "resnet50=resnet50.safetensors"
        raise UserError(
            f"{source!r} names no file: write {scheme}:NAME=/path/to/file, as {scheme}:{example}"
            f"{', or hf:timm/' + name + ' to fetch it' if scheme == 'timm' else ''}"
        )
    make = _google if scheme == npz.SCHEME else _published
    return make(source, scheme, name, paths.fetched(path))


def _published(source: str, library: str, name: str, path: pathlib.Path) -> Published:
    theirs, _, tag = name.partition(".")
    known = {models.origins(ours)[library].names[ours]: ours for ours in _variants(library)}
    if theirs not in known:
        raise UserError(f"{source!r}: no network {theirs!r} of {library} here: {nearest(theirs, sorted(known))}")
    model = known[theirs]
    if path.is_dir():
        path = path / "model.safetensors"
    _check_kind(path, ".safetensors")
    said, doubt = about(path), ""
    if said.contract is None:
        said, doubt = _said(source, library, theirs, tag, path)
    assert said.contract is not None
    origin = models.origins(model)[library]
    return Published(source, library, model, tag, origin, path, said.contract, classes=said.classes, doubt=doubt)


def _google(source: str, scheme: str, name: str, path: pathlib.Path) -> Published:
    """A .npz file. timm's contract for the same weights counts, else Google's; the size is that of its positions."""
    theirs, _, tag = name.partition(".")
    ours = [n for n in models.__all__ if models.family(n) in npz.TABLES]
    known = {origin.names[n]: n for n in ours if (origin := models.origins(n).get("timm"))} | {n: n for n in ours}
    if theirs not in known:
        raise UserError(f"{source!r}: no network {theirs!r} of Google's here: {nearest(theirs, sorted(known))}")
    model = known[theirs]
    family = models.family(model)
    _check_kind(path, ".npz")
    origin = models.origins(model).get("timm")
    tags = table()["timm"].get(origin.names[model], {}) if origin else {}
    tags = {name: fields for name, fields in tags.items() if name.startswith(_GOOGLE_TAGS)}
    if tag and tag not in tags:
        raise UserError(f"{source!r}: unknown tag {tag!r}, {scheme}:{theirs}.TAG={path}: {nearest(tag, list(tags))}")
    fields = tags[tag] if tag else next(iter(tags.values()), {"mean": (0.5,) * 3, "std": (0.5,) * 3})
    contract = InputContract(**fields)
    side = npz.side(path, family, getattr(models, model).keywords["patch"])
    if side not in (0, contract.size):
        contract = dataclasses.replace(contract, size=side, resize=side)
    return Published(source, scheme, model, tag, None, path, contract, npz.options(path, family))


def _variants(library: str) -> list[str]:
    return [name for name in models.__all__ if library in models.origins(name)]


PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


def refuse_pickle(path: pathlib.Path, then: str = "") -> None:
    """Raises UserError for a file that is pickled by its name, with how to convert it, and what to do `then`."""
    if path.suffix in PICKLES:
        out = path.with_suffix(".safetensors")
        raise UserError(
            f"{path} is a pickle, which can run code when it is loaded, so it is never loaded. Where torch and "
            'safetensors are installed, convert it once: python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{path}', weights_only=True).items()}}, '{out}')\""
            + then.format(out=out)
        )


def _check_kind(path: pathlib.Path, suffix: str) -> None:
    refuse_pickle(path)
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob(f"*{suffix}")) if path.parent.is_dir() else []
        raise UserError(f"no file {path}: {nearest(str(path), there)}" if there else f"no file {path}")
    if path.suffix != suffix and path.suffix in (".npz", ".safetensors"):
        scheme = npz.SCHEME if path.suffix == ".npz" else "timm: or torchvision"
        raise UserError(f"{path} is no {suffix} file: write {scheme}:NAME={path}")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; bfloat16 and float16 as float32. Raises UserError."""
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error
    state = {}
    for name, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise UserError(f"{path}: {name} is {entry['dtype']}, which no network here uses")
        array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        state[name] = array.astype(np.float32) if entry["dtype"] == "F16" else array
    return state


class About(NamedTuple):
    """Facts that a file of weights says of itself: its header, or timm's config.json beside it."""

    contract: InputContract | None = None
    classes: tuple[str, ...] = ()


def header(path: pathlib.Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; none where it cannot be read, which `read` refuses."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            texts = json.loads(file.read(length)).get("__metadata__", {}) if length < 100_000_000 else {}
    except (OSError, ValueError, AttributeError):
        return {}
    return texts if isinstance(texts, dict) else {}


def about(path: pathlib.Path) -> About:
    """Facts that `jaxvision.export` wrote into a file's header; empty for any other file.

    Raises UserError if it is ours and broken.
    """
    texts = header(path)
    if "jaxvision" not in texts:
        return About()
    try:
        return About(InputContract.from_dict(json.loads(texts["contract"])), tuple(json.loads(texts["classes"])))
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: its header is of jaxvision.export, but broken ({error}): export again") from error


# --------------------------------------------------------------------------- contracts


@functools.cache
def table() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """library -> its network -> tag -> fields of an InputContract; tests/parity/tables.py makes it."""
    return json.loads(_TABLE.read_text())


def _said(source: str, library: str, name: str, tag: str, path: pathlib.Path) -> tuple[About, str]:
    """Pixels that the weights want, and `Published.doubt`.

    They are read from a config.json beside the file (timm's), else from the table. Raises UserError where mean, std or
    filter are not known.
    """
    beside = path.with_name("config.json")
    if library == "timm" and beside.is_file():
        return _timm_says(source, name, tag, beside)
    tags = table().get(library, {}).get(name, {})
    if not tags:
        raise UserError(f"{source!r}: how these weights want their pixels is not known: put timm's config.json beside")
    wanted = f"{library}:{name}.TAG={path}"
    if tag and tag not in tags:
        raise UserError(f"{source!r}: unknown tag {tag!r}, {wanted}: {nearest(tag, list(tags))}")
    if tag:
        return About(contract_of(tags[tag])), _squashed(source, tags[tag])
    made = [contract_of(fields) for fields in tags.values()]
    which = f"does not say which weights, and their {{}} differ: {wanted}, TAG one of {', '.join(tags)}"
    if len({(c.mean, c.std, c.filter) for c in made}) > 1:
        raise UserError(f"{source!r} {which.format('pixels')}")
    same = len(set(made)) == 1 and not any("squash" in fields for fields in tags.values())
    # of several crops the first one's, the oldest weights: good enough to start from, not to measure with
    return About(made[0]), "" if same else f"{source!r} {which.format('sizes or crops')}"


def _timm_says(source: str, name: str, tag: str, path: pathlib.Path) -> tuple[About, str]:
    """Facts that timm's config.json beside weights says of them.

    Raises UserError where it is broken, or of other weights.
    """
    try:
        config = json.loads(path.read_text())
        fields = config.get("pretrained_cfg", config)
        made = timm_contract(fields)
        about = About(contract_of(made), tuple(str(label) for label in config.get("label_names") or ()))
        theirs = {"network": (config.get("architecture"), name), "tag": (fields.get("tag"), tag)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} tells no input size, mean, std and crop ({error!r}): remove it") from error
    for what, (there, asked) in theirs.items():
        if there and asked and there != asked:
            raise UserError(
                f"{source!r} asks for the {what} {asked}, {path} is of {there}: name that, or put the config.json of "
                "these weights beside them"
            )
    return about, _squashed(source, made)


def contract_of(fields: dict[str, Any]) -> InputContract:
    """The input contract of fields of the table, or of `timm_contract`."""
    return InputContract(**{key: value for key, value in fields.items() if key != "squash"})


def _squashed(source: str, fields: dict[str, Any]) -> str:
    """The doubt about weights whose images timm makes square, which is not read as a contract."""
    if "squash" not in fields:
        return ""
    return (
        f"{source!r}: timm shows these weights whole images, squashed to {fields['size']} x {fields['size']} pixels, "
        "which is not read as an input contract yet: fine-tune from them, or take a set of weights that sees a centre "
        "crop (python -m jaxvision.models --weights lists them)"
    )


@functools.cache
def imagenet(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, WordNet ids) of an ImageNet's classes, in the order of its weights; () and () for an unknown count.

    Counts: 1,000 are ImageNet-1k; 11,221, 11,821, 21,841 and 21,843 larger ones, of which timm has weights.
    """
    with gzip.open(_CLASSES, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file if not line.startswith("#")]
    chosen = [(name, synset) for synset, name, counts in rows if str(count) in counts.split()]
    names, synsets = zip(*chosen) if chosen else ((), ())
    return names, synsets


def timm_contract(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of an InputContract of timm's pretrained_cfg, and "squash" where images are squashed instead of cut.

    Raises ValueError for what a contract cannot say.
    """
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode", "center")
    if height != width or mode not in ("center", "squash") or channels not in (1, 3):
        raise ValueError(f"input_size {config['input_size']}, crop_mode {mode}")
    return {
        **({"squash": True} if mode == "squash" else {}),
        "size": height,
        "resize": math.floor(height / config.get("crop_pct", 0.875)),
        "filter": config.get("interpolation", "bicubic"),
        "channels": channels,
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }


# --------------------------------------------------------------------------- the hub


_FILES = ("config.json", "model.safetensors")


def _from_hub(source: str, repository: str) -> Published:
    """hf:timm/NAME.TAG: fetched with a progress bar on a terminal, once; then from the cache, without a request."""
    owner, slash, name = repository.partition("/")
    if owner != "timm" or not slash or not name:
        raise UserError(f"{source!r}: write hf:timm/NAME.TAG, as hf:timm/resnet50.a1_in1k")
    theirs = name.partition(".")[0]
    known = [models.origins(ours)["timm"].names[ours] for ours in _variants("timm")]
    if theirs not in known:  # before anything is fetched
        raise UserError(f"{source!r}: no network {theirs!r} of timm here: {nearest(theirs, sorted(known))}")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise UserError(f'{source!r} needs huggingface_hub: pip install "jaxvision[hub]"') from error
    kept = [hub.try_to_load_from_cache(repository, file) for file in _FILES]
    if all(isinstance(path, str) for path in kept):
        return _published(source, "timm", name, pathlib.Path(str(kept[1])))
    try:
        # One question first: hf_hub_download asks a hub that does not answer again and again, for half a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, _FILES[0]), timeout=10)
        path = [hub.hf_hub_download(repository, file) for file in _FILES][1]
    except Exception as error:  # the hub's, its client's, the disk's
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot fetch {repository} ({type(error).__name__}: {reason}). Without a network, fetch model.safetensors "
            f"and config.json elsewhere and write timm:{name}=/path/model.safetensors"
        ) from error
    return _published(source, "timm", name, pathlib.Path(path))
