"""A network's exported ONNX file beside torchvision's of the same network, both by onnxruntime on the same CPU.

    python benchmarks/latency.py [resnet50] [--turns 15]

Random weights. Ours takes uint8 crops and normalises them within; torchvision's (torch.onnx.export, opset 18) takes
what is normalised. Turn by turn in one process, 1 image and 8; needs torch and torchvision (tests/parity says which).
Prints a line of JSON: medians in milliseconds of both and of torch's eager mode, and ratios, medians of the turns'.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import onnx
import onnxruntime
import torch

from jaxvision import models
from jaxvision.data.contract import InputContract
from jaxvision.deploy.jaxpr import flatten
from jaxvision.deploy.onnx_graph import to_onnx
from jaxvision.tasks.common import network
from tests.parity import torch_side

SIZE = 224


def ours(name, path):
    net = network(getattr(models, name)(classes=1000), InputContract())
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {SIZE}, {SIZE}, 3"), np.uint8)
    params, extra = net.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.uint8))
    closed = flatten(lambda images: net.apply(params, extra, images)["logits"], spec)
    onnx.save(to_onnx(closed, ["images"], ["logits"], name), str(path))


def theirs(name, path):
    torch_side.import_torchvision()
    import torchvision

    model = torchvision.models.get_model(name, weights=None).eval()
    torch.onnx.export(
        model, (torch.zeros(1, 3, SIZE, SIZE),), str(path), input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False, opset_version=18,
    )  # fmt: skip
    return model


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{name}.onnx") for name in ("ours", "theirs")]
        ours(arguments.network, paths[0])
        model = theirs(arguments.network, paths[1])
        mine, other = map(session, paths)
    found = {"benchmark": "latency", "network": arguments.network, "cores": len(os.sched_getaffinity(0))}
    for batch in (1, 8):
        pixels = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
        normal = rng.normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
        tensor = torch.from_numpy(normal)

        def eager(tensor=tensor):
            with torch.inference_mode():
                model(tensor)

        runs = {
            "ours": lambda pixels=pixels: mine.run(None, {"images": pixels}),
            "torchvision": lambda normal=normal: other.run(None, {"images": normal}),
            "torch_eager": eager,
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(-1, arguments.turns):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if turn >= 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
        found[f"batch_{batch}"] = {
            **{f"{name}_ms": round(statistics.median(t), 1) for name, t in times.items()},
            "ratio": round(statistics.median(a / b for a, b in zip(times["ours"], times["torchvision"])), 3),
            "ratio_to_eager": round(statistics.median(a / b for a, b in zip(times["ours"], times["torch_eager"])), 3),
        }
    found["versions"] = {
        "jax": jax.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
