"""The layer table: a module imports only from layers above it."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jaxvision"
# From the top: what a line names may import from the lines above it (and from its own package).
LAYERS = [
    "errors", "task", "runtime", "config", "data.contract", "ops", "losses", "models", "data", "report.draw",
    "report.analysis", "targets", "metrics", "tasks", "weights", "report", "training", "deploy", "doctor", "cli",
    "COMMANDS",
]  # fmt: skip
COMMANDS = {
    "__main__",
    "train", "evaluate", "predict", "export", "pack", "plan", "transfer",
    "models.__main__", "report.__main__", "doctor.__main__",
}  # fmt: skip
# Above, in LAYERS, `models` and `data` stand side by side: neither may import the other but for the contract.
SEPARATE = {("models", "data"), ("data", "models"), ("data", "ops"), ("data", "losses"), ("models", "losses")}


def layer(module: str) -> str:
    """The line that a module belongs to. KeyError for a module that the tables do not know."""
    name = module.removeprefix("jaxvision.")
    if name in COMMANDS:
        return "COMMANDS"
    for known in ("data.contract", "report.draw", "report.analysis", *LAYERS):
        if name == known or name.startswith(known + "."):
            return known
    raise KeyError(f"{module} is in no layer: give it a place in a package, or in COMMANDS")


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
    module = module_of(file)
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


def module_of(file: pathlib.Path) -> str:
    return ".".join(("jaxvision", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def test_the_tables_know_every_module_and_no_other():
    of = {file: layer(module_of(file)) for file in FILES}
    assert set(of.values()) == set(LAYERS)
    commands = {module_of(f).removeprefix("jaxvision.") for f in FILES if is_command(f)}
    assert commands == COMMANDS
    with pytest.raises(KeyError, match="is in no layer"):
        layer("jaxvision.utilities")


def test_the_top_holds_what_everybody_reads_and_the_commands():
    top = {f.stem for f in ROOT.glob("*.py")} | {f.parent.name for f in ROOT.glob("*/__init__.py")}
    packages = {name.partition(".")[0] for name in LAYERS} - {"COMMANDS"}
    assert top == {"__init__", "__main__", *packages, *(name for name in COMMANDS if "." not in name)}
    assert len(list(ROOT.glob("*.py"))) <= 14


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_holds_its_flags_alone(name):
    assert len((ROOT / f"{name.replace('.', '/')}.py").read_text().splitlines()) <= 100


def test_no_modules_import_each_other_in_a_circle():
    """Imports within functions count, too."""
    known = {module_of(file) for file in FILES}
    arrows = {module_of(f): {n for n in names_imported(f) if n in known and n != module_of(f)} for f in FILES}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for other in sorted(arrows[module]):
                walk(other, (*path, module))
            done.add(module)

    for module in sorted(known):
        walk(module, ())


def is_command(file: pathlib.Path) -> bool:
    if file == ROOT / "__main__.py":  # which passes on to all the others
        return True
    return 'if __name__ == "__main__":\n    cli.main(' in file.read_text()


def names_imported(file: pathlib.Path):
    """Modules that a file names in its imports: of `from jaxvision.a import b`, jaxvision.a.b where that is one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{a.name}" for a in node.names]
            there = [m for m in modules if (ROOT.parent / m.replace(".", "/")).with_suffix(".py").exists()
                     or (ROOT.parent / m.replace(".", "/")).is_dir()]  # fmt: skip
            yield from there if len(there) == len(modules) else [node.module, *there]


def test_architecture_names_the_layers_in_their_order():
    text = (ROOT.parent / "docs" / "architecture.md").read_text()
    listing = text.partition("## Layers")[2].split("```")[1]
    names = [line.split()[0] for line in listing.splitlines() if line[:1].strip()]
    assert names == [name for name in LAYERS if name.partition(".")[0] == name != "COMMANDS"] + ["commands"]
    listed = listing.partition("\ncommands")[2].partition(":")[0].replace(",", " ").split()
    commands = {name.removesuffix(".__main__") for name in COMMANDS} - {"__main__"}
    assert set(listed) == commands


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_lazy():
    loaded = fresh("import sys, jaxvision; print([m for m in ('jax', 'grain', 'numpy', 'flax') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_everything_imported_loads_neither_tensorflow_nor_torch():
    modules = ", ".join(map(module_of, FILES))
    code = f"import sys, {modules}; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_lazy_names():
    import jaxvision

    for name in set(jaxvision.__all__) - {"load"}:
        assert getattr(jaxvision, name).__name__ == f"jaxvision.{name}"
    assert callable(jaxvision.load)
    with pytest.raises(AttributeError, match="modles"):
        jaxvision.modles  # noqa: B018
