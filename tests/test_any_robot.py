"""Any robot, end to end: a LeRobot set with two cameras, 8 numbers of state and 8 of action becomes a policy that acts.

docs/any_robot.md says the same in words; the configuration is the one that ships.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from calvin_eval.calvin import calvin_robot
from calvin_eval.protocol import Observation, check_returned
from calvin_eval.system.errors import UserError
from roboflamingo.cli.main import main
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.data.sources.columns import Columns, PartColumns
from roboflamingo.policy.control import PolicyController
from roboflamingo.weights.checkpoint import load_policy
from robots import FPS, JOINTS, TASKS, Robot, image, write_robot

CONFIG = Path(__file__).parents[1] / "configs" / "any_robot.yaml"
SHORT = ["--max_steps=2", "--batch_size=4", "--validation_windows=9", "--log_every_steps=1", "--accelerator=cpu"]
TINY = [
    "--policy.backbone.vision.width=16", "--policy.backbone.vision.heads=2", "--policy.backbone.vision.layers=1",
    "--policy.backbone.language.width=16", "--policy.backbone.language.heads=2",
    "--policy.backbone.language.layers=2",
    "--policy.backbone.resampler.latents=2", "--policy.backbone.resampler.depth=1",
    "--policy.backbone.resampler.heads=2", "--policy.backbone.resampler.head_width=8",
    "--policy.backbone.cross_attention.heads=2", "--policy.backbone.cross_attention.head_width=8",
    "--policy.head.hidden=16",
]  # fmt: skip
PRESETS = {
    "scratch": [],
    "mpt-1b-dolly": [
        "--policy.backbone.weights=random", "--policy.backbone.vision.image_size=28", "--policy.window=3",
        "--policy.cameras={front: {size: 28}, wrist: {size: 28}}", "--policy.head.perceptrons=[16]",
        "--policy.head.layers=2",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "my_robot"
    write_robot(folder, Robot(lengths=(12, 9, 10)))
    return folder


def train(dataset: Path, run: Path, *words: str) -> None:
    """The shipped configuration on another data set, for two steps."""
    content = yaml.safe_load(CONFIG.read_text())
    content["data"] |= {"folders": {str(dataset): 1.0}, "cache": str(run / "packed"), "pack_processes": 1}
    for key in ("max_minutes", "validate_every_minutes", "save_every_minutes"):
        del content[key]
    run.mkdir(parents=True, exist_ok=True)
    (run / "given.yaml").write_text(yaml.safe_dump(content))
    given = ["--config", str(run / "given.yaml"), "--run", str(run / "run"), "--validate_every_steps=2"]
    main(["train", *given, *SHORT, *words])


def columns() -> Columns:
    """What the configuration says of the columns."""
    parts = yaml.safe_load(CONFIG.read_text())["data"]["columns"]["actions"]
    return Columns(actions={name: PartColumns(**part) for name, part in parts.items()})


def observed(step: int) -> Observation:
    """Live images, of other sizes than the recorded ones, and joints."""
    joints = np.sin(np.arange(8) + step)
    return Observation({"front": image((60, 80), 0, step), "wrist": image((40, 40), 1, step)}, {"state": joints})


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_policy_trains_validates_and_acts(dataset: Path, tmp_path: Path, preset: str) -> None:
    train(dataset, tmp_path, f"--policy.backbone.preset={preset}", *PRESETS[preset], *TINY)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert 0 <= lines[-1]["val_gripper_accuracy"] <= 1 and lines[-1]["val_arm_rad"] > 0
    held_out = [line["val_loss"] for line in lines if "val_loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert held_out and np.isfinite(held_out).all()

    policy = PolicyController(load_policy(tmp_path / "run/policy"), execute=4 if preset == "scratch" else 1)
    assert policy.spec.cameras == ("front", "wrist")
    assert dict(policy.spec.state) == {"state": 8}
    assert [(part.name, part.kind, part.size) for part in policy.spec.actions.parts] == [
        ("arm", "continuous", 7),
        ("gripper", "binary", 1),
    ]
    policy.spec.check(open_source(dataset, "training", SourceOptions(columns=columns())).spec, "the data set")
    memory = policy.start(TASKS[0])
    for step in range(3):
        actions, (memory,) = policy.act([observed(step)], [memory])
        check_returned(actions, [memory], 1, policy.spec.actions)
        assert set(np.unique(actions[..., 7])) <= {-1.0, 1.0}


def test_what_the_policy_lacks_is_named_before_anything_is_packed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--policy.cameras={top: {size: 24}}"], "the policy looks through top, and .*my_robot has front, wrist"),
        (["--policy.vectors=[force]"], "policy.vectors names force, and .*my_robot has state"),
        (["--policy.robot_obs=pose"], "robot_obs"),
    ):
        with pytest.raises(SystemExit) as stopped:
            train(dataset, tmp_path, *words, *TINY)
        assert stopped.value.code == 1
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(message, said), said
        assert not (tmp_path / "packed").exists()


def test_a_policy_of_one_robot_is_refused_by_another(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, *TINY)
    policy = PolicyController(load_policy(tmp_path / "run/policy"))
    with pytest.raises(UserError, match="looks through front, wrist, and CALVIN has rgb_static, rgb_gripper"):
        policy.spec.check(calvin_robot(), "CALVIN")
    with pytest.raises(UserError, match="wrist"):
        policy.act([Observation({"front": image((60, 80), 0, 0)}, {"state": np.zeros(8)})], [policy.start("go")])


def test_the_verbs_look_at_it(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "inspect", str(dataset), "--processes", "1"])
    said = capsys.readouterr().out
    for text in ("lerobot", "front 48 x 64, wrist 32 x 32", f"{FPS} Hz", "state (8)", TASKS[0]):
        assert text in said
    main(["data", "verify", str(dataset), "--processes", "1"])
    assert "my_robot/training: 21 frames, whole" in capsys.readouterr().out
    main(["data", "pack", str(dataset), "--out", str(tmp_path / "packed"), "--processes", "1"])
    assert len(JOINTS) == 8
    train(tmp_path / "packed", tmp_path / "from_packed", *TINY)
    assert (tmp_path / "from_packed/run/policy").is_dir()
