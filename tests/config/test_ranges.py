"""Ranges in annotations: what fits, what is said, and that every factory has them."""

import inspect
import typing
from typing import Annotated

import pytest

from jaxvision import metrics, models, tasks
from jaxvision.config import PROVIDED, ranges
from jaxvision.data import transforms
from jaxvision.errors import UserError
from jaxvision.training import optim


def some(
    count: ranges.Count = 1,
    rate: ranges.Rate = 0.0,
    step: ranges.Positive | None = None,
    counts: ranges.Counts = (1,),
    scale: tuple[ranges.Positive, ranges.Positive] = (1.0, 2.0),
    fill: ranges.Fill = 0,
    flag: bool = False,
    name: str = "",
    anything: object = None,
):
    """A factory."""


@pytest.mark.parametrize(
    "good",
    [dict(count=3), dict(rate=0), dict(rate=0.5), dict(step=None), dict(step=2), dict(counts=(1, 2)), dict(counts=[1]),
     dict(scale=(1, 2.5)), dict(fill=255), dict(fill=(0, 1, 2)), dict(flag=True), dict(name="x"), dict(anything={})],
)  # fmt: skip
def test_what_fits(good):
    ranges.check_arguments(some, good, "model.")


@pytest.mark.parametrize(
    ("bad", "words"),
    [(dict(count=0), "model.count is 0: it must be a whole number, at least 1, at most 1,048,576"),
     (dict(count=1.0), "model.count is 1.0: it must be a whole number"),
     (dict(count=True), "model.count is True: it must be a whole number"),
     (dict(rate=1.0), "model.rate is 1.0: it must be a number, in \\[0, 1\\)"),
     (dict(rate=float("nan")), "model.rate is nan"),
     (dict(rate="0.1"), "model.rate is '0.1'"),
     (dict(step=0), "model.step is 0: it must be a number, above 0 or None"),
     (dict(counts=()), "a tuple, of each value a whole number, at least 1, at most 1,048,576, with at least one value"),
     (dict(counts=(1, 0)), "model.counts is \\(1, 0\\)"),
     (dict(counts=3), "model.counts is 3"),
     (dict(scale=(1,)), "model.scale is \\(1,\\): it must be \\(a number, above 0; a number, above 0\\)"),
     (dict(fill=256), "in 0..255"),
     (dict(fill=(1, 2)), "three of them"),
     (dict(flag=1), "True or False"),
     (dict(name=3), "a text")],
)  # fmt: skip
def test_what_does_not_fit_is_named(bad, words):
    with pytest.raises(UserError, match=words):
        ranges.check_arguments(some, bad, "model.")


@pytest.mark.parametrize("text", ["test", "a.b", "v2", "imagenet-v2", "Prüfung", "0", "_"])
def test_names(text):
    assert ranges.is_name(text)


@pytest.mark.parametrize("text", ["", ".", "..", ".x", "a/b", "../x", "/x", "a\\b", "a b", "a\n", "a\0", "x" * 101])
def test_no_names(text):
    assert not ranges.is_name(text)


# Names that the factory itself, the network when it is built or the program refuses where there is no such one.
CHECKED = {
    *("stem", "norm", "pooling", "positions", "remat"),  # of networks
    *("loss", "class_weights", "pos_weight", "teacher"),
    *("filter", "policy", "value", "views", "local"),
}


def unbounded(annotation, kinds=(int, float, str)):
    """Whether some number or name that the annotation allows has no range."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in kinds:
        return True
    if origin is Annotated:
        return parts[0] not in kinds and unbounded(parts[0], kinds)
    return any(unbounded(part, kinds) for part in parts if part is not Ellipsis)


FACTORIES = [(space, name) for space in (models, tasks, metrics, optim, transforms) for name in space.__all__]


@pytest.mark.parametrize(("space", "name"), FACTORIES, ids=lambda x: getattr(x, "__name__", x))
def test_whatever_a_factory_takes_has_a_range(space, name):
    """And its defaults are inside."""
    make = getattr(space, name)
    for argument in inspect.signature(make).parameters.values():
        if argument.name in (*PROVIDED, "parent", "name"):
            continue
        annotation = ranges.annotation_of(make, argument.name)
        kinds = (int, float) if argument.name in CHECKED else (int, float, str)
        assert not unbounded(annotation, kinds), f"{name}({argument.name}): see jaxvision/config/ranges.py"
        if argument.default is not argument.empty:
            assert ranges.fits(argument.default, annotation), argument
