"""Why a policy does better or worse closed-loop: how much it stands still and turns back, by E, on the same chains.

    python benchmarks/closed_loop.py --policy runs/tiny/policy --execute 1 2 4 8 --chains 100
    python benchmarks/closed_loop.py --policy runs/tiny/policy --execute 1 8 --ensemble 0.01 --set choosing --scene D

For every E it runs the same chains, as `roboflamingo evaluate` does, and notes of each control step
    still      the command is near zero: translation and rotation below `--still` of their range, the gripper as before
    at rest    the arm itself hardly moves: less than 0.5 mm and 5 mrad in the step, and the fingers not at all
    turned     the command's translation points against that of the step before, where neither is near zero
    switched   the gripper's command is another than at the step before
and prints their shares in attempts that solved and that failed, how many failed attempts end at rest (their last
second), and control steps for each solved task. Then each E is compared with the first one, chain by chain: lengths,
the share of still steps, and the steps for tasks that both solved. Intervals are 95 %. The last line is one line of
JSON. Chains are those for choosing unless told otherwise: what is found here changes recipes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from facts import made_on
from rich.progress import track

from calvin_eval.benchmark.calvin import CalvinChains, summarize_chains
from calvin_eval.benchmark.chains import LENGTH, SETS
from calvin_eval.benchmark.metrics import mean_interval, paired_difference
from calvin_eval.calvin import ROBOT_OBS, CalvinEnv
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Episode, EpisodeResult, Observation
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.worlds.leash import leashed
from roboflamingo.cli.policies import check_policy, how_to_act, make_env, open_policy

NOTES = ("still", "at rest", "turned", "switched")
REST_M, REST_RAD, REST_FINGERS_M = 0.0005, 0.005, 0.0002
LAST = 30
"""Steps at the end of a failed attempt that must all be at rest for it to end at rest: a second."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task.

    Attributes:
        chain: number of its chain.
        place: which of the chain's tasks it is, from 0.
        task: its name.
        solved: whether it was solved.
        steps: (n, 4) bool, `NOTES` of each control step.
    """

    chain: int
    place: int
    task: str
    solved: bool
    steps: np.ndarray


class Noting:
    """An environment that notes what it is told and does, chain by chain.

    Args:
        env: the environment.
        still: commands below this part of their range are near zero.
    """

    def __init__(self, env: CalvinEnv, still: float) -> None:
        self._env, self._still = env, still
        self.notes: dict[int, list[tuple[bool, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, episode: Episode) -> Observation:
        """Resets the environment for a chain, whose steps are noted from now on."""
        seen = episode.reset(self._env)
        self._chain = self.notes.setdefault(episode.index, [])
        self._pose, self._action = seen.state[ROBOT_OBS][:7], np.array([0.0] * 6 + [1.0])
        return seen

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        """Executes an action (7,), and notes it."""
        seen = self._env.step(action, render=render)
        pose, before = seen.state[ROBOT_OBS][:7], self._action
        moved = np.abs(pose - self._pose)
        turn = np.minimum(moved[3:6], 2 * np.pi - moved[3:6])
        still = [bool(np.abs(each[:6]).max() < self._still) for each in (before, action)]
        switched = action[6] != before[6]
        at_rest = np.linalg.norm(moved[:3]) < REST_M and turn.max() < REST_RAD and moved[6] < REST_FINGERS_M
        turned = not any(still) and float(action[:3] @ before[:3]) < 0
        self._chain.append((still[1] and not switched, bool(at_rest), turned, bool(switched)))
        self._pose, self._action = pose, np.array(action, float)
        return seen


def _begin(episode: Episode, env: Any) -> Observation:
    return env.begin(episode)  # type: ignore[no-any-return]


def attempts_of(result: EpisodeResult, notes: Sequence[tuple[bool, ...]]) -> Iterator[Attempt]:
    """The attempts of a chain, of what was noted of all of its steps."""
    rows, first = np.array(notes, bool).reshape(-1, len(NOTES)), 0
    for place, steps in enumerate(result.steps):
        task, solved = result.tasks[place], place < result.solved
        yield Attempt(result.index, place, task, solved, rows[first : first + steps])
        first += steps


@dataclass(frozen=True)
class Job:
    """Some chains for a worker, with one way of acting.

    Attributes:
        policy: its folder.
        execute: E.
        ensemble: decay of a temporal ensemble; None for none.
        leash: how far (m) the target may lead the measured pose.
        scene: where.
        chains: the benchmark.
        indices: which chains.
        batch: environments side by side, as `evaluate` has them.
        still: see `Noting`.
        renderer: what draws.
    """

    policy: str
    execute: int
    ensemble: float | None
    leash: float | None
    scene: str
    chains: CalvinChains
    indices: tuple[int, ...]
    batch: int
    still: float
    renderer: str

    @property
    def label(self) -> str:
        """As "E 8"."""
        return f"E {self.execute}" + ("" if self.ensemble is None else f", ensemble {self.ensemble:g}")


def work(job: Job) -> tuple[str, list[EpisodeResult], list[Attempt]]:
    """Runs a job's chains, as `evaluate` runs them."""
    with ExitStack() as held:
        ways = (job.policy, job.execute, job.ensemble, job.scene, "cpu", job.batch)
        policy = held.enter_context(closing(open_policy(*ways)))
        make = partial(make_env, job.scene, job.renderer)
        count = min(job.batch, len(job.indices))
        envs = [Noting(held.enter_context(closing(leashed(make, job.leash))), job.still) for _ in range(count)]
        episodes = (job.chains.episode(index) for index in job.indices)
        noted = (replace(episode, reset=partial(_begin, episode)) for episode in episodes)
        results = list(run_episodes(policy, envs, noted))
    notes = {index: noted for env in envs for index, noted in env.notes.items()}
    return job.label, results, [a for result in results for a in attempts_of(result, notes[result.index])]


def shares(attempts: Sequence[Attempt]) -> dict[str, float | None]:
    """Shares of steps by what was noted of them; None where there are no attempts."""
    if not attempts:
        return dict.fromkeys(NOTES)
    means = np.concatenate([attempt.steps for attempt in attempts]).mean(axis=0)
    return {name: round(float(mean), 4) for name, mean in zip(NOTES, means, strict=True)}


def figures(results: Sequence[EpisodeResult], attempts: Sequence[Attempt]) -> dict[str, Any]:
    """What is printed of one way of acting."""
    summary = summarize_chains(results)
    failed = [attempt for attempt in attempts if not attempt.solved]
    resting = [bool(attempt.steps[-LAST:, NOTES.index("at rest")].all()) for attempt in failed]
    tasks = sorted({attempt.task for attempt in failed})
    return {
        "avg_seq_len": round(summary["avg_seq_len"], 3),
        "interval": [round(bound, 3) for bound in summary["intervals"]["avg_seq_len"]],
        "steps_per_solved_task": summary["steps_per_solved_task"],
        "solved": shares([attempt for attempt in attempts if attempt.solved]),
        "failed": shares(failed),
        "failed_that_end_at_rest": round(float(np.mean(resting)), 4) if resting else None,
        "failed_by_task": {task: shares([a for a in failed if a.task == task]) for task in tasks},
    }


def differences(
    one: tuple[Sequence[EpisodeResult], Sequence[Attempt]], other: tuple[Sequence[EpisodeResult], Sequence[Attempt]],
    most: int,
) -> dict[str, Any]:  # fmt: skip
    """How much more of each the one has than the other: mean, 95 % interval, and how many pairs.

    Args:
        one: results and attempts of one way of acting.
        other: of another, on the same chains.
        most: control steps that a task may take.
    """
    lengths = [{result.index: result.solved for result in results} for results, _ in (one, other)]
    length = paired_difference(lengths[0], lengths[1], LENGTH)
    assert length is not None
    found: dict[str, Any] = {"length": _shown(length.mean, length.interval, length.episodes)}
    still: list[dict[int, float]] = []
    steps: list[dict[tuple[int, int], int]] = []
    for _, attempts in (one, other):
        chains = {attempt.chain: [a.steps for a in attempts if a.chain == attempt.chain] for attempt in attempts}
        still.append({chain: float(np.concatenate(rows)[:, 0].mean()) for chain, rows in chains.items()})
        steps.append({(a.chain, a.place): len(a.steps) for a in attempts if a.solved})
    for name, (first, second), bound in (
        ("share of still steps", still, 1),
        ("steps of tasks both solved", steps, most),
    ):
        values = np.array([first[key] - second[key] for key in sorted(first.keys() & second.keys())])  # type: ignore[index]
        if len(values):
            found[name] = _shown(float(values.mean()), mean_interval(values, -bound, bound, 0), len(values))
    return found


def _shown(mean: float, interval: Sequence[float], pairs: int) -> dict[str, Any]:
    return {"mean": round(mean, 4), "interval": [round(bound, 4) for bound in interval], "pairs": pairs}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="its folder")
    parser.add_argument(
        "--execute", type=int, nargs="+", default=[1, 8], help="values of E; the first is compared with"
    )
    parser.add_argument("--ensemble", type=float, help="decay of a temporal ensemble, as one way more")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--set", choices=SETS, default="choosing")
    parser.add_argument("--scene", choices="ABCD", default="D")
    parser.add_argument("--leash", type=float, help="metres, 0 for none; by default what is saved with the policy")
    parser.add_argument("--max_steps", type=int, default=360, help="that a task may take")
    parser.add_argument("--still", type=float, default=0.05, help="commands below this part of their range are still")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--renderer", choices=("panda3d", "tinyrenderer"), default="panda3d")
    return parser.parse_args()


def main() -> None:
    """Runs all ways, prints tables and the line."""
    given = parse()
    leash = how_to_act(given.policy, leash=given.leash).leash
    ways = [(execute, None) for execute in given.execute] + ([] if given.ensemble is None else [(1, given.ensemble)])
    for execute, ensemble in ways:
        check_policy(given.policy, execute, ensemble, "cpu")
    chains = CalvinChains(given.max_steps, set=given.set)
    parts = [tuple(range(first, given.chains, given.workers)) for first in range(min(given.workers, given.chains))]
    jobs = [
        Job(given.policy, execute, ensemble, leash, given.scene, chains, part, given.batch, given.still, given.renderer)
        for execute, ensemble in ways
        for part in parts
    ]
    found: dict[str, tuple[list[EpisodeResult], list[Attempt]]] = {job.label: ([], []) for job in jobs}
    done = run_jobs(work, jobs, given.workers, environment={"OMP_NUM_THREADS": "1"})
    for label, results, attempts in track(done, "Running chains", total=len(jobs)):
        found[label][0].extend(results)
        found[label][1].extend(attempts)
    said = {label: figures(*each) for label, each in found.items()}
    first = jobs[0].label
    compared = {
        f"{label} minus {first}": differences(found[label], found[first], given.max_steps)
        for label in found
        if label != first
    }
    _print(said, compared)
    about = {"policy": given.policy, "set": given.set, "scene": given.scene, "chains": given.chains, "leash": leash}
    about |= {"still_below": given.still, "batch": given.batch, "renderer": given.renderer}
    print(json.dumps({**about, "ways": said, "differences": compared, **made_on(1)}))


def _print(said: dict[str, dict[str, Any]], compared: dict[str, dict[str, Any]]) -> None:
    for label, each in said.items():
        steps, rest = each["steps_per_solved_task"], each["failed_that_end_at_rest"]
        print(f"{label}: length {each['avg_seq_len']} {each['interval']}, steps a solved task {steps}")
        print(f"    failed attempts that end at rest: {rest}")
        for kind in ("solved", "failed"):
            print(f"    {kind}: " + ", ".join(f"{name} {share}" for name, share in each[kind].items()))
    for label, each in compared.items():
        print(f"{label}: " + "; ".join(f"{n} {d['mean']:+} {d['interval']} ({d['pairs']})" for n, d in each.items()))


if __name__ == "__main__":
    main()
