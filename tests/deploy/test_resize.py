"""The evaluation pixels as an exported file computes them, against Pillow's."""

import functools
from fractions import Fraction

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxvision.data import transforms
from jaxvision.data.contract import InputContract
from jaxvision.deploy.jaxpr import flatten
from jaxvision.deploy.onnx_graph import to_onnx
from jaxvision.ops.resize import evaluation_pixels
from jaxvision.tasks.common import normalise
from tests.deploy.test_onnx_graph import computed

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


FITS = (
    {"fit": "crop", "size": (40, 64), "resize": 73},
    {"fit": "stretch", "size": (40, 64)},
    {"fit": "pad", "size": (40, 64)},
    {"fit": "shortest", "size": (64, 64), "resize": 40, "longest": 60},
    {"fit": "shortest", "size": (40, 64), "resize": 40},  # an upright image is made smaller, so that it fits
)
SHAPES = [(427, 640), (200, 61), (64, 64), (20, 31), (73, 500), (40, 64), (1, 9)]


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "linear"])
@pytest.mark.parametrize("how", FITS, ids=lambda how: f"{how['fit']}{how['size'][0]}")
def test_every_fit_has_the_pixels_of_the_host(how, filter):
    """Within a level in rare pixels, as above; and what no image covers is the same to the bit."""
    contract = InputContract(**how, filter=filter)
    program = jax.jit(lambda images: evaluation_pixels(images, contract))
    for sides in SHAPES:
        image = np.asarray(PHOTO.resize(sides[::-1]))
        want = transforms.preprocess(contract)(image).astype(int)
        assert want.shape == contract.shape
        got = np.asarray(program(image[None])[0])
        assert (got == got.round()).all()
        difference = np.abs(got - want)
        assert difference.max() <= 1, sides
        # the rows come first in Pillow, see above
        rows_first = sides[0] > 2 * sides[1] and contract.fitted(*sides)[0] < sides[0] and filter != "linear"
        few = 0.08 if filter == "linear" else 0.01  # OpenCV's weights are whole 256ths
        assert (difference > 0).mean() < (0.25 if rows_first else few), sides
        height, width = contract.fitted(*sides)
        if contract.fit in ("pad", "shortest"):
            assert (got[height:] == contract.fill).all()
            assert (got[:, width:] == contract.fill).all()
            assert max(height / contract.height, width / contract.width) <= 1


@pytest.mark.parametrize("how", FITS, ids=lambda how: f"{how['fit']}{how['size'][0]}")
def test_of_every_fit_what_is_resized_already_stays_as_it_is(how):
    contract = InputContract(**how)
    for sides in SHAPES:
        image = np.asarray(PHOTO.resize(sides[::-1]))
        sized = transforms.square(contract)(image)
        want = transforms.preprocess(contract)(image)
        np.testing.assert_array_equal(transforms.preprocess(contract)(sized), want)
        np.testing.assert_array_equal(evaluation_pixels(sized[None], contract)[0], want)


@pytest.mark.parametrize("filter", ["bilinear", "linear"])
@pytest.mark.parametrize("how", FITS, ids=lambda how: f"{how['fit']}{how['size'][0]}")
def test_every_fit_in_onnx_and_stablehlo(how, filter):
    """One program for all sizes and numbers of images, and its network sees what the host makes of each alone."""
    contract = InputContract(**how, filter=filter)
    kernel = np.random.default_rng(0).normal(size=(np.prod(contract.shape), 5)).astype(np.float32) / 100

    def tiny(pixels):
        return normalise(pixels, contract).reshape(pixels.shape[0], -1) @ kernel

    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, h, w, 3"), np.uint8)
    stablehlo = jax.export.export(jax.jit(lambda images: tiny(evaluation_pixels(images, contract))))(spec)
    onnx = to_onnx(flatten(lambda images: tiny(evaluation_pixels(images, contract)), spec), ["images"], ["logits"])
    for sides in ((31, 47), (90, 60)):
        images = np.stack([np.asarray(PHOTO.rotate(angle).resize(sides[::-1])) for angle in (0, 180, 90)])
        host = tiny(np.stack([transforms.preprocess(contract)(image) for image in images]))
        scale = np.abs(host).max()
        np.testing.assert_allclose(stablehlo.call(images), host, atol=0.01 * scale)  # a level in some pixels
        np.testing.assert_allclose(computed(onnx, images), stablehlo.call(images), atol=1e-3 * scale)
        alone, beside = (evaluation_pixels(some, contract)[-1] for some in (images[:2], images[1:2]))
        np.testing.assert_array_equal(alone, beside)  # no neighbour has a say


def test_the_sizes_of_torchvisions_detectors():
    """Its rule: floor(side x min(800 / shorter, 1333 / longer)), in exact numbers."""
    contract = InputContract(size=1344, fit="shortest", resize=800, longest=1333)
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 5000, (500, 2)).tolist():
        factor = min(Fraction(800, min(height, width)), Fraction(1333, max(height, width)))
        assert contract.fitted(height, width) == tuple(max(1, int(side * factor)) for side in (height, width))
    assert contract.fitted(480, 640) == (800, 1066)
    assert contract.fitted(500, 1000) == (666, 1333)
