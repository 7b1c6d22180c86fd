"""Exported files against the networks that they were exported of, on files of mixed sizes and kinds.

    python benchmarks/export.py [digits] [resnet50] [vit_small_patch16_224] [--images 500] [--steps 30] [--int8]

Writes 300 training and 500 evaluation files (tests/mixed_images.py: parts of three photos that come with scikit-learn
and matplotlib, ten sizes, thirteen kinds of file), trains each network on them for a few steps (digits: configs/
digits.py in full, on its own data), exports it as ONNX and as StableHLO, which compares file and network on all images,
and prints a line of JSON for each: agreement from the same crops and from whole files, largest difference, latency.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from tests import mixed_images


def command(module: str, *words: object) -> dict:
    done = subprocess.run([sys.executable, "-m", module, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"python -m {module} {' '.join(map(str, words))} failed ({done.returncode})")
    return json.loads(done.stdout.splitlines()[-1])


def trained(network: str, folder: pathlib.Path, steps: int) -> tuple[pathlib.Path, str]:
    """(workdir, images that its files are compared on)."""
    workdir = folder / network
    if network == "digits":
        command("jaxvision.train", "--config", "configs/digits.py", "--workdir", workdir)
        return workdir, "digits:all"
    evaluation = f"folder:{folder}/val"
    config, rate = ("configs/vit_s16.py", 3e-4) if "vit" in network else ("configs/resnet50.py", 0.005)
    command(
        "jaxvision.train", "--config", config, "--workdir", workdir,
        f"--config.data.train=folder:{folder}/train", f"--config.evals.val.data={evaluation}",
        f"--config.model.name={network}", "--config.batch_size=16", "--config.epochs=0", f"--config.steps={steps}",
        f"--config.optim.lr={rate}", "--config.optim.warmup_share=0.2",
        "--config.dtype=float32",
    )  # fmt: skip
    return workdir, evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["digits", "resnet50", "vit_small_patch16_224"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--formats", default="onnx,stablehlo,int8")
    parser.add_argument("--keep", metavar="DIR", help="where everything goes; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.keep or temporary)
        if not (folder / "val").exists():
            mixed_images.write(folder / "train", 300, seed=1)
            mixed_images.write(folder / "val", arguments.images, seed=2)
        for network in arguments.networks:
            workdir, data = trained(network, folder, arguments.steps)
            for name in arguments.formats.split(","):
                ending = "stablehlo" if name == "stablehlo" else "onnx"
                more = (
                    ("--int8", "digits:train" if network == "digits" else f"folder:{folder}/train")
                    if name == "int8"
                    else ()
                )
                found = command(
                    "jaxvision.export", "--from", workdir, "--out", folder / f"{network}-{name}.{ending}",
                    "--data", data, "--images", arguments.images, *more,
                )  # fmt: skip
                keys = ("from_crops", "from_files", "accuracy", "bytes", "latency_ms")
                print(json.dumps({"network": network, "format": name, **{k: found[k] for k in keys}}), flush=True)


if __name__ == "__main__":
    main()
