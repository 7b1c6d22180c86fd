"""torchvision's and timm's networks, with random weights, beside the CPU build of torch."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import numpy as np
import torch

_KEPT = []  # a library of operators must live as long as torchvision does


def import_torchvision() -> None:
    """Imports torchvision. Its wheel for CUDA fails to import beside torch for CPU: its native operators are absent.

    They are declared by name then, which is enough for models and transforms.
    """
    spec = importlib.util.find_spec("torchvision")
    folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
    source = (folder / "_meta_registrations.py").read_text()
    names = {
        *re.findall(r'register_meta\("(\w+)"\)', source),
        *re.findall(r"torchvision::(\w+)", source),
        "nms",
        "qnms",
    }
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in sorted(names):
            _KEPT[0].define(f"{name}(Tensor a) -> Tensor")
        importlib.import_module("torchvision")


def make(library: str, name: str, **options) -> torch.nn.Module:
    """A network of `library` in evaluation mode, every parameter and running statistic random."""
    torch.manual_seed(0)
    import_torchvision()
    if library == "torchvision":
        make_model = importlib.import_module("torchvision.models").get_model
        return randomised(make_model(name, weights=None, **options)).eval()
    return randomised(importlib.import_module("timm").create_model(name, num_classes=1000, **options)).eval()


@torch.no_grad()
def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Nothing stays at 0, 1 or 1e-6, where a leaf that went to the wrong place would not be seen."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith("attn_mask"):
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=random)
        elif tensor.ndim <= 1 and name.endswith("weight"):  # norms
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.ndim <= 1 or torch.all(tensor == tensor.flatten()[0]):
            tensor.normal_(0, 0.1, generator=random)
        else:
            tensor.add_(torch.empty_like(tensor).normal_(0, 0.01, generator=random))
    return model


@torch.no_grad()
def outputs(model: torch.nn.Module, image: np.ndarray, modules: list[str]) -> dict[str, np.ndarray]:
    """What the named modules and, as "logits", the whole gave for image f32[B, H, W, 3]."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor):
                seen.setdefault(name, output.numpy().copy())

        return hook

    known = dict(model.named_modules())
    hooks = [known[name].register_forward_hook(keep(name)) for name in modules if name in known]
    seen["logits"] = model(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))).numpy()
    for hook in hooks:
        hook.remove()
    return seen


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
