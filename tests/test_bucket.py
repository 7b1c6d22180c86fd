"""Workdirs, weights and records in a bucket: a server on this machine that gcsfs and TensorStore really talk to."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from jaxvision.data.sources import open_source
from jaxvision.errors import UserError
from jaxvision.runtime import paths
from jaxvision.weights import checkpoint
from tests import flags
from tests.bucket import Bucket
from tests.conftest import ROOT
from tests.runtime.test_hosts import start

LINES = """
config.steps, config.evals.test.every_steps = 12, 6
config.checkpoint.update(every_steps=4, keep=10)
config.log.update(every_steps=2, tensorboard=True)
"""


@pytest.fixture(scope="module")
def bucket():
    with Bucket() as served:
        yield served


@pytest.fixture
def here(bucket, monkeypatch, tmp_path):
    """The bucket from this process, with a cache of its own."""
    for key, value in {**bucket.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(key, value)
    paths.path("gs://bucket")
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    return bucket


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(f"from tests.tiny import make_tiny_config\nconfig = make_tiny_config()\n{LINES}")
    return str(path)


def train(command, config, workdir, *more, **env):
    done = command("jaxvision.train", "--config", config, "--workdir", workdir, "--json", *more, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(bucket, command, config, tmp_path_factory):
    """(result, folder) of the same training on a disk, after one in the bucket's run/."""
    folder = tmp_path_factory.mktemp("trained")
    train(command, config, "gs://bucket/run", **bucket.environment)
    return train(command, config, folder), folder


def below(bucket, folder):
    return {name.removeprefix(folder): data for name, (data, _) in bucket.objects.items() if name.startswith(folder)}


def test_a_workdir_holds_what_one_on_a_disk_does(bucket, trained):
    files = below(bucket, "run/")
    names = {p.relative_to(trained[1]).parts[0] for p in trained[1].rglob("*") if p.name != ".lock"}
    assert {name.partition("/")[0] for name in files} == names
    assert not [name for name in files if "tmp" in name or name.endswith(".shared")]
    lines = [json.loads(line) for line in files["metrics.jsonl"].decode().splitlines()]
    want = [json.loads(line) for line in (trained[1] / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["kind"], r["loss"]) for r in lines] == [(r["step"], r["kind"], r["loss"]) for r in want]
    assert files["curves.png"][:4] == b"\x89PNG"
    assert b"<h2>Evaluation test</h2>" in files["report.html"]
    assert json.loads(files["summary.json"])["status"] == "done"
    assert [name for name in files if name.startswith("tensorboard/events") and len(files[name]) > 500]


def test_checkpoints_are_bit_equal_to_those_on_a_disk(here, trained):
    there, disk = paths.path("gs://bucket/run/checkpoints"), epath.Path(trained[1]) / "checkpoints"
    assert checkpoint.steps(there) == checkpoint.steps(disk) == [4, 8, 12]
    for step in ("4", "12"):
        assert checkpoint.flaw(there / step) == ""
        a, b = (checkpoint.read(folder / step, ("params", "opt_state")) for folder in (there, disk))
        import jax

        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_cut_short_or_changed_is_not_used(here, trained):
    """As an upload that a kill cut off, an object that is gone, and one of which a bit has flipped."""
    for name, data in below(here, "run/checkpoints/12/").items():
        here.put(f"broken/checkpoints/12/{name}", data)
    for name, data in below(here, "run/checkpoints/8/").items():
        here.put(f"broken/checkpoints/8/{name}", data)
    folder = paths.path("gs://bucket/broken/checkpoints")
    assert checkpoint.newest(folder) == (folder / "12", [])
    name = max(below(here, "broken/checkpoints/12/"), key=lambda n: len(here.objects[f"broken/checkpoints/12/{n}"][0]))
    data, _ = here.objects[f"broken/checkpoints/12/{name}"]
    here.put(f"broken/checkpoints/12/{name}", bytes([data[0] ^ 1]) + data[1:])
    assert "was changed or cut short" in checkpoint.newest(folder).broken[0][1]
    del here.objects[f"broken/checkpoints/12/{name}"]
    assert "is missing" in checkpoint.newest(folder).broken[0][1]
    del here.objects["broken/checkpoints/12/digests.json"]
    found = checkpoint.newest(folder)
    assert found.path == folder / "8"
    assert "half-written" in found.broken[0][1]


@pytest.mark.slow
def test_a_kill_and_a_restart_end_bit_equal_though_the_bucket_fails_now_and_then(trained, config, command):
    with Bucket(fail_every=25) as bucket:
        env = {**os.environ, "XLA_FLAGS": flags.on(1), **bucket.environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxvision.train", "--config", config, "--workdir", "gs://bucket/run"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while "run/checkpoints/4/digests.json" not in bucket.objects and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, out
        assert "run/checkpoints/12/digests.json" not in bucket.objects
        done = command(
            "jaxvision.train", "--config", config, "--workdir", "gs://bucket/run", devices=1, **bucket.environment
        )
        assert done.returncode == 0, done.stderr
        assert "resuming at step " in done.stdout
        assert json.loads(done.stdout.splitlines()[-1])["evals"] == trained[0]["evals"]
        records = [json.loads(line) for line in bucket.objects["run/metrics.jsonl"][0].decode().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6, 8, 10, 12]  # none is lost


def test_evaluation_and_fine_tuning_from_a_bucket(bucket, trained, command, config):
    done = command("jaxvision.evaluate", "--from", "gs://bucket/run", "--checkpoint", "last", "--json",
                   **bucket.environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evals"]["test"]["top1"] == trained[0]["evals"]["test"]["top1"]
    train(command, config, "gs://bucket/tuned", "--config.init=gs://bucket/run", "--config.steps=2",
          **bucket.environment)  # fmt: skip
    assert json.loads(bucket.objects["tuned/load_plan.json"][0])["from"] == "gs://bucket/run"


@pytest.mark.slow
def test_two_hosts_save_one_goes_on(bucket, trained, command, config, tmp_path):
    process = start(2, "jaxvision.train", "--config", config, "--workdir", "gs://bucket/two", "--config.steps=6",
                    **bucket.environment)  # fmt: skip
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    result = train(command, config, "gs://bucket/two", **bucket.environment)
    assert json.loads(bucket.objects["two/summary.json"][0])["resumed_at"] == 6
    assert (result["status"], result["step"]) == ("done", trained[0]["step"])


def test_records(here, tmp_path, command):
    done = command("jaxvision.pack", "--from", "digits:test", "--out", str(tmp_path / "packed"), "--shards", "3")
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "packed").iterdir():
        here.put(f"packed/{file.name}", file.read_bytes())
    local, remote = open_source(f"records:{tmp_path}/packed"), open_source("records:gs://bucket/packed")
    assert len(remote) == len(local) == 360
    assert remote.classes == local.classes
    np.testing.assert_array_equal(remote.labels, local.labels)
    assert not list((tmp_path / "cache").rglob("*.array_record"))  # nothing is fetched before it is read
    for i in range(360):
        a, b = local[i], remote[i]
        np.testing.assert_array_equal(a["image"], b["image"])
        assert (a["label"], a["index"]) == (b["label"], b["index"])
    kept = list((tmp_path / "cache").rglob("*.array_record"))
    assert len(kept) == len(list((tmp_path / "packed").glob("*.array_record"))) == 3
    before = here.requests
    again = open_source("records:gs://bucket/packed")
    assert all(again[i]["index"] == local[i]["index"] for i in range(360))
    assert here.requests - before < 20  # asked whether they changed, not fetched
    name = "packed/" + kept[0].name
    here.put(name, here.objects[name][0][:-1])
    cut = open_source("records:gs://bucket/packed")
    with pytest.raises(UserError, match=rf"{kept[0].name} has \d+ bytes instead of \d+: copy it again"):
        [cut[i] for i in range(360)]
    with pytest.raises(UserError, match="gs://bucket/none is no packed data set"):
        open_source("records:gs://bucket/none")


def test_files_of_weights(here, tmp_path, monkeypatch):
    here.put("w/model.safetensors", b"weights")
    first = paths.fetched("gs://bucket/w/model.safetensors")
    assert (first.name, first.read_bytes()) == ("model.safetensors", b"weights")
    here.put("w/model.safetensors", b"others!")
    assert paths.fetched("gs://bucket/w/model.safetensors").read_bytes() == b"others!"
    assert paths.fetched("~/x") == paths.pathlib.Path.home() / "x"
    with pytest.raises(UserError, match="gs://bucket/none does not exist"):
        paths.fetched("gs://bucket/none")
    here.put("w/large", b"more than there is room for")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="let XDG_CACHE_HOME name a larger disk"):
        paths.fetched("gs://bucket/w/large")
    assert not list((tmp_path / "cache").rglob("*large*"))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'gs://bucket/run is in a bucket: pip install "jaxvision\[gcs\]"'):
        paths.path("gs://bucket/run")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pack", ["--from", "digits:test", "--out", "gs://bucket/x"]),
        ("pack", ["--from", "folder:gs://bucket/x", "--out", "x"]),
        ("predict", ["--from", "gs://bucket/run", "gs://bucket/x.png"]),
    ],
)
def test_what_a_bucket_does_not_serve_is_said(bucket, trained, command, tmp_path, module, arguments):
    done = command(f"jaxvision.{module}", *arguments, cwd=tmp_path, **bucket.environment)
    assert done.returncode == 2, done.stderr
    assert "gs://bucket/x" in done.stderr
    assert "that must be on a disk" in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_such_bucket(bucket, command, config):
    done = command("jaxvision.train", "--config", config, "--workdir", "gs://nowhere/run", **bucket.environment)
    assert done.returncode == 2
    assert "cannot write gs://nowhere/run/config.json" in done.stderr
    assert "does the bucket exist" in done.stderr
    assert "Traceback" not in done.stderr
