"""What an evaluation keeps: finished chains count for what they are chains of, and damage is seen."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from acting import BLIND, Stubborn
from calvin_eval.benchmark.calvin import CalvinChains, summarize_chains
from calvin_eval.benchmark.chains import chains
from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.evaluation.folder import EvaluationFolder, read_results
from calvin_eval.protocol import EpisodeResult
from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.sealing import sealed
from calvin_eval.worlds.playtable.world import PlayTable
from mutations import damaged

CHAINS = CalvinChains()
SETTINGS = ChainSettings(chains=3)
FACTS: dict[str, Any] = {"settings": asdict(SETTINGS), "policy": "a/policy", "policy_fingerprint": "0" * 64, "batch": 8}
RESULTS = {
    index: EpisodeResult(index, chains(3)[index].tasks, solved, steps)
    for index, (solved, steps) in enumerate([(2, (40, 55, 360)), (0, (360,)), (5, (61, 62, 63, 64, 65))])
}
SHORT = ChainSettings(chains=2, max_steps=2)
FILMABLE = partial(PlayTable, "D", "tinyrenderer")


def filled(path: Path) -> EvaluationFolder:
    """A folder with three finished chains, their environment and results."""
    path.mkdir(exist_ok=True)
    folder = EvaluationFolder(path, FACTS, CHAINS)
    folder.claim_environment({"scene": "D", "renderer": "none"}, done=False)
    for result in RESULTS.values():
        folder.add(result)
    folder.write_results({**summarize_chains(list(RESULTS.values())), **FACTS})
    return folder


def changed(**facts: Any) -> dict[str, Any]:
    return {**FACTS, **facts}


# --- claims ------------------------------------------------------------------------------------------------


def test_other_weights_in_the_same_folder_are_another_policy(tmp_path: Path) -> None:
    filled(tmp_path)
    other = EvaluationFolder(tmp_path, changed(policy_fingerprint="1" * 64), CHAINS)
    with pytest.raises(UserError, match=r"other policy_fingerprint 0{12}\.\.\. \(now 1{12}\.\.\.\).*fresh"):
        other.read()
    assert EvaluationFolder(tmp_path, changed(policy="moved/policy"), CHAINS).read() == RESULTS


@pytest.mark.parametrize("key", ["max_steps", "sentences", "leash"])
def test_settings_that_chains_depend_on_are_compared(tmp_path: Path, key: str) -> None:
    filled(tmp_path)
    others = {"max_steps": 100, "sentences": "enriched", "leash": 0.05}
    settings = asdict(replace(SETTINGS, **{key: others[key]}))
    with pytest.raises(UserError, match=f"other {key} "):
        EvaluationFolder(tmp_path, changed(settings=settings), CHAINS).read()


def test_more_chains_films_and_another_seed_of_intervals_are_no_other_evaluation(tmp_path: Path) -> None:
    filled(tmp_path)
    settings = asdict(replace(SETTINGS, chains=100, videos=2, seed=7))
    assert EvaluationFolder(tmp_path, changed(settings=settings), CHAINS).read() == RESULTS


def test_a_folder_of_an_older_version_says_so(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"settings": asdict(SETTINGS), "policy": "a/policy"}))
    with pytest.raises(UserError, match=r"older version, which does not say which weights.*choose another folder"):
        folder.read()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match=r"settings\.json is missing"):
        folder.read()


def refusing() -> Any:
    """What makes a policy and cannot."""
    raise UserError("weights.safetensors is not whole; copy it again")


def test_what_the_user_can_mend_comes_out_of_a_worker_as_it_is_and_the_folder_stays_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^weights\.safetensors is not whole; copy it again$"):
        evaluate_chains(BLIND, refusing, tmp_path, SHORT, workers=1, about={"execute": 1})
    assert not (tmp_path / "settings.json").exists()
    results = evaluate_chains(BLIND, partial(Stubborn, 2), tmp_path, SHORT, workers=1, about={"execute": 2})
    assert (results["execute"], results["chains"], results["batch"]) == (2, 2, 8)


def test_a_fresh_evaluation_takes_the_place_of_another_and_of_nothing_else(tmp_path: Path) -> None:
    folder, mine = filled(tmp_path), tmp_path / "notes.txt"
    folder.videos.mkdir()
    folder.film(0).write_bytes(b"")
    mine.write_text("keep")
    results = evaluate_chains(BLIND, Stubborn, tmp_path, SHORT, workers=1, fresh=True)
    assert results["chain_sr"]["1"] == 0 and len((tmp_path / "chains.jsonl").read_text().splitlines()) == 2
    assert mine.read_text() == "keep" and not folder.videos.exists()
    before = (tmp_path / "chains.jsonl").read_text()
    evaluate_chains(BLIND, Stubborn, tmp_path, SHORT, workers=1, fresh=True)  # the same one goes on
    assert (tmp_path / "chains.jsonl").read_text() == before


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path, "roboflamingo evaluate"),
        pytest.raises(UserError, match=r"in use by roboflamingo"),
    ):
        evaluate_chains(BLIND, Stubborn, tmp_path, SHORT, workers=1)
    assert not (tmp_path / "settings.json").exists()


def test_results_name_the_session_that_ran_the_chains_not_the_one_that_looked_again(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    value = json.loads((tmp_path / "settings.json").read_text())
    value.pop("checksum")
    value["made_with"][0]["processor"] = "another machine"
    (tmp_path / "settings.json").write_text(json.dumps(sealed(value)))
    again = EvaluationFolder(tmp_path, FACTS, CHAINS)
    again.read()
    assert [session["processor"] for session in again.sessions] == ["another machine"]
    again.add(RESULTS[0])
    assert [session["processor"] for session in again.sessions] == ["another machine", folder.sessions[0]["processor"]]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"batch": 0}])
def test_no_worker_and_no_environment_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        evaluate_chains(BLIND, Stubborn, tmp_path, SHORT, **wrong)  # type: ignore[arg-type]


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solved": 9}, "9 sub-tasks solved in 3 attempts"),
        ({"solved": 1}, "1 sub-tasks solved in 3 attempts"),
        ({"solved": True}, "a number is none"),
        ({"steps": (40, 55, 361)}, "not all in 1..360"),
        ({"steps": (40, 0, 360)}, "not all in 1..360"),
        ({"calls": (40, 55)}, r"calls \(40, 55\) do not fit steps"),
        ({"calls": (41, 1, 1)}, "do not fit steps"),
        ({"index": 1000}, "CALVIN has 1000 episodes"),
        ({"index": 7}, "its sub-tasks are not those of CALVIN"),
    ],
)
def test_a_line_that_no_chain_can_be_is_run_again(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = filled(tmp_path)
    lines = folder.episodes.read_text().splitlines()
    lines[0] = json.dumps(sealed({**asdict(RESULTS[0]), **change}))
    folder.episodes.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=message):
        assert folder.read() == {index: RESULTS[index] for index in (1, 2)}
    assert folder.read() == {index: RESULTS[index] for index in (1, 2)}  # mended, without a further word


def test_one_flipped_digit_is_seen_and_a_chain_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    text = folder.episodes.read_text()
    folder.episodes.write_text(text + text.splitlines()[1] + "\n")
    assert folder.read() == RESULTS and folder.episodes.read_text() == text
    folder.episodes.write_text(text.replace("61, 62", "61, 72"))
    with pytest.warns(UserWarning, match="episode 2 does not fit its checksum"):
        assert folder.read() == {index: RESULTS[index] for index in (0, 1)}
    other = json.dumps(sealed(asdict(replace(RESULTS[1], steps=(359,)))))
    folder.episodes.write_text(text + other + "\n")
    with pytest.warns(UserWarning, match="episode 1 is there twice, with different outcomes"):
        assert folder.read() == {index: RESULTS[index] for index in (0, 2)}


def read_chains(folder: EvaluationFolder) -> Any:
    """All that can be told of a damaged file: no other chains than there were, each as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return all(RESULTS.get(index) == result for index, result in folder.read().items())


READERS: dict[str, Callable[[EvaluationFolder], Any]] = {
    "chains.jsonl": read_chains,
    "settings.json": lambda folder: EvaluationFolder(folder.path, FACTS, CHAINS).read() == RESULTS,
    "environment.json": lambda folder: folder.environment() == {"scene": "D", "renderer": "none"},
    "results.json": lambda folder: read_results(folder.path / "results.json")["avg_seq_len"] == pytest.approx(7 / 3),
}


@pytest.mark.parametrize("name", READERS)
def test_200_kinds_of_damage_are_seen_and_none_is_believed(tmp_path: Path, name: str) -> None:
    folder = filled(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for number, content in enumerate(damaged(whole, 200)):
        path.write_bytes(content)
        with suppress(UserError):
            assert READERS[name](folder), f"mutation {number} changed what is read"
    path.write_bytes(whole)
    assert READERS[name](folder)


# --- films -------------------------------------------------------------------------------------------------


def test_films_of_finished_chains_are_made_by_running_them_again(tmp_path: Path) -> None:
    evaluate_chains(FILMABLE, Stubborn, tmp_path, SHORT, workers=1)
    before = (tmp_path / "chains.jsonl").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_chains(FILMABLE, Stubborn, tmp_path, replace(SHORT, videos=1), workers=1)
    assert [film.name for film in (tmp_path / "videos").iterdir()] == ["chain_000.mp4"]
    assert (tmp_path / "chains.jsonl").read_text() == before


def test_a_chain_that_goes_another_way_for_its_film_is_said_and_counts_as_filmed(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, FACTS, CHAINS)
    for result in RESULTS.values():
        folder.add(result)
    from calvin_eval.evaluation.evaluate import _keep

    done, filmed = folder.read(), replace(RESULTS[0], solved=1, steps=(40, 360))
    with pytest.warns(UserWarning, match="episode 0 was run again for its film .*: 1 sub-tasks.*of 2"):
        _keep(folder, filmed, done)
    assert folder.read() == {**RESULTS, 0: filmed}


def test_films_without_a_renderer_are_refused_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"films need images.*set settings\.videos and settings\.failure_videos to 0"):
        evaluate_chains(BLIND, refusing, tmp_path, replace(SHORT, videos=1), about={"renderer": "none"})
