"""The demo, whole and as small as can be: collecting, DAgger, training, three evaluations, report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from calvin_eval.demonstrations.episodes import EpisodeSettings
from calvin_eval.system.locks import folder_lock
from roboflamingo.cli import estimate
from roboflamingo.cli.main import main
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig, TrainableConfig
from roboflamingo.weights.acting import identity, read_acting
from runs import metrics, tiny_policy


def write_config(folder: Path, **changed: Any) -> Path:
    """The configuration of a demo of seconds."""
    policy = tiny_policy(window=1, chunk=8)
    settings: dict[str, Any] = {
        "run": str(folder / "demo"),
        "rounds": [{"episodes": 2, "steps": 6}, {"episodes": 1, "steps": 4}],
        "tasks_in_a_row": 1,
        "validation_episodes": 2,
        "policy": asdict(policy),
        "batch_size": 4,
        "chains": 1,
        "execute": [4],
        "videos": 1,
        "workers": 1,
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(settings | changed))))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that has run to its end, through the command line."""
    folder = tmp_path_factory.mktemp("demo")
    main(["demo", "--config", str(write_config(folder))])
    return folder


def test_it_leaves_a_policy_a_report_and_results(finished: Path) -> None:
    run = finished / "demo"
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"closed_loop", "open_loop", "execute"}
    assert set(results["execute"]) == {"1", "4", "8"}
    assert results["closed_loop"]["chains"] == 1
    acting = read_acting(run / "train2" / "policy")
    assert acting.execute == 4 and acting.leash == 0.05
    assert (run / "closed_loop" / "videos" / "chain_000.mp4").stat().st_size > 1000
    assert "<svg" in (run / "report.html").read_text()


def test_on_two_devices_everything_but_training_happens_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, devices=2, batch_size=2, videos=0, execute=[])
    command = [sys.executable, "-m", "roboflamingo.cli.main", "demo", "--config", str(config)]
    done = subprocess.run(command, timeout=500, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "demo"
    for number, steps in ((1, 6), (2, 4)):
        seen = [line["step"] for line in metrics(run / f"train{number}")]
        assert seen == sorted(set(seen)) and seen[-1] == steps
        collection = json.loads((run / "data" / f"round{number}" / "task_D_D" / "collection.json").read_text())
        assert collection["training"]["episodes"] == 3 - number
    for label in ("closed_loop", "open_loop"):
        assert len((run / label / "chains.jsonl").read_text().splitlines()) == 1
    assert (run / "report.html").is_file() and not list(run.rglob(".*.part"))


def test_training_is_budgeted_in_steps(finished: Path) -> None:
    assert metrics(finished / "demo" / "train1")[-1]["step"] == 6
    assert metrics(finished / "demo" / "train2")[-1]["step"] == 4


def test_a_finished_demo_repeats_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = finished / "demo" / "train2" / "policy" / "weights.safetensors"
    made = weights.stat().st_mtime_ns
    main(["demo", "--config", str(finished / "demo.yaml")])
    assert weights.stat().st_mtime_ns == made
    assert "This will take" not in capsys.readouterr().out


def test_after_more_training_the_chains_are_run_anew(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = write_config(finished, rounds=[{"episodes": 2, "steps": 6}, {"episodes": 1, "steps": 5}])
    before = json.loads((finished / "demo" / "results.json").read_text())["closed_loop"]["policy_fingerprint"]
    main(["demo", "--config", str(longer)])
    assert "This will take" in capsys.readouterr().out
    after = json.loads((finished / "demo" / "results.json").read_text())["closed_loop"]["policy_fingerprint"]
    assert after == identity(finished / "demo" / "train2" / "policy") != before


def test_two_demos_in_one_folder_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(finished / "demo", "another demo"), pytest.raises(SystemExit):
        main(["demo", "--config", str(finished / "demo.yaml")])
    assert "is in use by another demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": []}, "rounds is empty"),
        ({"rounds": [{"episodes": 0, "steps": 5}]}, "episodes is 0"),
        ({"rounds": [{"episodes": 5, "steps": 0}]}, "steps is 0"),
        ({"rounds": [{"episodes": 5, "minutes": 12}]}, "minutes"),
    ],
)
def test_impossible_rounds_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--config", str(write_config(tmp_path, **changed))])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo" / "data").exists()


# --- how long it will take ---------------------------------------------------------------------


def test_minutes_follow_from_speeds_and_counts() -> None:
    speeds = estimate.Speeds(episode_s=0.5, world_step_s=0.002, act_s=0.004, training_step_s=0.06)
    one = estimate.estimate(speeds, 900, 6000, 100, [1], workers=1)
    two = estimate.estimate(speeds, 900, 6000, 100, [1], workers=2)
    assert one.training == two.training == pytest.approx((6000 * 0.06 + estimate.START_S) / 60)
    assert one.collecting > 1.9 * two.collecting
    assert one.evaluating == pytest.approx((100 * estimate.STEPS_A_CHAIN * 0.006 + estimate.START_S) / 60)
    eyes = replace(speeds, encoding_s=0.1)
    kept = estimate.estimate(eyes, 900, 6000, 100, [1], workers=1, shifts=2)
    assert kept.training == pytest.approx(one.training + 900 * 2 * 0.1 / 60)
    nothing = estimate.estimate(speeds, 0, 0, 100, [], workers=1)
    assert nothing.minutes == 0
    assert re.match(r"about \d+ minutes: \d+ of demonstrations, \d+ of training, \d+ of evaluation", str(one))


@pytest.mark.parametrize("frozen", [False, True])
def test_speeds_are_measured_by_doing_a_little_of_each_part(frozen: bool) -> None:
    episode = EpisodeSettings(tasks=1, max_steps=60)
    trainable = TrainableConfig(everything=not frozen)
    data = DataConfig({"a": 1.0})
    training = TrainConfig("r", data, tiny_policy(), trainable, max_steps=1, batch_size=4)
    speeds = estimate.measure("D", episode, training, in_bf16=False)
    assert 0 < speeds.world_step_s < speeds.episode_s
    assert speeds.act_s > 0
    assert speeds.training_step_s > 0
    assert (speeds.encoding_s > 0) == frozen
