"""Evaluates a policy on a benchmark: in several processes, resumable, with intervals.

Several environments in a process share each forward pass of the policy, and several processes share the
episodes. Every finished episode is on the disk at once; a killed evaluation goes on with the missing ones.

Which process runs which episode, and with which others, changes nothing as long as a policy's actions for one
episode do not depend on the episodes beside it. The scripted expert's never do. A learned policy's do not on a CPU
as long as its passes always have the same number of rows (see `roboflamingo.policy.control`); another `batch` is
another number of rows, so its last digits differ and now and then an episode does. `batch` is therefore part of what
was evaluated, and results name it. On a GPU, equal results are likely and not promised.

What an evaluation leaves: `settings.json`, `environment.json`, `chains.jsonl` (a line per finished episode, which is a
chain of sub-tasks), `results.json`, and `videos/` if films were wanted; see `evaluation.folder`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from calvin_eval.benchmark.metrics import summarize_episodes
from calvin_eval.evaluation.folder import FREE, EvaluationFolder, film_path
from calvin_eval.evaluation.progress import show
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Benchmark, Env, Episode, EpisodeResult, Policy
from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores, hardware
from calvin_eval.system.processes import AllAtOnce, run_workers
from calvin_eval.system.provenance import code_version
from calvin_eval.system.ranges import AMOUNT, COUNT, SEED, check_ranges

MakeEnv = Callable[[], Env]
MakePolicy = Callable[[], Policy]
Done = dict[int, EpisodeResult]


class Settings(Protocol):
    """What `evaluate` is told; a dataclass of JSON values, all of which results name."""

    @property
    def episodes(self) -> int:
        """How many are run, from the first."""

    @property
    def videos(self) -> int:
        """How many of them are filmed, from the first."""

    @property
    def failure_videos(self) -> int:
        """How many of those that failed are filmed as well, from the first; they are run again for it."""

    @property
    def seed(self) -> int:
        """Of what is drawn for intervals."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of any benchmark.

    Attributes:
        episodes: how many are run, from the first.
        videos: how many of them are filmed, from the first.
        failure_videos: how many of those that failed are filmed as well, from the first; they are run again for it.
        seed: for the intervals.
    """

    episodes: int
    videos: int = 0
    failure_videos: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "settings", episodes=COUNT, videos=AMOUNT, failure_videos=AMOUNT, seed=SEED)
        if self.videos > self.episodes:
            raise UserError(f"settings.videos is {self.videos}, but there are only {self.episodes} episodes to film")


def evaluate(
    benchmark: Benchmark,
    make_env: MakeEnv,
    make_policy: MakePolicy,
    out: Path,
    settings: Settings,
    *,
    workers: int | None = None,
    batch: int = 8,
    label: str = "Evaluating",
    about: dict[str, Any] | None = None,
    fresh: bool = False,
    here: bool = False,
) -> dict[str, Any]:
    """Evaluates a policy and writes `out/results.json`.

    Finished episodes in the folder count if they are of the same thing: if `about` (but for the path "policy"),
    benchmark, settings, batch and code are what they were. Films that are missing of finished episodes are made by
    running those episodes again, and so are films of failures, which nobody knows beforehand.

    Args:
        benchmark: what is to be done; picklable.
        make_env: makes an environment, in a worker process; picklable.
        make_policy: makes the policy, in a worker process; picklable.
        out: folder for results, finished episodes and videos. One evaluation at a time writes to it.
        settings: how many episodes are run.
        workers: processes; one per core by default.
        batch: most environments of a process, which share a forward pass. Where a process may hold fewer (`Env.most`),
            it is that number, and results say so.
        label: of the progress bar.
        about: what is evaluated; JSON values. For a policy of files its fingerprint belongs here
            (`system.provenance.fingerprint`), so that other weights under the same name are another policy, and
            "renderer". "hardware" adds to what `system.machine.hardware` says.
        fresh: removes an evaluation of something else that the folder holds, instead of refusing.
        here: runs the episodes in this process, which saves the start of another where there is a core for one only.

    Returns:
        What results.json holds: the benchmark's figures (`Benchmark.summarize`, or those of
        `benchmark.metrics.summarize_episodes`), and beside them what was evaluated, where, and with which versions.

    Raises:
        UserError: the policy cannot act in the environment (`PolicySpec.check`); there are fewer episodes; the folder
            holds an evaluation of something else, or another process writes to it; films are wanted without a
            renderer; or what `make_env`, `make_policy` and the policy raise.
        WorkerError: a worker process failed or was killed; episodes finished by then are kept.
    """
    facts = {"benchmark": benchmark.name, **(about or {}), "batch": batch, "code": code_version()}
    facts["hardware"] = hardware() | facts.get("hardware", {})
    facts["settings"] = _together(benchmark, settings, facts)
    _check(facts, workers, settings, benchmark)
    with folder_lock(out, "roboflamingo evaluate"):
        folder = EvaluationFolder(out, facts, benchmark)
        done = _finished(folder, fresh)
        wanted = [i for i in range(settings.episodes) if i not in done or _lacks_film(folder, i, settings)]
        processes = 0 if here else workers or cores()
        first = frozenset(range(settings.videos))
        job = _Job(benchmark, make_env, make_policy, settings.episodes, first, folder.videos, batch)
        _complete(job, wanted, processes, folder, done, label)
        failed = [i for i in range(settings.episodes) if done[i].failed is not None][: settings.failure_videos]
        unseen = [i for i in failed if not folder.film(i).is_file()]
        job = replace(job, filmed=frozenset(unseen))
        _complete(job, unseen, processes, folder, done, f"{label}: filming failures")
        counted = [done[index] for index in range(settings.episodes)]
        summary = {
            **(benchmark.summarize(counted, settings.seed) or summarize_episodes(counted, settings.seed)),
            **facts,
            **folder.environment(),
            "made_with": folder.sessions[-1],
            "earlier_sessions": folder.sessions[:-1],
        }
        folder.write_results(summary)
    return summary


def _complete(job: _Job, wanted: Sequence[int], workers: int, folder: EvaluationFolder, done: Done, label: str) -> None:
    """Runs the wanted episodes, and writes down and shows what comes of each as soon as it is there."""
    if wanted:
        before = [result for index, result in done.items() if index < job.episodes and index not in wanted]
        with closing(_run(job, wanted, workers, folder, bool(done))) as results:
            for result in show(results, before, len(wanted), label):
                _keep(folder, result, done)


def _together(benchmark: Benchmark, settings: Settings, facts: dict[str, Any]) -> dict[str, Any]:
    """The settings of benchmark and evaluation side by side, so that no fact hides another."""
    own, run = benchmark.settings, asdict(settings)  # type: ignore[call-overload]
    taken = [key for key, value in own.items() if key in FREE or key in facts or run.get(key, value) != value]
    if taken:
        raise UserError(f"the benchmark {benchmark.name} calls settings {', '.join(taken)} as results do: rename them")
    return {**own, **run}


def _check(facts: dict[str, Any], workers: int | None, settings: Settings, benchmark: Benchmark) -> None:
    """What can be known to be wrong before anything is started."""
    if facts["batch"] < 1 or (workers is not None and workers < 1):
        raise UserError(f"batch and workers must be at least 1, not {facts['batch']} and {workers}")
    if settings.episodes > len(benchmark):
        raise UserError(f"{benchmark.name} has {len(benchmark)} episodes; choose 1 to {len(benchmark)} of them")
    if (settings.videos or settings.failure_videos) and facts.get("renderer") == "none":
        raise UserError(
            "films need images: choose a renderer other than none, or set settings.videos and "
            "settings.failure_videos to 0"
        )


def _finished(folder: EvaluationFolder, fresh: bool) -> Done:
    """The episodes that are there and count."""
    try:
        return folder.read()
    except UserError:
        if not fresh:
            raise
        folder.clear()
        return {}


def _lacks_film(folder: EvaluationFolder, index: int, settings: Settings) -> bool:
    return index < settings.videos and not folder.film(index).is_file()


def _keep(folder: EvaluationFolder, result: EpisodeResult, done: Done) -> None:
    """Writes an episode down. One that was run again for its film counts as filmed."""
    before = done.get(result.index)
    if before is None:
        folder.add(result)
    elif before != result:
        warnings.warn(
            f"episode {result.index} was run again for its film and went differently: {result.solved} sub-tasks "
            f"solved instead of {before.solved}, steps {result.steps} instead of {before.steps}. The results now hold "
            "what the film shows",
            stacklevel=2,
        )
        folder.replace(result, done)
    done[result.index] = result


@dataclass(frozen=True)
class _Job:
    """What a worker process is sent.

    Attributes:
        episodes: how many there are.
        filmed: numbers of the episodes that are filmed.
        films: folder for films.
        batch: environments of a process.
    """

    benchmark: Benchmark
    make_env: MakeEnv
    make_policy: MakePolicy
    episodes: int
    filmed: frozenset[int]
    films: Path
    batch: int

    def film(self, episode: Episode) -> Path | None:
        """Where the film of an episode goes; None where it is not wanted."""
        return film_path(self.films, episode.index) if episode.index in self.filmed else None


@dataclass(frozen=True)
class _Environment:
    """What a worker's environments are; the same in all workers, or something is wrong."""

    facts: dict[str, Any]


def _run(
    job: _Job, wanted: Sequence[int], workers: int, folder: EvaluationFolder, done: bool
) -> Generator[EpisodeResult, None, None]:
    """Runs episodes on several processes, which take them one by one, or with 0 in this one."""
    processes = min(max(1, workers), len(wanted))
    environments, numbers = min(job.batch, -(-len(wanted) // processes)), AllAtOnce(wanted, processes)
    messages: Generator[Any, None, None]
    if workers:
        messages = run_workers(
            _work,
            [(job, environments)] * processes,
            numbers,
            environment={"OMP_NUM_THREADS": "1"},  # a process, a core; torch reads it when it is first imported
        )
    else:
        inbox: SimpleQueue[int | None] = SimpleQueue()
        numbers.start(inbox)
        messages = _work(inbox, job, environments)
    with closing(messages):
        for message in messages:
            if isinstance(message, _Environment):
                folder.claim_environment(message.facts, done)
            else:
                yield message


def _work(inbox: Any, job: _Job, environments: int) -> Generator[EpisodeResult | _Environment, None, None]:
    """A worker process: makes the policy and environments, then runs episodes until none is left."""
    with ExitStack() as held:
        policy = held.enter_context(closing(job.make_policy()))
        envs = [held.enter_context(closing(job.make_env()))]
        if policy.spec is not None:
            policy.spec.check(envs[0].spec, f"the environment of {job.benchmark.name}")
        most = job.batch if envs[0].most is None else min(job.batch, envs[0].most)
        for _ in range(min(environments, most) - 1):
            envs.append(held.enter_context(closing(job.make_env())))
        facts = {**job.benchmark.facts(envs[0]), "renderer": envs[0].renderer, "batch": most}
        yield _Environment(facts)
        episodes = map(job.benchmark.episode, iter(inbox.get, None))
        with closing(run_episodes(policy, envs, episodes, job.film)) as results:
            yield from results
