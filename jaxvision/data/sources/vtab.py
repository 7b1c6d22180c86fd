"""VTAB-1k: its nineteen tasks as URIs of TFDS, and the labels of three of them, which are computed from annotations.

Zhai et al. 2019, "A large-scale study of representation learning with the visual task adaptation benchmark",
https://arxiv.org/abs/1910.04867. Splits, thresholds and class counts are those of the authors' code,
https://github.com/google-research/task_adaptation (`train800val200` and `test` of each data set).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Task(NamedTuple):
    """1,000 images to learn from and a split to test on, both of one TFDS builder."""

    name: str
    train: str
    test: str
    query: str = ""  # of the URI, where the label is not the feature `label`

    @property
    def uris(self) -> tuple[str, str]:
        query = "square=1" + (f"&{self.query}" if self.query else "")
        return f"tfds:{self.name}/{self.train}?{query}", f"tfds:{self.name}/{self.test}?{query}"


_VALIDATION = "train[:800]+validation[:200]"


def _held_out(place: int) -> str:
    """Split of 1,000 training records of a data set without a validation split.

    The authors' validation part starts at record `place` of the training split.
    """
    return f"train[:800]+train[{place}:{place + 200}]"


TASKS = {
    # natural
    "caltech101": Task("caltech101", _held_out(2753), "test"),
    "cifar100": Task("cifar100", _held_out(45000), "test"),
    "dtd": Task("dtd", _VALIDATION, "test"),
    "flowers102": Task("oxford_flowers102", _VALIDATION, "test"),
    "pets": Task("oxford_iiit_pet", _held_out(2944), "test"),
    "sun397": Task("sun397/tfds", _VALIDATION, "test"),
    "svhn": Task("svhn_cropped", _held_out(65931), "test"),
    # specialised
    "patch-camelyon": Task("patch_camelyon", _VALIDATION, "test"),
    "eurosat": Task("eurosat/rgb", _held_out(16200), "train[21600:]"),
    "resisc45": Task("resisc45", _held_out(18900), "train[25200:]"),
    "retinopathy": Task("diabetic_retinopathy_detection/btgraham-300", _VALIDATION, "test"),
    # structured
    "clevr-count": Task("clevr", _held_out(63000), "validation", "label=count_all"),
    "clevr-distance": Task("clevr", _held_out(63000), "validation", "label=closest_object_distance"),
    "dmlab": Task("dmlab", _VALIDATION, "test"),
    "kitti-distance": Task("kitti", _VALIDATION, "test", "label=closest_vehicle_distance"),
    "dsprites-location": Task("dsprites", _held_out(589824), "train[663552:]", "label=label_x_position&classes=16"),
    "dsprites-orientation": Task("dsprites", _held_out(589824), "train[663552:]", "label=label_orientation&classes=16"),
    "smallnorb-azimuth": Task("smallnorb", "train[:800]+test[:200]", "test[50%:]", "label=label_azimuth"),
    "smallnorb-elevation": Task("smallnorb", "train[:800]+test[:200]", "test[50%:]", "label=label_elevation"),
}


class Computed(NamedTuple):
    """A label that no feature of its own holds: the feature it is computed from, the names of its classes, and how."""

    feature: str
    classes: tuple[str, ...]
    of: Callable[[Mapping[str, Any]], int]


def _bin(value: float, thresholds: tuple[float, ...]) -> int:
    """Number of thresholds after the first that lie below the value."""
    return int(np.searchsorted(thresholds, value, side="left")) - 1


def _count_all(objects: Mapping[str, Any]) -> int:
    """Class of the number of objects in a CLEVR scene, which has 3 to 10."""
    return len(objects["size"]) - 3


def _closest_object_distance(objects: Mapping[str, Any]) -> int:
    return _bin(min(place[2] for place in objects["pixel_coords"]), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def _closest_vehicle_distance(objects: Mapping[str, Any]) -> int:
    """Class of the distance to the closest car, van or truck (types 0 to 2), in metres along the camera's axis.

    The last class says that there is none.
    """
    vehicles = [place[2] for place, kind in zip(objects["location"], objects["type"], strict=True) if kind < 3]
    return _bin(min(vehicles, default=1000.0), (-100.0, 8.0, 20.0, 999.0))


COMPUTED = {
    "clevr": {
        "count_all": Computed("objects", tuple(f"{n} objects" for n in range(3, 11)), _count_all),
        "closest_object_distance": Computed(
            "objects",
            ("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10"),
            _closest_object_distance,
        ),
    },
    "kitti": {
        "closest_vehicle_distance": Computed(
            "objects", ("to 8 m", "8 to 20 m", "over 20 m", "no vehicle"), _closest_vehicle_distance
        ),
    },
}

# Pixels of these are 0 and 1.
BINARY = ("dsprites",)
