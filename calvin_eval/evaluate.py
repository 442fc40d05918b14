"""Runs CALVIN's chains with a policy (CALVIN SPEC 1.11).

Per chain: one reset to the official initial state, then the tasks back to back without reset; each has 360 control
steps and is tested after every one of them; the first failure ends the chain.

Several environments in a process share each forward pass of the policy, and several processes share the chains. Every
finished chain is on the disk at once; a killed evaluation goes on with the missing ones. Which process runs which
chain changes nothing, as long as the policy is deterministic.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calvin_eval.chains import CHAINS, Chain, chains, initial_state
from calvin_eval.files import provenance, write_json
from calvin_eval.instructions import SPLITS, sentences
from calvin_eval.leash import TargetLeash
from calvin_eval.metrics import ChainResult, summarize
from calvin_eval.protocol import Env, Info, Memory, Observation, Policy
from calvin_eval.tasks import TASKS
from calvin_eval.video import Clip

MakeEnv = Callable[[], Env]
MakePolicy = Callable[[], Policy]


@dataclass(frozen=True)
class EvaluateSettings:
    """How chains are run. Whatever differs here is another benchmark.

    Attributes:
        chains: how many of the official 1000, from the first.
        max_steps: control steps a task may take.
        sentences: split of the instructions; "validation" is the benchmark's one sentence per task, "enriched"
            takes another wording for every chain.
        leash: how far (m) the target pose may lead the measured one (`TargetLeash`); None as CALVIN does.
        videos: how many chains are filmed, from the first.
        seed: for the bootstrap of the intervals.
    """

    chains: int = CHAINS
    max_steps: int = 360
    sentences: str = "validation"
    leash: float | None = 0.05
    videos: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.chains <= CHAINS:
            raise ValueError(f"chains must be in 1..{CHAINS}, not {self.chains}")
        if self.sentences not in SPLITS:
            raise ValueError(f"sentences must be one of {', '.join(SPLITS)}, not {self.sentences!r}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {self.max_steps}")


@dataclass(frozen=True)
class Job:
    """Everything a worker process needs.

    Attributes:
        make_env, make_policy: factories that can be sent to another process.
        settings: how chains are run.
        videos: folder for films.
    """

    make_env: MakeEnv
    make_policy: MakePolicy
    settings: EvaluateSettings
    videos: Path


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
        make_env: makes an environment, in a worker process.
        make_policy: makes the policy, in a worker process.
        out: folder for results, finished chains and videos.
        settings: how chains are run.
        workers: processes; one per core by default.
        batch: environments that share a forward pass.
        label: of the progress bar.
        about: further facts for results.json, such as the checkpoint.

    Returns:
        What results.json holds.

    Raises:
        ValueError: the folder holds an evaluation with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = {"settings": asdict(settings), **(about or {})}
    _claim(out / "settings.json", facts)
    done = _read(out / "chains.jsonl")
    missing = [index for index in range(settings.chains) if index not in done]
    job = Job(make_env, make_policy, settings, out / "videos")
    if missing:
        for result in _run(job, missing, done, workers or os.cpu_count() or 1, batch, label):
            _append(out / "chains.jsonl", result)
            done[result.index] = result
    results = [done[index] for index in range(settings.chains)]
    renderer = json.loads((out / "renderer.json").read_text())["renderer"]
    summary = {
        **summarize(results, settings.seed),
        **facts,
        "renderer": renderer,
        "made_with": provenance(),
    }
    write_json(out / "results.json", summary)
    return summary


def _run(
    job: Job, missing: list[int], done: dict[int, ChainResult], workers: int, batch: int, label: str
) -> Iterator[ChainResult]:
    """Runs the missing chains on several processes, a batch of chains at a time."""
    size = max(1, min(batch, -(-len(missing) // workers)))
    parts = [missing[i : i + size] for i in range(0, len(missing), size)]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns) as progress,
        context.Manager() as manager,
        ProcessPoolExecutor(min(workers, len(parts)), context, initializer=_single_thread) as pool,
    ):
        finished = manager.Queue()
        bar = progress.add_task(label, total=len(missing) + len(done), completed=len(done), rates="")
        running: set[Future[None]] = {pool.submit(_run_part, job, part, finished) for part in parts}
        count, so_far = 0, list(done.values())
        while count < len(missing):
            ended, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in ended:
                future.result()
            while not finished.empty():
                result = ChainResult(*finished.get())
                count += 1
                so_far.append(result)
                progress.update(bar, advance=1, rates=_rates(so_far))
                yield result


def _rates(results: Sequence[ChainResult]) -> str:
    lengths = [result.solved for result in results]
    rates = " ".join(f"{100 * sum(n >= k for n in lengths) / len(lengths):.0f}" for k in range(1, 6))
    return f"SR@1..5 {rates} %  length {sum(lengths) / len(lengths):.2f}"


def _single_thread() -> None:
    """Each process keeps to one core; torch reads this when it is first imported."""
    os.environ["OMP_NUM_THREADS"] = "1"


_parts: dict[str, Any] = {}
"""A worker process's environments and policy, made once for all its batches."""


def _run_part(job: Job, indices: list[int], finished: Any) -> None:
    """Runs some chains side by side; finished ones go into the queue at once."""
    if "policy" not in _parts:
        _parts["policy"], _parts["envs"] = job.make_policy(), []
    envs = _parts["envs"]
    while len(envs) < len(indices):
        env = job.make_env()
        envs.append(env if job.settings.leash is None else TargetLeash(env, job.settings.leash))
    write_json(job.videos.parent / "renderer.json", {"renderer": envs[0].renderer})
    for result in run_chains(_parts["policy"], envs, indices, job.settings, job.videos):
        finished.put((result.index, result.tasks, result.solved, result.steps))


@dataclass
class _Slot:
    """One environment and the chain it is in."""

    env: Env
    index: int
    chain: Chain
    settings: EvaluateSettings
    clip: Clip | None
    solved: int = 0
    steps: list[int] = field(default_factory=list)
    step: int = 0
    observation: Observation | None = None
    memory: Memory = None
    start: Info | None = None
    over: bool = False

    @property
    def task(self) -> str:
        return self.chain.tasks[self.solved]

    @property
    def instruction(self) -> str:
        choices = sentences(self.task, self.settings.sentences)
        return choices[self.index % len(choices)]

    def begin(self, policy: Policy) -> None:
        """Resets to the chain's initial state."""
        self.observation = self.env.reset(*initial_state(self.chain.condition, self.env.scene))
        self.begin_task(policy)

    def begin_task(self, policy: Policy) -> None:
        """Gives the next instruction."""
        self.start, self.step = self.env.info(), 0
        self.memory = policy.start(self.instruction)
        if self.clip is not None:
            self.clip.begin(self.solved + 1, self.instruction)

    def execute(self, actions: Any, policy: Policy) -> None:
        """Executes a chunk, unless the task is solved or out of time within it."""
        for number, action in enumerate(actions):
            last = number == len(actions) - 1 or self.step == self.settings.max_steps - 1
            self.observation = self.env.step(action, render=last or self.clip is not None)
            self.step += 1
            if self.clip is not None:
                self.clip.add(self.observation)
            if TASKS[self.task](self.start, self.env.info()):
                self._end_task(True)
                if not self.over:
                    if self.observation.rgb_static.size == 0:
                        self.observation = self.env.observe()
                    self.begin_task(policy)
                return
            if self.step == self.settings.max_steps:
                self._end_task(False)
                return

    def _end_task(self, success: bool) -> None:
        self.steps.append(self.step)
        if self.clip is not None:
            self.clip.end(success)
        self.solved += int(success)
        self.over = not success or self.solved == len(self.chain.tasks)


def run_chains(
    policy: Policy, envs: Sequence[Env], indices: Sequence[int], settings: EvaluateSettings, videos: Path
) -> Iterator[ChainResult]:
    """Runs the chains of these indices in lockstep, one environment each, in this process.

    Args:
        policy: who acts.
        envs: at least as many as indices.
        indices: numbers of official chains.
        settings: how they are run.
        videos: folder for films.
    """
    official = chains(max(indices) + 1)
    slots = []
    for env, index in zip(envs, indices, strict=False):
        clip = Clip(videos / f"chain_{index:03d}.mp4") if index < settings.videos else None
        slots.append(_Slot(env, index, official[index], settings, clip))
        slots[-1].begin(policy)
    while slots:
        observations = [slot.observation for slot in slots if slot.observation is not None]
        actions, memories = policy.act(observations, [slot.memory for slot in slots])
        for slot, chunk, memory in zip(slots, actions, memories, strict=True):
            slot.memory = memory
            slot.execute(chunk, policy)
            if slot.over:
                if slot.clip is not None:
                    slot.clip.save()
                yield ChainResult(slot.index, slot.chain.tasks, slot.solved, tuple(slot.steps))
        slots = [slot for slot in slots if not slot.over]


def _claim(path: Path, facts: dict[str, Any]) -> None:
    """Makes sure that what the folder holds was evaluated alike."""
    mine = json.loads(json.dumps(facts))
    if path.exists():
        theirs = json.loads(path.read_text())
        if theirs != mine:
            different = sorted(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
            raise ValueError(
                f"{path.parent} holds an evaluation with other {', '.join(different)} (see {path}); "
                "choose another folder, or remove it to evaluate anew"
            )
    else:
        write_json(path, mine)


def _read(path: Path) -> dict[int, ChainResult]:
    """Finished chains; a last line cut short by a kill is left out."""
    results: dict[int, ChainResult] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            results[value["index"]] = ChainResult(
                value["index"], tuple(value["tasks"]), value["solved"], tuple(value["steps"])
            )
    return results


def _append(path: Path, result: ChainResult) -> None:
    with path.open("a") as file:
        # A line that a kill cut short ends here, so that this one begins anew.
        file.write(("" if _ends_with_newline(path) else "\n") + json.dumps(asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(path: Path) -> bool:
    data = path.read_bytes()
    return not data or data.endswith(b"\n")
