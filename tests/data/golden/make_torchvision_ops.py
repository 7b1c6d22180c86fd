"""Makes torchvision_ops.npz: what torchvision's Pillow backend and timm make of one picture.

    python make_torchvision_ops.py

It needs torch, torchvision, timm and Pillow; the versions are in the file. A key says which operation, magnitude and
filter; `policies` and `spaces` are torchvision's tables and magnitudes, as JSON.
"""

import json
import pathlib

import numpy as np
from PIL import Image

SIDE = 32
FILL = (10, 200, 90)


def picture() -> np.ndarray:
    """Slopes, a bright square and noise, between 20 and 230; whole numbers only, so the same everywhere."""
    y, x, c = np.mgrid[:SIDE, :SIDE, :3].astype(np.int64)
    noise = ((x * 7919 + y * 104729 + c * 1299709 + 12345) * 2654435761 >> 16) % 40
    square = ((x - 20) ** 2 < 36) & ((y - 11) ** 2 < 25)
    return np.clip(20 + 3 * x + 2 * y * (c + 1) // 2 + 70 * square * (2 - c) + noise, 20, 230).astype(np.uint8)


def main() -> None:
    import PIL
    import timm
    import torchvision
    from timm.data import auto_augment as timm_ops
    from torchvision.transforms import InterpolationMode, autoaugment
    from torchvision.transforms import functional as F

    modes = {m: InterpolationMode(m) for m in ("nearest", "bilinear", "bicubic")}
    colour, grey = Image.fromarray(picture()), Image.fromarray(picture()[:, :, 0])
    made: dict[str, Image.Image] = {}

    names = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY"}
    names |= {n: n.capitalize() for n in ("rotate", "brightness", "color", "contrast", "sharpness", "posterize")}
    names |= {"solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert"}
    cases = [("shear_x", 0.09, "nearest"), ("shear_x", -0.99, "nearest"), ("shear_x", 0.2, "bilinear")]
    cases += [("shear_y", 0.3, "nearest"), ("shear_y", -0.21, "nearest"), ("shear_y", -0.033, "bilinear")]
    cases += [("translate_x", 4.0, "nearest"), ("translate_x", -14.0, "nearest"), ("translate_y", 9.0, "nearest")]
    cases += [("translate_y", -3.0, "bilinear"), ("rotate", 9.0, "nearest"), ("rotate", -135.0, "nearest")]
    cases += [("rotate", -13.3, "bilinear"), ("rotate", 7.5, "bicubic")]
    for op in ("brightness", "color", "contrast", "sharpness"):
        cases += [(op, m, "nearest") for m in (0.27, -0.9, 0.99)]
    cases += [("posterize", m, "nearest") for m in (2, 4, 7)] + [
        ("solarize", m, "nearest") for m in (0.0, 128.0, 178.5)
    ]
    cases += [(op, 0.0, "nearest") for op in ("autocontrast", "equalize", "invert")]
    for op, m, mode in cases:
        made[f"op/{op}/{m}/{mode}"] = autoaugment._apply_op(colour, names[op], m, modes[mode], FILL)
    for op in ("shear_x", "rotate"):
        made[f"grey op/{op}/0.3/nearest"] = autoaugment._apply_op(grey, names[op], 0.3, modes["nearest"], 77)
    for op in ("brightness", "color", "contrast", "sharpness", "autocontrast", "equalize", "invert"):
        made[f"grey op/{op}/0.4/nearest"] = autoaugment._apply_op(grey, names[op], 0.4, modes["nearest"], None)
    for turn in (0.02, 0.31, -0.1, -0.5):
        made[f"hue/{turn}"] = F.adjust_hue(colour, turn)
    made["grayscale"] = F.to_grayscale(colour, 3)
    corners = [[2, 5], [30, 0], [25, 28], [6, 31]]
    old = [[0, 0], [SIDE - 1, 0], [SIDE - 1, SIDE - 1], [0, SIDE - 1]]
    for mode in ("bilinear", "bicubic"):
        made[f"perspective/{json.dumps(corners)}/{mode}"] = F.perspective(colour, old, corners, modes[mode], [7])

    # timm moves the other way for the same number; its sign is random.
    for op, m, mode in (("shear_x", 0.27, "bicubic"), ("shear_y", -0.3, "bilinear"), ("translate_x", 12.96, "bicubic")):
        resample = getattr(Image.Resampling, mode.upper())
        function = {"translate_x": timm_ops.translate_x_abs}.get(op) or getattr(timm_ops, op)
        shifted = -m if op.startswith("translate") else m
        made[f"op/{op}/{m}/{mode}"] = function(colour, shifted, fillcolor=FILL, resample=resample)
    for m in (99, 30):
        made[f"op/solarize_add/{m}/nearest"] = timm_ops.solarize_add(colour, m)

    levels = {}
    spaces = {"rand": autoaugment.RandAugment(), "auto": autoaugment.AutoAugment(), "trivial": None, "aug_mix": None}
    spaces["trivial"], spaces["aug_mix"] = autoaugment.TrivialAugmentWide(), autoaugment.AugMix()
    for space, bins in (("rand", 31), ("auto", 10), ("trivial", 31), ("aug_mix", 10)):
        arguments = (bins,) if space == "trivial" else (bins, (SIDE, 2 * SIDE))
        laws = spaces[space]._augmentation_space(*arguments)
        levels[space] = {name: (m.tolist() if m.ndim else None, signed) for name, (m, signed) in laws.items()}
    for increasing in (True, False):
        chosen = timm_ops._RAND_INCREASING_TRANSFORMS if increasing else timm_ops._RAND_TRANSFORMS
        timm_ops._randomly_negate = lambda v: v
        laws = {name: timm_ops.LEVEL_TO_ARG[name] for name in chosen}
        at = {n: [law(m, {})[0] for m in range(11)] if law else None for n, law in laws.items()}
        levels[f"timm {increasing}"] = at
    policies = {p.value: autoaugment.AutoAugment(p).policies for p in autoaugment.AutoAugmentPolicy}

    versions = f"torchvision {torchvision.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}"
    arrays = {key: np.asarray(image) for key, image in made.items()}
    arrays |= {"image": picture(), "versions": np.array(versions)}
    arrays |= {"policies": np.array(json.dumps(policies)), "spaces": np.array(json.dumps(levels))}
    np.savez_compressed(pathlib.Path(__file__).with_name("torchvision_ops.npz"), **arrays)


if __name__ == "__main__":
    main()
