"""What an evaluation keeps in its folder, and what of it may be believed.

`settings.json` says what was evaluated and how: the claim. `environment.json` says where. `chains.jsonl` has a line
per finished episode, which is a chain of sub-tasks. `results.json` is made of them. Each carries a checksum, and
finished episodes count only as long as the claim says what is asked for now.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calvin_eval.protocol import Benchmark, EpisodeResult
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_json, read_lines, write_json, write_text
from calvin_eval.system.provenance import provenance
from calvin_eval.system.sealing import opened, sealed

EPOCH = "0"
"""CALVIN files results under the number of a training epoch; a policy of ours has one."""
FREE = ("episodes", "chains", "videos", "failure_videos", "seed", "policy", "made_with", "hardware", "acting_from")
"""Facts that may differ when an evaluation goes on: finished episodes, which CALVIN calls chains, do not depend on
them. A policy's path is one of them, as its content is compared; and who said how it acts, as that is compared."""
ANEW = "choose another folder, remove this one, or ask for a fresh evaluation (--fresh true)"


def film_path(videos: Path, index: int) -> Path:
    """The film of an episode in the folder of films."""
    return videos / f"chain_{index:03d}.mp4"


class EvaluationFolder:
    """The folder of an evaluation.

    Args:
        path: where it is.
        facts: what is evaluated and how; JSON values, "settings" among them.
        benchmark: whose episodes they are.

    Attributes:
        path: where it is.
        facts: see above.
        sessions: versions and machines of all that ran episodes here, the last one last.
    """

    def __init__(self, path: Path, facts: dict[str, Any], benchmark: Benchmark) -> None:
        self.path, self.facts, self._benchmark = path, facts, benchmark
        self.sessions: list[dict[str, str]] = []
        self._environment: dict[str, Any] | None = None
        self._claimed = False

    @property
    def episodes(self) -> Path:
        """The file of finished episodes."""
        return self.path / "chains.jsonl"

    @property
    def videos(self) -> Path:
        """The folder of films."""
        return self.path / "videos"

    def film(self, index: int) -> Path:
        """The film of an episode."""
        return film_path(self.videos, index)

    def clear(self) -> None:
        """Removes what another evaluation left here, and nothing else."""
        for name in ("results.json", "chains.jsonl", "environment.json", "settings.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.videos, ignore_errors=True)

    def read(self) -> dict[int, EpisodeResult]:
        """The finished episodes.

        A last line that a kill cut short goes without a word. Other damaged lines are removed with a warning, and
        their episodes are to be run again.

        Raises:
            UserError: the folder holds an evaluation of something else, or does not say of what.
        """
        if not self.episodes.exists() or not self.episodes.stat().st_size:
            return {}
        self._check_claim()
        found: dict[int, list[EpisodeResult]] = {}
        damaged: list[str] = []
        lines = read_lines(
            self.episodes, mend=True, on_damage=lambda number, why: damaged.append(f"line {number}: {why}")
        )
        for value in lines:
            try:
                result = self._episode(value)
            except UserError as error:
                damaged.append(str(error))
                continue
            if result not in found.setdefault(result.index, []):
                found[result.index].append(result)
        for index in [index for index, results in found.items() if len(results) > 1]:
            damaged.append(f"episode {index} is there twice, with different outcomes")
            del found[index]
        done = {index: results[0] for index, results in found.items()}
        if damaged:
            warnings.warn(
                f"{self.episodes} is damaged; these episodes are removed and run again: {'; '.join(damaged)}",
                stacklevel=2,
            )
        if damaged or len(done) < len(lines):
            self._rewrite(done)
        return done

    def add(self, result: EpisodeResult) -> None:
        """Writes down a finished episode, and before the first of a session what it is an episode of."""
        if not self._claimed:
            self._claimed, present = True, provenance()
            self.sessions = [session for session in self.sessions if session != present] + [present]
            write_json(self.path / "settings.json", sealed({**self.facts, "made_with": self.sessions}))
        append_line(self.episodes, sealed(asdict(result)))

    def replace(self, result: EpisodeResult, done: dict[int, EpisodeResult]) -> None:
        """Puts an episode in the place of an earlier run of it."""
        self._rewrite({index: old for index, old in done.items() if index != result.index})
        self.add(result)

    def claim_environment(self, facts: dict[str, Any], done: bool) -> None:
        """Writes down where episodes run, or makes sure that it is where the others do.

        Args:
            facts: the renderer, and what else episodes depend on, as a worker found them; JSON values.
            done: whether there are finished episodes.

        Raises:
            UserError: it is not.
        """
        if done and self._environment is None:
            self._environment = self.environment()
        if self._environment is None:
            write_json(self.path / "environment.json", sealed(facts))
            self._environment = facts
        self._refuse(_different(self._environment, facts), self.path / "environment.json")

    def environment(self) -> dict[str, Any]:
        """What `claim_environment` wrote down.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.path / "environment.json"
        try:
            return opened(read_json(path, "the environment of an evaluation"), f"{path}")
        except UserError as error:
            raise UserError(f"{error}; {ANEW}") from None

    def write_results(self, summary: dict[str, Any]) -> None:
        """Writes `results.json`."""
        write_json(self.path / "results.json", {EPOCH: sealed(summary)})

    def _check_claim(self) -> None:
        path = self.path / "settings.json"
        try:
            value = read_json(path, "what the episodes beside it are of")
            if isinstance(value, dict) and "checksum" not in value and "settings" in value:
                raise UserError(
                    f"{self.path} holds an evaluation by an older version, which does not say which weights were "
                    "evaluated"
                )
            before = opened(value, f"{path}")
        except UserError as error:
            raise UserError(f"{error}; {ANEW}") from None
        self._refuse(_different(_flat(before), _flat(sealed(self.facts))), path)
        self.sessions = before["made_with"]

    def _refuse(self, different: Sequence[str], path: Path) -> None:
        if different:
            raise UserError(f"{self.path} holds an evaluation with other {', '.join(different)} (see {path}); {ANEW}")

    def _episode(self, value: Any) -> EpisodeResult:
        """A line as a result.

        Raises:
            UserError: it is none. Says which line, and why.
        """
        name = f"episode {value.get('index')}" if isinstance(value, dict) else f"line {str(value)[:40]!r}"
        line = opened(value, name)
        try:
            tasks, steps, calls = (tuple(line[key]) for key in ("tasks", "steps", "calls"))
            instead = tuple((name, step) for name, step in line["instead"])
            result = EpisodeResult(line["index"], tasks, line["solved"], steps, instead, calls, line["jerk"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}: {error!r}") from None
        wrong = self._wrong(result)
        if wrong:
            raise UserError(f"{name}: {wrong}")
        return result

    def _wrong(self, result: EpisodeResult) -> str | None:
        """What a result has that no episode of the benchmark can have."""
        done = (step for _, step in result.instead)
        numbers = (result.index, result.solved, *result.steps, *done, *result.calls)
        if any(type(number) is not int for number in numbers):
            return "a number is none"
        if not 0 <= result.index < len(self._benchmark):
            return f"{self._benchmark.name} has {len(self._benchmark)} episodes"
        episode = self._benchmark.episode(result.index)
        if result.tasks != episode.tasks:
            return f"its sub-tasks are not those of {self._benchmark.name}"
        count, most = len(episode.tasks), episode.max_steps
        if not 0 <= result.solved <= count or len(result.steps) != min(result.solved + 1, count):
            return f"{result.solved} sub-tasks solved in {len(result.steps)} attempts"
        if any(not 1 <= steps <= most for steps in result.steps):
            return f"steps {result.steps} are not all in 1..{most}"
        if result.instead and (result.failed is None or any(not 1 <= n <= result.steps[-1] for _, n in result.instead)):
            return f"{result.instead} was not done in the attempt that failed"
        if result.calls and not _fit(result.calls, result.steps):
            return f"calls {result.calls} do not fit steps {result.steps}"
        return None

    def _rewrite(self, done: dict[int, EpisodeResult]) -> None:
        write_text(self.episodes, "".join(json.dumps(sealed(asdict(result))) + "\n" for result in done.values()))


def read_results(path: Path) -> dict[str, Any]:
    """The results of an evaluation, as `results.json` has them.

    Raises:
        UserError: the file is missing, damaged, or no evaluation's.
    """
    value = read_json(path, "the results of an evaluation")
    if not isinstance(value, dict) or EPOCH not in value:
        raise UserError(f"{path} holds no results of an evaluation: it has no entry {EPOCH!r}")
    return opened(value[EPOCH], f"{path}")


def _fit(calls: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    """Whether so many chunks can have been executed in so many steps."""
    return len(calls) == len(steps) and all(1 <= c <= s for c, s in zip(calls, steps, strict=True))


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts and settings side by side, without those that finished episodes do not depend on."""
    flat = {key: value for key, value in facts.items() if key not in ("settings", "checksum")}
    flat |= facts["settings"]
    return {key: value for key, value in flat.items() if key not in FREE}


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key} {_short(before.get(key))} (now {_short(now.get(key))})"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    """A fact as a message shows it; of a fingerprint the beginning is enough."""
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
