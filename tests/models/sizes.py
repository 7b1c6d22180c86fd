"""python -m tests.models.sizes [PATTERN]: counts networks again and writes jaxvision/models/sizes.json.

All of them take minutes; with a pattern, the rows of the others are kept.
"""

import fnmatch
import json
import sys

from jaxvision import models
from jaxvision.weights.catalogue import SIZES, default_size, measure


def row(name: str) -> list[int]:
    """[parameters, FLOP, px]"""
    size = default_size(name)
    parameters, flops = measure(name, size)
    return [parameters, int(flops), size]


if __name__ == "__main__":
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    rows = json.loads(SIZES.read_text()) if SIZES.exists() else {}
    for name in models.__all__:
        if fnmatch.fnmatch(name, pattern):
            rows[name] = row(name)
            print(name, *rows[name], flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in models.__all__ if name in rows]
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
