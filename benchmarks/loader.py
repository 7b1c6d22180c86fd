"""Images/s from JPEG files to training batches, beside other loaders, in turn on the same files and cores.

    python benchmarks/loader.py                                          ours alone, on 1 core and on all
    python benchmarks/loader.py --peers tfdata=/envs/tf/bin/python torch=/envs/torch/bin/python ...

Work: decode, random-resized crop to 224 (area 8 to 100 %), mirror every second time, uint8, batches of 128. Every
image is decoded anew. A turn starts a process for each loader, one after the other; it warms up on 2,048 images and
is timed on 4,096 more. Prints a line of JSON each, and last the medians of all turns with their ratios.

Files: 256 JPEGs like ImageNet's (about 60 KB; sides 333 to 640), cut out of the photographs of scikit-learn and
scikit-image with a seed. Ours, tf.data and grain hold the files' bytes in memory; torch reads them from the disk's
cache; FFCV from its own file (JPEG, quality 90, at most 512 px). tf.data, grain and FFCV do not antialias; torch does.

Peers' environments: pip install tensorflow-cpu | torch torchvision pillow | grain opencv-python-headless |
ffcv with numba, torch, opencv and libturbojpeg's headers. Making the files needs scikit-image.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, SIZE, WARM, TIMED = 128, 224, 2048, 4096
KINDS = ("antialiased", "linear", "antialiased-processes", "linear-processes")
OURS = KINDS + tuple(f"{kind}-1core" for kind in KINDS)


# --------------------------------------------------------------------------- files


def make_files(folder: pathlib.Path, count: int = 256) -> None:
    """Crops of real photographs, resized to ImageNet's usual sizes, with a little noise, at quality 90."""
    import numpy as np
    import sklearn.datasets
    from PIL import Image
    from skimage import data

    photos = [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    photos += [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()]
    photos += [data.hubble_deep_field(), data.immunohistochemistry(), data.stereo_motorcycle()[0]]
    chance = random.Random(0)
    for k in range(count):
        photo = Image.fromarray(photos[k % len(photos)][..., :3])
        share = chance.uniform(0.55, 0.95)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
        size = chance.choice([(500, 375), (500, 333), (375, 500), (500, 400), (640, 480)])
        image = np.asarray(photo.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height)))
        noise = np.random.default_rng(k).normal(0, 4, image.shape)
        Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(folder / f"{k:04}.jpg", quality=90)


def in_memory(files):
    return [pathlib.Path(file).read_bytes() for file in files]


# --------------------------------------------------------------------------- loaders: endless batches


class Memory:
    """A source, see docs/data.md: the files' bytes."""

    uri, kind, classes = "memory:", "class", ("photo",)

    def __init__(self, files):
        self.files, self.jpegs = files, in_memory(files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return {"image": self.jpegs[i], "label": 0, "index": i}

    def where(self, i):
        return self.files[i]


def ours(files, filter, readers, cores):
    from jaxvision.data import InputContract, build, train_batches

    contract = InputContract(size=SIZE)
    transforms = build((("random_resized_crop", {"filter": filter}), ("flip", {})), contract)
    options = dict(batch_size=BATCH, seed=0, start=0, stop=10**9, **{readers: cores})
    return (batch["image"] for batch in train_batches(Memory(files), transforms, contract, **options))


def tfdata(files, cores):
    os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    import tensorflow as tf

    def load(jpeg):
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg),
            tf.zeros([0, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([start[:2], size[:2]], 0)
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(jpeg, window, channels=3), (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    jpegs = tf.data.Dataset.from_tensor_slices(in_memory(files)).repeat().shuffle(2048)
    jpegs = jpegs.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return iter(jpegs.batch(BATCH).prefetch(2))


def torch(files, cores):
    import torch.utils.data
    import torchvision.transforms as transforms
    from PIL import Image

    chain = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    transform = transforms.Compose(chain)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return 8 * len(files)

        def __getitem__(self, i):
            return transform(Image.open(files[i % len(files)]).convert("RGB"))

    loader = torch.utils.data.DataLoader(
        Files(), BATCH, shuffle=True, num_workers=cores, persistent_workers=True, drop_last=True
    )
    while True:
        yield from loader


def grain(files, cores):
    import cv2
    import grain
    import numpy as np

    cv2.setNumThreads(1)
    jpegs = in_memory(files)

    class Load(grain.transforms.RandomMap):
        def random_map(self, i, rng):
            image = cv2.imdecode(np.frombuffer(jpegs[i], np.uint8), cv2.IMREAD_COLOR_RGB)
            height, width = image.shape[:2]
            for _ in range(10):
                area = height * width * rng.uniform(0.08, 1)
                ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
                w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if 0 < w <= width and 0 < h <= height:
                    break
            else:
                w = h = min(height, width)
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            image = cv2.resize(image[y : y + h, x : x + w], (SIZE, SIZE))
            return cv2.flip(image, 1) if rng.random() < 0.5 else image

    data = grain.MapDataset.range(len(jpegs)).shuffle(0).repeat(10**4).random_map(Load(), seed=1).batch(BATCH)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=cores, prefetch_buffer_size=256)))


def ffcv(files, cores):
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Files:
        def __len__(self):
            return 8 * len(files)

        def __getitem__(self, i):
            return (Image.open(files[i % len(files)]).convert("RGB"),)

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "images.beton")
        field = RGBImageField(write_mode="jpg", max_resolution=512, jpeg_quality=90)
        DatasetWriter(path, {"image": field}, num_workers=cores).from_indexed_dataset(Files())
        chain = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip(), ToTensor()]
        loader = Loader(
            path,
            batch_size=BATCH,
            num_workers=cores,
            order=OrderOption.QUASI_RANDOM,
            os_cache=True,
            drop_last=True,
            pipelines={"image": chain},
        )
        while True:
            for batch in loader:
                yield batch[0]


PEERS = {"tfdata": tfdata, "torch": torch, "grain": grain, "ffcv": ffcv}


# --------------------------------------------------------------------------- one loader, and all in turn


def measure(name: str, files: list[str]) -> dict[str, object]:
    if name.endswith("-1core"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cores = len(os.sched_getaffinity(0))
    if name in PEERS:
        batches = PEERS[name](files, cores)
    else:
        filter = "linear" if name.startswith("linear") else "bilinear"
        batches = ours(files, filter, "processes" if "processes" in name else "threads", cores)
    seen = 0
    while seen < WARM:
        seen += next(batches).shape[0]
    start, seen = time.perf_counter(), 0
    while seen < TIMED:
        seen += next(batches).shape[0]
    return {"loader": name, "cores": cores, "images_per_s": round(seen / (time.perf_counter() - start), 1)}


def run(python: str, name: str, folder: str) -> float:
    command = [python, __file__, "--one", name, "--files", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    line = done.stdout.strip().splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)["images_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--files", default="", help="a folder of JPEGs, if not those that this makes")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        files = sorted(str(p) for p in pathlib.Path(arguments.files).glob("*.jpg"))
        output, sys.stdout = sys.stdout, io.StringIO()  # some loaders print
        result = measure(arguments.one, files)
        print(json.dumps(result), file=output, flush=True)
        os._exit(0)  # endless loaders leave threads and processes
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.files or made
        if not arguments.files:
            make_files(pathlib.Path(made))
        loaders = dict.fromkeys(OURS, sys.executable)
        loaders.update(pair.split("=", 1) for pair in arguments.peers)
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(arguments.turns):
            for name, python in loaders.items():
                speeds[name].append(run(python, name, folder))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {f"{kind} / {name}": round(medians[kind] / medians[name], 3) for kind in KINDS for name in medians
              if name in PEERS}  # fmt: skip
    ratios |= {f"{kind}: all cores / 1": round(medians[kind] / medians[f"{kind}-1core"], 3) for kind in KINDS}
    print(json.dumps({"medians": medians, "ratios": ratios, "turns": speeds}))


if __name__ == "__main__":
    main()
