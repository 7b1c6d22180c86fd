"""The evaluation pixels as an exported file computes them, against Pillow's."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.ops.resize import evaluation_pixels

# Op by op each of its dozen products would be a program of its own.
compiled_pixels = functools.partial(jax.jit, static_argnums=1)(evaluation_pixels)
PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(64, 73), (50, 50), (33, 64)])
@pytest.mark.parametrize("sides", [(427, 640), (200, 61), (64, 64), (20, 31), (73, 500), (74, 73), (1, 1)])
def test_pixels_are_pillows_but_for_halves(filter, size, resize, sides):
    """Larger and smaller, upright and wide, sides of odd and even difference. Pillow weighs in fixed point, so what is
    nearly a half of a level is rounded the other way: one level, in at most some per cent of the pixels (enlarging by
    a small factor makes many of them). Of images more than twice as high as wide Pillow 13 resizes the rows first."""
    image = np.asarray(PHOTO.resize(sides[::-1]))
    contract = InputContract(size=size, resize=resize, filter=filter)
    want = transforms.preprocess(contract)(image).astype(int)
    got = np.asarray(compiled_pixels(image[None], contract)[0])
    assert got.dtype == np.float32
    assert (got == got.round()).all()
    difference = np.abs(got - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.25 if sides[0] > 2 * sides[1] and resize < sides[1] else 0.04)


def test_what_is_resized_already_stays_as_it_is():
    """So the crops that evaluation sees can be shown to a file: `square` has them in its centre."""
    contract = InputContract(size=40, resize=51, filter="bicubic")
    for sides in ((51, 90), (52, 51), (51, 51), (300, 201), (77, 160)):
        image = np.asarray(PHOTO.resize(sides[::-1]))
        square = transforms.square(contract)(image)
        assert square.shape == (51, 51, 3)
        want = transforms.preprocess(contract)(image)
        np.testing.assert_array_equal(transforms.preprocess(contract)(square), want)
        np.testing.assert_array_equal(evaluation_pixels(square[None], contract)[0], want)


def test_one_program_for_all_sizes_and_numbers():
    contract = InputContract(size=8, resize=9, channels=1, mean=(0.5,), std=(0.5,))
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 1"), np.uint8)
    program = jax.export.export(jax.jit(lambda images: evaluation_pixels(images, contract)))(spec)
    for shape in ((1, 30, 20, 1), (3, 9, 44, 1)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(program.call(images), evaluation_pixels(images, contract))
