"""What a Vision Transformer is made of, beside numbers written out."""

import numpy as np
import pytest

from jaxvision.models.vit import sincos_positions


def test_sincos_positions_are_those_of_mae():
    """get_2d_sincos_pos_embed of https://github.com/facebookresearch/mae: patches row by row, the column's sines and
    cosines first, then the row's, at frequencies 1 and 1 / 100 of a width of 8."""
    made = sincos_positions(2, 3, 8)
    assert made.shape == (1, 6, 8)
    assert made.dtype == np.float32
    for row in range(2):
        for column in range(3):
            want = [f(place * w) for place in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(made[0, 3 * row + column], want, atol=1e-6)
    np.testing.assert_allclose(made[0, 2], [0.909297, 0.019999, -0.416147, 0.9998, 0, 0, 1, 1], atol=1e-6)
    with pytest.raises(ValueError, match="the width 6 is no multiple of 4"):
        sincos_positions(2, 2, 6)
