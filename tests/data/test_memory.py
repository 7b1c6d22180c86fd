"""Memory over many images stays where it was; a folder of 1.3 million files gives its first batch soon."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent.parent

# A process of its own: memory that other tests left free would hide growth.
SCRIPT = """
import os, sys, time
from jaxvision.data import InputContract, Order, build, class_weights, eval_batches, open_source, train_batches
def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":")) / 1024
def children(key):
    total = 0.0
    for pid in os.listdir("/proc"):
        try:
            with open(f"/proc/{pid}/status") as file:
                fields = dict(line.split(":", 1) for line in file)
        except (OSError, ValueError):
            continue
        if fields["PPid"].strip() == str(os.getpid()) and key in fields:
            total += int(fields[key].split()[0]) / 1024
    return total
specs = (("random_resized_crop", {}), ("flip", {}))
contract = InputContract(size=64, resize=73)
"""

GROWTH = """
uri, images, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
source = open_source(uri)
if options.pop("evaluate", False):
    def forever():
        while True:
            yield from eval_batches(source, contract, batch_size=50, **options)
    batches = forever()
else:
    batches = train_batches(source, build(specs, contract), contract, batch_size=50, seed=0, start=0, stop=10**9,
                            **options)
seen, before, most = 0, 0.0, 0.0
for batch in batches:
    seen += len(batch["label"])
    if seen % 500 < 50 or seen >= images:
        now = memory("VmRSS") + children("VmRSS")
        before = before or (now if seen >= 2000 else 0.0)
        most = max(most, now)
    if seen >= images:
        break
batches.close()
print(now - before, most - before, before)
"""

FIRST = """
import numpy as np
before, begin = memory("VmRSS"), time.perf_counter()
source = open_source(sys.argv[1])
listed = time.perf_counter()
order = Order(0, len(source), class_weights(source, sys.argv[2]))
batches = train_batches(source, build(specs, contract), contract, batch_size=64, seed=0, start=0, stop=10**9,
                        order=order)
batch = next(batches)
end = time.perf_counter()
batches.close()
assert batch["mask"].all() and len(set(batch["label"].tolist())) > 50
print(len(source), end - begin, listed - begin, memory("VmHWM") - before)
"""


LARGE = """
from jaxvision.errors import Unreadable
source, how, before = open_source(sys.argv[1]), sys.argv[2], memory("VmHWM")
options = dict(batch_size=1, threads=2)
if how == "evaluate":
    batches = eval_batches(source, contract, **options)
else:
    batches = train_batches(source, build(((how, {}), ("center_crop", {})), contract), contract, seed=0, start=0,
                            stop=2, **options)
read = 0
try:
    for _ in batches:
        read += 1
except Unreadable as error:
    assert "pixels are more than max_pixels=89478485" in str(error)
print(read, memory("VmHWM") - before)  # not ru_maxrss, which begins at what the parent had
"""


def python(script, *arguments, timeout=300):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + script, *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """128 JPEG files of 64 pictures, 160 to 400 pixels wide and high."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.Generator(np.random.Philox(0))
    for k in range(64):
        width, height = (int(n) for n in rng.integers(160, 401, 2))
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        for kind in ("plain", "progressive"):  # cut while encoded, and decoded whole
            path = root / f"class {k % 4}" / f"{kind} {k:02}.jpg"
            path.parent.mkdir(exist_ok=True)
            image.save(path, quality=90, progressive=kind == "progressive")
    return root


def check_growth(photos, images, **options):
    growth, most, before = python(GROWTH, f"folder:{photos}", images, options)
    print(f"\n{options} {images} images: {growth:+.1f} MB after the first 2,000, at most {most:+.1f} ({before:.0f} MB)")
    assert most < 50


READERS = [{"threads": 2}, {"processes": 2}, {"threads": 2, "evaluate": True}]


@pytest.mark.parametrize("options", [READERS[0], *(pytest.param(r, marks=pytest.mark.slow) for r in READERS[1:])])
def test_memory_over_4000_images(photos, options):
    check_growth(photos, 4000, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", READERS)
def test_memory_over_20000_images(photos, options):
    check_growth(photos, 20_000, **options)


@pytest.mark.parametrize("how", ["evaluate", "resize", "random_resized_crop"])
@pytest.mark.slow
def test_memory_of_large_images_on_two_threads(tmp_path, how):
    """Of 169 million pixels, which are refused, and of the most that are not."""
    for side, count, limit in ((13000, 0, 100), (9450, 2, 1600)):
        (tmp_path / str(side) / "a").mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (side, side), (k, 2, 3)).save(tmp_path / str(side) / "a" / f"{k}.jpg")
        read, grown = python(LARGE, f"folder:{tmp_path}/{side}", how)
        print(f"\n{how} of {side} x {side} on two threads: peak {grown:+.0f} MB")
        assert read == count
        assert grown < limit


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """1,300,000 names in 1,000 folders, all of them hard links to 26 files: ext4 allows 65,000 to a file."""
    memory = pathlib.Path("/dev/shm")
    free = os.statvfs(memory) if memory.is_dir() else None
    big = free and free.f_favail > 1_400_000 and free.f_bavail * free.f_frsize > 2e9
    root = memory / f"jaxvision-test-{os.getpid()}" if big else tmp_path_factory.mktemp("imagenet")
    (root / "files").mkdir(parents=True)
    try:
        for k in range(26):
            Image.new("RGB", (160 + k, 170), (k, 0, 0)).save(root / "files" / f"{k}.jpg")
        for c in range(1000):
            folder = root / "train" / f"n{c:08}"
            folder.mkdir(parents=True)
            file = str(root / "files" / f"{c % 26}.jpg")
            for i in range(1300):
                os.link(file, f"{folder}/n{c:08}_{i}.JPEG")
        yield root / "train"
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
@pytest.mark.slow
def test_first_batch_of_a_folder_with_1300000_files(imagenet, sampling):
    length, seconds, listing, grown = python(FIRST, f"folder:{imagenet}", sampling)
    print(f"\n{sampling}: first batch after {seconds:.1f} s ({listing:.1f} s to list), peak +{grown:.0f} MB")
    assert length == 1_300_000
    assert seconds < 10
    assert grown < 500
