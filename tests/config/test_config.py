"""The config tree: what is refused, and with which words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvision import config as config_lib
from jaxvision.errors import UserError
from jaxvision.training import build, check
from tests.tiny import make_tiny_config


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from (
            leaves(value, f"{prefix}{key}.") if isinstance(value, config_lib.Config) else [(prefix + key, value)]
        )


KEYS = dict(leaves(config_lib.default()))


def write(tmp_path, *lines):
    path = tmp_path / "some.py"
    head = [
        "import jaxvision.config", "config = jaxvision.config.default()", "config.data.train = 'digits:train'",
        "config.steps = 3",
    ]  # fmt: skip
    path.write_text("\n".join([*head, *lines]))
    return str(path)


@given(st.sampled_from(sorted(KEYS)), st.integers(0, 30), st.sampled_from("abz_"))
def test_every_misspelt_key_is_refused_with_the_right_one(key, position, letter):
    *parents, last = key.split(".")
    wrong = last[: position % len(last)] + letter + last[position % len(last) :]
    config = make_tiny_config()
    node = config
    for part in parents:
        node = node[part]
    if wrong in node:
        return
    node[wrong] = KEYS[key]
    with pytest.raises(UserError, match="unknown key") as error:
        check.check(config)
    assert f'unknown key "{key.rpartition(".")[0]}{"." if parents else ""}{wrong}"' in str(error.value)
    assert "did you mean" in str(error.value)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_can_be_set_from_the_command_line(key):
    config = config_lib.default()
    value = KEYS[key]
    text = {bool: "True", int: "3", float: "0.25", str: "some", tuple: "(0.5, 0.25)"}[type(value)]
    config_lib.override(config, key, text)
    assert dict(leaves(config))[key] == {bool: True, int: 3, float: 0.25, str: "some", tuple: (0.5, 0.25)}[type(value)]
    if not isinstance(value, str):
        with pytest.raises(UserError, match=f"--config.{key}=what: expected {type(value).__name__}"):
            config_lib.override(config, key, "what")


def test_a_size_is_a_side_or_height_and_width():
    config = make_tiny_config()
    config_lib.override(config, "data.size", "(8, 12)")
    config_lib.override(config, "data.resize", "12")
    check.check(config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.data.size == (8, 12)
    assert config_lib.differences(config, again) == []


def test_keys_that_came_later_make_no_other_run_of_an_old_one():
    config = make_tiny_config()
    assert {"data.fit", "data.longest"} <= {key for key, _ in config_lib.LATER}
    assert all(config_lib.flat(config.to_dict())[key] == value for key, value in config_lib.LATER)
    other = make_tiny_config()
    other.data.update(fit="pad", resize=0)
    assert config_lib.run_of(other) != config_lib.run_of(config)


def test_open_groups_take_new_keys():
    config = make_tiny_config()
    config_lib.override(config, "model.zero_init", "false")
    config_lib.override(config, "wrap.ema.decay", "0.9")
    config_lib.override(config, "optim.nesterov", "True")
    config_lib.override(config, "evals.more.data", "digits:train")
    check.check(config)
    assert config.model.zero_init is False
    assert config.wrap.ema.decay == 0.9
    assert config.evals.more.data == "digits:train"


def test_int_where_a_float_is_meant():
    config = make_tiny_config()
    config_lib.override(config, "optim.lr", "1")
    assert config.optim.lr == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(batch_size=0), "batch_size is 0: it must be at least 1"),
        (lambda c: c.update(epochs=3.0), "one of them"),
        (lambda c: c.update(steps=0), "one of them"),
        (lambda c: c.update(accumulate=5), "divisible by accumulate=5"),
        (lambda c: c.update(dtype="float16"), "dtype is .float16.: did you mean .bfloat16."),
        (lambda c: c.optim.update(lr=-1.0), "optim.lr is -1.0"),
        (lambda c: c.optim.update(warmup=5.0), "share of all steps"),
        (lambda c: c.optim.update(schedule="cosin"), "did you mean 'cosine'"),
        (lambda c: c.data.update(train=""), "data.train is ''"),
        (lambda c: c.data.update(transforms=("flip",)), "expected a pair"),
        (lambda c: c.data.update(transforms=(("shfit", {}),)), "did you mean 'shift'"),
        (lambda c: c.data.update(mean=(0.5,)), "mean and std need 3"),
        (lambda c: c.data.update(size=9), "does not fit into a resize to 8"),
        (lambda c: c.data.update(size=(8, 0)), r"data.size is \(8, 0\): it must be a side .* or \(height, width\)"),
        (lambda c: c.data.update(size=(8, 9)), "8 x 9 px does not fit .* at least the longer of data.size"),
        (lambda c: c.data.update(fit="pda"), "data.fit is 'pda': did you mean 'pad'"),
        (lambda c: c.data.update(fit="pad"), "data.resize is 8, and data.fit = 'pad' has no use for it: set it to 0"),
        (lambda c: c.data.update(longest=9), "data.longest is 9: it is of data.fit = 'shortest', and that is 'crop'"),
        (lambda c: c.data.update(filter="bicubc"), "did you mean 'bicubic'"),
        (lambda c: c.evals.test.update(data=3), "evals.test.data is 3: expected str"),
        (lambda c: c.evals.test.update(metric="topp"), "did you mean 'topk'"),
        (lambda c: c.evals.test.update(every=3), 'unknown key "evals.test.every"'),
        (lambda c: c.checkpoint.update(best="tset/top1"), "did you mean 'test'"),
        (lambda c: c.wrap.update(emma=dict(decay=0.9)), "did you mean 'ema'"),
        (lambda c: c.wrap.update(ema=dict(decai=0.9)), 'did you mean "wrap.ema.decay"'),
        (lambda c: c.wrap.update(ema={}, adversarial={}), "put adversarial before ema"),
        (lambda c: c.update(seed=2**32), "seed is 4294967296"),
        (lambda c: c.evals.test.update(every_epochs="abc"), "evals.test.every_epochs is 'abc': expected float"),
        (lambda c: c.optim.update(unfreeze=(("fc",),)), "optim.unfreeze holds .*expected pairs"),
        (lambda c: c.optim.update(layer_decay=1.5), "optim.layer_decay is 1.5"),
        (lambda c: c.optim.update(weight_decay_final=-0.5), "optim.weight_decay_final is -0.5.*-1 for a constant"),
        (lambda c: c.optim.update(milestones=("x",)), "expected numbers"),
        (lambda c: c.optim.update(groups=(("fc", "x"),)), "expected pairs"),
        (lambda c: c.mesh.update(data=0), "mesh.data is 0"),
        (lambda c: c.mesh.update(fsdp=-1), "at most one -1"),
        (lambda c: c.task.update(name="classify"), "did you mean 'classification'"),
        (lambda c: c.update(batch_size=999999999999), "batch_size is 999999999999: it must be at least 1, at most"),
        (lambda c: c.update(epochs=float("inf"), steps=0), "epochs is inf: it must be a finite number"),
        (lambda c: c.optim.update(lr=float("inf")), "optim.lr is inf: it must be a finite number"),
        (lambda c: c.data.update(std=(0.5, float("inf"), 0.5)), r"data.std\[1\] is inf: it must be a finite number"),
        (lambda c: c.data.update(threads=100000), "data.threads is 100000: it must be at least 0, at most 1,024"),
        (lambda c: c.checkpoint.update(every_minutes=-1.0), "checkpoint.every_minutes is -1.0: it must be at least 0"),
        (lambda c: c.evals.test.update(every_epochs=-1.0), "evals.test.every_epochs is -1.0: it must be at least 0"),
        (lambda c: c.mesh.update(rules=(("(", 0),)), r"mesh.rules holds \('\(', 0\): .* no regular expression"),
        (lambda c: c.init_policy.update(fresh=("*",)), "init_policy.fresh holds '\\*': expected patterns"),
        (lambda c: c.optim.update(gamma=0.0), "optim.gamma is 0.0: it must be above 0"),
        (lambda c: c.optim.update(momentum=-1), "optim.momentum is -1: it must be a number, in \\[0, 1\\)"),
        (lambda c: c.optim.update(momentum=5.0), "optim.momentum is 5.0"),
        (lambda c: c.model.update(dtype="float32"), 'unknown key "model.dtype" for resnet18'),
        (lambda c: c.model.update(dropout=2), "model.dropout is 2: it must be a number, in \\[0, 1\\)"),
        (lambda c: c.model.update(drop_path=-0.1), "model.drop_path is -0.1"),
        (lambda c: c.model.update(width=0), "model.width is 0: it must be a whole number, at least 1"),
        (lambda c: c.model.update(width="8"), "model.width is '8': it must be a whole number"),
        (lambda c: c.model.update(depths=()), r"model.depths is \(\): .*with at least one value"),
        (lambda c: c.model.update(zero_init=1), "model.zero_init is 1: it must be True or False"),
        (lambda c: c.task.update(label_smoothing=float("nan")), "task.label_smoothing is nan: it must be a finite"),
        (lambda c: c.task.update(label_smoothing="nan"), "task.label_smoothing is 'nan': it must be a number, in"),
        (lambda c: c.evals.test.update(ks=(0,)), r"evals.test.ks is \(0,\): .* each value a whole number, at least 1"),
        (lambda c: c.wrap.update(ema=dict(decay=5.0)), "wrap.ema.decay is 5.0"),
        (lambda c: c.data.update(transforms=(("affine", {"degrees": float("inf")}),)), "degrees is inf"),
        (lambda c: c.data.update(transforms=(("affine", {"degrees": 1e30}),)), '"affine": degrees is 1e.30: .*360'),
        (lambda c: c.data.update(transforms=(("multi_view", {}), ("flip", {}))), "must be the last"),
        (lambda c: c.log.update(wandb="team/project"), "log.wandb is 'team/project': .* without /"),
        (lambda c: c.evals.update({"a/b": c.evals.test}), "evals.a/b: .* letters, digits"),
        (lambda c: c.evals.update({"../../x": c.evals.test}), "evals.../../x: .* letters, digits"),
        (lambda c: c.evals.update({"/tmp/x": c.evals.test}), "evals./tmp/x: .* letters, digits"),
    ],
)  # fmt: skip
def test_impossible_values(change, words):
    config = make_tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        check.check(config)


# Keys that may hold any value of their type: the text is looked at where it is opened, a flag is a flag.
FREE = {"init", "checkpoint.best", "stop.evaluation", "stop.metric"} | {
    f"{part}.name" for part in ("model", "task", "optim")
}


def test_every_key_has_a_range():
    rows = {key for key, _ in config_lib.CHECKS}
    needed = {key for key, value in KEYS.items() if not isinstance(value, bool)} - FREE
    assert needed <= rows
    assert all(key.startswith("evals.*.") and key.rpartition(".")[2] in config_lib.EVAL for key in rows - needed)


def test_every_default_is_in_its_range():
    config = config_lib.default()
    config.data.train = "digits:train"
    config_lib.check_values(config)


def test_a_config_json_is_checked_like_a_file():
    """Somebody else's config.json: no evaluation whose files would lie outside the workdir."""
    config = make_tiny_config().to_dict()
    config["evals"]["../../x"] = config["evals"]["test"]
    with pytest.raises(UserError, match=r"evals\.\.\./\.\./x"):
        config_lib.from_json(json.dumps(config))


@pytest.mark.parametrize(
    ("line", "words"),
    [("config.optim.lr = 'fast'", "optim.lr is .fast.: expected float"), ("config.optim = 3", "optim"),
     ("1/0", "line 5: ZeroDivisionError"), ("config.batchsize = 1", 'did you mean "batch_size"'),
     ("config.lr = 1", 'unknown key "lr"'), ("config = 3", "must set `config`"), ("def", "SyntaxError")],
)  # fmt: skip
def test_errors_in_the_file(tmp_path, line, words):
    with pytest.raises(UserError, match=words):
        config_lib.load(write(tmp_path, line))


def test_file_and_overrides(tmp_path):
    config = config_lib.load(write(tmp_path, "config.optim.lr = 0.5"), {"optim.lr": "0.25", "model.width": "8"})
    assert config.optim.lr == 0.25
    assert config.model.width == 8


def test_json_round_trip():
    config = make_tiny_config()
    config.wrap = dict(mixup=dict(alpha=0.2), ema=dict(decay=0.9), cutmix=dict(alpha=1.0))
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert list(again.wrap) == ["mixup", "ema", "cutmix"]  # the order they are applied in
    assert not config_lib.differences(config, again)


def test_optim_keys_newer_than_the_text_have_their_defaults():
    """The config.json of a run from before layer_decay and the like: it can be resumed."""
    config = make_tiny_config()
    old = config.to_dict()
    for key in ("layer_decay", "unfreeze", "weight_decay_final"):
        del old["optim"][key]
    again = config_lib.from_json(json.dumps(old))
    assert not config_lib.differences(again, config)
    assert again.optim.momentum == 0.9


def test_differences_name_what_makes_another_run():
    one, two = make_tiny_config(), make_tiny_config()
    two.steps, two.log.every_steps, two.evals.test.every_steps, two.data.threads = 99, 1, 3, 4
    assert config_lib.differences(one, two) == []
    two.optim.lr, two.model.norm = 0.5, "none"
    assert config_lib.differences(one, two) == ["model.norm: '(absent)' -> 'none'", "optim.lr: 0.05 -> 0.5"]


def test_evals_count_epochs_or_steps():
    assert config_lib.eval_options(config_lib.Config(data="x"))["every_epochs"] == 1.0
    assert config_lib.eval_options(config_lib.Config(data="x", every_steps=5))["every_epochs"] == 0.0
    assert config_lib.eval_options(config_lib.Config(every_steps=5, every_epochs=2.0))["every_epochs"] == 2.0


def test_a_model_that_refuses_its_options_is_a_user_error():
    config = make_tiny_config()
    config.model.stem = "tiny"
    with pytest.raises(UserError, match=r"model name='resnet18'.*stem 'tiny' must be"):
        build.abstract_init(build.task(config, 10), config)


def test_defaults_are_fresh_each_time():
    config_lib.default().optim.lr = 5.0
    assert config_lib.default().optim.lr == 0.1


def test_no_evaluation_is_called_as_the_training_is(tmp_path):
    """But workdirs of older versions that have one are read."""
    with pytest.raises(UserError, match=r"evals\.train: the training's own records"):
        config_lib.load(write(tmp_path, "config.evals.train = dict(data='digits:train')"))
    config = make_tiny_config()
    config.evals.train = dict(data="digits:train")
    assert config_lib.from_json(config_lib.to_json(config)).evals.train.data == "digits:train"
