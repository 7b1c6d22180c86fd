import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxvision import targets
from jaxvision.config import default
from jaxvision.data import InputContract, open_source
from jaxvision.deploy import certificate, exporting
from jaxvision.errors import UserError


def test_accuracy_is_over_the_tags_that_are_known():
    labels = np.array([[1, np.nan, 0], [0, 1, np.nan]], np.float32)
    found = {"probabilities": np.array([[0.9, 0.9, 0.6], [0.4, 0.2, 0.9]])}

    def accuracy(labels):
        return targets.tags.score(found, [{"label": row} for row in labels])["accuracy"]

    assert accuracy(labels) == 0.5
    assert np.isnan(accuracy(np.full((2, 3), np.nan)))
    assert accuracy(np.nan_to_num(labels)) == pytest.approx(2 / 6)


def test_only_what_float32_cannot_tell_apart_is_a_tie():
    """Two classes that lie a thousandth of the scale apart are told otherwise where they change places."""
    trained = {"logits": np.array([[2.0, 1.0], [0.5, 0.498], [0.5, 0.499999]])}
    exported = {"logits": np.concatenate([trained["logits"][:1], trained["logits"][1:, ::-1]])}
    found = certificate.compared(targets.class_, trained, exported)
    assert (found["agreement"], found["ties"]) == (pytest.approx(2 / 3), 1)


def test_images_are_as_large_as_the_training_reads_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    source, config = open_source(f"images:{tmp_path}"), default()
    trained = SimpleNamespace(contract=InputContract(size=8, resize=8), config=config)
    for most, readable in ((64, True), (63, False)):
        config.data.max_pixels = most
        with contextlib.nullcontext() if readable else pytest.raises(UserError, match="than max_pixels=63 allows"):
            images = exporting._images(source, trained, 1, lambda items, count, what: items)
            assert images.file(0).shape == (1, 8, 8, 3)
