"""Readers: threads of this process, or processes of their own that die with it and are not outlived by a hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

Load = Callable[[int], Any]


def threads(load: Load, count: int) -> tuple[Executor, Load]:
    """An executor of `count` threads, and what to submit to it."""
    # The readers are the parallelism; OpenCV's own threads would take cores from each other.
    return ThreadPoolExecutor(count, "reader", cv2.setNumThreads, (1,)), load


def processes(load: Load, count: int) -> tuple[Executor, Load]:
    """An executor of `count` processes, each with its own copy of `load`, and what to submit to it.

    They are started afresh, not forked: a fork would inherit jax's threads and locks. Nothing that they import starts
    a jax backend, which would take the accelerator.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _begin, (load,)), _call


def submit(executor: Executor, call: Load, step: int) -> Future:
    """A future of call(step). RuntimeError if a process died."""
    with _died(), _without_ctrl_c():  # a process may be started here
        return executor.submit(call, step)


def result(future: Future) -> Any:
    """The future's result. Raises what the reader raised; RuntimeError if a process died."""
    with _died():
        return future.result()


@contextlib.contextmanager
def _died() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process of the loader died without a word: it was killed, perhaps for memory, or a library "
            "crashed on a file. Look into the system's log, or use data.processes=0"
        ) from error


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A new process has the signal mask of the thread that starts it: until `_begin`, Ctrl-C would end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_load: Load | None = None


def _begin(load: Load) -> None:
    global _load
    _load = load
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker waits for work with both ends of a pipe in hand, so it would never see that its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(step: int) -> Any:
    assert _load is not None
    return _load(step)
