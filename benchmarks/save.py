"""For how long a save stops the training: the state of ResNet-50 (205 MB with momentum), on CPUs.

    python benchmarks/save.py [--turns 3]

Trains as a user does, on one process, and on two of two devices each, with a save every five steps; what is told is
what their summary.json has (`saves`: seconds that the train loop was blocked, which is while the state is copied;
writing and digests go on beside the next steps). Prints JSON.
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
config.data.update(train="fake:1024x32?classes=1000", size=32, resize=32, transforms=())
config.model = dict(name="resnet50")
config.optim.update(momentum=0.9)
config.batch_size, config.epochs, config.steps = 4, 0, 40
config.evals = dict()
config.checkpoint.update(every_epochs=0.0, every_steps=5)
config.log.update(every_steps=10, tensorboard=False)
"""
HOW = {
    "one process": [],
    "two processes": ["launch/local.py", "2", "--devices", "2", "--", sys.executable],
}


def saves(folder: pathlib.Path, how: str) -> dict:
    (folder / "config.py").write_text(CONFIG)
    workdir = folder / how
    words = [*HOW[how], "-m", "jaxvision.train", "--config", folder / "config.py", "--workdir", workdir]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)
    summary = json.loads((workdir / "summary.json").read_text())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    step = 4 / statistics.median(r["images_per_s"] for r in records if r["kind"] == "train")
    found = {**summary["saves"], "mean_s": summary["saves"]["blocked_s"] / summary["saves"]["count"]}
    return {**found, "step_s": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    found: dict[str, list[dict]] = {how: [] for how in HOW}
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as name:
            for how in HOW:
                found[how].append(saves(pathlib.Path(name), how))
                print(f"{how}: {found[how][-1]}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
