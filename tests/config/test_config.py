"""The config tree: what is refused, and with which words."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxvision import config as config_lib
from jaxvision.errors import UserError
from jaxvision.training import build, check
from tests.tiny import make_tiny_config


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from (leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [(prefix + key, value)])


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


def test_open_groups_take_new_keys():
    config = make_tiny_config()
    config_lib.override(config, "model.zero_init", "false")
    config_lib.override(config, "wrap.ema.decay", "0.9")
    config_lib.override(config, "optim.nesterov", "True")
    config_lib.override(config, "evals.more.data", "digits:train")
    config_lib.override(config, "checkpoint.best", "test")
    check.check(config)
    assert config.model.zero_init is False
    assert config.wrap == (("ema", {"decay": 0.9}),)
    assert config.evals.more.data == "digits:train"


def test_a_wrapper_from_the_command_line():
    """Its argument, all of its arguments, a new one behind the others; the order of the others stays."""
    config = make_tiny_config()
    config.wrap = (("mixup", dict(alpha=0.2, cutmix_alpha=1.0)), ("ema", dict(decay=0.9)))
    config_lib.override(config, "wrap.mixup.alpha", "0.5")
    config_lib.override(config, "wrap.ema", "{'warmup': False}")
    config_lib.override(config, "wrap.l2_sp.strength", "0.1")
    assert config.wrap == (
        ("mixup", {"alpha": 0.5, "cutmix_alpha": 1.0}), ("ema", {"warmup": False}), ("l2_sp", {"strength": 0.1})
    )  # fmt: skip
    config_lib.override(config, "wrap", "(('ema', {}),)")
    assert config.wrap == (("ema", {}),)
    for key, text, words in [
        ("wrap.ema", "0.9", "--config.wrap.ema=0.9: expected dict"),
        ("wrap.ema.decay.x", "1", 'unknown key "wrap.ema.decay.x": did you mean "wrap.ema.decay"'),
        ("wrap", "ema", "--config.wrap=ema: expected tuple"),
    ]:
        with pytest.raises(UserError, match=words):
            config_lib.override(config, key, text)


def test_what_was_written_before_wrap_was_a_tuple():
    """Its order is that of the text; the first of several evaluations decided."""
    old = make_tiny_config().to_dict()
    old["wrap"] = {"mixup": {"alpha": 0.2}, "ema": {"decay": 0.9}}
    old["evals"] = {"z": old["evals"]["test"], "a": old["evals"]["test"]}
    again = config_lib.from_json(json.dumps(old))
    assert again.wrap == (("mixup", {"alpha": 0.2}), ("ema", {"decay": 0.9}))
    assert config_lib.deciding(again) == again.checkpoint.best == "z"
    assert config_lib.deciding(make_tiny_config()) == "test"
    assert config_lib.deciding(config_lib.default()) == ""


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
        (lambda c: c.optim.update(warmup_share=5.0), "share of all steps"),
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
        (lambda c: c.update(wrap=(("emma", dict(decay=0.9)),)), "did you mean 'ema'"),
        (lambda c: c.update(wrap=(("ema", dict(decai=0.9)),)), 'did you mean "wrap.ema.decay"'),
        (lambda c: c.update(wrap=(("ema", {}), ("adversarial", {}))), "put adversarial before ema"),
        (lambda c: c.update(wrap=(("ema", {}), ("ema", {}))), "wrap names ema twice"),
        (lambda c: c.update(wrap=(("ema",),)), r"wrap is \(\('ema',\),\): it must be a tuple of \(name, arguments\)"),
        (lambda c: c.update(wrap=(("ema", dict(name="mixup")),)), "it must be a tuple of"),
        (lambda c: c.update(wrap=dict(mixup=dict(alpha=0.2), ema={})),
         r"set config.wrap = \(\('ema', \{\}\), \('mixup', \{'alpha': 0.2\}\)\), in the order that you mean"),
        (lambda c: c.evals.update(more=dict(data="digits:train")),
         'there are 2 evaluations.*config.checkpoint.best = "more" or config.checkpoint.best = "test"'),
        (lambda c: c.update(seed=2**32), "seed is 4294967296"),
        (lambda c: c.evals.test.update(every_epochs="abc"), "evals.test.every_epochs is 'abc': expected float"),
        (lambda c: c.optim.update(unfreeze_share=(("fc",),)), "optim.unfreeze_share holds .*expected pairs"),
        (lambda c: c.optim.update(layer_decay=1.5), "optim.layer_decay is 1.5"),
        (lambda c: c.optim.update(weight_decay_final=-0.5), "optim.weight_decay_final is -0.5.*-1 for a constant"),
        (lambda c: c.optim.update(milestones_share=("x",)), "expected numbers"),
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
        (lambda c: c.optim.update(momentum=-1), "optim.momentum is -1.0: it must be a number, in \\[0, 1\\)"),
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
        (lambda c: c.update(wrap=(("ema", dict(decay=5.0)),)), "wrap.ema.decay is 5.0"),
        (lambda c: c.data.update(transforms=(("affine", {"degrees": float("inf")}),)), "degrees is inf"),
        (lambda c: c.data.update(transforms=(("affine", {"degrees": 1e30}),)), '"affine": degrees is 1e.30: .*360'),
        (lambda c: c.data.update(transforms=(("multi_view", {}), ("flip", {}))), "must be the last"),
        (lambda c: c.log.update(wandb="team/project"), "log.wandb is 'team/project': .* without /"),
        (lambda c: c.evals.update({"a/b": c.evals.test}), "evals.a/b: .* letters, digits"),
        (lambda c: c.update(batch_size=True), "batch_size is True: expected int"),
        (lambda c: c.update(deterministic=1), "deterministic is 1: expected bool"),
        (lambda c: c.update(init=None), "init is None: expected str"),
        (lambda c: c.optim.update(lr="0.1"), "optim.lr is '0.1': expected float, like 0.1"),
        (lambda c: c.__setattr__("optim", 3), "optim is 3: expected a group of keys"),
        (lambda c: c.update(task=dict(name="classification", label_smoothing=True)), "smoothing is True: it must"),
        (lambda c: c.update({"optim.lr": 0.1}), 'unknown key "optim.lr"'),
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
     ("config.lr = 1", 'unknown key "lr"'), ("config = 3", "must set `config`"),
     ("config.optm.lr = 1", "line 5: no key 'optm' in the config: .*'optim'"),
     ("config.wrap.ema.decay = 1", r"line 5: AttributeError.*wrap is a tuple of \(name, arguments\) pairs"),
     ("def", "SyntaxError")],
)  # fmt: skip
def test_errors_in_the_file(tmp_path, line, words):
    with pytest.raises(UserError, match=words):
        config_lib.load(write(tmp_path, line))


MAKES = """
import jaxvision.config

def get_config(steps="3"):
    config = jaxvision.config.default()
    config.data.train = "digits:train"
    config.steps = int(steps)
    return config
"""


def test_a_file_may_define_get_config(tmp_path):
    """It takes what follows ".py:"; other colons are part of the file's name."""
    folder = tmp_path / "C:some.py.d"
    folder.mkdir()
    path = folder / "some.py"
    path.write_text(MAKES)
    assert config_lib.load(str(path)).steps == 3
    assert config_lib.load(f"{path}:7", {"batch_size": "5"}).steps == 7
    assert config_lib.load(f"{path}:7", {"batch_size": "5"}).batch_size == 5
    path.write_text(f"{MAKES}config = get_config('4')\n")
    assert config_lib.load(str(path)).steps == 4
    assert config_lib.load(f"{path}:9").steps == 9
    assert config_lib.split_argument("gs://bucket/a:b.py:x:y.py:z") == (pathlib.Path("gs://bucket/a:b.py"), "x:y.py:z")


@pytest.mark.parametrize(
    ("lines", "argument", "words"),
    [
        (["config = None"], ":x", r"some.py defines no get_config, which would take 'x': leave out :x"),
        (["del config", "def get_config(): return 1"], ":x", r"get_config\(\): too many.*leave out :x"),
        (["del config", "def get_config(name): return 1"], "", "missing a required argument: 'name': name one, .*:ARG"),
        (["del config", "def get_config(): return {}"], "", r"must set `config`, or define .*it gives \{\}"),
        (["del config", "def get_config(arg):", "    return 1 / int(arg)"], ":0", "line 7: ZeroDivisionError"),
    ],
)
def test_errors_of_get_config(tmp_path, lines, argument, words):
    with pytest.raises(UserError, match=words):
        config_lib.load(write(tmp_path, *lines) + argument)


def test_a_config_file_may_use_what_a_config_dict_can(tmp_path):
    """References, a lock, one dict for two groups: afterwards each group is a group of its own, open to overrides."""
    lines = [
        "config.lock()", "config.optim.warmup_share = 0.5", "config.optim.final = config.optim.get_ref('warmup_share')",
        "config.data.mean = [0.5, 0.5, 0.5]",
        "with config.unlocked():",
        "    entry = dict(data='digits:test')",
        "    config.evals = dict(a=entry, b=entry)",
        "config.checkpoint.best = 'a'", "config.lock()",
    ]  # fmt: skip
    config = config_lib.load(write(tmp_path, *lines), {"evals.a.data": "digits:train", "optim.momentum": "0.5"})
    assert type(config) is ConfigDict
    assert (config.optim.warmup_share, config.optim.final, config.optim.momentum) == (0.5, 0.5, 0.5)
    assert config.data.mean == (0.5, 0.5, 0.5)
    assert (config.evals.a.data, config.evals.b.data) == ("digits:train", "digits:test")


def test_a_copy_shares_no_group():
    config = make_tiny_config()
    copy = config_lib.as_config(config)
    assert copy == config
    copy.optim.lr = 9.0
    assert config.optim.lr == 0.05


def test_the_name_of_an_evaluation_of_an_earlier_version_may_have_a_dot():
    old = make_tiny_config().to_dict()
    old["evals"] = {"v1.5": old["evals"]["test"]}
    again = build.resolve(config_lib.from_json(json.dumps(old)))
    assert again.evals["v1.5"].data == "digits:test"


def test_file_and_overrides(tmp_path):
    config = config_lib.load(write(tmp_path, "config.optim.lr = 0.5"), {"optim.lr": "0.25", "model.width": "8"})
    assert config.optim.lr == 0.25
    assert config.model.width == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.optim.update(warmup=0.1), "set config.optim.warmup_share = 0.1"),
        (lambda c: c.optim.update(milestones=(0.5,)), "set config.optim.milestones_share"),
        (lambda c: c.optim.update(unfreeze=(("fc", 0.5),)), r"set config.optim.unfreeze_share = \(\('fc', 0.5\),\)"),
        (lambda c: c.update(task=dict(name="dino", teacher_warmup=0.3)), "set config.task.teacher_warmup_share = 0.3"),
        (lambda c: c.optim.update(warmup_steps=5, warmup_share=0.1),
         r"optim.warmup_steps=5 and optim.warmup_share=0.1 are one duration: give it in one form"),
        (lambda c: c.optim.update(warmup_steps=-1), "optim.warmup_steps is -1: it must be at least 0"),
        (lambda c: c.optim.update(warmup_steps=0.5), "optim.warmup_steps is 0.5: expected int"),
        (lambda c: c.optim.update(warmup_epochs=-1), "optim.warmup_epochs is -1.0"),
        (lambda c: c.optim.update(milestones_steps=(2.5,)), "optim.milestones_steps holds 2.5: expected whole numbers"),
        (lambda c: c.optim.update(milestones_epochs=(0,)), "optim.milestones_epochs holds 0: expected numbers"),
        (lambda c: c.optim.update(unfreeze_steps=(("fc", 0.5),)), r"unfreeze_steps holds .*like \(.layer1., 5000\)"),
        (lambda c: c.optim.update(unfreeze_epochs=(("(", 5),)), "optim.unfreeze_epochs holds .*no regular expression"),
    ],
)  # fmt: skip
def test_durations_that_are_refused(change, words):
    config = make_tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        check.check(config)


def test_an_old_duration_on_the_command_line_is_told_the_new_key(tmp_path):
    with pytest.raises(UserError, match=r"set config\.optim\.warmup_share = 0\.2"):
        config_lib.load(write(tmp_path), {"optim.warmup": "0.2"})


def test_durations_of_a_text_of_an_earlier_version_are_shares():
    old = make_tiny_config().to_dict()
    old["optim"] = {"name": "sgd", "lr": 0.1, "warmup": 0.25, "milestones": [0.5], "unfreeze": [["fc", 0.125]]}
    old["task"] = {"name": "dino", "teacher_warmup": 0.5}
    old["evals"] = {}
    again = config_lib.from_json(json.dumps(old))
    assert config_lib.duration_of(again.optim, "warmup") == ("share", 0.25)
    assert config_lib.duration_of(again.optim, "milestones") == ("share", (0.5,))
    assert config_lib.duration_of(again.optim, "unfreeze") == ("share", (("fc", 0.125),))
    assert again.task.teacher_warmup_share == 0.5
    assert not {"warmup", "milestones", "unfreeze"} & set(again.optim)
    assert config_lib.from_json(config_lib.to_json(again)) == again


def test_what_is_over_after_the_end_is_told():
    config = make_tiny_config()
    config.optim.update(warmup_steps=20, milestones_epochs=(1, 3), unfreeze_share=(("fc", 0.5),))
    assert config_lib.past_the_end(config, config_lib.Length(21, 8.0)) == [
        "warning: optim.milestones_epochs is over at epoch 3, and the run has 21 steps"
    ]
    assert config_lib.past_the_end(config, config_lib.Length(20, 6.0)) == [
        "warning: optim.warmup_steps is over at step 20, and the run has 20 steps"
    ]


def test_json_round_trip():
    config = make_tiny_config()
    config.wrap = (("mixup", dict(alpha=0.2)), ("ema", dict(decay=0.9)), ("cutmix", dict(alpha=1.0)))
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert not config_lib.differences(config, again)


def test_optim_keys_newer_than_the_text_have_their_defaults():
    """The config.json of a run from before layer_decay and the like: it can be resumed."""
    config = make_tiny_config()
    old = config.to_dict()
    for key in ("layer_decay", "unfreeze_share", "weight_decay_final"):
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
    assert config_lib.eval_options(dict(data="x"))["every_epochs"] == 1.0
    assert config_lib.eval_options(dict(data="x", every_steps=5))["every_epochs"] == 0.0
    assert config_lib.eval_options(dict(every_steps=5, every_epochs=2.0))["every_epochs"] == 2.0


def test_a_model_that_refuses_its_options_is_a_user_error():
    config = make_tiny_config()
    config.model.stem = "tiny"
    with pytest.raises(UserError, match=r"model .*name='resnet18'.*stem 'tiny' must be"):
        build.abstract_init(build.task(config, 10), config)


def test_defaults_are_fresh_each_time():
    config_lib.default().optim.lr = 5.0
    assert config_lib.default().optim.lr == 0.1


def test_no_evaluation_is_called_as_the_training_is(tmp_path):
    """But workdirs of older versions that have one are read."""
    with pytest.raises(UserError, match=r"evals\.train: the training's own records"):
        config_lib.load(write(tmp_path, "config.evals.train = dict(data='digits:train')"))
    config = make_tiny_config()
    config.evals.train, config.checkpoint.best = dict(data="digits:train"), "test"
    assert config_lib.from_json(config_lib.to_json(config)).evals.train.data == "digits:train"
