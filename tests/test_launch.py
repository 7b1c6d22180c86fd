"""The launch scripts against stubs of the commands that they call: what is called, in which order, with what. And the
manifest for GKE against the schema of what reads it."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from jaxvision.errors import Diverged, Interrupted, UserError
from launch import local

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
OURS = ("PYTHON", "SPOT", "VERSION", "KEEP", "DRY", "ACCELERATOR", "SERVICE_ACCOUNT")  # what the scripts ask for
ELSE = {name: value for name, value in os.environ.items() if name not in OURS}


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
        environment = {**ELSE, "PATH": f"{self.folder}:{os.environ['PATH']}", "PAUSE": "0", **env}
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


# --------------------------------------------------------------------------- GKE: the manifest

GKE = ["r50", "4x4", "registry/jaxvision:1", "--", "--config", "configs/resnet50.py", "--workdir", "gs://bucket/r50"]


def filled(*more, topology="4x4", **env):
    done = subprocess.run(
        [LAUNCH / "gke.sh", "r50", topology, *GKE[2:], *more],
        capture_output=True,
        text=True,
        env={**ELSE, **env, "DRY": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def strict(schema):
    """Refuses keys that it does not name. A cluster drops them without a word, unless the client asks it not to."""
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        schema["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


@pytest.fixture(scope="module")
def errors():
    """What JobSet's own schema, whose source is its $comment, says against a manifest."""
    schema = json.loads(gzip.decompress((pathlib.Path(__file__).parent / "jobset_schema.json.gz").read_bytes()))
    job = schema["properties"]["spec"]["properties"]["replicatedJobs"]["items"]["properties"]["template"]
    schema["properties"]["metadata"] = job["properties"][
        "metadata"
    ]  # that of the set is checked elsewhere in a cluster
    validator = jsonschema.Draft202012Validator(strict(schema))
    return lambda text: [f"{e.json_path}: {e.message}" for e in validator.iter_errors(yaml.safe_load(text))]


def pod_of(text):
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("topology", "machines"), [("2x2", 1), ("16x16", 64), ("2x2x4", 4)])
def test_gke_manifest_is_what_jobset_reads(errors, topology, machines):
    text = filled(topology=topology, SPOT="0", SERVICE_ACCOUNT="trainer", ACCELERATOR="tpu-v6e-slice")
    assert errors(text) == []
    assert not re.search("<[A-Z_]+>", text)
    job, pod = pod_of(text)
    assert job["completions"] == job["parallelism"] == machines
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert pod["serviceAccountName"] == "trainer"
    (container,) = pod["containers"]
    assert container["image"] == "registry/jaxvision:1"
    assert {e["name"]: e["value"] for e in container["env"]}["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/r50/compiled"


def test_gke_manifest_for_spot_machines(errors):
    text = filled(SPOT="1")
    assert errors(text) == []
    assert pod_of(text)[1]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("backoffLimit:", "backofLimit:", "'backofLimit' was unexpected"),
        ("annotations:", "annotation:", "'annotation' was unexpected"),
        ("onExitCodes:", "onExitCode:", "'onExitCode' was unexpected"),
        ("mountPath:", "mountpath:", "'mountPath' is a required property"),
        ("action: FailJobSet", "action: FailJobset", "'FailJobset' is not one of"),
        ("completions: 4", 'completions: "4"', "'4' is not of type 'integer'"),
    ],
)
def test_gke_schema_catches_a_slip(errors, right, wrong, said):
    text = filled()
    assert right in text
    assert said in "; ".join(errors(text.replace(right, wrong)))


@pytest.mark.parametrize(
    ("end", "action"),
    [
        (UserError.exit_code, "FailJobSet"),
        (Diverged.exit_code, "FailJobSet"),
        (Interrupted.exit_code, "RestartJobSetAndIgnoreMaxRestarts"),
        ("DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
        (1, "RestartJobSet"),
        (134, "RestartJobSet"),
        (137, "RestartJobSet"),
    ],
)
def test_gke_what_follows_on_which_end(end, action):
    """As Kubernetes' job controller and JobSet's read the rules: the first that matches."""
    text = filled()
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for rule in reversed(pod_of(text)[0]["podFailurePolicy"]["rules"]):
        if end in rule.get("onExitCodes", {}).get("values", []):
            reason, message = "PodFailurePolicy", f"Container train for pod a/b failed with exit code {end} matching"
        if {"type": end, "status": "True"} in rule.get("onPodConditions", []):
            reason, message = "PodFailurePolicy", f"Pod a/b has condition {end} matching FailJob rule at index 2"
    actions = [
        rule["action"]
        for rule in yaml.safe_load(text)["spec"]["failurePolicy"]["rules"]
        if reason in rule["onJobFailureReasons"]
        and any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
    ]
    assert [*actions, "RestartJobSet"][0] == action  # the last is JobSet's default


def test_gke_arguments_arrive_as_they_were_given():
    words = [
        '--config.name=it\'s "so" & \\so',
        "--config.note=a: b # c, [d]\n\te\n",
        "--config.path=$(HOME)/$HOME/$$",
        "<IMAGE>",
        "",
    ]
    (container,) = pod_of(filled(*words))[1]["containers"]
    assert [word.replace("$$", "$") for word in container["args"]] == [*GKE[4:], *words]
    assert "$$(HOME)/$$HOME/$$$$" in container["args"][-3]  # else Kubernetes would fill in $(HOME)


# --------------------------------------------------------------------------- GKE: the script

# Each of these is a file: states, a line for each time that it is asked; pods, the same; the last line of both stays.
KUBECTL = """
next() {{
  head -n1 {folder}/$1
  [ "$(wc -l < {folder}/$1)" = 1 ] || sed -i 1d {folder}/$1
}}
case "$1 $2" in
  "get jobset")
    case "$*" in
      *conditions*) printf %s SomeReason ;;
      *)
        answer=$(next states)
        [ "$answer" != unreachable ] || exit 1
        printf %s "$answer" ;;
    esac ;;
  "get pods") next pods ;;
  "get job") cat {folder}/why ;;
  "apply --server-side") cat > {folder}/applied; [ ! -f {folder}/refused ] ;;
  "logs --follow") echo "log of $3" ;;
esac
"""


def gke(stubs, states, pods=("p1 Running",), why=""):
    stubs.add("kubectl", KUBECTL.format(folder=stubs.folder))
    for name, lines in (("states", states), ("pods", pods)):
        (stubs.folder / name).write_text("".join(f"{line}\n" for line in lines))
    (stubs.folder / "why").write_text(why)
    done, calls = stubs.run("gke.sh", *GKE)
    return done, [" ".join(call.split()[1:3]) for call in calls], calls


def test_gke_from_nothing_to_the_end(stubs):
    done, verbs, calls = gke(stubs, ["", "r50/", "r50/Completed"])
    assert done.returncode == 0, done.stderr
    turn = ["get jobset", "get pods", "logs --follow"]
    assert verbs == ["get jobset", "apply --server-side", *turn, *turn]
    assert (stubs.folder / "applied").read_text() == filled()
    assert "-l jobset.sigs.k8s.io/jobset-name=r50,batch.kubernetes.io/job-completion-index=0" in calls[3]
    assert "logs --follow p1 --container=train --since-time=1970-" in calls[4]
    assert "--since-time=2" in calls[7]  # only what came since
    assert done.stdout == "log of p1\nlog of p1\n"
    assert "r50 is done" in done.stderr


def test_gke_follows_over_a_restart(stubs):
    done, _, calls = gke(
        stubs, ["", "r50/", "r50/", "r50/", "r50/Completed"], ["", "p1 Running", "p2 Pending", "p2 Running"]
    )
    assert done.returncode == 0, done.stderr
    logs = [call for call in calls if " logs " in call]
    assert [call.split()[3] for call in logs] == ["p1", "p2"]
    assert all("--since-time=1970-" in call for call in logs)
    assert done.stderr.count("waits for its machines") == 2
    assert "r50 was restarted, now as p2" in done.stderr


@pytest.mark.parametrize(
    ("why", "code", "said"),
    [
        ("Container train for pod a/b failed with exit code 2 matching FailJob rule", 2, "the config, the data or the"),
        ("Container train for pod a/b failed with exit code 3 matching FailJob rule", 3, "the training diverged"),
        ("Job has reached the specified backoff limit", 1, "stopped too often"),
        ("", 1, "kubectl describe jobset r50 may say more"),
    ],
)
def test_gke_tells_how_it_failed(stubs, why, code, said):
    done, _, calls = gke(stubs, ["", "r50/", "r50/Failed"], why=why)
    assert done.returncode == code
    assert said in done.stderr
    assert why in done.stderr
    assert "reason: SomeReason" in done.stderr
    assert "kubectl delete jobset r50, then the same call" in done.stderr
    assert not any(" delete " in call for call in calls)


def test_gke_goes_on_with_what_is_there(stubs):
    done, verbs, _ = gke(stubs, ["r50/", "r50/Completed"])
    assert done.returncode == 0
    assert "r50 is there already" in done.stderr
    assert verbs.count("apply --server-side") == 1  # changes nothing, or is refused


def test_gke_says_so_where_something_else_is_there(stubs):
    (stubs.folder / "refused").touch()
    done, verbs, _ = gke(stubs, ["r50/"])
    assert done.returncode == 2
    assert "with another image or other arguments" in done.stderr
    assert verbs[-1] == "apply --server-side"


@pytest.mark.parametrize(("end", "code"), [("Completed", 0), ("Failed", 3)])
def test_gke_of_one_that_has_ended_tells_how(stubs, end, code):
    done, verbs, _ = gke(stubs, [f"r50/{end}"], ["p1 Failed"], "failed with exit code 3 matching")
    assert done.returncode == code
    assert "r50 has ended already" in done.stderr
    assert "apply --server-side" not in verbs
    assert "log of p1" in done.stdout


def test_gke_ends_when_someone_deletes_it(stubs):
    done, _, _ = gke(stubs, ["", "r50/", ""], ["p1 Running", ""])
    assert done.returncode == 1
    assert "r50 was deleted" in done.stderr


def test_gke_bears_a_cluster_that_does_not_answer_for_a_while(stubs):
    done, _, _ = gke(stubs, ["", "unreachable", "r50/Completed"])
    assert done.returncode == 0
    assert "the cluster does not answer, again in 0 s" in done.stderr


def test_gke_needs_a_cluster_with_jobset(stubs):
    done, verbs, _ = gke(stubs, ["unreachable"])
    assert done.returncode == 2
    assert "install JobSet in it" in done.stderr
    assert verbs == ["get jobset"]


def test_gke_needs_kubectl(stubs):
    for tool in ("bash", "dirname"):
        (stubs.folder / tool).symlink_to(shutil.which(tool))
    done, _ = stubs.run("gke.sh", *GKE, PATH=str(stubs.folder))
    assert done.returncode == 2
    assert "there is no kubectl on the PATH" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (GKE[:3], "launch/gke.sh NAME TOPOLOGY IMAGE -- --config"),
        ([*GKE[:3], *GKE[4:]], "launch/gke.sh NAME TOPOLOGY IMAGE -- --config"),
        ([*GKE[:6], "--workdir", "/tmp/w"], "give --workdir gs://BUCKET/DIR"),
        ([*GKE[:6], "--note", "--workdir=gs://"], "give --workdir gs://BUCKET/DIR"),
        (["R50", *GKE[1:]], "NAME is 'R50'"),
        (["a" * 41, *GKE[1:]], "at most 40"),
        (["r50", "v5e-16", *GKE[2:]], "write it as 4x4"),
        (["r50", "1x1", *GKE[2:]], "1 chips: a machine has 4"),
    ],
)
def test_gke_refuses(stubs, words, said):
    stubs.add("kubectl", "exit 1")
    done, calls = stubs.run("gke.sh", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert calls == []


# --------------------------------------------------------------------------- several processes here


def start_local(folder, count, shell, **how):
    """So many shells by local.py; each leaves the process ids of itself and its children in the folder."""
    words = [sys.executable, LAUNCH / "local.py", str(count), "--", "sh", "-c", shell]

    def signals_as_usual():  # nohup, and shells in the background, start tests with some ignored
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(words, cwd=folder, text=True, preexec_fn=signals_as_usual, **how)


def running(folder):
    """Of the processes that wrote their number there, those that run."""
    found = []
    for file in folder.glob("*.pid"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state = pathlib.Path("/proc", file.stem, "stat").read_text().rpartition(")")[2].split()[0]
            found += [file.stem] if state != "Z" else []
    return found


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_nothing_outlives_the_launcher(tmp_path, number):
    """Processes of processes included."""
    process = start_local(tmp_path, 3, "sleep 600 & touch $!.pid $$.pid; wait")
    within(20, lambda: len(running(tmp_path)) == 6)
    process.send_signal(number)
    process.wait(20)
    within(20, lambda: not running(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_to_the_launcher_go_to_all(tmp_path, number):
    shell = f"trap 'touch $$.heard; exit 75' {number.name[3:]}; touch $$.pid; while :; do sleep 0.1; done"
    process = start_local(tmp_path, 3, shell)
    within(20, lambda: len(running(tmp_path)) == 3)
    process.send_signal(number)
    assert process.wait(20) == 75
    assert len(list(tmp_path.glob("*.heard"))) == 3
    assert not running(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_processes_start_goes_to_all(tmp_path, number):
    """Process 0 asks at once, while the others are not there yet; the signal may find them before their shell is up."""
    name = number.name[3:]
    asks = f"[ $JAX_PROCESS_ID = 0 ] && kill -{name} $PPID"
    shell = f"trap 'exit 75' {name}; {asks}; touch $$.pid; while :; do sleep 0.1; done"
    process = start_local(tmp_path, 3, shell)
    assert process.wait(60) in (75, 128 + number)
    assert not running(tmp_path)


def test_the_launcher_s_guard_goes_with_it_and_kills_nobody(tmp_path):
    shell = "(sleep 5; touch later) >/dev/null 2>&1 & touch $!.pid; exit 0"  # goes on by itself after an end in order
    process = start_local(tmp_path, 2, shell, stdout=subprocess.PIPE)
    process.communicate(timeout=20)
    assert process.returncode == 0

    def guards():
        return [p for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if is_guard(p)]

    def is_guard(path):
        with contextlib.suppress(OSError):
            words, folder = path.read_bytes().split(b"\0"), os.readlink(path.parent / "cwd")
            return words[1:2] == [os.fsencode(LAUNCH / "local.py")] and folder == str(tmp_path)

    within(5, lambda: not guards())
    within(20, (tmp_path / "later").exists)


def test_lines_that_nobody_reads_hold_nobody_up(tmp_path):
    """More than a pipe holds."""
    shell = "i=0; while [ $i -lt 20000 ]; do echo some words to fill the pipe with; i=$((i+1)); done; touch $$.done"
    process = start_local(tmp_path, 2, shell, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert len(list(tmp_path.glob("*.done"))) == 2


SENTENCE = "[Gloo] Rank |1| is connected to |3| peer ranks. |Expected number of connected peer ranks is : |3|\n"


def test_what_collectives_say_is_left_out_however_threads_tear_it(capsys):
    rng = random.Random(0)
    for _ in range(300):
        writers = [SENTENCE.split("|") for _ in range(rng.randint(1, 4))]
        text = "before\n"
        while any(writers):
            text += rng.choice([w for w in writers if w]).pop(0)
        local.show(io.StringIO(text + "3\nafter 3\n"), "[1] ")
        assert capsys.readouterr().out == "[1] before\n[1] 3\n[1] after 3\n", text
