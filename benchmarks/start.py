"""From the start of a process to the end of its first step, with nothing compiled before and with everything.

    python benchmarks/start.py [--turns 3]

ResNet-50, 224 px, batch 8, on `fake:`, as a user starts it. Prints JSON: seconds of each turn and their medians.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
import jaxvision.config
config = jaxvision.config.default()
config.data.update(train="fake:1024x224?classes=1000", size=224, resize=224, transforms=())
config.model = dict(name="resnet50")
config.batch_size, config.epochs, config.steps = 8, 0, 1
config.evals = dict()
config.checkpoint.every_epochs = 0.0
config.log.update(every_steps=1, tensorboard=False)
"""


def first_step(folder: pathlib.Path, name: str, cache: pathlib.Path) -> dict:
    (folder / "config.py").write_text(CONFIG)
    subprocess.run(
        [sys.executable, "-m", "jaxvision.train", "--config", folder / "config.py", "--workdir", folder / name],
        check=True, stdout=subprocess.DEVNULL, cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
    )  # fmt: skip
    return json.loads((folder / name / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for kind in found:
                found[kind].append(first_step(folder, kind, folder / "cache")["first_step"]["seconds"])
        print(f"turn {turn + 1}: cold {found['cold'][-1]:.1f} s, warm {found['warm'][-1]:.1f} s", file=sys.stderr)
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    print(json.dumps({**found, "median": medians, "warm_to_cold": round(medians["warm"] / medians["cold"], 3)}))


if __name__ == "__main__":
    main()
