"""Hosts that train together: who they are, whether all are there, one step to stop at, one end for all.

JAX's own runtime does the work (`jax.distributed`). Around it stands what it leaves to its users:

* a roll-call before it starts: waiting for a host that is not there it ends all others, naming nobody;
* news of an error: the others would wait in a collective for the host that failed, until its heartbeats are missed.

A host is one process here, whichever machine it is on. Several processes agree on where they meet by what TPU pods,
SLURM and Open MPI set, or by the environment variables JAX_COORDINATOR_ADDRESS (host:port of process 0, free there),
JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxvision.errors import UserError
from jaxvision.runtime import versions

if TYPE_CHECKING:
    from etils import epath

WAIT = 300.0  # seconds for all to be there: machines of one job start minutes apart
CONNECT = 60  # seconds to connect once all are there: one that dies just then is not waited for longer
HEARTBEAT = 30  # seconds without a sign of life after which JAX ends the others; its default of 100 costs a pod more
GRACE = 2.0  # seconds from the news of an error to the end, in which an error that all have is said by each itself
PATIENCE = 5.0  # seconds for all to hear the news
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_POD = "JOB_COMPLETION_INDEX"  # Kubernetes numbers the pods of an indexed Job, JobSet's among them
_FAILED, _HEARD = "jaxvision/failed", "jaxvision/heard"
_LONG = 3_600_000  # ms that one may work while the others wait; one that died is noticed by JAX long before


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of this process among the others."""

    address: str  # host:port of process 0
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None  # of this machine's, those that are this process's; None: all


def detect() -> Place | None:
    """Returns this process's place, from the environment; None where the process is alone.

    Raises UserError if something is missing.
    """
    from jax._src import clusters  # what jax.distributed.initialize asks, before the roll-call

    for name in (*_VARIABLES[1:], _POD):
        if not os.environ.get(name, "0").isdigit():
            raise UserError(f"{name} is {os.environ[name]!r}: it must be a whole number")
    address, count, index = (os.environ.get(name) for name in _VARIABLES)
    if address and count and index is None:
        index = os.environ.get(_POD)
    given: list[Any] = [address, int(count) if count else None, int(index) if index else None]
    devices: Any = None
    if None in given:
        detected = clusters.ClusterEnv.auto_detect_unset_distributed_params
        try:
            *given, devices = detected(given[0], given[1], given[2], None, None, int(WAIT))
        except Exception as error:  # no answer from the machine's metadata, a name that does not resolve
            raise UserError(
                f"cannot tell which process of the job this is: {error}; set {', '.join(_VARIABLES)}"
            ) from error
        if not any(value is not None for value in given):
            return None
        missing = [name for name, value in zip(_VARIABLES, given) if value is None]
        if missing:
            raise UserError(f"some of {', '.join(_VARIABLES)} are set: set {' and '.join(missing)} as well, or none")
    place = Place(given[0], given[1], given[2], tuple(devices) if devices else None)
    if not 0 <= place.index < place.count:
        raise UserError(f"JAX_PROCESS_ID is {place.index}: with {place.count} processes it is 0 to {place.count - 1}")
    if not place.address.rpartition(":")[2].isdigit():
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {place.address!r}: it must be HOST:PORT of process 0")
    return place if place.count > 1 else None


def join(say: Callable[[str], None] = print, wait: float = WAIT) -> None:
    """Joins the other processes of this job, if there are any; before JAX starts its devices.

    Raises UserError, on all that are there, if some have not come after `wait` seconds or run other versions.
    """
    place = detect()
    if place is None:
        return
    roll_call(place, say, wait)
    import jax

    jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=CONNECT,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
    leaving = threading.Event()
    listener = threading.Thread(target=_end_with_others, args=(place.index, leaving), name="hosts", daemon=True)
    listener.start()

    def leave() -> None:  # before JAX shuts down what the thread asks
        leaving.set()
        listener.join()

    atexit.register(leave)


def seems_first() -> bool:
    """Whether this is the first process of its job or the only one, by the environment alone, before JAX is there."""
    numbers = (_VARIABLES[2], _POD, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
    return all(os.environ.get(name, "0") == "0" for name in numbers)


def several() -> bool:
    """Whether this process has joined others. Starts no backend."""
    return _client() is not None


def index() -> int:
    """Index of this process; 0 where it is alone.

    Starts no backend.
    """
    return _state().process_id if several() else 0


def publish(subject: str, content: Any) -> None:
    """Leaves content (of JSON) for the other processes to read, in place of what this process published before.

    Waits for nobody. Does nothing where this process is alone.
    """
    client = _client()
    if client is not None:
        with contextlib.suppress(Exception):  # process 0 is gone: _end_with_others says so
            key = f"jaxvision/published/{subject}/{index()}"
            client.key_value_set(key, json.dumps(content), allow_overwrite=True)


def published(subject: str) -> dict[int, Any]:
    """Process number -> what that process last published of a subject; empty where this process is alone."""
    client, found = _client(), {}
    if client is not None:
        with contextlib.suppress(Exception):
            for key, content in client.key_value_dir_get(f"jaxvision/published/{subject}/"):
                found[int(key.rpartition("/")[2])] = json.loads(content)
    return found


def of_first(number: float) -> float:
    """The number that process 0 has, on all processes.

    All call it at the same step.
    """
    if not several():
        return number
    import numpy as np
    from jax.experimental import multihost_utils

    # as bits: the devices would make a float32 of it, in which minutes of a week's run stand still for several steps
    bits = multihost_utils.broadcast_one_to_all(np.array([number], np.float64).view(np.uint32))
    return float(np.asarray(bits).view(np.float64)[0])


def require_shared(workdir: epath.Path) -> None:
    """Raises UserError on all if some see another folder there: their parts would be saved where nobody looks."""
    if not several():
        return
    import numpy as np
    from jax.experimental import multihost_utils

    from jaxvision.runtime.paths import write_whole

    token, path = str(multihost_utils.broadcast_one_to_all(np.int64(time.time_ns()))), workdir / ".shared"
    if index() == 0:
        write_whole(path, token)
    multihost_utils.sync_global_devices("shared workdir written")
    sees = np.array([path.exists() and path.read_text() == token])
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(sees)).ravel())
    if index() == 0:
        path.unlink()
    if blind.size:
        raise UserError(
            f"{workdir} of process 0 is not that of process {', '.join(map(str, blind))}: all must name one folder on "
            "storage that they share, or a bucket (gs://...)"
        )


def allgather(subject: str, content: Any) -> list[Any]:
    """Returns every process's content (of JSON) of a subject, in the order of the processes, once all have called.

    All processes call the function, once for a subject. It starts no backend, and works where devices differ or fail.
    """
    if not several():
        return [json.loads(json.dumps(content))]
    publish(subject, content)
    _client().wait_at_barrier(f"jaxvision/allgather/{subject}", _LONG)
    found = published(subject)
    return [found[k] for k in range(_state().num_processes)]


def clock(rounds: int = 5) -> tuple[float, float]:
    """Seconds that this process's clock is ahead of that of process 0, and by how much that may be wrong. Once, by all.

    Each asks process 0 for its time through JAX's key-value store (Cristian's algorithm): the answer was given at some
    moment between sending and receiving, so half of the quickest round trip bounds the error.
    """
    client = _client()
    if client is None:
        return 0.0, 0.0
    if index() == 0:
        for key in (f"jaxvision/clock/{k}/{n}" for k in range(1, _state().num_processes) for n in range(rounds)):
            client.blocking_key_value_get(f"{key}/asked", _LONG)
            client.key_value_set(f"{key}/answer", repr(time.time()))
        return 0.0, 0.0
    trips = []
    for key in (f"jaxvision/clock/{index()}/{n}" for n in range(rounds)):
        sent = time.time()
        client.key_value_set(f"{key}/asked", "")
        theirs = float(client.blocking_key_value_get(f"{key}/answer", _LONG))
        received = time.time()
        trips.append(((received - sent) / 2, (sent + received) / 2 - theirs))
    within, ahead = min(trips)
    return ahead, within


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client if "jax" in sys.modules else None


# --------------------------------------------------------------------------- the roll-call


def roll_call(place: Place, say: Callable[[str], None] = print, wait: float = WAIT) -> None:
    """Returns on every process once all are there; nothing listens on the port then.

    Raises UserError on every process that is there, the same on all: who has not come after `wait` seconds, who runs
    another version of what must be the same, which number is taken twice.
    """
    hello = {
        "index": place.index,
        "count": place.count,
        "machine": platform.node(),
        "versions": {
            **versions.installed("jax", "jaxlib", "flax", "optax"),
            "python": ".".join(platform.python_version_tuple()[:2]),
        },
    }
    deadline = time.monotonic() + wait
    problem = _lead(place, hello, say, deadline, wait) if place.index == 0 else _follow(place, hello, deadline, wait)
    if problem:
        raise UserError(problem)


def _lead(place: Place, hello: dict[str, Any], say: Callable[[str], None], deadline: float, wait: float) -> str:
    there = {0: hello}
    lines: list[Any] = []
    told_at = time.monotonic()
    port = place.address.rpartition(":")[2]
    try:
        server = socket.create_server(("", int(port)))
    except OSError as error:
        return f"process 0 cannot listen on port {port}: {error.strerror}; choose another"
    problem = ""
    with server:
        server.settimeout(0.2)
        while len(there) < place.count and time.monotonic() < deadline and not problem:
            if time.monotonic() > told_at + 10:
                say(f"waiting for {_named(place, there)}, at most {deadline - time.monotonic():.0f} s more")
                told_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                line = server.accept()[0].makefile("rw")
                theirs = _read(line)
                if theirs is None:  # not one of us: a scan of ports, or a health check
                    line.close()
                    continue
                lines.append(line)
                problem = _differs(place, hello, theirs, there)
                there[theirs["index"]] = theirs
        if not problem and len(there) < place.count:
            problem = (
                f"{_named(place, there)} did not come to {place.address} within {wait:g} s: look at what they wrote, "
                "and whether their machines reach that address"
            )
        for line in lines:
            with contextlib.suppress(OSError):
                print(json.dumps({"problem": problem}), file=line, flush=True)
        for line in lines:  # the one who closes first keeps the port busy for a minute: let it be them
            with contextlib.suppress(OSError):
                line.read()
                line.close()
    return problem


def _read(line: Any) -> dict[str, Any] | None:
    try:
        theirs = json.loads(line.readline(10_000))
        return theirs if {"index", "count", "machine", "versions"} <= theirs.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _named(place: Place, there: Any) -> str:
    """ "process 3 of 4", "processes 2 and 3 of 4"."""
    missing = [str(k) for k in range(place.count) if k not in there]
    several = len(missing) > 1
    shown = missing if len(missing) <= 8 else [*missing[:7], f"{len(missing) - 7} others"]
    listed = ", ".join(shown[:-1]) + (" and " if several else "") + shown[-1]
    return f"process{'es' if several else ''} {listed} of {place.count}"


def _differs(place: Place, ours: dict[str, Any], theirs: dict[str, Any], there: dict[int, dict[str, Any]]) -> str:
    who = f"process {theirs['index']} on {theirs['machine']}"
    if theirs["count"] != place.count:
        return f"{who} counts {theirs['count']} processes, process 0 {place.count}: they are of two jobs"
    if theirs["index"] in there:
        other = there[theirs["index"]]["machine"]
        return f"two processes have the number {theirs['index']}, on {other} and on {theirs['machine']}"
    for name, version in ours["versions"].items():
        if theirs["versions"].get(name) != version:
            return (
                f"{who} runs {name} {theirs['versions'].get(name)}, process 0 on {ours['machine']} {version}: "
                "install the same everywhere"
            )
    return ""


def _follow(place: Place, hello: dict[str, Any], deadline: float, wait: float) -> str:
    name, _, port = place.address.rpartition(":")
    reason = ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((name.strip("[]"), int(port)), timeout=5) as connection:
                connection.settimeout(max(deadline - time.monotonic(), 0) + 10)
                line = connection.makefile("rw")
                print(json.dumps(hello), file=line, flush=True)
                answer = line.readline()
                if answer:
                    return json.loads(answer)["problem"]
                reason = "it closed the connection"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.3)
    return f"process 0 did not answer at {place.address} within {wait:g} s ({reason}): look at what it wrote"


# --------------------------------------------------------------------------- one end for all


def fail(code: int, message: str) -> None:
    """Tells the others that this process ends with an error, and ends it after them. Returns where it is alone."""
    client = _client()
    if client is None:
        return
    state = _state()
    news = {"index": state.process_id, "code": code, "message": message}
    with contextlib.suppress(Exception):  # someone else was first, or process 0 is gone
        client.key_value_set(_FAILED, json.dumps(news))
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(Exception):
        while time.monotonic() < deadline and len(client.key_value_dir_get(_HEARD)) < state.num_processes:
            time.sleep(0.05)
        time.sleep(1.5 * GRACE)  # JAX aborts those who are still there when process 0 goes
    with contextlib.suppress(OSError):  # nobody reads it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # without the barrier at the end of jax.distributed: nobody comes


def _end_with_others(mine: int, leaving: threading.Event) -> None:
    """Asks for news of an error elsewhere, and ends this process, which may wait in a collective for good."""
    client, news = _client(), None
    while news is None:
        # not a call that waits for it: JAX aborts where one is under way when Python ends
        if leaving.wait(0.5):
            return
        with contextlib.suppress(Exception):  # NOT_FOUND: all is well
            news = json.loads(client.key_value_try_get(_FAILED))
    with contextlib.suppress(Exception):
        client.key_value_set(f"{_HEARD}/{mine}", "")
    if news["index"] == mine:
        return
    time.sleep(GRACE)
    with contextlib.suppress(OSError):  # nobody reads it
        print(
            f"process {mine}: ends since process {news['index']} failed: {news['message']}", file=sys.stderr, flush=True
        )
    os._exit(news["code"])
