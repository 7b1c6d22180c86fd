import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import cutmix_images, masked_mean, mixup_images

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 10, 3)).astype(np.uint8)


def test_mixup_is_the_blend_it_reports():
    mixed, own = mixup_images(jax.random.key(1), jnp.asarray(IMAGES), jnp.ones(6, bool), 0.4)
    w = np.asarray(own)[:, None, None, None]
    assert np.ptp(own) == 0
    assert 0 < own[0] < 1
    np.testing.assert_allclose(mixed, w * IMAGES + (1 - w) * IMAGES[::-1], rtol=1e-5)


def test_cutmix_pastes_one_box_and_reports_its_area():
    for seed in range(20):
        mixed, own = cutmix_images(jax.random.key(seed), jnp.asarray(IMAGES), jnp.ones(6, bool), 1.0)
        other = np.any(np.asarray(mixed) != IMAGES, axis=(0, 3))  # where any row changed
        assert own[0] == pytest.approx(1 - other.mean(), abs=1e-6)
        np.testing.assert_array_equal(np.asarray(mixed)[:, other], IMAGES[::-1][:, other])
        if other.any():
            ys, xs = np.nonzero(other)
            assert other[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()  # a filled rectangle


def test_cutmix_share_is_that_of_the_paper():
    # without clipping the pasted area would average 1/2 for Beta(1, 1); clipped boxes lose a part
    keys = jax.random.split(jax.random.key(0), 400)
    own = jax.vmap(lambda k: cutmix_images(k, jnp.asarray(IMAGES), jnp.ones(6, bool), 1.0)[1][0])(keys)
    assert 0.55 < float(own.mean()) < 0.75


@pytest.mark.parametrize("mix", [mixup_images, cutmix_images])
def test_padding_never_reaches_a_sample(mix):
    mask = jnp.array([True, True, True, True, True, False])
    garbage = IMAGES.copy()
    garbage[5] = 99
    for seed in range(5):
        one = mix(jax.random.key(seed), jnp.asarray(IMAGES), mask, 1.0)
        two = mix(jax.random.key(seed), jnp.asarray(garbage), mask, 1.0)
        np.testing.assert_array_equal(np.asarray(one[0])[:5], np.asarray(two[0])[:5])
        assert one[1][0] == 1  # its partner is the padding


def test_masked_mean():
    assert masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])) == 2
    assert masked_mean(jnp.array([jnp.nan]), jnp.array([False])) == 0
