"""tfds: with a real data set that TFDS prepares here, without TensorFlow."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import InputContract, eval_batches, open_source
from jaxvision.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with the digits as ArrayRecord. TFDS needs TensorFlow for arrays, not for PNG bytes."""
    import tensorflow_datasets as tfds

    # not registered, so TFDS reads the files as it does for those who have no code of a data set
    class OurDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 3)),
                        "label": tfds.features.ClassLabel(names=[f"digit {d}" for d in range(10)]),
                        "note": tfds.features.Text(),
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            source = open_source(f"digits:{split}")
            for i in range(len(source)):
                file = io.BytesIO()
                Image.fromarray(source[i]["image"]).save(file, "PNG")
                yield i, {"image": file.getvalue(), "label": source[i]["label"], "note": "real"}

    class NoLabel(OurDigits, skip_registration=True):
        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "class": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples("test")}

        def _generate_examples(self, split):
            for i, sample in super()._generate_examples(split):
                yield i, {"image": sample["image"], "class": 0}

    for builder in (OurDigits, NoLabel):
        builder.__module__ = "__main__"  # of a package's classes TFDS seeks checksums beside the source file
    before = set(sys.modules)
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tfds")
    OurDigits(data_dir=folder, file_format="array_record").download_and_prepare()
    NoLabel(data_dir=folder, file_format="array_record").download_and_prepare()
    assert not {"tensorflow", "torch"} & (set(sys.modules) - before)
    return folder


def test_so_many_of_each_class_of_a_part_in_its_own_words(prepared):
    uri = f"tfds:our_digits/test[:50%]?data_dir={prepared}"
    part, whole = open_source(f"{uri}&per_class=3&seed=1"), open_source(uri)
    np.testing.assert_array_equal(np.bincount(part.labels), np.full(10, 3))
    assert {part[i]["index"] for i in range(30)} <= {whole[i]["index"] for i in range(len(whole))}


@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_digits(prepared, split):
    theirs = open_source(f"tfds:our_digits/{split}?data_dir={prepared}")
    ours = open_source(f"digits:{split}")
    assert theirs.classes == tuple(f"digit {d}" for d in range(10))
    assert len(theirs) == len(ours)
    assert isinstance(theirs[0]["image"], bytes)  # still encoded
    contract = InputContract(size=8, resize=8)
    for a, b in zip(
        eval_batches(theirs, contract, batch_size=100),
        eval_batches(ours, contract, batch_size=100),
        strict=True,
    ):
        assert (a["image"] == b["image"]).all()
        assert (a["label"] == b["label"]).all()
        assert (a["mask"] == b["mask"]).all()


def test_reading_loads_neither_tensorflow_nor_torch(prepared):
    code = f"""
import sys
from jaxvision.data import InputContract, eval_batches, open_source
source = open_source("tfds:our_digits/test?data_dir={prepared}")
contract = InputContract(size=8, resize=8)
assert sum(b["mask"].sum() for b in eval_batches(source, contract, batch_size=64)) == 360
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""  # no chatter


def test_split_expressions_and_versions(prepared):
    whole = open_source(f"tfds:our_digits/train?data_dir={prepared}")
    tail = open_source(f"tfds:our_digits:1.0.0/train[1400:]?data_dir={prepared}")
    assert len(tail) == 37
    assert tail[0]["image"] == whole[1400]["image"]
    assert tail[0]["index"] == 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("our_digitz/train", "did you mean 'our_digits'"),
        ("our_digits/val", "Unknown split 'val'"),
        ("our_digits:7.0.0/train", "check name, config and version"),
        ("no_label/train", "no feature 'label', only class, image"),
        ("imagenet2012/train", "file_format='array_record').download_and_prepare()"),
    ],
)
def test_errors(prepared, name, wanted):
    with pytest.raises(UserError) as error:
        open_source(f"tfds:{name}?data_dir={prepared}")
    assert wanted in str(error.value)


def test_absent_data_dir(tmp_path):
    (tmp_path / "sets").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*sets"):
        open_source(f"tfds:mnist/train?data_dir={tmp_path}/set")
