"""`roboflamingo watch`: one instruction, filmed with both cameras, and what the oracle saw of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from acting import Stubborn
from calvin_eval.calvin import CALVIN_ACTIONS
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.evaluation.films import ClipWithActions
from calvin_eval.evaluation.watching import Wish, watch, wish_for
from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.worlds.playtable.world import PlayTable
from policies import small_policy
from roboflamingo.cli.main import main
from roboflamingo.cli.watch import WatchConfig, run
from roboflamingo.policy.base_config import ActingConfig
from roboflamingo.weights.acting import save_acting
from roboflamingo.weights.checkpoint import save_policy


def film(path: Path) -> list[np.ndarray]:
    """Its frames."""
    reader: Any = imageio.get_reader(path)
    return [reader.get_data(number) for number in range(reader.count_frames())]


@pytest.mark.parametrize(
    ("given", "wish"),
    [
        (("open the drawer", None), Wish("open the drawer", "open_drawer")),
        (("Open the  drawer.", None), Wish("open the drawer", "open_drawer")),
        ((None, "open_drawer"), Wish("pull the drawer open by its handle", "open_drawer")),
        (("turn on the LED", None), Wish("turn on the led", "turn_on_led")),
        (("Pull out the drawer", None), Wish("pull out the drawer", "open_drawer")),
        (("Tidy up!", None), Wish("Tidy up!", None)),
        (("get me that drawer out", "open_drawer"), Wish("get me that drawer out", "open_drawer")),
    ],
)
def test_tasks_are_known_by_their_sentences(given: tuple[str | None, str | None], wish: Wish) -> None:
    assert wish_for(*given) == wish


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None), "give an instruction"),
        ((None, "dance"), "there is no task 'dance'"),
        (("open the drawer", "close_drawer"), "asks for open_drawer, and --task says close_drawer"),
    ],
)
def test_what_is_asked_for_must_be_clear(given: tuple[str | None, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wish_for(*given)


def test_the_experts_are_filmed_and_the_oracle_sees_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "drawer.mp4"
    words = ["--policy", "expert", "--task", "open_drawer", "--renderer", "tinyrenderer", "--out", str(path)]
    main(["watch", *words])
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("solved: the oracle saw open_drawer after ") and out[2] == f"video in {path}"
    steps = int(out[1].split()[-2])
    frames = film(path)
    assert frames[0].shape == (320 + 68, 640, 3) and len(frames) == 1 + steps // 2 + 12
    below = frames[-1][364:].max()
    assert frames[0][366:].max() < 60 < below  # step and action are written from the first step on


@pytest.mark.parametrize("task", ["place_in_drawer", "unstack_block"])
def test_a_task_begins_where_it_can_be_solved(task: str, tmp_path: Path) -> None:
    with PlayTable("D", "tinyrenderer") as table:
        result = watch(Expert("D"), table, wish_for(None, task), 1, 0, tmp_path / "a.mp4")
        assert result.steps == (1,)
        held = State.read(table.observe(), "D").holding()
    assert (held is not None) == (task == "place_in_drawer")


def test_of_another_sentence_nobody_says_whether_it_was_solved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(small_policy(window=1), tmp_path / "policy")
    save_acting(tmp_path / "policy", ActingConfig(4, 0.05))
    policy, out = str(tmp_path / "policy"), str(tmp_path / "d.mp4")
    config = WatchConfig(policy, "dance", steps=5, renderer="tinyrenderer", out=out)
    first = run(config)
    said = capsys.readouterr().out
    for words in ("E 4, leash 0.05 m", "5 steps; no task has this sentence", "none of the 34 tasks"):
        assert words in said
    frames = film(tmp_path / "d.mp4")
    reddish = frames[-1][320:364, :, 0].astype(int) - frames[-1][320:364, :, 1] > 60
    assert reddish.mean() < 0.0005  # no verdict is written
    (tmp_path / "d.mp4").unlink()
    assert run(config) == first  # the same seed, the same start
    capsys.readouterr()


def test_two_seeds_begin_differently(tmp_path: Path) -> None:
    seen = []
    for seed in (0, 1):
        with PlayTable("D", "tinyrenderer") as table:
            watch(Stubborn(), table, wish_for("stay"), 1, seed, tmp_path / f"{seed}.mp4")
            seen.append(table.observe().privileged["scene_obs"])
    assert not np.allclose(*seen)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WatchConfig("expert", "dance"), "name the task, as --task open_drawer"),
        (WatchConfig("expert", task="open_drawer", execute=2), "--execute does nothing with expert"),
        (WatchConfig("expert", task="open_drawer", out="."), "is a folder; say which file in it, as --out watch.mp4"),
    ],
)
def test_what_experts_cannot_do_is_said(config: WatchConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(config)


def test_an_action_is_written_part_by_part(tmp_path: Path) -> None:
    clip = ClipWithActions(tmp_path / "a.mp4", 30, True, CALVIN_ACTIONS)
    note = clip.note(12, np.array([0.4, -0.126, 0, 0, 0, 1, -1]))
    assert note == "step 12   pose +0.40 -0.13 +0.00 +0.00 +0.00 +1.00   gripper -1"
