"""jaxvision, or python -m jaxvision: lists the commands; `jaxvision NAME ...` runs `python -m jaxvision.NAME ...`.

A command is a file of this package whose first line says "python -m jaxvision.NAME: what it does".
"""

from __future__ import annotations

import pathlib
import re
import runpy
import sys
from typing import NoReturn

import jaxvision
from jaxvision.errors import nearest

HELP = """usage: jaxvision COMMAND ...

{commands}

jaxvision COMMAND --help shows a command's flags and examples. jaxvision --version shows the version.
Start here: jaxvision train --config configs/digits.py"""


def commands() -> dict[str, str]:
    """Name of each command -> what it does, as the first lines of their files say."""
    root, found = pathlib.Path(__file__).parent, {}
    for file in sorted((*root.glob("*.py"), *root.glob("*/__main__.py"))):
        with file.open() as lines:
            said = re.match(r'"""python -m jaxvision\.(\w+): (.*?)\.?(""")?$', lines.readline().rstrip())
        if said:
            found[said[1]] = said[2]
    return found


def main() -> NoReturn:
    """Lists the commands, or passes on to one. Exits with 2 for a name that is none."""
    name, known = (sys.argv[1] if len(sys.argv) > 1 else "--help"), commands()
    if name in ("--help", "-h", "help"):
        width = max(map(len, known))
        print(HELP.format(commands="\n".join(f"  {each:<{width}}  {does}" for each, does in known.items())))
        sys.exit(0)
    if name == "--version":
        print(jaxvision.__version__)
        sys.exit(0)
    if name not in known:
        print(f"error: there is no command {name!r}: {nearest(name, tuple(known))}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"jaxvision {name}", *sys.argv[2:]]
    runpy.run_module(f"jaxvision.{name}", run_name="__main__", alter_sys=True)
    sys.exit(0)  # not reached: every command exits


if __name__ == "__main__":
    main()
