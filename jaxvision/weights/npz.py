"""Google's .npz checkpoints of ViT and MLP-Mixer (AugReg, vision_transformer, big_vision) by our names, and back.

Their leaves are flax's as ours are, so no kernel is transposed. What differs: names, of which there are an older and a
present spelling; queries, keys and values, three leaves of [D, heads, D / heads] there and one of [D, 3 D] here; the
position of the class token, which present files do not have. Numpy only.
"""

from __future__ import annotations

import io
import math
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvision.errors import UserError

SCHEME = "augreg"
_ATTENTION = "MultiHeadDotProductAttention"
_PARTS = ("query", "key", "value")
# Where the parameters are in a file that holds more, and the kernel by which they are known.
_PREFIXES = ("opt/target/", "params/img/", "params/", "")
_STEMS = ("embedding/kernel", "stem/kernel")
# Beside the parameters, in files that hold more: what a training kept for itself.
_TRAINING = re.compile(r"^(opt|opt_state|chrono|accum_train_time|step|global_step)(/|$)")


class Table(NamedTuple):
    """Pairs of (pattern, replacement), applied by `re.sub` in turn."""

    spelling: tuple[tuple[str, str], ...]  # an older name of theirs to the present one
    names: tuple[tuple[str, str], ...]  # our name, without "params/", to theirs; "qkv" stands for query, key, value
    older: tuple[tuple[str, str], ...] = ()  # a present name to the one of AugReg's files


TABLES = {
    "vit": Table(
        spelling=(
            (f"{_ATTENTION}_1/", f"{_ATTENTION}_0/"),
            ("MlpBlock_3/", "MlpBlock_0/"),
            ("LayerNorm_2/", "LayerNorm_1/"),
            (r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),
        ),
        names=(
            (r"^layer_(\d+)/", r"Transformer/encoderblock_\1/"),
            ("/ln_1/", "/LayerNorm_0/"),
            ("/ln_2/", "/LayerNorm_1/"),
            ("/(qkv|out)/", rf"/{_ATTENTION}_0/\1/"),
            ("/mlp_0/", "/MlpBlock_0/Dense_0/"),
            ("/mlp_3/", "/MlpBlock_0/Dense_1/"),
            ("^ln/", "Transformer/encoder_norm/"),
            ("^conv_proj/", "embedding/"),
            ("^class_token$", "cls"),
        ),
        older=(
            (f"{_ATTENTION}_0/", f"{_ATTENTION}_1/"),
            ("MlpBlock_0/", "MlpBlock_3/"),
            ("LayerNorm_1/", "LayerNorm_2/"),
            ("^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
        ),
    ),
    "mixer": Table(
        spelling=(
            ("^embedding/", "stem/"),
            ("^Mixer/encoder_norm/", "pre_head_layer_norm/"),
            (r"^Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/"),
            (r"_mixing_phase_0/(kernel|bias)1$", r"_mixing/Dense_0/\1"),
            (r"_mixing_phase_0/(kernel|bias)2$", r"_mixing/Dense_1/\1"),
            ("/LayerNorm_[1-9]/", "/LayerNorm_1/"),
        ),
        names=(
            (r"^blocks_(\d+)/", r"MixerBlock_\1/"),
            ("/norm1/", "/LayerNorm_0/"),
            ("/norm2/", "/LayerNorm_1/"),
            (r"/mlp_(token|channel)s_fc1/", r"/\1_mixing/Dense_0/"),
            (r"/mlp_(token|channel)s_fc2/", r"/\1_mixing/Dense_1/"),
            ("^norm/", "pre_head_layer_norm/"),
        ),
    ),
}


# --------------------------------------------------------------------------- files


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; bfloat16, which numpy writes as two nameless bytes, as float32.

    Nothing is unpickled. Raises UserError for a file that is none, is not whole or holds a pickle.
    """
    state: dict[str, np.ndarray] = {}
    with _opened(path) as file:
        for name in file.namelist():
            key = name.removesuffix(".npy")
            if key in state or key == name:
                raise UserError(f"{path} holds {name}, {'twice' if key in state else 'which is no .npy'}: no .npz file")
            state[key] = _member(path, file, name)
    return state


def shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Name to shape, without reading the arrays. Raises UserError as `read`."""
    with _opened(path) as file:
        return {n.removesuffix(".npy"): _header(path, file, n)[0] for n in file.namelist() if n.endswith(".npy")}


def _opened(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        raise UserError(f"{path} is no whole .npz file ({error}): copy or download it again") from error


def _header(path: pathlib.Path, file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        with file.open(name) as member:
            version = np.lib.format.read_magic(member)
            reader = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
            shape, _, dtype = getattr(np.lib.format, reader)(member)
    except Exception as error:
        raise UserError(f"{path}: {name} is damaged ({error}): copy or download the file again") from error
    if dtype.hasobject:
        raise UserError(
            f"{path}: {name} is a pickle, which can run code when it is loaded, so it is never loaded: a file of "
            "numbers is needed, as numpy.savez writes it"
        )
    return shape, dtype


def _member(path: pathlib.Path, file: zipfile.ZipFile, name: str) -> np.ndarray:
    shape, dtype = _header(path, file, name)
    if math.prod(shape) * dtype.itemsize > file.getinfo(name).file_size:
        raise UserError(f"{path}: {name} says {list(shape)}, which is more than it holds: download the file again")
    try:
        array = np.lib.format.read_array(io.BytesIO(file.read(name)), allow_pickle=False)  # read whole: checks its CRC
    except Exception as error:
        raise UserError(f"{path}: {name} is damaged ({error}): copy or download the file again") from error
    if array.dtype == np.dtype("V2"):
        array = (array.view("<u2").astype("<u4") << 16).view("<f4")
    return array.astype(np.float32) if array.dtype == np.float16 else array


# --------------------------------------------------------------------------- what a file says of its network


def prefix_of(names: Any, path: Any) -> str:
    """Prefix of the names of the parameters.

    Raises UserError if they are not there.
    """
    for prefix in _PREFIXES:
        if any(prefix + stem in names for stem in _STEMS):
            return prefix
    some = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{path} has neither embedding/kernel nor stem/kernel: it is no checkpoint of Google's ViT or "
                    f"Mixer, or its first layer is missing. It has {some}, ...")  # fmt: skip


def options(path: pathlib.Path, family: str) -> dict[str, Any]:
    """Arguments of the model that show in the file's names: the pooling of a ViT."""
    found = shapes(path)
    if family != "vit":
        return {}
    return {"pooling": "token" if prefix_of(found, path) + "cls" in found else "mean"}


def side(path: pathlib.Path, family: str, patch: int) -> int:
    """Side, in pixels, of the images that the file's position embeddings are for; 0 if the file has none."""
    found = shapes(path)
    for name, shape in found.items():
        if family == "vit" and _respelled(name.removeprefix(prefix_of(found, path)), family) == "pos_embedding":
            return patch * math.isqrt(math.prod(shape[:-1]))
    return 0


def _respelled(name: str, family: str) -> str:
    for pattern, replacement in TABLES[family].spelling:
        name = re.sub(pattern, replacement, name)
    return name


def name_of(leaf: str, family: str) -> str:
    """Google's present name of a leaf, as "params/layer_0/mlp_0/kernel" here; "qkv" stands for query, key and value."""
    name = leaf.removeprefix("params/")
    for pattern, replacement in TABLES[family].names:
        name = re.sub(pattern, replacement, name)
    return name


# --------------------------------------------------------------------------- there and back


class Converted(NamedTuple):
    """A file, taken apart. Every array of it is in `leaves`, `unused` or counted in `dropped`."""

    leaves: dict[str, np.ndarray]  # ours, of whatever size the file has
    called: dict[str, str]  # our name: theirs, as this file spells it
    made: dict[str, str]  # our name: how it was made, where it is more than a copy
    unused: list[str]  # theirs, that no leaf of ours wants
    dropped: list[str]  # the optimiser's state and the like, a line for each group


def from_npz(state: Mapping[str, np.ndarray], want: Mapping[str, Any], model: Any, family: str, path: Any) -> Converted:
    """Leaves of ours, made from a file's arrays.

    Args:
      state: name there to array.
      want: our leaves, "params/...", to something with a `shape`.
      model: our network, for its number of heads.
      path: of the file, for messages.

    Present files without position embeddings are of networks with sines and cosines, which are written out. (The
    class token of present files has no position; `resize.resize` sees to that.)

    Raises UserError if queries, keys and values do not fit together, or have another number of heads than the model.
    """
    prefix = prefix_of(state, path)
    there: dict[str, tuple[str, np.ndarray]] = {}  # present spelling: name in the file, array
    unused: list[str] = []
    groups: dict[str, int] = {}
    for name, array in state.items():
        if not name.startswith(prefix):
            if _TRAINING.match(name):
                group = name.partition("/")[0]
                groups[group] = groups.get(group, 0) + 1
            else:
                unused.append(name)
            continue
        for key, value in _blocks(name.removeprefix(prefix), array):
            spelled = _respelled(key, family)
            if spelled in there:
                raise UserError(f"{path}: {there[spelled][0]} and {name} are the same leaf")
            there[spelled] = (name, value)
    present = any(f"/{_ATTENTION}_0/" in name for name in state)
    leaves, called, made, used = {}, {}, {}, set()
    for leaf, spec in want.items():
        name = name_of(leaf, family)
        parts = [name.replace("/qkv/", f"/{part}/") for part in _PARTS] if "/qkv/" in name else [name]
        called[leaf] = name if len(parts) == 1 else name.replace("/qkv/", f"/{{{','.join(_PARTS)}}}/")
        found = [there[part] for part in parts if part in there]
        if len(found) < len(parts):
            if name == "pos_embedding" and present:
                leaves[leaf], made[leaf] = _waves(tuple(spec.shape), "params/class_token" in want)
            continue
        used.update(parts)
        if len(parts) == 3:
            called[leaf] = found[0][0].replace("/query/", f"/{{{','.join(_PARTS)}}}/")
            leaves[leaf] = _joined([array for _, array in found], called[leaf], model, path)
            continue
        called[leaf], array = found[0]
        if name == "pos_embedding" and (array.ndim == 2 or (array.ndim == 3 and array.shape[0] > 1)):
            array = array.reshape(1, -1, array.shape[-1])  # [N, D] or [H, W, D]
        elif "/out/kernel" in name and array.ndim == 3:
            _check_heads(array.shape[0], called[leaf], model, path)
            array = array.reshape(-1, array.shape[2])
        elif "_mixing_phase_0" in called[leaf]:
            array = array.squeeze()
        leaves[leaf] = array
    unused += [name for spelled, (name, _) in there.items() if spelled not in used]
    dropped = [f"{group}/... ({count} arrays of the training)" for group, count in sorted(groups.items())]
    return Converted(leaves, called, made, sorted(set(unused)), dropped)


def _blocks(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Splits a leaf of blocks that were compiled as one (scan) into one for each block; any other is itself."""
    if "/encoderblock/" not in name or not array.ndim:
        return [(name, array)]
    return [(name.replace("/encoderblock/", f"/encoderblock_{k}/"), part) for k, part in enumerate(array)]


def _joined(parts: list[np.ndarray], called: str, model: Any, path: Any) -> np.ndarray:
    """[D, heads, D / heads] three times to [D, 3 D]; [heads, D / heads] to [3 D]."""
    if len({(part.shape, part.dtype) for part in parts}) > 1 or parts[0].ndim not in (2, 3):
        which = ", ".join(f"{part.dtype}{list(part.shape)}" for part in parts)
        raise UserError(f"{path}: {called} do not fit together: {which}")
    _check_heads(parts[0].shape[-2], called, model, path)
    joined = np.stack(parts, axis=-3)
    return joined.reshape(*joined.shape[:-3], -1)


def _check_heads(heads: int, called: str, model: Any, path: Any) -> None:
    if heads != model.heads:
        raise UserError(f"{path}: {called} has {heads} heads, this network {model.heads}: set config.model.heads")


def _waves(shape: tuple[int, ...], token: bool) -> tuple[np.ndarray, str]:
    """Fixed position embeddings [1, N, D] of sines and cosines, as Chen et al. 2021 (MoCo v3) have them.

    https://arxiv.org/abs/2104.02057: sin x, cos x, sin y, cos y at frequencies 10000^(-k / (D / 4 - 1)).
    """
    width, side = shape[2], math.isqrt(shape[1])
    rows, columns = np.mgrid[:side, :side].reshape(2, -1, 1)
    rates = 1e4 ** -(np.arange(width // 4) / (width // 4 - 1))
    waves = np.concatenate([f(place * rates) for place in (columns, rows) for f in (np.sin, np.cos)], axis=1)
    waves = np.concatenate([np.zeros((int(token), width)), waves])[None]
    return waves.astype(np.float32), f"none there, so sines and cosines of {side} x {side} positions"


def to_npz(leaves: Mapping[str, np.ndarray], model: Any, family: str) -> dict[str, np.ndarray]:
    """Google's arrays of our leaves, "params/...", as AugReg spells a ViT and big_vision a Mixer."""
    state: dict[str, np.ndarray] = {}
    for leaf, array in leaves.items():
        name = name_of(leaf, family)
        for pattern, replacement in TABLES[family].older:
            name = re.sub(pattern, replacement, name)
        if "/qkv/" in name:
            parts = array.reshape(*array.shape[:-1], 3, model.heads, -1)
            for k, part in enumerate(_PARTS):
                state[name.replace("/qkv/", f"/{part}/")] = np.ascontiguousarray(parts[..., k, :, :])
        else:
            state[name] = array.reshape(model.heads, -1, array.shape[-1]) if name.endswith("/out/kernel") else array
    return state
