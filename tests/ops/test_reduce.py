import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxvision.ops import at_temperature, masked_mean


def test_masked_mean_of_a_million_rows_is_float64s():
    rng = np.random.default_rng(0)
    values, mask = rng.random(1_000_000).astype(np.float32), rng.random(1_000_000) < 0.5
    values[~mask] = np.nan
    assert float(masked_mean(values, mask)) == pytest.approx(values[mask].astype(np.float64).mean(), rel=1e-6)
    assert float(masked_mean(values, np.zeros_like(mask))) == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_low_temperature_does_not_round_the_logits(dtype):
    x = jnp.asarray(1e4 + np.random.default_rng(0).integers(0, 9, (5, 7)) / 1000, dtype)
    cool = at_temperature(x, 0.001)
    assert cool.dtype == jnp.float32
    want = softmax(np.asarray(x.astype(jnp.float32), np.float64) / 0.001, -1)
    np.testing.assert_allclose(softmax(np.asarray(cool, np.float64), -1), want, rtol=1e-5)
