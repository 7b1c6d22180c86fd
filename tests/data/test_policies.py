"""Policies and the geometric transforms beside them: torchvision's and timm's pixels, tables and frequencies."""

import collections
import json
import math

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import transforms
from jaxvision.data.transforms import geometry, policies
from jaxvision.data.transforms.color import colour_of
from tests.data.test_color import GOLDEN, constant, likely, rng, uniform

FILL = (10, 200, 90)  # of the script that made the golden pixels
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness"}
SHORT = {"ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y"}


def resampling(name):
    return getattr(Image.Resampling, name.upper())


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("op/")])
def test_operations_have_torchvisions_and_timms_pixels(key):
    _, name, magnitude, mode = key.split("/")
    out = policies.OPS[name](Image.fromarray(GOLDEN["image"]), float(magnitude), resampling(mode), FILL)
    assert (np.asarray(out) == GOLDEN[key]).all()


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("grey op/")])
def test_operations_on_grey(key):
    _, name, magnitude, mode = key.split("/")
    grey = Image.fromarray(np.ascontiguousarray(GOLDEN["image"][:, :, 0]))
    out = policies.OPS[name](grey, float(magnitude), resampling(mode), 77)
    assert (np.asarray(out) == GOLDEN[key]).all()


def test_posterize_to_no_bits_is_black():
    """timm asks for it at magnitude 10, torchvision's AugMix at severity 10; Pillow 13's `posterize` refuses."""
    for bits, want in ((0, {0}), (8, set(np.unique(GOLDEN["image"])))):
        out = policies.OPS["posterize"](Image.fromarray(GOLDEN["image"]), bits, Image.Resampling.NEAREST, 0)
        assert set(np.unique(np.asarray(out))) == want


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_policy_tables_are_torchvisions(name):
    theirs = json.loads(str(GOLDEN["policies"]))[name]
    ours = [[list(step) for step in pair] for pair in policies.POLICIES[name]]
    assert ours == [[[SHORT.get(n, n.lower()), p, level or 0] for n, p, level in pair] for pair in theirs]


@pytest.mark.parametrize("name", ["rand", "auto", "trivial", "aug_mix"])
def test_spaces_are_torchvisions(name):
    """The same operations in the same order, signs and magnitudes at every level; of 32 x 64 pixels."""
    theirs = json.loads(str(GOLDEN["spaces"]))[name]
    ours = {"rand": policies.RAND, "auto": policies.AUTO, "trivial": policies.TRIVIAL, "aug_mix": policies.AUGMIX}[name]
    assert list(ours) == [SHORT.get(n, n.lower()) for n in theirs]
    for (op, (law, signed)), (magnitudes, their_sign) in zip(ours.items(), theirs.values()):
        assert signed == their_sign == (op in SIGNED)
        if magnitudes is None:
            assert law(1.0, 32, 64) == 0
            continue
        mine = [law(k / (len(magnitudes) - 1), 32, 64) for k in range(len(magnitudes))]
        # torchvision cuts a move to whole pixels when it is done.
        want = np.trunc(magnitudes) if op.startswith("translate") else np.array(magnitudes)
        if name == "trivial" and op.startswith("translate"):
            assert magnitudes[15] == pytest.approx(16)
            want[15] = 16  # float32 makes it 15.999999 there, so 15 pixels
        assert np.allclose(mine, want, rtol=1e-5, atol=1e-6)
        if op == "solarize":
            # A threshold of float32 beside a whole level would invert another level than ours.
            assert [math.ceil(m) for m in mine] == [math.ceil(m) for m in magnitudes]


@pytest.mark.parametrize("increasing", [True, False])
def test_space_is_timms(increasing):
    theirs = json.loads(str(GOLDEN["spaces"]))[f"timm {increasing}"]
    ours = policies.timm_space(increasing)
    names = {"SolarizeAdd": "solarize_add", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y"} | SHORT
    theirs = {names.get(n, n.replace("Increasing", "").lower()): values for n, values in theirs.items()}
    assert set(ours) == set(theirs)
    for op, values in theirs.items():
        law, signed = ours[op]
        assert signed == (op in SIGNED and (increasing or op not in policies.ENHANCED))
        if values is not None:
            mine = np.array([law(m / 10, 1, 1) + (op in policies.ENHANCED) for m in range(11)])
            assert np.allclose(mine, values)


@pytest.fixture
def calls(monkeypatch):
    """What was asked of OPS, (name, magnitude, filter, colour), instead of doing it."""
    made = []

    def record(name):
        return lambda image, *arguments: made.append((name, *arguments)) or image

    for name in policies.OPS:
        monkeypatch.setitem(policies.OPS, name, record(name))
    return made


def run(transform, draws, image=None, seed=0):
    image, generator = np.zeros((100, 200, 3), np.uint8) if image is None else image, rng(seed)
    for _ in range(draws):
        transform(image, generator)


def even(counts, names, total):
    return set(counts) <= set(names) and all(likely(counts[name], total, 1 / len(names)) for name in names)


def balanced(calls, names):
    """Half of the magnitudes of each operation are negative; of the others none."""
    for name in names:
        values = np.array([c[1] for c in calls if c[0] == name])
        values = values[values != 0]
        if name in SIGNED and not likely((values < 0).sum(), len(values), 0.5):
            return False
        if name not in SIGNED and (values < 0).any():
            return False
    return True


def test_rand_augment_draws(calls):
    run(transforms.rand_augment(fill=FILL), 3000)
    assert len(calls) == 6000
    assert even(collections.Counter(c[0] for c in calls), policies.RAND, 6000)
    pairs = collections.Counter((a[0], b[0]) for a, b in zip(calls[::2], calls[1::2]))
    assert all(likely(pairs[a, b], 3000, 1 / 14**2) for a in policies.RAND for b in policies.RAND)
    assert balanced(calls, policies.RAND)
    # Magnitude 9 of 0..30, on 200 x 100 pixels.
    want = dict.fromkeys(("shear_x", "shear_y"), 0.09) | {"translate_x": 27, "translate_y": 13, "rotate": 9.0}
    want |= dict.fromkeys(policies.ENHANCED, 0.27) | {"posterize": 7, "solarize": 178.5}
    for name, magnitude, filter, colour in calls:
        assert abs(magnitude) == pytest.approx(want.get(name, 0))
        assert filter == Image.Resampling.NEAREST
        assert colour == FILL
    calls.clear()
    run(transforms.rand_augment(ops=0), 5)
    assert calls == []
    run(transforms.rand_augment(ops=3, magnitude=30), 50)
    assert len(calls) == 150
    assert {abs(m) for name, m, _, _ in calls if name == "rotate"} == {30}


def test_trivial_augment_draws(calls):
    run(transforms.trivial_augment(), 6000)
    assert len(calls) == 6000
    assert even(collections.Counter(c[0] for c in calls), policies.TRIVIAL, 6000)
    assert balanced(calls, policies.TRIVIAL)
    turns = np.array([abs(c[1]) for c in calls if c[0] == "rotate"])
    enhanced = [round(abs(c[1]) / 0.99 * 30) for c in calls if c[0] in policies.ENHANCED]
    assert set(np.round(turns / 4.5).astype(int)) == set(range(31))
    assert even(collections.Counter(enhanced), range(31), len(enhanced))
    assert {c[1] for c in calls if c[0] == "posterize"} == set(range(2, 9))
    assert {abs(c[1]) for c in calls if c[0] == "translate_x"} == {int(32 * k / 30) for k in range(31)}


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_draws(calls, policy):
    draws = 4000
    run(transforms.auto_augment(policy), draws)
    table = policies.POLICIES[policy]
    counts = collections.Counter(c[0] for c in calls)
    for name in policies.AUTO:
        chances = [p for pair in table for op, p, _ in pair if op == name]
        # Two of one pair may come together; twice the variance covers it.
        mean = draws * sum(chances) / 25
        assert abs(counts[name] - mean) <= 4 * (2 * mean) ** 0.5
    assert balanced(calls, policies.AUTO)
    turns = {round(abs(c[1]), 6) for c in calls if c[0] == "rotate"}
    assert turns == {round(30 * level / 9, 6) for pair in table for op, p, level in pair if op == "rotate" and p}


def test_auto_augment_pairs_are_even(monkeypatch):
    """Each pair made to leave its number in the image."""
    made = collections.Counter()
    pairs = tuple((("identity", 1.0, k), ("identity", 0.0, k)) for k in range(25))
    monkeypatch.setitem(policies.POLICIES, "imagenet", pairs)
    monkeypatch.setitem(policies.AUTO, "identity", (lambda level, height, width: round(level * 9), False))
    monkeypatch.setitem(policies.OPS, "identity", lambda image, m, *_: made.update([m]) or image)
    run(transforms.auto_augment(), 4000, constant(0))
    assert even(made, range(25), 4000)


def test_timm_draws(calls):
    run(transforms.rand_augment_timm(), 6000)
    assert likely(len(calls), 12000, 0.5)
    space = policies.timm_space(True)
    assert even(collections.Counter(c[0] for c in calls), space, len(calls))
    assert balanced(calls, space)
    turns = np.array([abs(c[1]) / 3 for c in calls if c[0] in ("rotate",)])
    shears = np.array([abs(c[1]) / 0.03 for c in calls if c[0] in ("shear_x", "shear_y")])
    moves = np.array([abs(c[1]) / (0.045 * (200 if c[0] == "translate_x" else 100)) for c in calls if "late_" in c[0]])
    levels = np.concatenate([turns, shears, moves])
    # N(9, 0.5), cut off at 10: 1 in 44 is there.
    assert levels.max() == pytest.approx(10)
    assert abs(levels.mean() - 9) < 4 * 0.5 / len(levels) ** 0.5 + 0.01
    assert abs(levels.std() - 0.5) < 0.04
    assert likely((levels > 10 - 1e-9).sum(), len(levels), 0.02275)
    assert likely((levels < 9).sum(), len(levels), 0.5)
    assert likely(sum(c[2] == Image.Resampling.BICUBIC for c in calls), len(calls), 0.5)
    assert {c[2] for c in calls} == {Image.Resampling.BICUBIC, Image.Resampling.BILINEAR}
    assert {c[3] for c in calls} == {(124, 116, 104)}


def test_timm_arguments(calls):
    run(transforms.rand_augment_timm(magnitude=5, std=0, p=1.0, increasing=False), 400)
    assert len(calls) == 800
    want = {"rotate": 15, "posterize": 2, "solarize": 128, "solarize_add": 55, "color": 0.0, "shear_y": 0.15}
    for name, magnitude in want.items():
        assert {round(abs(c[1]), 9) for c in calls if c[0] == name} == {magnitude}
    calls.clear()
    run(transforms.rand_augment_timm(std=1000, p=1.0), 4000)
    assert uniform([abs(c[1]) / 3 for c in calls if c[0] == "rotate"], 0, 9)
    calls.clear()
    run(transforms.rand_augment_timm(p=0.0), 50)
    assert calls == []
    run(transforms.rand_augment_timm(p=1.0), 5, constant(0))
    assert {c[3] for c in calls} == {117}


def test_timm_at_full_magnitude_runs():
    transform = transforms.rand_augment_timm(10, 0, ops=4, p=1.0)
    run(transform, 200, GOLDEN["image"])
    run(transform, 200, GOLDEN["image"][:, :, :1])


def test_aug_mix_draws(calls):
    draws = 3000
    transform, image, generator = transforms.aug_mix(), constant(0, 0, 0), rng(1)
    lengths = collections.Counter()
    for _ in range(draws):
        before = len(calls)
        transform(image, generator)
        lengths[len(calls) - before] += 1
    # The sum of three whole numbers from 1 to 3.
    assert set(lengths) == set(range(3, 10))
    for total, ways in zip(range(3, 10), (1, 3, 6, 7, 6, 3, 1)):
        assert likely(lengths[total], draws, ways / 27)
    assert even(collections.Counter(c[0] for c in calls), policies.AUGMIX, len(calls))
    assert balanced(calls, policies.AUGMIX)
    turns = collections.Counter(round(abs(c[1]) * 9 / 30) for c in calls if c[0] == "rotate")
    assert even(turns, range(3), sum(turns.values()))
    assert {c[1] for c in calls if c[0] == "posterize"} == {4, 3}
    assert {c[2] for c in calls} == {Image.Resampling.BILINEAR}
    calls.clear()
    run(transforms.aug_mix(severity=10, width=2, depth=4), 100, image)
    assert len(calls) == 800


def test_aug_mix_mixes(monkeypatch):
    """The image's own share is Beta(alpha, alpha), that of the chains Dirichlet; every chain starts at the image."""
    for name in policies.OPS:
        monkeypatch.setitem(policies.OPS, name, lambda image, *_: Image.new(image.mode, image.size, 0))
    white, generator, transform = constant(255), rng(2), transforms.aug_mix()
    kept = [(int(transform(white, generator)[0, 0, 0]) + generator.random()) / 255 for _ in range(1500)]
    assert uniform(kept, 0, 1, slack=1 / 255)
    assert (transforms.aug_mix(alpha=1e9)(white, rng()) == 127).all()  # 127.5 rounded down, as torchvision

    seen, number = [], iter(range(10**6))

    def first_of_three(image, *_):
        seen.append(image.getpixel((0, 0)))
        return Image.new(image.mode, image.size, 240 if next(number) % 3 == 0 else 0)

    for name in policies.OPS:
        monkeypatch.setitem(policies.OPS, name, first_of_three)
    transform = transforms.aug_mix(depth=1)
    shares = np.array([transform(constant(0), generator)[0, 0, 0] / 240 for _ in range(2000)])
    assert set(seen) == {0}
    # (1 - Beta(1, 1)) * the first of Dirichlet(1, 1, 1): 1/2 * 1/3; second moment 1/3 * 1/6.
    assert abs(shares.mean() + 0.5 / 240 - 1 / 6) < 4 * (1 / 18 - 1 / 36) ** 0.5 / 2000**0.5 + 0.002


def test_aug_mix_of_real_operations_stays_near():
    image = GOLDEN["image"]
    outs = [transforms.aug_mix()(image, rng(s)).astype(int) for s in range(200)]
    assert len({o.tobytes() for o in outs}) > 190
    assert np.mean([np.abs(o - image).mean() for o in outs]) < 40


@pytest.mark.parametrize(
    ("fill", "channels", "want"),
    [(7, 1, 7), (7, 3, (7, 7, 7)), ((1, 2, 3), 3, (1, 2, 3)), ([255, 255, 255], 1, 255), ((255, 0, 0), 1, 76)],
)
def test_colour_of(fill, channels, want):
    assert colour_of(fill, channels) == want
    if channels == 1 and not isinstance(fill, int):
        assert Image.new("RGB", (1, 1), tuple(fill)).convert("L").getpixel((0, 0)) == want


class Chosen:
    """A generator whose next uniform number is chosen."""

    def __init__(self, value):
        self.value = value

    def uniform(self, low, high):
        assert low <= self.value <= high
        return self.value


@pytest.mark.parametrize(("degrees", "filter"), [(-13.3, "bilinear"), (7.5, "bicubic")])
def test_rotation_as_torchvision(degrees, filter):
    out = transforms.rotation(30, filter, FILL)(GOLDEN["image"], Chosen(degrees))
    assert (out == GOLDEN[f"op/rotate/{degrees}/{filter}"]).all()


def test_rotation_draws(monkeypatch):
    angles = []
    monkeypatch.setattr(Image.Image, "rotate", lambda self, angle, *_, **__: angles.append(angle) or self)
    run(transforms.rotation(), 3000, constant(0))
    assert uniform(angles, -15, 15)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_perspective_as_torchvision(filter, monkeypatch):
    (key,) = [key for key in GOLDEN.files if key.startswith("perspective") and key.endswith(filter)]
    corners, true = json.loads(key.split("/")[1]), geometry.way_back
    monkeypatch.setattr(geometry, "way_back", lambda drawn, width, height: true(corners, width, height))
    out = transforms.perspective(p=1.0, filter=filter, fill=7)(GOLDEN["image"], rng())
    # torchvision rounds the eight numbers to float32.
    assert np.abs(out.astype(int) - GOLDEN[key]).max() <= 1


def test_perspective_draws(monkeypatch):
    drawn, true = [], geometry.way_back
    monkeypatch.setattr(geometry, "way_back", lambda corners, w, h: drawn.append(corners) or true(corners, w, h))
    run(transforms.perspective(0.5, 1.0), 3000, np.zeros((8, 13, 1), np.uint8))
    corners = np.array(drawn)
    for k, (x, y) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        # int(0.5 * (13 // 2)) = 3 columns, int(0.5 * 4) = 2 rows, the ends included.
        columns, rows = range(9, 13) if x else range(4), range(5, 8) if y else range(3)
        assert even(collections.Counter(corners[:, k, 0].tolist()), columns, 3000)
        assert even(collections.Counter(corners[:, k, 1].tolist()), rows, 3000)
    same = true(((0, 0), (12, 0), (12, 7), (0, 7)), 13, 8)
    assert np.allclose(same, (1, 0, 0, 0, 1, 0, 0, 0), atol=1e-9)
    run(transforms.perspective(1.0, 1.0), 300, np.zeros((4, 6, 3), np.uint8))  # corners that meet


def test_zoom_is_uniform_and_centred():
    image = np.zeros((64, 64, 1), np.uint8)
    image[22:42, 22:42] = 255
    transform, generator = transforms.zoom(), rng(3)
    outs = [transform(image, generator)[:, :, 0] / 255 for _ in range(1500)]
    assert uniform([out.sum() ** 0.5 / 20 for out in outs], 0.8, 1.2, slack=0.005)
    assert all(abs((out * np.arange(64)[:, None]).sum() / out.sum() - 31.5) < 0.05 for out in outs)


def test_shear_is_uniform():
    image = np.zeros((17, 65, 1), np.uint8)
    image[:, 31:34] = 240
    transform, generator = transforms.shear(40), rng(4)
    tops = [transform(image, generator)[0, :, 0] / 240 for _ in range(1500)]
    angles = [math.degrees(math.atan((top @ np.arange(65) / top.sum() - 32) / 8)) for top in tops]
    assert uniform(angles, -40, 40, slack=0.3)
    first = transforms.shear(30, fill=9)(GOLDEN["image"], rng(5))
    assert (first == transforms.affine(shear=30, fill=9)(GOLDEN["image"], rng(5))).all()


def test_flips():
    image = GOLDEN["image"][:5, :7]
    assert (transforms.flip(1.0)(image, rng()) == image[:, ::-1]).all()
    assert (transforms.vertical_flip(1.0)(image, rng()) == image[::-1]).all()
    for factory in (transforms.flip, transforms.vertical_flip):
        used, other = rng(9), rng(9)
        factory()(image, used)
        other.random()
        assert used.random() == other.random()  # one draw, whatever comes of it
