"""The launch scripts against stubs of the commands that they call: what is called, in which order, with what."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_shellcheck(script):
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Stubs:
    """Commands that write down how they were called, and do what a line of shell says."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.log = folder, folder / "calls"

    def add(self, name, shell):
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\necho \"{name} ${{*//$'\\n'/ }}\" >> {self.log}\n{shell}\n")
        path.chmod(0o755)

    def run(self, script, *words, **env):
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "SPOT", "VERSION", "KEEP")}
        environment = {**kept, "PATH": f"{self.folder}:{os.environ['PATH']}", "PAUSE": "0", **env}
        done = subprocess.run([LAUNCH / script, *words], capture_output=True, text=True, env=environment, timeout=60)
        return done, self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


# --------------------------------------------------------------------------- SLURM

TRAIN = ["--config", "configs/resnet50.py", "--workdir", "/shared/a b"]


@pytest.mark.parametrize("code", [0, 2, 3, 75, 143])
def test_slurm_requeues_what_was_interrupted_after_saving(stubs, code):
    stubs.add("srun", f"exit {code}")
    stubs.add("scontrol", "exit 0")
    done, calls = stubs.run("slurm.sh", *TRAIN, SLURM_JOB_ID="17")
    assert done.returncode == code
    assert calls[0] == "srun --kill-on-bad-exit=0 python -m jaxvision.train " + " ".join(TRAIN)
    assert calls[1:] == (["scontrol requeue 17"] if code == 75 else [])


def test_slurm_waits_for_its_processes_when_it_gets_the_signal_too(stubs):
    stubs.add("srun", "kill -TERM $PPID; sleep 0.5; exit 75")
    stubs.add("scontrol", "exit 0")
    done, calls = stubs.run("slurm.sh", *TRAIN, SLURM_JOB_ID="17")
    assert done.returncode == 75
    assert calls[-1] == "scontrol requeue 17"


def test_slurm_needs_a_workdir(stubs):
    stubs.add("srun", "exit 0")
    done, calls = stubs.run("slurm.sh", "--config", "configs/resnet50.py")
    assert done.returncode == 2
    assert "give --workdir DIR" in done.stderr
    assert calls == []


# --------------------------------------------------------------------------- TPU VMs

TPU = ["r50", "us-west4-a", "v5litepod-16", "--", "--config", "configs/resnet50.py", "--workdir", "gs://bucket/a b"]
# The slice's state is a file; ssh that trains ends with the codes in another, one a call.
GCLOUD = """
state={folder}/state
case "$4" in
  describe) [ -f $state ] && cat $state || exit 1 ;;
  create)
    if [ -f {folder}/full ]; then rm {folder}/full; exit 1; fi
    echo READY > $state; rm -f {folder}/installed ;;
  delete) rm $state ;;
  scp) ;;
  ssh)
    case "$*" in
      *"test -x"*) [ -f {folder}/installed ] ;;
      *"pip install"*) touch {folder}/installed ;;
      *)
        code=$(head -n1 {folder}/codes); sed -i 1d {folder}/codes
        [ "$code" = 255 ] && echo PREEMPTED > $state
        exit "$code" ;;
    esac ;;
esac
"""


def verbs(calls):
    short = {"--command=test": "test", "--command=rm": "install", "--command=cd": "train"}
    return [
        next((short[word] for word in call.split() if word in short), call.split()[4])
        for call in calls
        if call.split()[4] != "describe"
    ]


def tpu(stubs, codes, **env):
    stubs.add("gcloud", GCLOUD.format(folder=stubs.folder))
    (stubs.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    return stubs.run("tpu_vm.sh", *TPU, **env)


def test_tpu_from_nothing_to_the_end(stubs):
    done, calls = tpu(stubs, [0], SPOT="1")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "test", "scp", "install", "train", "delete"]
    assert all(" r50 --zone=us-west4-a" in call for call in calls)
    (create,) = (call for call in calls if " create " in call)
    assert "--accelerator-type=v5litepod-16 --version=tpu-ubuntu2204-base --spot" in create
    (train,) = (call for call in calls if "jaxvision.train" in call)
    # quoted for the shell of the other side
    assert train.endswith(r"-m jaxvision.train --config configs/resnet50.py --workdir gs://bucket/a\ b")
    assert "--worker=all" in train


def test_tpu_waits_for_room(stubs):
    (stubs.folder / "full").touch()
    done, calls = tpu(stubs, [0])
    assert done.returncode == 0
    assert verbs(calls)[:2] == ["create", "create"]
    assert "no v5litepod-16 in us-west4-a yet" in done.stderr
    assert "--spot" not in "".join(calls)


def test_tpu_goes_on_after_a_preemption_and_after_an_interruption(stubs):
    done, calls = tpu(stubs, [255, 75, 0])
    assert done.returncode == 0
    first = ["create", "test", "scp", "install", "train"]
    assert verbs(calls) == [*first, "delete", *first, "test", "train", "delete"]
    assert "the slice is PREEMPTED, creating it anew" in done.stderr


@pytest.mark.parametrize("code", [2, 3])
def test_tpu_keeps_the_slice_of_a_training_that_cannot_go_on(stubs, code):
    done, calls = tpu(stubs, [code])
    assert done.returncode == code
    assert verbs(calls)[-1] == "train"
    assert "the slice is kept" in done.stderr


def test_tpu_keeps_the_slice_where_asked(stubs):
    done, calls = tpu(stubs, [0], KEEP="1")
    assert done.returncode == 0
    assert verbs(calls)[-1] == "train"


@pytest.mark.parametrize("words", [[], TPU[:3], [*TPU[:3], *TPU[4:]]])
def test_tpu_usage(stubs, words):
    stubs.add("gcloud", "exit 1")
    done, calls = stubs.run("tpu_vm.sh", *words)
    assert done.returncode == 2
    assert "launch/tpu_vm.sh NAME ZONE TYPE -- --config" in done.stderr
    assert calls == []


def test_tpu_needs_a_bucket(stubs):
    stubs.add("gcloud", "exit 1")
    done, calls = stubs.run("tpu_vm.sh", *TPU[:6], "--workdir", "/tmp/w")
    assert done.returncode == 2
    assert "give --workdir gs://BUCKET/DIR" in done.stderr
    assert calls == []
