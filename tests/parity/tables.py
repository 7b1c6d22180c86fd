"""python -m tests.parity.tables: writes jaxvision/models/published.json from torchvision and timm.

How each published set of weights wants its pixels, as the libraries themselves say.
"""

from __future__ import annotations

import importlib
import json
import math
import pathlib

from jaxvision import models, published
from jaxvision.data.contract import InputContract
from tests.parity import torch_side


def torchvision_contracts(name: str) -> dict[str, dict]:
    found = {}
    for weights in importlib.import_module("torchvision.models").get_model_weights(name):
        crop = weights.transforms()
        if len(crop.crop_size) == 1 == len(crop.resize_size):
            found[weights.name] = contract(
                crop.crop_size[0], crop.resize_size[0], crop.interpolation.value, crop.mean, crop.std
            )
    return found


def timm_contracts(name: str) -> dict[str, dict]:
    timm = importlib.import_module("timm.models")
    found = {}
    for full in timm.list_pretrained(name, exclude_filters=f"{name}[!.]*"):
        base, _, tag = full.partition(".")
        config = timm.get_pretrained_cfg(full)
        if base == name and config is not None and config.num_classes and config.crop_mode == "center":
            size = config.input_size[-1]
            resize = math.floor(size / config.crop_pct)
            found[tag] = contract(size, resize, config.interpolation, config.mean, config.std)
    return found


def contract(size: int, resize: int, filter: str, mean, std) -> dict:
    made = InputContract(size=size, resize=resize, filter=filter, mean=tuple(mean), std=tuple(std))
    plain = made.to_dict()
    default = InputContract().to_dict()
    return {k: plain[k] for k in plain if k in ("size", "resize", "filter") or plain[k] != default[k]}


def tables() -> dict[str, dict[str, dict[str, dict]]]:
    torch_side.import_torchvision()
    makers = {"timm": timm_contracts, "torchvision": torchvision_contracts}
    result: dict[str, dict] = {library: {} for library in published.LIBRARIES}
    for name in models.__all__:
        for library, origin in models.origins(name).items():
            result[library][origin.names[name]] = makers[library](origin.names[name])
    return result


if __name__ == "__main__":
    path = pathlib.Path(models.__file__).with_name("published.json")
    rows = {library: dict(sorted(names.items())) for library, names in tables().items()}
    path.write_text(json.dumps(rows, separators=(",", ":")).replace('},"', '},\n"') + "\n")
