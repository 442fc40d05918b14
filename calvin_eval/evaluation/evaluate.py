"""Evaluates a policy on CALVIN's chains: in several processes, resumable, with intervals (CALVIN SPEC 1.11).

Several environments in a process share each forward pass of the policy, and several processes share the
chains. Every finished chain is on the disk at once; a killed evaluation goes on with the missing ones.

Which process runs which chain, and with which others, changes nothing as long as a policy's actions for one
episode do not depend on the episodes beside it. The scripted expert's never do. A learned policy's do not on a CPU
as long as its passes always have the same number of rows (see `roboflamingo.policy.control`); another `batch` is
another number of rows, so its last digits differ and now and then a chain does. `batch` is therefore part of what was
evaluated, and results name it. On a GPU, equal results are likely and not promised.

What an evaluation leaves: `settings.json`, `environment.json`, `chains.jsonl` (a line per finished chain),
`results.json`, and `videos/` if films were wanted; see `evaluation_folder`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from calvin_eval.benchmark.metrics import ChainResult, summarize
from calvin_eval.calvin import CalvinEnv
from calvin_eval.evaluation.folder import EPOCH, EvaluationFolder, read_results
from calvin_eval.evaluation.runner import EvaluateSettings, run_chains
from calvin_eval.protocol import Policy
from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_workers
from calvin_eval.system.provenance import code_version
from calvin_eval.worlds.leash import TargetLeash

__all__ = [
    "EPOCH",
    "ChainResult",
    "EvaluateSettings",
    "MakeEnv",
    "MakePolicy",
    "evaluate",
    "read_results",
    "run_chains",
]

MakeEnv = Callable[[], CalvinEnv]
MakePolicy = Callable[[], Policy]


def evaluate(
    make_env: MakeEnv,
    make_policy: MakePolicy,
    out: Path,
    settings: EvaluateSettings,
    *,
    workers: int | None = None,
    batch: int = 8,
    label: str = "Evaluating",
    about: dict[str, Any] | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Evaluates a policy and writes `out/results.json`.

    Finished chains in the folder count if they are of the same thing: if `about` (but for the path "policy"),
    settings, batch and the benchmark's code are what they were. Films that are missing of finished chains are made by
    running those chains again.

    Args:
        make_env: makes an environment, in a worker process; picklable.
        make_policy: makes the policy, in a worker process; picklable.
        out: folder for results, finished chains and videos. One evaluation at a time writes to it.
        settings: how chains are run.
        workers: processes; one per core by default.
        batch: most environments of a process, which share a forward pass.
        label: of the progress bar.
        about: what is evaluated; JSON values. For a policy of files its fingerprint belongs here
            (`system.provenance.fingerprint`), so that other weights under the same name are another policy, and
            "renderer".
        fresh: removes an evaluation of something else that the folder holds, instead of refusing.

    Returns:
        What results.json holds: CALVIN's `avg_seq_len`, `chain_sr` and `task_info`, and ours beside them.

    Raises:
        UserError: the folder holds an evaluation of something else, or another process writes to it; films are
            wanted without a renderer; or what `make_env`, `make_policy` and the policy raise.
        WorkerError: a worker process failed or was killed; chains finished by then are kept.
    """
    facts = {"settings": asdict(settings), **(about or {}), "batch": batch, "code": code_version()}
    _check(facts, workers)
    with folder_lock(out, "roboflamingo evaluate"):
        folder = EvaluationFolder(out, facts)
        done = _finished(folder, fresh)
        wanted = [index for index in range(settings.chains) if index not in done or _lacks_film(folder, index)]
        if wanted:
            job = _Job(make_env, make_policy, settings, folder.videos, batch)
            before = [result for index, result in done.items() if index < settings.chains and index not in wanted]
            with closing(_run(job, wanted, workers or cores(), folder, bool(done))) as results:
                for result in _show(results, before, len(wanted), label):
                    _keep(folder, result, done)
        summary = {
            **summarize([done[index] for index in range(settings.chains)], settings.seed),
            **facts,
            **folder.environment(),
            "made_with": folder.sessions[-1],
            "earlier_sessions": folder.sessions[:-1],
        }
        folder.write_results(summary)
    return summary


def _check(facts: dict[str, Any], workers: int | None) -> None:
    """What can be known to be wrong before anything is started."""
    if facts["batch"] < 1 or (workers is not None and workers < 1):
        raise UserError(f"batch and workers must be at least 1, not {facts['batch']} and {workers}")
    if facts["settings"]["videos"] and facts.get("renderer") == "none":
        raise UserError("films need images: choose a renderer other than none, or set settings.videos to 0")


def _finished(folder: EvaluationFolder, fresh: bool) -> dict[int, ChainResult]:
    """The chains that are there and count."""
    try:
        return folder.read()
    except UserError:
        if not fresh:
            raise
        folder.clear()
        return {}


def _lacks_film(folder: EvaluationFolder, index: int) -> bool:
    return index < folder.facts["settings"]["videos"] and not folder.film(index).is_file()


def _keep(folder: EvaluationFolder, result: ChainResult, done: dict[int, ChainResult]) -> None:
    """Writes a chain down. One that was run again for its film counts as filmed."""
    before = done.get(result.index)
    if before is None:
        folder.add(result)
    elif before != result:
        warnings.warn(
            f"chain {result.index} was run again for its film and went differently: {result.solved} tasks solved "
            f"instead of {before.solved}, steps {result.steps} instead of {before.steps}. The results now hold what "
            "the film shows",
            stacklevel=2,
        )
        folder.replace(result, done)
    done[result.index] = result


@dataclass(frozen=True)
class _Job:
    """What a worker process is sent.

    Attributes:
        batch: environments of a process.
        videos: folder for films.
    """

    make_env: MakeEnv
    make_policy: MakePolicy
    settings: EvaluateSettings
    videos: Path
    batch: int


@dataclass(frozen=True)
class _Environment:
    """What a worker's environments are; the same in all workers, or something is wrong."""

    scene: str
    renderer: str


def _run(
    job: _Job, wanted: Sequence[int], workers: int, folder: EvaluationFolder, done: bool
) -> Generator[ChainResult, None, None]:
    """Runs chains on several processes, which take them one by one."""
    workers = min(workers, len(wanted))
    environments = min(job.batch, -(-len(wanted) // workers))
    messages = run_workers(
        _work,
        [(job, environments)] * workers,
        _Numbers(wanted, workers),
        environment={"OMP_NUM_THREADS": "1"},  # a process, a core; torch reads it when it is first imported
    )
    with closing(messages):
        for message in messages:
            if isinstance(message, _Environment):
                folder.claim_environment(asdict(message), done)
            else:
                yield message


class _Numbers:
    """Gives workers the numbers of chains, from which each takes the next as soon as it can."""

    def __init__(self, numbers: Sequence[int], workers: int) -> None:
        self._numbers, self._workers = numbers, workers

    def start(self, inbox: Any) -> None:
        for number in self._numbers:
            inbox.put(number)
        for _ in range(self._workers):
            inbox.put(None)

    def next(self, inbox: Any) -> None:
        """Nothing: all are there already."""


def _work(inbox: Any, job: _Job, environments: int) -> Iterator[ChainResult | _Environment]:
    """A worker process: makes the policy and environments, then runs chains until none is left."""
    policy = job.make_policy()
    envs: list[CalvinEnv] = []
    try:
        for _ in range(environments):
            envs.append(job.make_env())
        yield _Environment(envs[0].scene, envs[0].renderer)
        leash = job.settings.leash
        leashed: Sequence[CalvinEnv] = envs if leash is None else [TargetLeash(env, leash) for env in envs]
        yield from run_chains(policy, leashed, iter(inbox.get, None), job.settings, job.videos)
    finally:
        for env in envs:
            env.close()


def _show(
    results: Iterator[ChainResult], before: Sequence[ChainResult], missing: int, label: str
) -> Iterator[ChainResult]:
    """Passes results on and shows how it stands."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    numbers = (TextColumn("{task.fields[rates]}"), TimeRemainingColumn(elapsed_when_finished=True))
    so_far = list(before)
    with Progress(*columns, *numbers) as progress:
        total = len(before) + missing
        bar = progress.add_task(label, total=total, completed=len(before), rates=_rates(so_far))
        for result in results:
            so_far.append(result)
            progress.update(bar, advance=1, rates=_rates(so_far))
            yield result


def _rates(results: Sequence[ChainResult]) -> str:
    if not results:
        return ""
    lengths = [result.solved for result in results]
    rates = " ".join(f"{100 * sum(n >= k for n in lengths) / len(lengths):.0f}" for k in range(1, 6))
    return f"SR {rates} % length {sum(lengths) / len(lengths):.2f}"
