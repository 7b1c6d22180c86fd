import numpy as np
import pytest

from jaxvision.deploy import certificate


def test_accuracy_is_over_the_tags_that_are_known():
    labels = np.array([[1, np.nan, 0], [0, 1, np.nan]], np.float32)
    found = {"probabilities": np.array([[0.9, 0.9, 0.6], [0.4, 0.2, 0.9]])}
    assert certificate.accuracy("tags", found, labels) == {"accuracy": 0.5}
    assert np.isnan(certificate.accuracy("tags", found, np.full((2, 3), np.nan))["accuracy"])
    assert certificate.accuracy("tags", found, np.nan_to_num(labels))["accuracy"] == pytest.approx(2 / 6)
