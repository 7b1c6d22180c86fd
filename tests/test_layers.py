"""The layer table: a module imports only from layers above it."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jaxvision"
# From the top: what a line names may import from the lines above it (and from its own package).
LAYERS = [
    "errors", "ranges", "paths", "chips", "data.contract", "ops", "losses", "models", "data", "task", "metrics",
    "tasks", "config", "sharding", "optim", "log", "accounting", "hlo", "hosts", "machine", "findings", "stop",
    "statedict", "npz", "weights", "published", "checkpoint", "build", "pretrained", "step", "prepare",
    "evals", "report", "loop", "deploy", "cli", "COMMANDS",
]  # fmt: skip
# Above, in LAYERS, `models` and `data` stand side by side: neither may import the other but for the contract.
SEPARATE = {("models", "data"), ("data", "models"), ("data", "ops"), ("data", "losses"), ("models", "losses")}


def layer(module: str) -> str:
    name = module.removeprefix("jaxvision.")
    if name.endswith(".__main__"):
        return "COMMANDS"
    for known in ("data.contract", *LAYERS):
        if name == known or name.startswith(known + "."):
            return known
    return "COMMANDS"


def imports(file: pathlib.Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            if node.module == "jaxvision":
                yield from (f"jaxvision.{a.name}" for a in node.names)
            else:
                yield node.module


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_only_from_above(file):
    module = "jaxvision." + ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = layer(module)
    for name in imports(file):
        if name == "jaxvision" or not name.startswith("jaxvision."):
            continue
        theirs = layer(name)
        if theirs == mine and mine != "COMMANDS":
            continue
        assert LAYERS.index(theirs) < LAYERS.index(mine), f"{module} imports {name}: {mine} is above {theirs}"
        assert (mine, theirs) not in SEPARATE, f"{module} imports {name}"


@pytest.mark.parametrize("file", sorted((ROOT / "data").rglob("*.py")), ids=lambda p: p.name)
def test_data_imports_no_jax(file):
    assert not {n.split(".")[0] for n in imports(file)} & {"jax", "flax", "optax", "orbax"}


def test_layer_table_knows_every_module():
    """And no other: a file that the table does not name is a command, or was forgotten."""
    of = {f: layer("jaxvision." + ".".join(f.relative_to(ROOT).with_suffix("").parts)) for f in FILES}
    assert set(of.values()) == set(LAYERS)
    for file, found in of.items():
        assert found != "COMMANDS" or is_command(file), f"{file} is in no layer: give it a place in LAYERS"


def is_command(file: pathlib.Path) -> bool:
    return 'if __name__ == "__main__":\n    cli.main(' in file.read_text()


def test_architecture_names_the_layers_in_their_order():
    text = (ROOT.parent / "docs" / "architecture.md").read_text()
    listing = text.partition("## Layers")[2].split("```")[1]
    names = [line.split()[0] for line in listing.splitlines() if line[:1].strip()]
    assert names == [name for name in LAYERS if name not in ("data.contract", "COMMANDS")] + ["commands"]
    listed = listing.partition("\ncommands")[2].partition(":")[0].replace(",", " ").split()
    commands = {f.parent.name if f.stem == "__main__" else f.stem for f in FILES if is_command(f)}
    assert set(listed) == commands


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_lazy():
    loaded = fresh("import sys, jaxvision; print([m for m in ('jax', 'grain', 'numpy', 'flax') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_everything_imported_loads_neither_tensorflow_nor_torch():
    modules = [
        "jaxvision." + ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in FILES
    ]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_lazy_names():
    import jaxvision

    for name in set(jaxvision.__all__) - {"load"}:
        assert getattr(jaxvision, name).__name__ == f"jaxvision.{name}"
    assert callable(jaxvision.load)
    with pytest.raises(AttributeError, match="modles"):
        jaxvision.modles  # noqa: B018
