"""Worker processes that never outlive their work.

`run_jobs` is the one pool of this project. Its workers end when their parent dies, however it dies; a signal to the
parent stops them within a second, of which they have half to free what they hold; what a user can put right comes out
of a worker as the same `UserError`, anything else as a `WorkerError` with the worker's traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar, runtime_checkable

from calvin_eval.system.errors import UserError
from calvin_eval.system.signals import Stopped, follow_parent, stopping_in_order

Job = TypeVar("Job")
Result = TypeVar("Result")

POLL_S = 0.2
"""Seconds between two looks at whether everybody is still alive."""
GRACE_S = 0.5
"""Seconds that a worker has to end by itself."""


class WorkerError(RuntimeError):
    """A worker process failed by a fault that is no user's. The message holds the worker's traceback."""


class WorkerKilledError(WorkerError, UserError):
    """A worker process was killed from outside, by the system for lack of memory most of all. The message is advice."""


@dataclass(frozen=True)
class _Failure:
    """A worker's exception."""

    error: UserError | None
    text: str


@runtime_checkable
class Closable(Protocol):
    """What holds something that must be freed."""

    def close(self) -> None:
        """Frees it."""


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    *,
    environment: dict[str, str] | None = None,
    nested: bool = False,
) -> Iterator[Result]:
    """Calls a function for every job in worker processes and yields results as they come.

    Args:
        function: picklable; what it keeps between jobs (say, in an `lru_cache`) stays in its worker. If it is
            `Closable`, each worker closes its own when it is done.
        jobs: picklable; taken from the iterable as workers become free, at most two a worker ahead.
        workers: how many processes; they are spawned.
        environment: variables of the workers besides this process's.
        nested: whether jobs start processes of their own.

    Raises:
        UserError: a job raised one.
        OSError: a job raised one, a full disk for example.
        WorkerKilledError: a worker was killed.
        WorkerError: a job raised anything else, or a worker ended without a word.
        Stopped: a signal came and `stop_signals` turned it into this.
    """
    feed = _Feed(iter(jobs), workers)
    yield from run_workers(_take_jobs, [(function,)] * workers, feed, environment=environment, nested=nested)


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


class AllAtOnce:
    """A feed for `run_workers` that holds all jobs from the start: whoever is free takes the next."""

    def __init__(self, jobs: Sequence[Any], workers: int) -> None:
        self._jobs, self._workers = jobs, workers

    def start(self, inbox: Any) -> None:
        """Fills a queue; None for each worker says that no more will come."""
        for job in [*self._jobs, *[None] * self._workers]:
            inbox.put(job)

    def next(self, inbox: Any) -> None:
        """Nothing: all are there already."""


def _take_jobs(inbox: Any, function: Callable[[Any], Any]) -> Generator[Any, None, None]:
    try:
        while (job := inbox.get()) is not None:
            yield function(job[0])
    finally:
        if isinstance(function, Closable):
            function.close()


def run_workers(
    work: Callable[..., Generator[Result, None, None]],
    arguments: Sequence[tuple[Any, ...]],
    feed: Any = None,
    *,
    environment: dict[str, str] | None = None,
    nested: bool = False,
) -> Generator[Result, None, None]:
    """Runs `work(inbox, *arguments[i])` in one process for each i and yields what they all yield, as it comes.

    Args:
        work: a picklable generator function. `inbox` is a queue; without a feed nothing comes through it.
        arguments: of each worker, the inbox left out.
        feed: fills the inbox: `start(inbox)`, then `next(inbox)` after every result; may be None.
        environment: see `run_jobs`.
        nested: see `run_jobs`; Python lets no daemon start processes, so these workers are none.

    Raises:
        UserError, OSError, WorkerError, Stopped: see `run_jobs`.
    """
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    processes = [
        context.Process(target=_worker, args=(work, inbox, outbox, each), daemon=not nested) for each in arguments
    ]
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
        WorkerError: nothing will, since one has ended.
    """
    while True:
        dead = [process.exitcode for process in processes if process.exitcode]
        try:
            return outbox.get(timeout=POLL_S)
        except queue.Empty:
            if dead:
                raise _death(dead[0]) from None


def _death(code: int) -> WorkerError:
    """What the exit code of a worker means that has said nothing."""
    if code > 0:
        return WorkerError(f"a worker process ended with exit code {code} and said no more; see what stands above")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    causes = {
        "SIGKILL": "most often by the system, for lack of memory: try fewer at a time",
        "SIGSEGV": "by a fault in a compiled library",
    }
    cause = f", {causes[name]}" if name in causes else ""
    return WorkerKilledError(
        f"a worker process was killed by {name}{cause}; what was finished is kept, and the same command continues it"
    )


def _worker(
    work: Callable[..., Generator[Any, None, None]], inbox: Any, outbox: Any, arguments: tuple[Any, ...]
) -> None:
    """The process of a worker."""
    follow_parent()
    try:
        with stopping_in_order(), closing(work(inbox, *arguments)) as results:
            for result in results:
                outbox.put((result,))
        outbox.put(None)
    except Stopped as stopped:
        os.kill(os.getpid(), stopped.signal)  # whose handler is the default again
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
