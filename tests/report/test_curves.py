"""What becomes of the records of a run: curves that stay apart, their colours, their axes."""

import pytest
from PIL import Image

from jaxvision.report import curves


def record(step, kind, **values):
    return {"step": step, "kind": kind, **values}


RECORDS = [
    record(2, "eval:train", loss=0.2, top1=0.9),  # an evaluation may come before the first line of training
    record(4, "train", loss=2.0, lr=0.1, grad_norm=1.0, alarm_collapse=0.0),
    record(4, "eval:train", loss=0.1, top1=1.0),
    record(4, "eval:$5_$", loss=0.3, **{"accuracy/cat": 1.0}),
]


def test_an_evaluation_named_train_is_not_training():
    found = curves.curves(RECORDS)
    assert found["loss"] == {
        "train": ([4], [2.0]),
        "eval:train": ([2, 4], [0.2, 0.1]),
        "eval:$5_$": ([4], [0.3]),
    }
    assert list(found) == ["loss", "top1", "lr"]
    assert len({curves.named(kind) for kind in found["loss"]}) == 3
    assert curves.named("train") == "train"
    assert curves.named("eval:test") == "test"


def test_training_has_the_same_colour_in_every_run():
    """Whatever is recorded first, and where nothing of training is."""
    for records in (RECORDS, RECORDS[::-1]):
        assert curves.colours(records)["train"] == 0
        assert next(iter(curves.curves(records)["loss"])) == "train"
        assert sorted(curves.colours(records).values()) == [0, 1, 2]
    assert curves.colours(RECORDS[:1]) == {"train": 0, "eval:train": 1}


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([1.0, 3.0], (1.0, 3.0)),
        ([0.0, 0.0], (0.0, 1.0)),  # such as absent_classes: not from -0.4 to 0.4
        ([0.1], (0.0, 0.2)),
        ([-2.0, -2.0], (-4.0, 0.0)),
        ([1.0, 1.0 + 1e-9], (0.0, 2.0)),  # ticks that differ in the tenth digit say nothing
    ],
)
def test_a_constant_is_drawn_from_zero(values, want):
    assert curves.limits(values) == pytest.approx(want)


def test_curves_are_drawn_whatever_evaluations_are_called(tmp_path):
    from etils import epath

    curves.plot(RECORDS, epath.Path(tmp_path / "curves.png"))
    assert Image.open(tmp_path / "curves.png").size[0] > 100
