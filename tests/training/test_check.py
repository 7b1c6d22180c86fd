"""From a config to what it names: what is refused when the data is open and before the first step."""

import pytest

from jaxvision.errors import UserError
from jaxvision.training.setup import Setup
from tests.tiny import make_tiny_config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.checkpoint.update(best="test/nope"),
            "checkpoint.best is 'test/nope', .*no 'nope': it has top1, top5",
        ),
        (lambda c: c.checkpoint.update(best="test/top7"), "no 'top7': it has top1, top5, loss"),
        (lambda c: c.stop.update(patience=2, metric="nope"), "stop.metric is 'nope', and evals.test has no 'nope'"),
        (lambda c: c.evals.test.update(metric="knn", bank="digits:train?split=:1"), "of one class: .* at least two"),
        (
            lambda c: c.evals.test.update(metric="probe", per_class=999, bank="digits:train"),
            r"evals.test.bank, digits:train: .*class 0 of the bank has \d+ images, per_class is 999",
        ),
    ],
)
def test_what_the_first_evaluation_would_find_is_known_before_step_0(change, words):
    config = make_tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        Setup(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.update(batch_size=2**20, data={**c.data, "size": 4096, "resize": 4096}),
            "batch_size=1048576 at 4096 px",
        ),
        (
            lambda c: c.update(steps=0, epochs=1e9),
            r"epochs=1e\+09 of 1,437 images are [\d,]+ steps: the most are 2,147,483,647",
        ),
        (lambda c: c.model.update(groups=4), "groups and group_width are those of bottlenecks"),
        (lambda c: c.model.update(width=2**20), r"the [\d,]+ parameters of model .*name='resnet18', .*width=1048576"),
    ],
)
def test_what_no_machine_holds_is_refused_with_the_numbers(change, words):
    config = make_tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        Setup(config)


@pytest.mark.parametrize("best", ["test/top5", "test/loss", "test", ""])
def test_figures_there_are(best):
    config = make_tiny_config()
    config.checkpoint.best = best
    Setup(config)
