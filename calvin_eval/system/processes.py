"""Worker processes that never outlive their work, and signals that end it in order.

`run_jobs` is the one pool of this project. Its workers end when their parent dies, however it dies; a signal to the
parent stops them within a second; what a user can put right comes out of a worker as the same `UserError`, anything
else as a `WorkerError` with the worker's traceback.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from calvin_eval.system.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

POLL_S = 0.2
"""Seconds between two looks at whether everybody is still alive."""
GRACE_S = 0.5
"""Seconds that a worker has to end by itself."""


class Stopped(BaseException):
    """SIGTERM or SIGINT asked this process to stop. Not an `Exception`, so that nothing mistakes it for a failure.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class WorkerError(RuntimeError):
    """A worker process failed by a fault that is no user's. The message holds the worker's traceback."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGINT into `Stopped`, raised in the main thread, for the length of a `with` block.

    A second signal ends the process at once. Outside of the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_parent() -> None:
    """Makes this process end when its parent dies, and leave Ctrl-C to the parent. For workers, at their start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":  # at once, even inside a long computation
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if not parent.is_alive():
        os._exit(1)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class _Failure:
    """A worker's exception."""

    error: UserError | None
    text: str


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    *,
    environment: dict[str, str] | None = None,
) -> Iterator[Result]:
    """Calls a function for every job in worker processes and yields results as they come.

    Args:
        function: picklable; what it keeps between jobs (say, in an `lru_cache`) stays in its worker.
        jobs: picklable; taken from the iterable as workers become free, at most two a worker ahead.
        workers: how many processes; they are spawned.
        environment: variables of the workers besides this process's.

    Raises:
        UserError: a job raised one.
        OSError: a job raised one, a full disk for example.
        WorkerError: a job raised anything else, or a worker was killed.
        Stopped: a signal came and `stop_signals` turned it into this.
    """
    yield from run_workers(_take_jobs, [(function,)] * workers, _Feed(iter(jobs), workers), environment=environment)


class _Feed:
    """Gives the jobs of an iterable to workers, two for each ahead of time."""

    def __init__(self, jobs: Iterator[Any], workers: int) -> None:
        self._jobs, self._ahead, self._workers = jobs, 2 * workers, workers
        self._ended = False

    def start(self, inbox: Any) -> None:
        for _ in range(self._ahead):
            self.next(inbox)

    def next(self, inbox: Any) -> None:
        """One job more, or, when none is left, word to every worker that it may go."""
        if self._ended:
            return
        for job in self._jobs:
            inbox.put((job,))
            return
        self._ended = True
        for _ in range(self._workers):
            inbox.put(None)


def _take_jobs(inbox: Any, function: Callable[[Any], Any]) -> Iterator[Any]:
    while (job := inbox.get()) is not None:
        yield function(job[0])


def run_workers(
    work: Callable[..., Iterator[Result]],
    arguments: Sequence[tuple[Any, ...]],
    feed: Any = None,
    *,
    environment: dict[str, str] | None = None,
) -> Generator[Result, None, None]:
    """Runs `work(inbox, *arguments[i])` in one process for each i and yields what they all yield, as it comes.

    Args:
        work: a picklable generator function. `inbox` is a queue; without a feed nothing comes through it.
        arguments: of each worker, the inbox left out.
        feed: fills the inbox: `start(inbox)`, then `next(inbox)` after every result; may be None.
        environment: see `run_jobs`.

    Raises:
        UserError, OSError, WorkerError, Stopped: see `run_jobs`.
    """
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    processes = [context.Process(target=_worker, args=(work, inbox, outbox, each), daemon=True) for each in arguments]
    try:
        with _environment(environment or {}):  # a worker inherits it, before it imports anything
            for process in processes:
                process.start()
        if feed is not None:
            feed.start(inbox)
        ended = 0
        while ended < len(processes):
            message = _next_message(processes, outbox)
            if message is None:
                ended += 1
                continue
            if isinstance(message, _Failure):
                raise message.error or WorkerError(message.text)
            if feed is not None:
                feed.next(inbox)
            yield message[0]
    finally:
        _end(processes)
        for channel in (inbox, outbox):
            channel.cancel_join_thread()
            channel.close()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables that are set for the length of a `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _next_message(processes: Sequence[BaseProcess], outbox: Any) -> Any:
    """What comes next from the workers.

    Raises:
        WorkerError: nothing will, since one was killed.
    """
    while True:
        dead = [process.exitcode for process in processes if process.exitcode]
        try:
            return outbox.get(timeout=POLL_S)
        except queue.Empty:
            if dead:
                raise WorkerError(
                    f"a worker process was killed (exit code {dead[0]}; -9 is often a lack of memory: try fewer "
                    "workers); what was finished is kept, and the same command continues it"
                ) from None


def _worker(work: Callable[..., Iterator[Any]], inbox: Any, outbox: Any, arguments: tuple[Any, ...]) -> None:
    """The process of a worker."""
    follow_parent()
    try:
        for result in work(inbox, *arguments):
            outbox.put((result,))
        outbox.put(None)
    except Exception as error:
        outbox.put(_Failure(_sendable(error), traceback.format_exc()))


def _sendable(error: Exception) -> Any:
    """An error that may be raised as it is in the parent: a user's or the disk's; None for a fault of ours."""
    if not isinstance(error, UserError | OSError):
        return None
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return UserError(str(error))


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ends all workers, those that do not listen by force."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
