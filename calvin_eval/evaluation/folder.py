"""What an evaluation keeps in its folder, and what of it may be believed.

`settings.json` says what was evaluated and how: the claim. `environment.json` says where. `chains.jsonl` has a line
per finished chain. `results.json` is made of them. Each carries a checksum, and finished chains count only as long as
the claim says what is asked for now.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calvin_eval.benchmark.chains import CHAINS, chains
from calvin_eval.benchmark.metrics import LENGTH, ChainResult
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_json, read_lines, write_json, write_text
from calvin_eval.system.provenance import provenance
from calvin_eval.system.sealing import opened, sealed

EPOCH = "0"
"""CALVIN files results under the number of a training epoch; a policy of ours has one."""
FREE = ("chains", "videos", "seed", "policy", "made_with")
"""Facts that may differ when an evaluation goes on: finished chains do not depend on them. A policy's path is one of
them, as its content is compared."""
ANEW = "choose another folder, remove this one, or ask for a fresh evaluation (--fresh true)"


class EvaluationFolder:
    """The folder of an evaluation.

    Args:
        path: where it is.
        facts: what is evaluated and how; JSON values, "settings" among them.

    Attributes:
        path: where it is.
        facts: see above.
        sessions: versions and machines of all that ran chains here, the last one last.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.sessions: list[dict[str, str]] = []
        self._environment: dict[str, str] | None = None
        self._claimed = False

    @property
    def chains(self) -> Path:
        """The file of finished chains."""
        return self.path / "chains.jsonl"

    @property
    def videos(self) -> Path:
        """The folder of films."""
        return self.path / "videos"

    def film(self, index: int) -> Path:
        """The film of a chain."""
        return self.videos / f"chain_{index:03d}.mp4"

    def clear(self) -> None:
        """Removes what another evaluation left here, and nothing else."""
        for name in ("results.json", "chains.jsonl", "environment.json", "settings.json"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.videos, ignore_errors=True)

    def read(self) -> dict[int, ChainResult]:
        """The finished chains.

        A last line that a kill cut short goes without a word. Other damaged lines are removed with a warning, and
        their chains are to be run again.

        Raises:
            UserError: the folder holds an evaluation of something else, or does not say of what.
        """
        if not self.chains.exists() or not self.chains.stat().st_size:
            return {}
        self._check_claim()
        found: dict[int, list[ChainResult]] = {}
        damaged: list[str] = []
        lines = read_lines(
            self.chains, mend=True, on_damage=lambda number, why: damaged.append(f"line {number}: {why}")
        )
        for value in lines:
            try:
                result = self._chain(value)
            except UserError as error:
                damaged.append(str(error))
                continue
            if result not in found.setdefault(result.index, []):
                found[result.index].append(result)
        for index in [index for index, results in found.items() if len(results) > 1]:
            damaged.append(f"chain {index} is there twice, with different outcomes")
            del found[index]
        done = {index: results[0] for index, results in found.items()}
        if damaged:
            warnings.warn(
                f"{self.chains} is damaged; these chains are removed and run again: {'; '.join(damaged)}", stacklevel=2
            )
        if damaged or len(done) < len(lines):
            self._rewrite(done)
        return done

    def add(self, result: ChainResult) -> None:
        """Writes down a finished chain, and before the first of a session what it is a chain of."""
        if not self._claimed:
            self._claimed, present = True, provenance()
            self.sessions = [session for session in self.sessions if session != present] + [present]
            write_json(self.path / "settings.json", sealed({**self.facts, "made_with": self.sessions}))
        append_line(self.chains, sealed(asdict(result)))

    def replace(self, result: ChainResult, done: dict[int, ChainResult]) -> None:
        """Puts a chain in the place of an earlier run of it."""
        self._rewrite({index: old for index, old in done.items() if index != result.index})
        self.add(result)

    def claim_environment(self, facts: dict[str, str], done: bool) -> None:
        """Writes down where chains run, or makes sure that it is where the others do.

        Args:
            facts: scene and renderer, as a worker found them.
            done: whether there are finished chains.

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
            value = read_json(path, "what the chains beside it are of")
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

    def _chain(self, value: Any) -> ChainResult:
        """A line as a result.

        Raises:
            UserError: it is none. Says which line, and why.
        """
        name = f"chain {value.get('index')}" if isinstance(value, dict) else f"line {str(value)[:40]!r}"
        line = opened(value, name)
        try:
            result = ChainResult(line["index"], tuple(line["tasks"]), line["solved"], tuple(line["steps"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{name}: {error!r}") from None
        wrong = self._wrong(result)
        if wrong:
            raise UserError(f"{name}: {wrong}")
        return result

    def _wrong(self, result: ChainResult) -> str | None:
        """What a result has that no chain can have."""
        most = self.facts["settings"]["max_steps"]
        numbers = (result.index, result.solved, *result.steps)
        if any(type(number) is not int for number in numbers):
            return "a number is none"
        if not 0 <= result.index < CHAINS:
            return f"there are {CHAINS} chains"
        if result.tasks != chains(CHAINS)[result.index].tasks:
            return "its tasks are not those of the official chain"
        if not 0 <= result.solved <= LENGTH or len(result.steps) != min(result.solved + 1, LENGTH):
            return f"{result.solved} tasks solved in {len(result.steps)} attempts"
        if any(not 1 <= steps <= most for steps in result.steps):
            return f"steps {result.steps} are not all in 1..{most}"
        return None

    def _rewrite(self, done: dict[int, ChainResult]) -> None:
        write_text(self.chains, "".join(json.dumps(sealed(asdict(result))) + "\n" for result in done.values()))


def read_results(path: Path) -> dict[str, Any]:
    """The results of an evaluation, as `results.json` has them.

    Raises:
        UserError: the file is missing, damaged, or no evaluation's.
    """
    value = read_json(path, "the results of an evaluation")
    if not isinstance(value, dict) or EPOCH not in value:
        raise UserError(f"{path} holds no results of an evaluation: it has no entry {EPOCH!r}")
    return opened(value[EPOCH], f"{path}")


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts and settings side by side, without those that finished chains do not depend on."""
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
