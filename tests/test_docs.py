"""What the documents name exists: files, keys of the config, flags, transforms, and as many as they say.

Docstrings begin with a sentence that a tooltip can show alone.
"""

import ast
import pathlib
import re

import pytest

from jaxvision import config, models, tasks
from jaxvision.data import transforms

ROOT = pathlib.Path(__file__).parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = list((ROOT / "configs").glob("*.py"))
MODULES = sorted(path.relative_to(ROOT / "jaxvision").as_posix() for path in (ROOT / "jaxvision").rglob("*.py"))
COUNTS = {"networks": len(models.__all__), "transforms": len(transforms.__all__), "recipes": len(RECIPES)}


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def document(request):
    return request.param.read_text()


def test_files(document, request):
    """Those in code, from the root; and what is linked, from the document."""
    folders = "tests|benchmarks|jaxvision|configs|docs|launch"
    named = re.findall(rf"(?<![\w/.-])((?:{folders})/[a-z0-9_/]+\.(?:py|md|sh|yaml|json))", document)
    assert not [name for name in named if not (ROOT / name).exists()]
    here = request.node.callspec.params["document"].parent
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", document) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = here / name if name else request.node.callspec.params["document"]
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads], link


def test_keys_of_the_config(document):
    """`config.a.b` and `--config.a.b=`, where a is a group that takes no names of its own."""
    tree = config.default()
    for group, key in re.findall(r"config\.(\w+)\.([a-z_]+)(?=\W)", document):
        if group in tree and group not in ("evals", "wrap") and key != "update":
            own = group in ("model", "task", "optim")
            assert key in tree[group] or own, f"config.{group}.{key}"
    for key in re.findall(r"--config\.([a-z_]+)=", document):
        assert key in tree, f"--config.{key}"


def test_flags_of_commands(document):
    """On lines that start a command of ours."""
    common = (ROOT / "jaxvision" / "cli.py").read_text()
    for name, rest in re.findall(r"python -m jaxvision\.(\w+)((?:[^`\n]|\\\n)*)", document.replace("\\\n", " ")):
        path = ROOT / "jaxvision" / f"{name}.py"
        source = (path if path.exists() else ROOT / "jaxvision" / name / "__main__.py").read_text()
        for flag in re.findall(r"(?<=\s)--[a-z][a-z0-9-]*(?![\w.-])", rest):
            assert f'"{flag}"' in source + common, f"{name} {flag}"


def test_counts(document):
    for count, what in re.findall(r"(\d+) (networks|transforms|recipes)\b", document):
        if int(count) > 5:  # not of some of them
            assert int(count) == COUNTS[what], f"{count} {what}"


def test_transforms_and_tasks():
    """Each has a row: of the transforms in data.md, of the self-supervised tasks in self_supervision.md."""
    data, learning = ((ROOT / "docs" / name).read_text() for name in ("data.md", "self_supervision.md"))
    rows = re.findall(r"^\| `(\w+)` \|", data.partition("## Transforms")[2].partition("\n## ")[0], re.M)
    assert sorted(rows) == sorted(transforms.__all__)
    rows = re.findall(r"^\| `(\w+)` \|", learning.partition("## The tasks")[2].partition("\n## ")[0], re.M)
    assert sorted(rows) == sorted(name for name in tasks.TASKS if getattr(tasks, name).learns is None)
    views = next(line for line in data.splitlines() if line.startswith("| `multi_view`"))
    takers = [row.split("|")[1].strip(" `") for row in learning.splitlines() if re.match(r"\|.*\| two views", row)]
    assert all(f"`{name}`" in views for name in takers)
    assert len(takers) == 5


# A docstring that begins so leans on the code around it: a pronoun without its noun, or a phrase without its subject.
LEANING = (
    "After|All of it|All that|And|As|Before|But|By|Else|Everything|For|From|He|Her|His|How it|How they|In|It|Its|Like|"
    "Likewise|Of|Ours|Over|So|That|The other|The others|The same|Their|Theirs|Them|Then|These|They|This|Those|Until|"
    "What|When|Where|Which|Who|Whom|Whose|With|Without"
)
# Modules whose docstrings do not stand alone yet; a name that ends in a slash is a folder.
NOT_YET = (
    "config/", "data/contract.py", "data/decode.py", "data/sample.py", "data/transforms/", "data/warp.py",
    "deploy/certificate.py", "deploy/exporting.py", "deploy/inference.py", "deploy/network.py", "ops/resize.py",
    "training/build.py", "training/check.py", "training/restore.py", "training/setup.py",
)  # fmt: skip


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(NOT_YET)])
def test_first_sentences_stand_alone(module):
    """Docstrings of private functions, too: an editor's tooltip shows the first sentence and nothing around it."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse((ROOT / "jaxvision" / module).read_text())
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    assert [text.partition("\n")[0] for text in docstrings if re.match(rf"({LEANING})\b", text)] == []
