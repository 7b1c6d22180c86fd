"""Versions: of this package and of others, as hosts compare them and as figures are recorded with."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
import platform
import re

import jaxvision

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PLUGINS = (r"jax-cuda\d+-plugin", "libtpu")  # of accelerators


def installed(*packages: str) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def of_a_host() -> dict[str, str]:
    """Versions of what must be the same on all hosts; an accelerator's plugin among them, where there is one."""
    there = sorted(d.name.lower().replace("_", "-") for d in importlib.metadata.distributions() if d.name)
    plugins = [name for name in there if any(re.fullmatch(pattern, name) for pattern in PLUGINS)]
    ours = {"python": platform.python_version(), "jaxvision": f"{jaxvision.__version__} ({_code()})"}
    return {**ours, **installed(*PACKAGES, *plugins)}


def of_figures() -> dict[str, str]:
    """Versions of what a figure or a checkpoint depends on, and the devices that it came about on."""
    import cv2
    import jax

    packages = installed("jax", "flax", "optax", "numpy", "pillow")
    return {
        "jaxvision": jaxvision.__version__,
        **packages,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
    }


def _code() -> str:
    """A digest of this package's files: two copies may call themselves by one version."""
    root, digest = pathlib.Path(jaxvision.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]
