"""Evaluates a policy on CALVIN's chains: in several processes, resumable, with intervals (CALVIN SPEC 1.11).

Several environments in a process share each forward pass of the policy, and several processes share the
chains. Every finished chain is on the disk at once; a killed evaluation goes on with the missing ones. Which
process runs which chain changes nothing, as long as the policy is deterministic.

What an evaluation leaves: `settings.json`, `environment.json`, `chains.jsonl` (a line per finished chain),
`results.json`, and `videos/` if films were wanted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from calvin_eval.leash import TargetLeash
from calvin_eval.metrics import ChainResult, summarize
from calvin_eval.protocol import Env, Policy
from calvin_eval.rollout import EvaluateSettings, run_chains
from calvin_eval.system.files import write_json, write_text
from calvin_eval.system.provenance import provenance

__all__ = ["ChainResult", "EvaluateSettings", "MakeEnv", "MakePolicy", "evaluate", "run_chains"]

MakeEnv = Callable[[], Env]
MakePolicy = Callable[[], Policy]

EPOCH = "0"
"""CALVIN files results under the number of a training epoch; a policy of ours has one."""
EXTENSIBLE = ("chains", "videos", "seed")
"""Settings that may differ when an evaluation goes on: finished chains stay valid."""


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
) -> dict[str, Any]:
    """Evaluates a policy and writes `out/results.json`.

    Args:
        make_env: makes an environment, in a worker process; picklable.
        make_policy: makes the policy, in a worker process; picklable.
        out: folder for results, finished chains and videos.
        settings: how chains are run.
        workers: processes; one per core by default.
        batch: most environments of a process, which share a forward pass.
        label: of the progress bar.
        about: further facts for results.json, such as the checkpoint; JSON values.

    Returns:
        What results.json holds: CALVIN's `avg_seq_len`, `chain_sr` and `task_info`, and ours beside them.

    Raises:
        ValueError: the folder holds an evaluation with other settings, or of another environment.
        RuntimeError: a worker process failed; chains finished by then are kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = {"settings": asdict(settings), **(about or {})}
    _claim(out / "settings.json", facts)
    done = _read(out / "chains.jsonl")
    missing = [index for index in range(settings.chains) if index not in done]
    if missing:
        job = _Job(make_env, make_policy, settings, out, missing)
        results = _run(job, workers or os.cpu_count() or 1, batch)
        before = [result for index, result in done.items() if index < settings.chains]
        for result in _show(results, before, len(missing), label):
            _append(out / "chains.jsonl", result)
            done[result.index] = result
    summary = {
        **summarize([done[index] for index in range(settings.chains)], settings.seed),
        **facts,
        **json.loads((out / "environment.json").read_text()),
        "made_with": provenance(),
    }
    write_json(out / "results.json", {EPOCH: summary})
    return summary


@dataclass(frozen=True)
class _Job:
    """What a worker process is sent."""

    make_env: MakeEnv
    make_policy: MakePolicy
    settings: EvaluateSettings
    out: Path
    missing: list[int]


@dataclass(frozen=True)
class _Environment:
    """What a worker's environments are; the same in all workers, or something is wrong."""

    scene: str
    renderer: str


@dataclass(frozen=True)
class _Failure:
    """A worker's exception, as text."""

    text: str


def _run(job: _Job, workers: int, batch: int) -> Iterator[ChainResult]:
    """Runs the missing chains on several processes, which take them one by one."""
    workers = min(workers, len(job.missing))
    batch = min(batch, -(-len(job.missing) // workers))
    context = multiprocessing.get_context("spawn")
    taken, messages = context.Value("i", 0), context.Queue()
    processes = [context.Process(target=_work, args=(job, batch, taken, messages), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        count = 0
        while count < len(job.missing):
            message = _next_message(processes, messages)
            if isinstance(message, _Failure):
                raise RuntimeError(f"a worker process failed; run again to go on\n{message.text}")
            if isinstance(message, _Environment):
                _claim(job.out / "environment.json", asdict(message))
                continue
            count += 1
            yield message
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _next_message(processes: Sequence[BaseProcess], messages: Any) -> Any:
    """What comes next from the workers.

    Raises:
        RuntimeError: nothing will, since one was killed.
    """
    while True:
        exit_codes = [process.exitcode for process in processes]
        try:
            return messages.get(timeout=1.0)
        except queue.Empty:
            if any(exit_codes) or None not in exit_codes:
                raise RuntimeError(
                    f"a worker process ended early (exit codes {exit_codes}; -9: killed, perhaps for memory: "
                    "try fewer workers or a smaller batch); run again to go on"
                ) from None


def _work(job: _Job, batch: int, taken: Any, messages: Any) -> None:
    """A worker process: makes the policy and environments, then runs chains until none is left."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a process, a core; torch reads it when it is first imported
    envs: list[Env] = []
    try:
        policy = job.make_policy()
        for _ in range(batch):
            envs.append(job.make_env())
        messages.put(_Environment(envs[0].scene, envs[0].renderer))
        leash = job.settings.leash
        leashed = envs if leash is None else [TargetLeash(env, leash) for env in envs]
        for result in run_chains(policy, leashed, _take(job.missing, taken), job.settings, job.out / "videos"):
            messages.put(result)
    except Exception:
        messages.put(_Failure(traceback.format_exc()))
    finally:
        for env in envs:
            env.close()


def _take(missing: Sequence[int], taken: Any) -> Iterator[int]:
    """Chains that no other worker has; none once the evaluation itself is gone."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        with taken.get_lock():
            position, taken.value = taken.value, taken.value + 1
        if position >= len(missing):
            return
        yield missing[position]


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


def _claim(path: Path, facts: dict[str, Any]) -> None:
    """Writes down how a folder was evaluated, or makes sure that it was evaluated alike."""
    mine = json.loads(json.dumps(facts))
    if path.exists():
        before, now = _flat(json.loads(path.read_text())), _flat(mine)
        different = [
            f"{key} {before.get(key)} (now {now.get(key)})"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if different:
            raise ValueError(
                f"{path.parent} holds an evaluation with other {', '.join(different)}; see {path}. "
                "Choose another folder, or remove this one to evaluate anew"
            )
    write_json(path, mine)


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts and settings side by side, without those that finished chains do not depend on."""
    settings = facts.get("settings", {})
    flat = {**facts, **{key: value for key, value in settings.items() if key not in EXTENSIBLE}}
    flat.pop("settings", None)
    return flat


def _read(path: Path) -> dict[int, ChainResult]:
    """Finished chains. A last line that a kill cut short is removed, so that others can follow."""
    results: dict[int, ChainResult] = {}
    if not path.exists():
        return results
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    for line in whole.splitlines():
        value = json.loads(line)
        results[value["index"]] = ChainResult(
            value["index"], tuple(value["tasks"]), value["solved"], tuple(value["steps"])
        )
    return results


def _append(path: Path, result: ChainResult) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())
