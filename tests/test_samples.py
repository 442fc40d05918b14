"""The samples in tests/data: what was proven equal to CALVIN still holds, in every clone (see tests/data/README.md)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import make_samples
from calvin_eval.__main__ import main as check_world
from calvin_eval.benchmark.chains import CHAINS, chains, initial_state
from calvin_eval.benchmark.instructions import SPLITS, sentences
from calvin_eval.benchmark.tasks import TASKS, check
from calvin_eval.benchmark.tasks import main as check_tasks
from calvin_eval.calvin import SCENES
from calvin_eval.demonstrations.scene_config import merged_config
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.rollouts import tcp_errors
from calvin_eval.worlds.playtable.world import PlayTable
from make_samples import DATA
from mutations import damaged

ANEW = "; if that is wanted, prove it against the original and make the samples again (tests/data/README.md)"
MOST_MM = 0.01
"""Tool error before the first contact; on the machine that recorded it is 0, but for the cut to float32."""


def read(name: str):
    return json.loads((DATA / name).read_text())


def test_the_samples_were_proven_before_they_were_made() -> None:
    proven = read("made_with.json")["proven"]
    assert proven["oracle"].startswith("6658 of 6658") and proven["world"].startswith("12 of 12")
    assert proven["initial_states"].startswith("192 of 192") and proven["configuration"].startswith("7 of 7")


def test_the_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 300_000


def test_the_oracle_answers_as_when_it_agreed_with_the_official_one(capsys: pytest.CaptureFixture[str]) -> None:
    status = check_tasks(["check", str(DATA / "oracle_cases.json.gz")])
    output = capsys.readouterr().out
    assert status == 0, f"the oracle's answers have changed{ANEW}:\n{output}"
    with gzip.open(DATA / "oracle_cases.json.gz", "rt") as file:
        data = json.load(file)
    assert output == f"agree {len(data['cases'])}/{len(data['cases'])}\n"
    assert {task for _, _, tasks in data["cases"] for task in tasks} == set(TASKS)
    assert {snapshot["scene"] for snapshot in data["snapshots"]} == set(SCENES)


@pytest.mark.parametrize("scene", SCENES)
def test_the_world_moves_as_when_it_agreed_with_the_original(scene: str) -> None:
    errors = tcp_errors(DATA / f"rollouts_{scene}.npz", scene)
    assert sum(steps for steps, _ in errors) > 70  # there is something to compare
    assert max(error for _, error in errors) < MOST_MM, f"the physics of scene {scene} has changed{ANEW}: {errors} mm"


@pytest.mark.parametrize("scene", SCENES)
def test_doors_lights_and_blocks_end_where_they_did_while_nothing_touches_them(scene: str) -> None:
    data = np.load(DATA / f"rollouts_{scene}.npz")
    free = np.flatnonzero(~data["robot_contacts"].any(axis=1))
    assert len(free)
    with PlayTable(scene, renderer="none") as world:
        for index in free:
            world.reset(data["reset_robot_obs"][index], data["reset_scene_obs"][index], render=False)
            for action in data["actions"][index]:
                observation = world.step(action, render=False)
            np.testing.assert_allclose(
                observation.privileged["scene_obs"],
                data["last_scene_obs"][index],
                atol=1e-4,
                err_msg=f"blocks move otherwise{ANEW}",
            )


def test_a_rollout_of_another_physics_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison can fail: a tool that is half a millimetre off in every rollout."""
    data = dict(np.load(DATA / "rollouts_D.npz"))
    data["robot_obs"][:, 5, 0] += 0.0005
    np.savez(tmp_path / "off.npz", **data)
    assert check_world(["check", str(tmp_path / "off.npz"), "--scene", "D"]) == 1
    assert "within_0.1mm=0/4" in capsys.readouterr().out
    assert check_world(["check", str(DATA / "rollouts_D.npz"), "--scene", "D"]) == 0


@pytest.mark.parametrize("scene", SCENES)
def test_chains_start_where_they_did(scene: str) -> None:
    recorded = read("initial_states.json")
    states = [initial_state(chain.condition, scene) for chain in chains(CHAINS)]
    for (robot_obs, scene_obs), expected in zip(states, recorded["first"][scene], strict=False):
        assert robot_obs.tolist() == expected["robot_obs"] and scene_obs.tolist() == expected["scene_obs"]
    found = make_samples.states_digest(states)
    assert found == recorded["sha256"][scene], f"initial states of scene {scene} have changed{ANEW}"


def test_tables_and_blocks_are_where_they_were() -> None:
    assert make_samples.geometry() == read("geometry.json"), f"the geometry has changed{ANEW}"


def test_the_configuration_of_recordings_is_as_it_was() -> None:
    ours = merged_config("D")
    changed = [key for key, digest in read("configuration.json").items() if make_samples.digest(ours[key]) != digest]
    assert not changed, f"sections {changed} of the configuration have changed{ANEW}"


def test_no_sentence_of_ours_is_on_the_lists_of_others() -> None:
    others = set((DATA / "sentence_digests.txt").read_text().split())
    assert len(others) > 1000
    ours = {sentence for task in TASKS for split in SPLITS for sentence in sentences(task, split)}
    assert [sentence for sentence in ours if make_samples.sentence_digest(sentence) in others] == []


def test_damaged_recordings_are_errors_of_the_file(tmp_path: Path) -> None:
    cases, rollouts = tmp_path / "cases.json.gz", tmp_path / "rollouts.npz"
    for content in damaged((DATA / "oracle_cases.json.gz").read_bytes()[:3000], 100, seed=1):
        cases.write_bytes(content)
        with pytest.raises(UserError, match="is not a file of cases"):
            check(cases)
    for content in damaged((DATA / "rollouts_D.npz").read_bytes(), 100, seed=2):
        rollouts.write_bytes(content)
        try:
            tcp_errors(rollouts, "D")
        except UserError as error:
            assert str(rollouts) in str(error)


@pytest.mark.parametrize(
    "value",
    [[], {"scenes": {}, "snapshots": [{}], "cases": []}, {"scenes": {}, "snapshots": [], "cases": [[0, 1, []]]}],
)
def test_cases_that_lack_something_are_errors_of_the_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "cases.json.gz"
    path.write_bytes(gzip.compress(json.dumps(value).encode()))
    with pytest.raises(UserError, match="is not a file of cases"):
        check(path)
