"""python -m tests.parity.tables: writes what is known of published weights, from torchvision and timm.

jaxvision/models/published.json: how each set of weights wants its pixels, as the libraries themselves say.
jaxvision/models/imagenet.tsv.gz: the classes of ImageNet-1k and of four larger sets, see `published.imagenet`.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import math
import pathlib
from collections import Counter

from jaxvision import models
from jaxvision.data.contract import InputContract
from jaxvision.weights import published
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
    """All tags, those of self-supervised weights too, which have no last layer."""
    timm = importlib.import_module("timm.models")
    found = {}
    for full in timm.list_pretrained(name, exclude_filters=f"{name}[!.]*"):
        base, _, tag = full.partition(".")
        if base == name:
            config = timm.get_pretrained_cfg(full)
            size = config.input_size[-1]
            resize = math.floor(size / config.crop_pct)
            found[tag] = contract(size, resize, config.interpolation, config.mean, config.std)
            if config.crop_mode != "center":
                found[tag][config.crop_mode] = True
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


# Number of classes: timm's name of the set (its _NUM_CLASSES_TO_SUBSET), of those that our networks have weights for.
TIMM_SETS = {
    1000: "imagenet",
    11221: "imagenet21k_miil",
    11821: "imagenet12k",
    21841: "imagenet22k",
    21843: "imagenet21k_goog",
}
# Of the 1,000 classes, those whose first lemma is another's too, or begins one; as torchvision calls them.
OTHERWISE = {"n02012849": "crane bird", "n03710721": "maillot tank suit"}


def imagenet() -> str:
    """The text of imagenet.tsv.gz."""
    torch_side.import_torchvision()
    info = pathlib.Path(importlib.import_module("timm.data").__file__).parent / "_info"
    sets = {count: set((info / f"{name}_synsets.txt").read_text().split()) for count, name in TIMM_SETS.items()}
    with (info / "imagenet_synset_to_lemma.txt").open() as file:
        names = {
            synset: lemmas.split(",")[0].strip() for synset, lemmas in csv.reader(file, delimiter="\t")
        } | OTHERWISE
    listed = sorted(set().union(*sets.values()))
    often = Counter(names[synset] for synset in listed)
    lines = [
        "# ImageNet's classes: WordNet id, name, and the sets that have it, by their numbers of classes; each set is",
        "# in the order of the ids. Written by python -m tests.parity.tables from timm 1.0.31, timm/data/_info",
        "# (Copyright 2019 Ross Wightman, Apache License 2.0), whose names are WordNet's (WordNet 3.0, Copyright 2006",
        "# by Princeton University, https://wordnet.princeton.edu/license-and-commercial-use): the first lemma, and",
        "# the id behind it where another class has the same.",
    ]
    for synset in listed:
        same = often[names[synset]] > 1 and synset not in sets[1000]
        counts = " ".join(str(count) for count, synsets in sets.items() if synset in synsets)
        lines.append(f"{synset}\t{names[synset]}{f' ({synset})' * same}\t{counts}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = pathlib.Path(models.__file__).with_name("published.json")
    rows = {library: dict(sorted(names.items())) for library, names in tables().items()}
    path.write_text(json.dumps(rows, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    path.with_name("imagenet.tsv.gz").write_bytes(gzip.compress(imagenet().encode(), mtime=0))
