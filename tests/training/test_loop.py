"""fit(): kills, signals, resumes, failures, and where the time goes.

What a signal, a terminal or a disk does to the command is tried on forks of one device; all else in this process,
on eight.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from etils import epath

from jaxvision import config as config_lib
from jaxvision.doctor import measure
from jaxvision.errors import Diverged, Interrupted, UserError
from jaxvision.runtime import chips, paths
from jaxvision.training import build, evals, loop, session, setup
from jaxvision.weights import checkpoint
from tests import flags, forks
from tests.conftest import ROOT
from tests.tiny import make_tiny_config
from tests.weights.test_published import run

STEPS = 60
CONFIG = f"""
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.steps = {STEPS}
config.wrap = (("mixup", dict(alpha=0.2)), ("ema", dict(decay=0.9)))
config.evals.test.every_steps = 30
config.checkpoint.every_steps = 20
config.log.every_steps = 20
"""


def quiet(text):
    pass


def test_a_workdir_that_no_checkpoint_can_lie_in_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"caf.udce9' is no UTF-8.*name another"):
        setup.open_workdir(epath.Path(tmp_path / os.fsdecode(b"caf\xe9")), make_tiny_config(), quiet)


def final_state(workdir, step=STEPS):
    path = epath.Path(workdir) / "checkpoints" / str(step)
    assert checkpoint.flaw(path) == ""
    return checkpoint.read(path, ("step", "params", "extra", "opt_state"))


def assert_bit_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def summary(workdir):
    return json.loads((pathlib.Path(workdir) / "summary.json").read_text())


def records(workdir, kind):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    path = folder / "tiny.py"
    path.write_text(CONFIG)
    return folder, str(path)


def start(config, workdir, *arguments, **env):
    environment = {**os.environ, "XLA_FLAGS": flags.on(1), **env}
    words = ["-m", "jaxvision.train", "--config", config, "--workdir", workdir, *arguments]
    return forks.Fork(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def undisturbed(files):
    """The workdir of a run that nobody disturbed, and what it printed."""
    workdir = files[0] / "undisturbed"
    code, out, err = finish(start(files[1], workdir, "--config.log.tensorboard=True"))
    assert code == 0, err
    return workdir, out


def test_a_run_leaves_what_the_contract_names(undisturbed):
    workdir, out = undisturbed
    assert {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "eval",
        "tensorboard",
    } <= {p.name for p in workdir.iterdir()}
    last = json.loads(out.splitlines()[-1])
    assert last["status"] == "done"
    assert last["step"] == STEPS
    assert set(last["evals"]["test"]) == {"top1", "top5", "loss"}
    for word in ("to resume:", "jaxvision.evaluate --from", "jaxvision.predict --from", "images/s", "left"):
        assert word in out
    certificate = json.loads((workdir / "eval" / "test.json").read_text())
    assert certificate["count"] == 360
    assert certificate["step"] == STEPS
    assert (workdir / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [r["step"] for r in records(workdir, "train")] == [20, 40, 60]
    assert [r["step"] for r in records(workdir, "eval:test")] == [30, 60]
    about = checkpoint.about(epath.Path(workdir) / "checkpoints" / str(STEPS))
    assert about["contract"]["size"] == 8
    assert about["classes"] == list("0123456789")
    assert not list(workdir.rglob("*tmp*"))


def test_live_display_on_a_terminal(files, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    process = forks.Fork(
        ["-m", "jaxvision.train", "--config", files[1], "--workdir", tmp_path, "--config.steps=8",
         "--config.log.every_steps=4", "--config.evals.test.every_steps=6"],
        stdout=terminal, stderr=terminal, cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags.on(1)},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side closed
        while part := os.read(screen, 4096):
            shown += part
    os.close(screen)
    text = shown.decode()
    assert process.wait() == 0, text
    for words in ("8/8 [", "loss=", "images/s=", "best test/top1=", "workdir "):
        assert words in text, text


def test_tensorboard_events_hold_the_metrics(undisturbed):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (undisturbed[0] / "tensorboard").glob("events*")
    data, tags = file.read_bytes(), set()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        tags |= {v.tag for v in event.summary.value}
        data = data[12 + length + 4 :]
    assert {"train/loss", "train/lr", "eval/test/top1"} <= tags


@pytest.mark.slow  # its quick sibling is test_survival.py
@pytest.mark.parametrize("kills", [3, 7])
def test_sigkill_at_random_moments_ends_bit_equal(files, undisturbed, kills):
    """Kills between and in steps, evaluations and saves: the run saves every third step, in the background."""
    more = ("--config.checkpoint.every_steps=3", "--config.log.every_steps=2")
    workdir = files[0] / f"killed {kills} times"
    rng = random.Random(0)
    for kill in range(kills):
        process = start(files[1], workdir, *more)
        while_starting = kill == kills // 2
        lines = 0
        for line in process.stdout if not while_starting else ():
            lines += line.startswith("step")
            if lines and lines >= rng.randint(1, 4):
                break
        time.sleep(rng.uniform(1.0, 3.0) if while_starting else rng.uniform(0, 0.08))
        assert process.poll() is None, "the run ended before the kill"
        process.kill()
        finish(process)
    code, _, err = finish(start(files[1], workdir, *more))
    assert code == 0, err
    assert_bit_equal(final_state(workdir), final_state(undisturbed[0]))
    assert [r["step"] for r in records(workdir, "train")] == list(range(2, STEPS + 1, 2))
    assert records(workdir, "eval:test") == records(undisturbed[0], "eval:test")


def test_signals_save_exit_75_and_resume_bit_equal(files, undisturbed):
    """SIGTERM, then SIGINT to the run that goes on."""
    workdir, reached = files[0] / "signals", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process, said = start(files[1], workdir, "--config.log.every_steps=1"), ""
        for line in process.stdout:
            said += line
            if line.startswith(f"step {reached + 3:>2}/"):
                process.send_signal(number)
                break
        code, out, err = finish(process)
        assert code == 75, err
        assert "To resume: python -m jaxvision.train" in err
        assert "Traceback" not in err
        assert (f"resuming at step {reached}" in said) == (reached > 0)
        assert summary(workdir)["status"] == "interrupted"
        before, reached = reached, summary(workdir)["step"]
        assert before + 3 <= reached < STEPS
        assert checkpoint.newest(epath.Path(workdir) / "checkpoints").path.name == str(reached)
    code, out, err = finish(start(files[1], workdir))
    assert code == 0, err
    assert f"resuming at step {reached}" in out
    assert_bit_equal(final_state(workdir), final_state(undisturbed[0]))


def fit(workdir, stop_after=0.0, **changes):
    config = make_tiny_config()
    for key, value in changes.items():
        node = config
        *parents, last = key.split("__")
        for part in parents:
            node = node[part]
        node[last] = value
    said = []
    state = loop.fit(config, workdir, say=said.append, stop_after=stop_after)
    return state, "\n".join(said)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    """(workdir, state) of a run of four steps. Take a copy."""
    workdir = tmp_path_factory.mktemp("four steps") / "w"
    return workdir, fit(workdir, **FOUR)[0]


FOUR = dict(steps=4, optim__schedule="constant", checkpoint__every_steps=2)


def test_a_canvas_that_is_not_square_is_learnt_on_evaluated_and_gone_on_with(tmp_path):
    """Images that are stretched in training and padded in evaluation, through the commands' whole way."""
    canvas = dict(data__size=(8, 16), data__fit="pad", data__resize=0, data__transforms=(("resize", {}),), steps=12)
    fit(tmp_path, stop_after=0, **{**canvas, "steps": 8})
    state, said = fit(tmp_path, **canvas)
    assert "resuming at step 8" in said
    assert "scaled to fit (bilinear, antialiased), padded to 8 x 16" in str(
        build.reader.contract(config_lib.read(epath.Path(tmp_path) / "config.json"))
    )
    assert int(state.step) == 12
    assert run("evaluate", "--from", str(tmp_path)) == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "half-written"])
def test_a_broken_last_checkpoint_is_reported_and_the_run_ends_bit_equal(four_steps, tmp_path, damage):
    workdir, want = shutil.copytree(four_steps[0], tmp_path / "w"), four_steps[1]
    last = epath.Path(workdir) / "checkpoints" / "4"
    file = max(checkpoint._files(last / "state").values(), key=lambda f: f.stat().length)
    data = bytearray(file.read_bytes())
    if damage == "half-written":
        (last / "digests.json").unlink()
    elif damage == "cut":
        file.write_bytes(bytes(data[: len(data) // 2]))
    else:
        data[100] ^= 4
        file.write_bytes(bytes(data))
    state, said = fit(workdir, **FOUR)
    assert f"warning: checkpoint {last} is not used" in said
    assert "resuming at step 2" in said
    assert int(state.step) == 4
    assert checkpoint.newest(epath.Path(workdir) / "checkpoints") == (last, [])
    assert_bit_equal(jax.device_get(state), jax.device_get(want))


def test_goes_on_with_another_number_of_devices(files, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "w")
    assert summary(workdir)["devices"] == 1
    said = []
    loop.fit(config_lib.load(files[1], {"steps": str(STEPS + 4)}), workdir, say=said.append)
    assert any(line.startswith(f"resuming at step {STEPS}") for line in said)
    assert any("on 8 x cpu" in line for line in said)
    assert summary(workdir)["devices"] == 8
    assert summary(workdir)["step"] == STEPS + 4


def test_nothing_is_left_to_guard_by_what_saved_no_checkpoint(tmp_path):
    with paths.lock(epath.Path(tmp_path), "busy"), pytest.raises(UserError, match="another process is training in"):
        fit(tmp_path, steps=1)
    with pytest.raises(UserError, match="add"):
        fit(tmp_path, data__size=16, data__resize=16, steps=1)
    fit(tmp_path, steps=1)


def test_bookkeeping_without_a_checkpoint_is_a_fresh_start(four_steps, tmp_path):
    """What a kill between the first evaluation and the first save leaves."""
    workdir = tmp_path / "w"
    shutil.copytree(four_steps[0], workdir)
    for step in checkpoint.steps(epath.Path(workdir) / "checkpoints"):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    checkpoint.write_scores(epath.Path(workdir) / "checkpoints", "test/top1", {4: 0.9})
    state, said = fit(workdir, steps=4)
    assert "resuming" not in said
    assert int(state.step) == 4
    assert summary(workdir)["resumed_at"] == 0


def test_longer_run_of_the_same_config_extends(four_steps, tmp_path):
    constant = dict(optim__schedule="constant")
    state, said = fit(shutil.copytree(four_steps[0], tmp_path / "a"), **constant)
    assert "resuming at step 4" in said
    whole, _ = fit(tmp_path / "b", **constant)
    assert int(whole.step) == 12
    assert_bit_equal(jax.device_get(state), jax.device_get(whole))


def test_a_finished_run_started_again_does_nothing(four_steps, tmp_path):
    workdir = shutil.copytree(four_steps[0], tmp_path / "w")
    again, _ = fit(workdir, **FOUR)
    assert_bit_equal(jax.device_get(four_steps[1]), jax.device_get(again))
    assert summary(workdir)["status"] == "done"
    assert "top1" in summary(workdir)["evals"]["test"]


def test_another_config_is_refused_with_the_differences(four_steps):
    with pytest.raises(UserError, match=r"another config:\n  optim.lr: 0.05 -> 0.1\n"):
        fit(four_steps[0], **{**FOUR, "optim__lr": 0.1})
    with pytest.raises(UserError, match="is at step 4, past the 2"):
        fit(four_steps[0], **{**FOUR, "steps": 2})


def test_divergence_exits_3_and_keeps_the_last_good_checkpoint(tmp_path, files, capsys):
    code = run("train", "--config", files[1], "--workdir", str(tmp_path), "--config.optim.lr=1e4",
               "--config.steps=40", "--config.optim.warmup_share=0.7", "--config.checkpoint.every_steps=1")  # fmt: skip
    err = capsys.readouterr().err
    assert code == 3, err
    assert "diverged at step" in err
    last = checkpoint.newest(epath.Path(tmp_path) / "checkpoints").path
    assert f"Last good checkpoint: {last}" in err
    assert "Traceback" not in err
    assert summary(tmp_path)["status"] == "diverged"
    for step in checkpoint.steps(epath.Path(tmp_path) / "checkpoints"):
        path = epath.Path(tmp_path) / "checkpoints" / str(step)
        assert checkpoint.flaw(path) == ""
        for leaf in jax.tree.leaves(checkpoint.read(path, ("params",))):
            assert np.all(np.isfinite(leaf))


def test_at_most_two_steps_are_in_flight(tmp_path):
    """A loss that is not finite is seen before two more steps are done, although no log line asks for it."""
    with pytest.raises(Diverged) as error:
        fit(tmp_path, evals=dict(), steps=60, optim__lr=1e4, log__every_steps=60,
            checkpoint__every_steps=0)  # fmt: skip
    diverged = int(str(error.value).partition("diverged at step ")[2].partition(":")[0])
    assert 1 < diverged < 40
    assert summary(tmp_path)["step"] <= diverged + 2


def test_init_from_another_workdir(undisturbed, tmp_path):
    pretrained = str(undisturbed[0])
    # same classes: the head crosses too; the averaged weights are what the source predicts with
    state, said = fit(tmp_path / "same", init=pretrained, steps=1, optim__lr=0.0)
    source = checkpoint.read(epath.Path(pretrained) / "checkpoints" / str(STEPS), ("extra",))
    assert_bit_equal(jax.device_get(state.params), source["extra"]["ema"]["params"])
    assert "reinitialised" not in said
    # other classes: the head starts afresh, and that is said
    state, said = fit(
        tmp_path / "other", init=pretrained, steps=1, optim__lr=0.0,
        data__train="fake:64x8?classes=7", evals=dict(),
    )  # fmt: skip
    assert state.params["model"]["fc"]["kernel"].shape[1] == 7
    np.testing.assert_array_equal(
        state.params["model"]["conv1"]["kernel"], source["extra"]["ema"]["params"]["model"]["conv1"]["kernel"]
    )
    assert "reinitialised   params/model/fc/bias" in said
    assert "dropped         params/model/fc/kernel" in said
    # another network, other pixels: refused by name
    with pytest.raises(UserError, match=r"of another shape: .*bn1.*\[8\] there, \[16\] here"):
        fit(tmp_path / "wide", init=pretrained, steps=1, model__width=16)
    with pytest.raises(UserError, match=r"set config.data.mean = \(0.485"):
        fit(tmp_path / "pixels", init=pretrained, steps=1, data__mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="does not exist"):
        fit(tmp_path / "absent", init=str(tmp_path / "nothing"), steps=1)


def test_same_names_in_another_order_replace_the_head(undisturbed, tmp_path):
    """Ten classes on both sides do not mean the same ten."""
    _, said = fit(
        tmp_path,
        init=str(undisturbed[0]),
        steps=1,
        data__train="fake:64x8?classes=10",
        evals=dict(),
    )
    from jaxvision.data.sources import open_source

    assert open_source("fake:64x8?classes=10").classes != open_source("digits:train").classes
    assert "reinitialised   params/model/fc/bias" in said


def test_time_parts_add_up_and_sleeps_land_in_theirs(tmp_path, monkeypatch):
    from jaxvision.data import sources

    fit(tmp_path / "plain")
    before = summary(tmp_path / "plain")
    read, slow, saving = sources.Digits.__getitem__, [], []

    def sleepy(self, i):
        reader = threading.current_thread() is not threading.main_thread()  # not what is looked at before the start
        if reader and i % 32 == 0 and self.uri == "digits:train":
            slow.append(i)
            time.sleep(0.2)
        return read(self, i)

    save = checkpoint.Writer.save

    def slow_save(self, *arguments):
        start = time.perf_counter()
        time.sleep(0.2)
        try:
            return save(self, *arguments)
        finally:
            saving.append(time.perf_counter() - start)

    lower_step, stepping = build.step.lower_step, []

    def slow_step(*arguments, **options):
        compiled = lower_step(*arguments, **options).compile()

        class Slow:
            cost_analysis = compiled.cost_analysis

            def compile(self):  # it is the lowered one, too
                return self

            def __call__(self, *inputs):
                if len(stepping) < 5:
                    stepping.append(0)
                    time.sleep(0.2)
                return compiled(*inputs)

        return Slow()

    monkeypatch.setattr(sources.Digits, "__getitem__", sleepy)
    monkeypatch.setattr(checkpoint.Writer, "save", slow_save)
    monkeypatch.setattr(build.step, "lower_step", slow_step)
    fit(tmp_path / "slow", data__threads=1, data__prefetch=1)
    after = summary(tmp_path / "slow")
    for s in (before, after):
        parts = {k: v for k, v in s["time"].items() if k != "other"}
        assert sum(s["time"].values()) == pytest.approx(s["wall_s"], rel=0.001)
        # beside the parts there is next to nothing, but for the slices that a busy machine's scheduler takes there
        assert sum(parts.values()) >= 0.98 * s["wall_s"] - 0.1
    assert len(slow) >= 20
    # one reader: what it slept, less what the steps and saves hid; bounds that hold on a busy machine too
    hidden = (
        after["time"]["step"] + after["time"]["checkpoint"] + after["time"]["evaluate"] + after["time"]["log"] + 1.0
    )
    assert after["time"]["data"] > max(0.2 * len(slow) - hidden, before["time"]["data"])
    assert len(saving) >= 3
    assert after["time"]["checkpoint"] > 0.99 * sum(saving) > 0.2 * len(saving)
    assert after["saves"]["count"] == len(saving)
    assert after["saves"]["blocked_s"] == pytest.approx(sum(saving), rel=0.02)
    assert after["saves"]["longest_s"] >= 0.2
    assert len(stepping) == 5
    assert after["time"]["step"] >= 0.2 * len(stepping)  # by itself: the steps of `before` may have been slowed


def test_mfu_goodput_and_sessions(four_steps, tmp_path, monkeypatch):
    """MFU against a chip that is made up: the images' FLOPs a second over what all its devices could do."""
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(chips.KINDS, kind, chips.KINDS["NVIDIA L4"])
    workdir = shutil.copytree(four_steps[0], tmp_path / "w")
    first = summary(workdir)
    assert [s["last"] for s in first["sessions"]] == [4]
    assert first["flops_per_image"] is None
    _, said = fit(workdir, **{**FOUR, "steps": 24}, log__every_steps=10)
    after = summary(workdir)
    assert [(s["first"], s["last"]) for s in after["sessions"]] == [(0, 4), (4, 24)]
    assert after["sessions"][0] == first["sessions"][0]
    kept = sum(s["step_s"] for s in after["sessions"])
    assert after["goodput"] == pytest.approx(kept / sum(s["wall_s"] for s in after["sessions"]), abs=0.01)
    last = records(workdir, "train")[-1]
    flops = last["images_per_s"] * after["flops_per_image"] / jax.device_count()
    assert after["flops_per_image"] > 1e5
    assert last["mfu"] == pytest.approx(flops / chips.KINDS[kind].flops, abs=1e-4)
    assert "MFU" in said
    assert set(last["time"]) == set(after["time"])
    assert "step 5, the first after the interruption, after " in said
    assert after["first_step"]["restore"] > 0


def test_a_profile_is_kept(tmp_path):
    workdir = tmp_path / "w"
    config = make_tiny_config()
    config.steps, config.evals = 8, {}
    said = []
    loop.fit(config, workdir, say=said.append, profile=2)
    (trace,) = (workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    content = trace.read_bytes()
    assert b"jit_step" in content
    assert all(b"%d" % step in content for step in (3, 4))
    assert any(line.startswith("profile of 2 steps: xprof ") for line in said)
    config.steps = 10
    loop.fit(config, workdir, say=said.append, profile=2)
    assert "nothing was profiled, it begins after 3 steps" in said[-1]


def test_minutes_decide_when_to_save_and_when_to_stop(tmp_path):
    config = make_tiny_config()
    config.steps, config.evals = 1_000_000, {}
    config.checkpoint.update(every_epochs=0.0, every_steps=0, every_minutes=0.001, keep=1000)
    config.log.update(every_steps=1_000_000)  # it is no matter of log lines
    with pytest.raises(Interrupted, match=r"0\.04 minutes are over: saved"):
        loop.fit(config, tmp_path / "w", say=quiet, stop_after=0.04)
    steps = checkpoint.steps(epath.Path(tmp_path) / "w" / "checkpoints")
    wall = summary(tmp_path / "w")["wall_s"]
    assert wall >= 2.4
    assert summary(tmp_path / "w")["status"] == "interrupted"
    assert steps[-1] == summary(tmp_path / "w")["step"]
    assert 3 <= len(steps) <= wall / 0.06 + 2


def test_each_session_comes_forward_however_short_its_time(tmp_path):
    for step in (1, 2, 3):
        with pytest.raises(Interrupted, match="1e-05 minutes are over"):
            fit(tmp_path / "w", evals={}, stop_after=1e-5)
        assert checkpoint.newest(epath.Path(tmp_path) / "w" / "checkpoints").path.name == str(step)


def test_a_bad_file_costs_no_steps(tmp_path, monkeypatch):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "set" / name / f"{i}.png")
    bad = tmp_path / "set" / "b" / "7.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b/7\.png"):
        fit(tmp_path / "w", data__train=f"folder:{tmp_path}/set", evals=dict(), batch_size=8, steps=50,
            checkpoint__every_steps=0)  # fmt: skip
    reached = summary(tmp_path / "w")
    assert reached["status"] == "failed"
    assert checkpoint.steps(epath.Path(tmp_path) / "w" / "checkpoints") == [reached["step"]]


def pets(root, **counts):
    """A folder a class, so many 8 x 8 pictures in each, all of one grey."""
    from PIL import Image

    for grey, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 + 80 * grey, i, i)).save(root / name / f"{i}.png")
    return f"folder:{root}"


PETS = dict(steps=4, batch_size=8, checkpoint__every_steps=0)


def test_classes_that_are_not_those_of_the_checkpoint_are_refused(tmp_path):
    uri = pets(tmp_path / "pets", cat=12, dog=12)
    evals = dict(val=dict(data=uri, every_epochs=0.0, every_steps=4))
    fit(tmp_path / "w", **PETS, data__train=uri, evals=evals)
    (tmp_path / "pets" / "dog").rename(tmp_path / "pets" / "ant")
    with pytest.raises(UserError, match=r"(?s)4 would go on .*only in the checkpoint: \['dog'\].*\['ant'\]"):
        fit(tmp_path / "w", **{**PETS, "steps": 8}, data__train=uri, evals=evals)
    workdir = epath.Path(tmp_path) / "w"
    _, found = measure.loader(config_lib.read(workdir / "config.json"), workdir, print)
    assert "4 would go on with something else" in found["error"], "the doctor says so before the run does"
    (tmp_path / "pets" / "ant").rename(tmp_path / "pets" / "dog")
    (tmp_path / "pets" / "dog" / "3.png").unlink()
    _, said = fit(tmp_path / "w", **{**PETS, "steps": 8}, data__train=uri, evals=evals)
    assert "has 23 samples, and 24 when" in said


def test_goes_on_with_the_class_order_of_the_checkpoint(tmp_path):
    """As workdirs of versions have it that sorted the names of classes otherwise: their labels keep their meaning."""
    uri = pets(tmp_path / "pets", cat=12, dog=12)
    evals = dict(val=dict(data=uri, every_epochs=0.0, every_steps=4))
    (tmp_path / "pets" / "classes.txt").write_text("dog\ncat\n")
    fit(tmp_path / "w", **{**PETS, "steps": 24}, data__train=uri, evals=evals)
    before = summary(tmp_path / "w")["evals"]["val"]
    (tmp_path / "pets" / "classes.txt").unlink()
    _, said = fit(tmp_path / "w", **{**PETS, "steps": 25}, data__train=uri, evals=evals)
    assert "lists its classes in another order now; labels keep that of" in said
    assert before["top1"] > 0.9
    assert summary(tmp_path / "w")["evals"]["val"]["top1"] > 0.9
    certificate = json.loads((tmp_path / "w" / "eval" / "val.json").read_text())
    assert certificate["classes"] == ["dog", "cat"]
    assert checkpoint.about(epath.Path(tmp_path) / "w" / "checkpoints" / "25")["classes"] == ["dog", "cat"]


def test_an_evaluation_is_known_by_what_it_measures(four_steps, tmp_path):
    """A finished run with another metric, or other data, measures again; with the same ones it does not."""
    workdir = shutil.copytree(four_steps[0], tmp_path / "w")
    fit(workdir, **FOUR)
    assert len(records(workdir, "eval:test")) == 1
    fit(workdir, **FOUR, evals__test__data="digits:train")
    certificate = json.loads((workdir / "eval" / "test.json").read_text())
    assert (certificate["count"], certificate["data"]) == (1437, "digits:train")
    assert summary(workdir)["evals"]["test"] == certificate["metrics"]
    assert summary(workdir)["best"]["test/top1"] == certificate["metrics"]["top1"]
    fit(workdir, **FOUR, evals__test__metric="per_class")
    assert set(summary(workdir)["best"]) >= {"test/balanced_accuracy"}
    assert "test/top5" not in summary(workdir)["best"]
    fit(workdir, **FOUR)
    assert summary(workdir)["evals"]["test"] == summary(four_steps[0])["evals"]["test"]
    assert len(records(workdir, "eval:test")) == 3


@pytest.fixture
def older(four_steps, tmp_path):
    """A copy of a run, its log as an older version wrote it, with a top-1 that no evaluation gives."""
    workdir = shutil.copytree(four_steps[0], tmp_path / "w")
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in record.items() if k not in ("of", "check")} for record in lines]
    path.write_text("".join(json.dumps({**r, "top1": 0.75}) + "\n" for r in old))
    return workdir


def test_records_of_an_older_version_are_those_of_its_config(older):
    fit(older, **FOUR)
    assert summary(older)["evals"]["test"]["top1"] == 0.75
    fit(older, **FOUR, evals__test__metric="per_class")
    assert summary(older)["evals"]["test"]["top1"] != 0.75


def test_records_of_an_older_version_outlive_a_session_that_ends_while_it_compiles(older, monkeypatch):
    """Its config has another metric; the next session still knows that the older records measured another one."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(session, "compile_programs", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(older, **FOUR, evals__test__metric="per_class")
    fit(older, **FOUR, evals__test__metric="per_class")
    assert summary(older)["evals"]["test"]["top1"] != 0.75


def test_the_best_is_by_one_metric(tmp_path):
    """After another choice of `checkpoint.best` all scores are those of the new one."""
    changes = dict(steps=4, checkpoint__keep=9, checkpoint__every_steps=2, evals__test__every_steps=2)
    changes |= dict(optim__schedule="constant", checkpoint__best="test/top1")
    fit(tmp_path / "w", **changes)
    fit(tmp_path / "w", **{**changes, "steps": 8, "checkpoint__best": "test/loss"})
    losses = {r["step"]: r["loss"] for r in records(tmp_path / "w", "eval:test")}
    folder = epath.Path(tmp_path) / "w" / "checkpoints"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["metric"] == "test/loss"
    assert scores["scores"] == {str(step): -loss for step, loss in losses.items()}
    assert int(checkpoint.choose(folder, "best").name) == min(losses, key=losses.get)


def test_an_evaluation_that_fails_costs_no_step(tmp_path, monkeypatch):
    """Its files, its metric or its picture."""
    uri, val = pets(tmp_path / "pets", cat=12, dog=12), pets(tmp_path / "val", cat=3, dog=3)
    changes = {**PETS, "data__train": uri, "evals": dict(val=dict(data=val, every_epochs=0.0, every_steps=4))}
    want, _ = fit(tmp_path / "a", **{**changes, "steps": 8})
    good = (tmp_path / "val" / "dog" / "1.png").read_bytes()
    (tmp_path / "val" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/1\.png"):
        fit(tmp_path / "w", **{**changes, "steps": 8})
    assert checkpoint.steps(epath.Path(tmp_path) / "w" / "checkpoints") == [4]
    (tmp_path / "val" / "dog" / "1.png").write_bytes(good)
    with monkeypatch.context() as patch:
        patch.setattr(evals, "run", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path / "w", **{**changes, "steps": 8})
    state, said = fit(tmp_path / "w", **{**changes, "steps": 8})
    assert "resuming at step 4" in said
    assert [r["step"] for r in records(tmp_path / "w", "eval:val")] == [4, 8]
    assert_bit_equal(jax.device_get(state), jax.device_get(want))


def test_a_batch_of_more_than_there_is_is_told(tmp_path):
    """With the numbers: one step is all of an epoch and more."""
    _, said = fit(tmp_path, data__train="fake:40x8?classes=10", batch_size=64, steps=1, evals={}, dtype="float32")
    assert "warning: batch_size is 64, and there are 40 training images: a step sees each about 1.6 times" in said
    assert "the run has 1 of them" in said


def test_stops_early_and_stays_stopped(tmp_path):
    """The likeliest five of five classes are always right, so no evaluation is better than the first."""
    data = "fake:64x8?classes=5"
    changes = dict(steps=12, data__train=data, evals=dict(test=dict(data=data, every_epochs=0.0, every_steps=2)))
    changes |= dict(stop__metric="top5", stop__patience=2, log__every_steps=5)
    state, said = fit(tmp_path / "w", **changes)
    assert "stops early at step 6: test/top5 was best at step 2 (1.0000), and 2 evaluations since then" in said
    assert int(state.step) == 6
    assert (summary(tmp_path / "w")["status"], summary(tmp_path / "w")["stopped_early"]) == ("done", True)
    assert "done, stopped early" in (tmp_path / "w" / "report.html").read_text()
    again, _ = fit(tmp_path / "w", **changes)
    assert_bit_equal(jax.device_get(state), jax.device_get(again))
    assert [r["step"] for r in records(tmp_path / "w", "eval:test")] == [2, 4, 6]
    assert [r["step"] for r in records(tmp_path / "w", "train")] == [5, 6]
    further, _ = fit(tmp_path / "w", **{**changes, "stop__patience": 4})
    assert int(further.step) == 10
    with pytest.raises(UserError, match=r"stop\.evaluation"):
        fit(tmp_path / "b", **changes, stop__evaluation="tset")
    with pytest.raises(UserError, match=r"stop\.metric is 'top7'"):
        fit(tmp_path / "w", **{**changes, "stop__metric": "top7"})


def test_evaluation_data_with_other_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"classes of fake:64x8\?classes=10 are not those of the training"):
        fit(tmp_path, evals=dict(test=dict(data="fake:64x8?classes=10")))


def test_read_only_workdir(files, tmp_path):
    """A disk that refuses: one paragraph, exit 2. (root may write anywhere, so /proc stands in for it.)"""
    code, _, err = finish(start(files[1], "/proc/jaxvision"))
    assert code == 2
    assert "/proc/jaxvision" in err
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a full disk needs root")
def test_full_disk(files, tmp_path):
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine's root may not mount")
    try:
        code, _, err = finish(start(files[1], disk / "w"))
        assert code == 2, err
        assert "cannot write" in err or "No space left" in err
        assert "Traceback" not in err
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "kilobytes", [2, pytest.param(12, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.slow)]
)
def test_a_limit_on_the_size_of_files(files, undisturbed, tmp_path, kilobytes):
    """As `ulimit -f`: config.json does not fit, or a checkpoint, or the events of TensorBoard. The programs are those
    of `undisturbed`, so the cache of compiled programs, which would complain too, writes nothing."""
    limit = f'ulimit -f {kilobytes * 2}; exec "$@"'  # of 512 bytes
    words = [sys.executable, "-m", "jaxvision.train", "--config", files[1], "--workdir", str(tmp_path / "w")]
    words += ["--config.log.tensorboard=True", "--config.log.every_steps=1", "--config.checkpoint.every_steps=1"]
    done = subprocess.run(
        ["sh", "-c", limit, "sh", *words], capture_output=True, text=True, cwd=ROOT, timeout=240,
        env={**os.environ, "XLA_FLAGS": flags.on(1)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"cannot write {tmp_path}/w/" in done.stderr or f"cannot write a checkpoint to {tmp_path}/w" in done.stderr


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_workdir_that_goes_while_training_writes_to_it(files, tmp_path, how):
    """It is told at the next line of the log, and no new folder is made in its place."""
    process = start(files[1], tmp_path / "w", "--config.steps=1_000_000", "--config.log.every_steps=5",
                    "--config.checkpoint.every_steps=7", "--config.evals.test.every_steps=13")  # fmt: skip
    for line in process.stdout:
        if line.startswith("step"):
            break
    if how == "deleted":
        while (tmp_path / "w").exists():  # a save may be under way
            shutil.rmtree(tmp_path / "w", ignore_errors=True)
    else:
        (tmp_path / "w").rename(tmp_path / "elsewhere")
    code, _, err = finish(process, timeout=60)
    assert code == 2, err
    assert str(tmp_path / "w") in err
    assert "Traceback" not in err
    assert "untouched" not in err
    assert not list(tmp_path.glob("w/*.json")), err
    if how == "moved":
        assert not (tmp_path / "w").exists()


def test_interrupted_but_not_saved_is_no_75(files, tmp_path):
    """Code 75 says that the same command goes on from here."""
    process = start(files[1], tmp_path / "w", "--config.steps=1_000_000", "--config.log.every_steps=5",
                    "--config.checkpoint.every_steps=0")  # fmt: skip
    for line in process.stdout:
        if line.startswith("step"):
            break
    shutil.rmtree(tmp_path / "w" / "checkpoints", ignore_errors=True)
    (tmp_path / "w" / "checkpoints").write_text("no folder")
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 2, err
    assert f"cannot write a checkpoint to {tmp_path}/w/checkpoints" in err
    assert "Traceback" not in err
    assert summary(tmp_path / "w")["status"] == "failed"


def test_wandb_offline(tmp_path):
    fit(tmp_path, steps=4, log__wandb="some-project")
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_bfloat16_and_accumulation(tmp_path):
    state, said = fit(tmp_path, steps=4, dtype="bfloat16", accumulate=2)
    assert "bfloat16" in said
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_fsdp_state_is_split(tmp_path):
    state, _ = fit(tmp_path, steps=4, mesh__fsdp=4)
    kernel = state.params["model"]["layer1_0"]["conv1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moment = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert all(x.addressable_shards[0].data.size == kernel.size // 4 for x in moment)
