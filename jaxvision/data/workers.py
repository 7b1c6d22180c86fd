"""Readers: threads of this process, or processes of their own that die with it and are not outlived by a hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import numpy as np

from jaxvision.errors import UserError

Load = Callable[[int], Any]


class Threads:
    """load(step) in `count` threads."""

    def __init__(self, load: Load, count: int) -> None:
        self._load = load
        # The readers are the parallelism; OpenCV's own threads would take cores from each other.
        self._executor = ThreadPoolExecutor(count, "reader", cv2.setNumThreads, (1,))

    def submit(self, step: int) -> Callable[[], Any]:
        """Starts load(step) in a thread and returns a function that waits for it.

        The function gives the result, or raises what the reader raised.
        """
        return self._executor.submit(self._load, step).result

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


class Processes:
    """load(step) in `count` processes, each with its own copy of `load`.

    They are started afresh, not forked: a fork would inherit jax's threads and locks. Nothing that they import starts
    a jax backend, which would take the accelerator.
    """

    def __init__(self, load: Load, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._load = load
        self._places = context.RawArray("q", [-1] * count)  # the sample that each process reads; -1: none
        self._executor = ProcessPoolExecutor(count, context, _begin, (load, self._places, context.Value("i", 0)))
        self._free: list[_Memory] = []

    def submit(self, step: int) -> Callable[[], Any]:
        """Has a process make the batch of a step; the function that is returned waits for it.

        Both raise UserError if a process died.
        """
        memory = self._free.pop() if self._free else _Memory()
        with self._died(), _without_ctrl_c():  # a process may be started here
            future = self._executor.submit(_call, step, memory.path)

        def result() -> Any:
            with self._died():
                loaded = memory.loaded(*future.result())
            self._free.append(memory)
            return loaded

        return result

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _died(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            read = [self._load.source.where(i) for i in self._places if i >= 0]  # type: ignore[attr-defined]
            raise UserError(
                f"a worker process of the loader died without a word, while {', '.join(read) or 'nothing'} was read: "
                "it was killed, perhaps for memory, or a library crashed on such a file. Look into the system's log, "
                "or use data.processes=0"
            ) from error


class _Memory:
    """Memory in which a worker leaves the arrays of its result, so that they pass through no pipe.

    A file without a name, in memory: it is gone with the last process that has it open, however that ends, and it does
    not count against /dev/shm, which is small in containers. One serves many results in turn, since writing into new
    memory takes twice the time. Linux only; elsewhere the pipe has to do.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("jaxvision-batch") if hasattr(os, "memfd_create") else -1
        self._close = weakref.finalize(self, os.close, self._file) if self._file >= 0 else None
        self.path = f"/proc/{os.getpid()}/fd/{self._file}" if self._file >= 0 else None

    def loaded(self, data: bytes, places: list[tuple[int, int]]) -> Any:
        """The result that `_stored` was given, in memory of its own that goes with the last array in it."""
        if not places:
            return pickle.loads(data)
        memory = np.empty(places[-1][1], np.uint8).data
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            file.readinto(memory)
        return pickle.loads(data, buffers=[memory[start:stop] for start, stop in places])


_ALIGNED = 16  # bytes; enough for every dtype


def _stored(result: Any, path: str | None) -> tuple[bytes, list[tuple[int, int]]]:
    """Pickles a result and writes its arrays to the file `path`, for `_Memory.loaded` to make the result of again."""
    if path is None:
        return pickle.dumps(result, protocol=5), []
    buffers: list[pickle.PickleBuffer] = []
    data, places, end = pickle.dumps(result, protocol=5, buffer_callback=buffers.append), [], 0
    with open(path, "r+b") as file:  # not "wb", which would give the old result's memory back
        for buffer in buffers:
            file.write(bytes(-end % _ALIGNED))
            start = end + -end % _ALIGNED
            end = start + file.write(buffer.raw())
            places.append((start, end))
    return data, places


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Blocks Ctrl-C while processes are started.

    A new process has the signal mask of the thread that starts it: until `_begin`, Ctrl-C would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_load: Load | None = None
_places: Any = None  # shared with the parent
_mine = 0  # the place in it of this process


def reading(place: int) -> None:
    """Notes which sample this process reads, for the message if it dies; nothing in a process that is no worker."""
    if _places is not None:
        _places[_mine] = place


def _begin(load: Load, places: Any, number: Any) -> None:
    global _load, _places, _mine
    _load, _places = load, places
    with number.get_lock():
        _mine = number.value
        number.value += 1
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends this worker when its parent is gone.

    A worker waits for work with both ends of a pipe in hand, so it would never see that its parent is gone.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(step: int, path: str | None) -> tuple[bytes, list[tuple[int, int]]]:
    assert _load is not None
    result = _stored(_load(step), path)
    reading(-1)
    return result
