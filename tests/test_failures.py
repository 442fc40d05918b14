"""What was done instead where a task failed: recorded by the oracle, counted, filmed and shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gridworld import GridTasks, GridWorld, Walker

from acting import BLIND, Stubborn, run_chains
from calvin_eval.benchmark.calvin import CalvinChains, summarize_chains
from calvin_eval.benchmark.chains import chains
from calvin_eval.benchmark.metrics import count_instead, failures, summarize_episodes
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.evaluation.folder import EvaluationFolder
from calvin_eval.evaluation.report import write_report
from calvin_eval.evaluation.report.reading import read_results
from calvin_eval.evaluation.report.tables import failed_tasks
from calvin_eval.evaluation.report.videos import films_of
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import EpisodeResult, Memory
from calvin_eval.system.errors import UserError
from calvin_eval.system.sealing import sealed
from calvin_eval.worlds.playtable.world import PlayTable
from roboflamingo.cli.report import run as report

CLOSED = next(
    number
    for number, chain in enumerate(chains())
    if chain.condition.drawer == "closed" and chain.tasks[0] not in ("open_drawer", "push_into_drawer")
)
"""A chain that begins with another task than the drawer, which is shut."""


class Misled(Expert):
    """Opens the drawer, whatever it is told."""

    def start(self, instruction: str) -> Memory:
        return "open_drawer"


@pytest.fixture(scope="module")
def misled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeResult]:
    settings = ChainSettings(chains=CLOSED + 1, max_steps=90)
    with BLIND() as table:
        (result,) = run_chains(Misled("D"), [table], [CLOSED], settings, tmp_path_factory.mktemp("v"))
    yield result


def test_a_failed_attempt_records_what_was_done_instead_and_when(misled: EpisodeResult) -> None:
    assert misled.solved == 0 and misled.failed == chains(CLOSED + 1)[CLOSED].tasks[0]
    names, steps = zip(*misled.instead, strict=True)
    assert "open_drawer" in names and list(steps) == sorted(steps) and 1 < steps[0] < 90
    with BLIND() as table:  # the oracle says the same, step by step
        chain = CalvinChains(90).episode(CLOSED)
        seen, policy = chain.reset(table), Misled("D")
        start, step = table.info(), 0
        while not TASKS["open_drawer"](start, table.info()):
            (((action,),), _) = policy.act([seen], ["open_drawer"])
            seen, step = table.step(action, render=False), step + 1
    assert ("open_drawer", step) in misled.instead


def test_chains_that_are_solved_record_nothing_and_other_benchmarks_need_not_know(tmp_path: Path) -> None:
    with BLIND() as table:
        (result,) = run_chains(Expert("D"), [table], [1], ChainSettings(chains=2), tmp_path)
    assert result.solved == 5 and result.failed is None and result.instead == ()
    grid = GridWorld()
    lost = next(iter(run_episodes(Walker("door"), [grid], map(GridTasks().episode, [5]))))
    assert lost.instead == ()


RESULTS = [
    EpisodeResult(0, ("a", "b"), 1, (9, 30), (("c", 4), ("a", 20))),
    EpisodeResult(1, ("b", "a"), 0, (30,)),
    EpisodeResult(2, ("b", "a"), 0, (30,), (("c", 7),)),
    EpisodeResult(3, ("a", "b"), 2, (5, 5)),
]


def test_what_was_done_instead_is_counted_and_listed() -> None:
    assert count_instead(RESULTS) == {"b": {"failed": 3, "nothing": 1, "tasks": {"c": 2, "a": 1}}}
    listed = failures(RESULTS)
    assert sorted(listed) == ["0", "1", "2"] and listed["1"] == {"task": "b", "instead": []}
    assert listed["0"]["instead"] == [{"task": "c", "step": 4}, {"task": "a", "step": 20}]
    summary = summarize_episodes(RESULTS)
    assert summary["done_instead"] == count_instead(RESULTS) and summary["failures"] == listed


def test_finished_chains_keep_it_and_what_cannot_be_is_damage(tmp_path: Path, misled: EpisodeResult) -> None:
    facts: dict[str, Any] = {"settings": asdict(ChainSettings(max_steps=90)), "batch": 1}
    folder = EvaluationFolder(tmp_path, facts, CalvinChains(90))
    folder.add(misled)
    assert EvaluationFolder(tmp_path, facts, CalvinChains(90)).read() == {CLOSED: misled}
    for wrong in ((("open_drawer", 91),), (("open_drawer", 0),)):
        line = sealed(asdict(replace(misled, instead=wrong)))
        with pytest.raises(UserError, match="not done in the attempt that failed"):
            folder._episode(line)


def test_failures_are_filmed_by_running_them_again_and_nothing_else_is(tmp_path: Path) -> None:
    settings = ChainSettings(chains=3, max_steps=4, failure_videos=2)
    table = partial(PlayTable, "D", "tinyrenderer")
    evaluate_chains(table, Stubborn, tmp_path / "a", replace(settings, failure_videos=0), workers=1)
    lines = (tmp_path / "a" / "chains.jsonl").read_text()
    assert not (tmp_path / "a" / "videos").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as it does where a chain goes another way
        results = evaluate_chains(table, Stubborn, tmp_path / "a", settings, workers=1)
    films = [film.name for film in sorted((tmp_path / "a" / "videos").iterdir())]
    assert films == ["chain_000.mp4", "chain_001.mp4"] and set(results["failures"]) == {"0", "1", "2"}
    assert (tmp_path / "a" / "chains.jsonl").read_text() == lines
    with pytest.raises(UserError, match="films need images"):
        evaluate_chains(BLIND, Stubborn, tmp_path / "b", settings, about={"renderer": "none"})


# --- the page ----------------------------------------------------------------------------------


def evaluated(folder: Path) -> Path:
    """The folder of an evaluation of which the first chain was solved whole, with films of two."""
    table = chains(3)
    results = [
        EpisodeResult(0, table[0].tasks, 5, (9, 9, 9, 9, 9)),
        EpisodeResult(1, table[1].tasks, 1, (9, 360), (("open_drawer", 33),)),
        EpisodeResult(2, table[2].tasks, 0, (360,)),
    ]
    facts: dict[str, Any] = {"settings": asdict(ChainSettings(chains=3)), "policy": "a", "scene": "D", "batch": 8}
    held = EvaluationFolder(folder, facts, CalvinChains())
    for result in results:
        held.add(result)
    held.write_results({**summarize_chains(results), **facts, "made_with": {}})
    (folder / "videos").mkdir()
    for number in (0, 1):
        (folder / "videos" / f"chain_{number:03d}.mp4").write_bytes(b"a film")
    return folder


def test_the_page_has_a_table_of_what_was_done_instead_and_a_gallery_of_failures(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "chains")
    text = report([str(folder)], None, "t", None).read_text()
    failed = chains(2)[1].tasks[1]
    assert "<h2>Failures</h2>" in text and text.index("<h2>Videos</h2>") < text.index("chain 0<")
    assert f"chain 1: {failed} failed; done instead: open_drawer (step 33)" in text.split("<h2>Failures</h2>")[1]
    assert f"<td>{failed}</td><td>0/" in text and "<td>open_drawer 1</td>" in text and "<td>nothing 1</td>" in text
    results = read_results(folder)
    lines = failed_tasks(results)
    assert [line["success"].split("/")[0] for line in lines[:2]] == ["0", "0"]  # the least successful first
    del results["failures"], results["done_instead"]  # as of before they were looked for
    assert films_of(folder, results)[1] == {} and all(line["instead"] == "" for line in failed_tasks(results))
    write_report(tmp_path / "old.html", "t", {"old": results})


def test_results_that_contradict_themselves_are_damage(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "chains")
    results = read_results(folder)
    held = EvaluationFolder(folder, {"settings": results["settings"]}, CalvinChains())
    held.write_results({**results, "done_instead": {"a": {"nothing": "many"}}})
    with pytest.raises(UserError, match="done_instead is"):
        read_results(folder)
