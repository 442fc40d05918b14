"""Finds the evaluations in the folders that a report is given, reads and checks them, and gives them short names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from calvin_eval.benchmark.calvin import NAME
from calvin_eval.benchmark.chains import LENGTH
from calvin_eval.evaluation.folder import EPOCH
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, read_lines
from calvin_eval.system.sealing import CHECKSUM, opened

WHAT = "the results of an evaluation"
RATES = [str(k) for k in range(1, LENGTH + 1)]


@dataclass(frozen=True)
class Found:
    """What lies in the folder that a report is given.

    Attributes:
        evaluations: folders of finished evaluations.
        unfinished: folders of evaluations that have no results yet.
        metrics: metrics.jsonl of the training beside them, of each round one, in order; () where there is none.
        recipe: the training's config.yaml, where there is one.
    """

    evaluations: tuple[Path, ...]
    unfinished: tuple[Path, ...] = ()
    metrics: tuple[Path, ...] = ()
    recipe: Path | None = None


def find(folder: Path) -> Found:
    """The evaluations of a folder: itself if it is one, else those in it, as in a run of `demo` or `train`.

    Raises:
        UserError: there is none. Says what the folder is, if that can be seen, and what to give.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give a folder that `roboflamingo evaluate --out` wrote")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder of an evaluation, as {folder.parent}")
    if _finished(folder):
        return Found((folder,))
    if _begun(folder):
        raise UserError(
            f"{folder} holds an evaluation that is not finished ({len(read_lines(folder / 'chains.jsonl'))} chains "
            "so far); the command that began it continues it, and writes results.json at its end"
        )
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    finished = tuple(child for child in inside if _finished(child))
    if not finished:
        raise UserError(_nothing(folder, inside))
    trainings = [run for run in (folder, *_rounds(inside)) if (run / "metrics.jsonl").is_file()]
    configured = [run for run in (*_rounds(inside)[::-1], folder) if (run / "config.yaml").is_file()]
    metrics = trainings[:1] if trainings[:1] == [folder] else trainings
    return Found(
        finished,
        tuple(child for child in inside if _begun(child) and child not in finished),
        tuple(run / "metrics.jsonl" for run in metrics),
        configured[0] / "config.yaml" if configured else None,
    )


def read_results(folder: Path) -> dict[str, Any]:
    """The results of an evaluation, checked; each chain's length by its index is among them if the folder knows it.

    Raises:
        UserError: a file is missing, damaged, lacks a key, or contradicts itself or the chains beside it.
    """
    path = folder / "results.json"
    value = read_json(path, WHAT)
    if not isinstance(value, dict) or not isinstance(value.get(EPOCH), dict):
        raise UserError(f"{path} should hold {WHAT}, under the key {EPOCH!r}; evaluate again")
    results = value[EPOCH]
    if CHECKSUM in results:  # results of earlier versions have none
        results = opened(results, str(path))
    results = dict(results)
    _check(results, path)
    if "lengths" not in results and (folder / "chains.jsonl").is_file():
        results["lengths"] = _lengths(folder / "chains.jsonl", results["chains"])
    lengths = results.get("lengths")
    if lengths is not None:
        _check_lengths(lengths, results, path)
    return results


def short_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's shortest end that no other has, less what all of them end with.

    `runs/a/chains` and `runs/b/chains` are `a` and `b`; `demo/closed_loop` and `demo/E4` go by their last parts.

    Raises:
        UserError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for one, other in itertools.combinations(range(len(parts)), 2):
        if parts[one] == parts[other]:
            raise UserError(f"{folders[one]} and {folders[other]} are the same folder; give it once")
    names = []
    for index, own in enumerate(parts):
        others = parts[:index] + parts[index + 1 :]
        sizes = (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append(own[-next(sizes, len(own)) :])
    while len(names) > 1 and all(len(name) > 1 and name[-1] == names[0][-1] for name in names):
        names = [name[:-1] for name in names]
    return ["/".join(part.strip("/") for part in name) for name in names]


def _finished(folder: Path) -> bool:
    """Whether a folder holds an evaluation's results; a demo's results.json is none."""
    path = folder / "results.json"
    if not path.is_file():
        return False
    if (folder / "chains.jsonl").is_file():
        return True
    value = read_json(path, WHAT)
    return isinstance(value, dict) and EPOCH in value


def _begun(folder: Path) -> bool:
    return (folder / "chains.jsonl").is_file()


def _rounds(inside: Sequence[Path]) -> list[Path]:
    """A demo's trainings, in order."""
    numbered = [
        (int(child.name[5:]), child) for child in inside if child.name.startswith("train") and child.name[5:].isdigit()
    ]
    return [child for _, child in sorted(numbered)]


def _nothing(folder: Path, inside: Sequence[Path]) -> str:
    """Why a folder has nothing for a report, and what to do."""
    unfinished = [child.name for child in inside if _begun(child)]
    if unfinished:
        return f"{folder} holds evaluations that are not finished ({', '.join(unfinished)}); finish one first"
    policies = [place for place in (folder, folder / "policy") if (place / "model.safetensors").is_file()]
    if policies:
        return (
            f"{folder} holds a policy and no evaluation of it; make one first: "
            f"roboflamingo evaluate --policy {policies[0]} --out {folder / 'chains'}"
        )
    return (
        f"{folder} holds no evaluation; give folders that `roboflamingo evaluate --out` wrote (with results.json), "
        "or the folder of a run that has such folders in it, as runs/demo"
    )


def _check(results: Mapping[str, Any], path: Path) -> None:
    """Makes sure that results are of CALVIN's chains, complete, and do not contradict themselves."""
    benchmark = results.get("benchmark", NAME)  # earlier versions knew no other
    if benchmark != NAME:
        raise UserError(
            f"{path} holds results of {benchmark}, and a report is of {NAME}'s chains; read the file itself"
        )
    chains, rates, length = results.get("chains"), results.get("chain_sr"), results.get("avg_seq_len")
    if type(chains) is not int or chains < 1:
        _refuse(path, "chains", chains, "a number of chains, at least 1")
    if not isinstance(rates, dict) or set(rates) != set(RATES) or not all(_is_rate(rate) for rate in rates.values()):
        _refuse(path, "chain_sr", rates, "rates in 0..1 of 1 to 5 tasks in a row")
    solved = [chains] + [chains * rates[k] for k in RATES]
    whole = all(abs(number - round(number)) < 1e-6 * chains for number in solved)
    if not whole or solved != sorted(solved, reverse=True):
        _refuse(path, "chain_sr", rates, f"falling shares of {chains} chains")
    if length is None or not _is_number(length) or abs(length - sum(rates.values())) > 1e-6:
        _refuse(path, "avg_seq_len", length, f"the sum of chain_sr, {sum(rates.values()):g}")
    tasks = results.get("task_info")
    if not isinstance(tasks, dict) or not all(_is_count(entry) for entry in tasks.values()):
        _refuse(path, "task_info", tasks, "successes and attempts of each task")
    if sum(entry["success"] for entry in tasks.values()) != round(sum(solved[1:])):
        _refuse(path, "task_info", tasks, "as many successes as chain_sr counts")
    settings = results.get("settings")
    if not isinstance(settings, dict) or type(settings.get("seed", 0)) is not int or settings.get("seed", 0) < 0:
        _refuse(path, "settings", settings, "the settings of an evaluation")
    if not _tells_what_was_done_instead(results.get("done_instead", {})):
        _refuse(path, "done_instead", results["done_instead"], "what was done where each task failed")
    if not isinstance(results.get("made_with"), dict):
        _refuse(path, "made_with", results.get("made_with"), "versions of what computed the results")
    if "execute" in results and (type(results["execute"]) is not int or results["execute"] < 1):
        _refuse(path, "execute", results["execute"], "E, a number of actions, at least 1")


def _check_lengths(lengths: Any, results: Mapping[str, Any], path: Path) -> None:
    if not isinstance(lengths, dict) or not all(
        key.isdigit() and type(value) is int and 0 <= value <= LENGTH for key, value in lengths.items()
    ):
        _refuse(path, "lengths", lengths, "each chain's solved tasks, 0 to 5, by its index")
    for k in RATES:
        reached = sum(value >= int(k) for value in lengths.values())
        if len(lengths) != results["chains"] or abs(reached - results["chains"] * results["chain_sr"][k]) > 1e-6:
            raise UserError(
                f"{path} and the chains that it was made of contradict each other ({reached} of {len(lengths)} chains "
                f"reach {k} tasks, not {results['chain_sr'][k]:.3f} of {results['chains']}); evaluate again"
            )


def _lengths(path: Path, chains: int) -> dict[str, int]:
    """Solved tasks of the first chains by index, from chains.jsonl; others may have been added since."""
    lengths = {}
    for line in read_lines(path):
        if not isinstance(line, dict) or type(line.get("index")) is not int or type(line.get("solved")) is not int:
            raise UserError(f"{path} has a line that is no chain ({str(line)[:80]}); evaluate again")
        if line["index"] < chains:
            lengths[str(line["index"])] = line["solved"]
    return lengths


def _tells_what_was_done_instead(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and type(entry.get("nothing")) is int
        and isinstance(entry.get("tasks"), dict)
        and all(type(count) is int for count in entry["tasks"].values())
        for entry in value.values()
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    success, total = value.get("success"), value.get("total")
    return type(success) is int and type(total) is int and 0 <= success <= total


def _refuse(path: Path, key: str, value: Any, wanted: str) -> NoReturn:
    shown = str(value) if len(str(value)) < 80 else f"{str(value)[:77]}..."
    raise UserError(
        f"{path} is damaged or of another kind: {key} is {shown}, where {wanted} should stand; evaluate again"
    )
