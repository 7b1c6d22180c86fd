"""jaxvision: pretrain image networks at ImageNet scale and fine-tune them to anything, in JAX.

Importing the package does not load jax; submodules are imported when first used.
"""

__version__ = "0.1.0"
__all__ = ["config", "data", "load", "losses", "metrics", "models", "ops", "tasks"]


def __getattr__(name: str):
    if name == "load":
        from jaxvision.deploy.inference import load

        return load
    if name in __all__:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
