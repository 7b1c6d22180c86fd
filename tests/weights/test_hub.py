"""hf:timm/NAME.TAG against a hub on 127.0.0.1 that speaks as much of the protocol as is asked of it."""

import http.server
import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from jaxvision import models
from jaxvision.weights import torch
from tests import flags, forks
from tests.conftest import ROOT

REPOSITORY = "timm/efficientnet_b0.ra_in1k"
SOURCE = f"hf:{REPOSITORY}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def files():
    """What the repository holds: EfficientNet-B0 for 3 classes and 32 px, random."""
    model = models.efficientnet_b0(classes=3)
    image = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda k: model.init(k, image, train=False), jax.random.key(0))
    rng = np.random.default_rng(0)
    leaves = {
        name: np.abs(rng.normal(0, 0.05, leaf.shape)).astype(np.float32)
        for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    state = torch.to_state_dict(leaves, models.origins("efficientnet_b0")["timm"], model)
    cfg = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    return {
        "config.json": json.dumps({"architecture": "efficientnet_b0", "pretrained_cfg": cfg}).encode(),
        "model.safetensors": safetensors.numpy.save(state),
    }


class Hub(http.server.ThreadingHTTPServer):
    """Small files are served in place, weights from a second address, as the hub does it. `log` has every request."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log, self.share = files, [], 1.0
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"  # another host: a client asks no more than it must

    def bodies(self):
        return [path.rpartition("/")[2] for method, path in self.log if method == "GET" and "/cdn/" in path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        hub, name = self.server, self.path.rpartition("/")[2]
        hub.log.append((self.command, self.path))
        if self.path.startswith("/cdn/"):
            data = hub.files[name]
            self.reply(200, data[: int(hub.share * len(data))] if body else b"")
        elif self.path == f"/{REPOSITORY}/resolve/main/{name}" and name in hub.files:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Content-Length": str(len(hub.files[name]))}
            if name == "model.safetensors":
                linked = {"X-Linked-ETag": '"weights"', "X-Linked-Size": headers.pop("Content-Length")}
                self.reply(302, b"", Location=f"{hub.cdn}/{name}", **headers, **linked)
            else:
                self.reply(200, hub.files[name] if body else None, **headers)
        else:
            self.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})

    def reply(self, code, data, **headers):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data or b"")), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if data:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(files):
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def environment(folder, url, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return {**kept, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "XLA_FLAGS": flags.on(1), **more}


FIND = """
import sys
from jaxvision import cli
from jaxvision.weights import published
def find(argv):
    parser = cli.Parser("find", "", [])
    parser.add_from()
    arguments, _ = parser.parse(argv)
    found = published.find(arguments.source)
    return {"path": str(found.path), "filter": found.contract.filter, "size": found.contract.size,
            "tensors": len(published.read(found.path))}
cli.main(find)
"""


def find(folder, url, *more, source=SOURCE, stderr=subprocess.PIPE, **env):
    """The parsing, finding and reading that every command starts with, in a process of its own."""
    return subprocess.run(
        [*forks.python(), "-c", FIND, "--from", source, *more],
        stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=120, cwd=ROOT, env=environment(folder, url, **env),
    )  # fmt: skip


def on_a_terminal(folder, url, *more):
    """(result, what a terminal on standard error showed)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    shown = []

    def read():
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:  # the other end was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    done = find(folder, url, *more, stderr=theirs)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    return done, b"".join(shown).decode()


def blobs(folder):
    return [p for p in (folder / "hf").rglob("*") if p.is_file() and "blobs" in p.parts and p.suffix != ".incomplete"]


def test_fetched_once_then_from_the_cache(tmp_path, hub, files):
    done, shown = on_a_terminal(tmp_path, hub.url)
    assert done.returncode == 0, shown
    answer = json.loads(done.stdout)
    assert (answer["filter"], answer["size"]) == ("bicubic", 32)
    assert "model.safetensors" in shown
    assert "100%" in shown
    assert hub.bodies() == ["model.safetensors"]
    with open(answer["path"], "rb") as file:
        assert file.read() == files["model.safetensors"]
    hub.log.clear()
    again = find(tmp_path, hub.url)
    assert json.loads(again.stdout) == answer
    assert again.stderr == ""
    assert hub.log == []
    offline = find(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == answer


def test_no_bar_with_json_nor_without_a_terminal(tmp_path, hub):
    done, shown = on_a_terminal(tmp_path, hub.url, "--json")
    assert done.returncode == 0
    assert "model.safetensors" not in shown
    assert hub.bodies() == ["model.safetensors"]
    plain = find(tmp_path / "other", hub.url)
    assert plain.returncode == 0
    assert plain.stderr == ""


def test_a_hub_that_does_not_answer_is_said_at_once(tmp_path):
    start = time.perf_counter()
    done = find(tmp_path, "http://127.0.0.1:9")
    online = time.perf_counter() - start
    assert done.returncode == 2
    assert f"error: cannot fetch {REPOSITORY} (" in done.stderr
    assert "write timm:efficientnet_b0.ra_in1k=/path/model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    offline = find(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "OfflineModeIsEnabled" in offline.stderr
    # huggingface_hub's retries alone take 24 s; the rest of both is the same
    assert online - (time.perf_counter() - start - online) < 20


def test_a_download_that_was_cut_is_not_kept(tmp_path, hub):
    hub.share = 0.5
    done = find(tmp_path, hub.url)
    assert done.returncode == 2
    assert f"cannot fetch {REPOSITORY} (" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in blobs(tmp_path)] == ["config.json"]
    hub.share = 1.0
    whole = find(tmp_path, hub.url)
    assert json.loads(whole.stdout)["tensors"] > 300
    assert hub.bodies() == ["model.safetensors"] * 2


@pytest.mark.parametrize(
    ("source", "wanted", "asked"),
    [
        ("hf:timm/efficientnet_b0.nonesuch", "cannot fetch timm/efficientnet_b0.nonesuch (", True),
        ("hf:timm/efficientnet_b00.ra_in1k", "did you mean 'efficientnet_b0'?", False),
    ],
)
def test_names_that_the_hub_or_we_have_not(tmp_path, hub, source, wanted, asked):
    done = find(tmp_path, hub.url, source=source)
    assert done.returncode == 2
    assert wanted in done.stderr
    assert bool(hub.log) == asked


def test_predict_from_the_hub(tmp_path, hub):
    from PIL import Image

    Image.new("RGB", (40, 36), "red").save(tmp_path / "red.png")
    done = subprocess.run(
        [*forks.python(), "-m", "jaxvision.predict", "--from", SOURCE, "--json", str(tmp_path / "red.png")],
        capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment(tmp_path, hub.url),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["predictions"][0]["predictions"][0]["class"] in ("0", "1", "2")


def test_without_the_package_the_extra_is_named(monkeypatch):
    from jaxvision.errors import UserError
    from jaxvision.weights import published

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "jaxvision\[hub\]"'):
        published.find(SOURCE)
