"""Encoders, heads and policies of other packages: found by entry point, loaded when asked for, refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloning import Pixels
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from policies import a_batch, small_config
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.encoders import VISION, VisionConfig, register_vision
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import tiny_policy, tiny_run
from synthetic import write_dataset


@pytest.fixture
def pixels() -> Any:
    register_vision("pixels")(Pixels)
    yield VisionConfig(kind="pixels", width=16, settings={"every": 5})
    del VISION["pixels"]


def with_vision(config: Any, vision: VisionConfig, **changed: Any) -> Any:
    return replace(config, backbone=replace(config.backbone, vision=vision, **changed))


def test_another_vision_encoder_trains_is_saved_loads_and_acts(tmp_path: Any, pixels: VisionConfig) -> None:
    dataset = write_dataset(tmp_path / "data")
    config = tiny_run(tmp_path / "run", dataset, policy=with_vision(tiny_policy(), pixels), max_steps=2)
    policy = load_policy(train(config, console=Console(quiet=True)))
    assert isinstance(policy.backbone.vision_encoder, Pixels) and not policy.backbone.vision_encoder.seen.is_meta
    controller = PolicyController(policy)
    image = np.zeros((24, 24, 3), np.uint8)
    seen = [calvin_observation(picture, picture[:16, :16], np.zeros(15)) for picture in (image, image + 99)]
    actions, _ = controller.act(seen, [controller.start("push the red block")] * 2)
    assert actions.shape == (2, 1, 7) and not np.array_equal(*actions)


def test_images_of_any_size_are_the_encoder_s_own_business(pixels: VisionConfig) -> None:
    from roboflamingo.policy.config import calvin_cameras

    config = with_vision(replace(small_config(), backbone=with_vision(small_config(), pixels).backbone,
                                 cameras=calvin_cameras(35, 25)), pixels)  # fmt: skip
    policy = RoboFlamingo(config)
    policy.loss(a_batch(config))["loss"].backward()
    with pytest.raises(UserError, match=r"rgb_static\.size 35 is no multiple of .*patch_size 8"):
        with_vision(config, VisionConfig(width=16, heads=2))


def test_low_rank_updates_go_into_another_encoder_as_well(pixels: VisionConfig) -> None:
    config = with_vision(small_config(), pixels, lora=LoRAConfig(vision=2))
    assert any("vision_encoder.project.lora_" in name for name, _ in RoboFlamingo(config).named_parameters())


def test_a_vision_encoder_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match=r"policy\.backbone\.vision\.kind 'resnet' does not exist; choose one of vit"):
        RoboFlamingo(with_vision(small_config(), VisionConfig(kind="resnet", width=16)))


def test_settings_are_for_encoders_that_have_some() -> None:
    with pytest.raises(UserError, match=r"settings .*every.* does nothing with kind vit"):
        VisionConfig(settings={"every": 5})


# --- installed packages ------------------------------------------------------------------------

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "roboflamingo-cloning"
version = "1.2"
[project.entry-points."roboflamingo.policies"]
cloning = "their_cloning:KIND"
[project.entry-points."roboflamingo.heads"]
linear = "their_cloning:Linear"
broken = "their_cloning:Nowhere"
policy = "their_cloning:Cloning"
[project.entry-points."roboflamingo.vision"]
pixels = "their_cloning:Pixels"
[tool.setuptools]
py-modules = ["their_cloning"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a package of theirs is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(Path(__file__).with_name("cloning.py"), source / "their_cloning.py")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds the installed package."""
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{site}"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_an_installed_policy_trains_and_is_evaluated_from_the_command_line(site: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    config = tmp_path / "a.yaml"
    config.write_text(
        f"run: {tmp_path}/run\nmax_steps: 2\naccelerator: cpu\nbatch_size: 2\n"
        f"data: {{folders: {{{tmp_path}/data: 1.0}}, pack_processes: 1}}\n"
        "policy:\n  kind: cloning\n  hidden: 8\n  chunk: 3\n  cameras: {rgb_static: {size: 24}}\n"
    )
    verb = ("-m", "roboflamingo.cli.main")
    trained = run(site, *verb, "train", "--config", str(config), "--policy.hidden=16")
    assert trained.returncode == 0, trained.stderr
    assert "MLP" in trained.stderr and "hidden: 16" in (tmp_path / "run/policy/config.yaml").read_text()
    told = run(site, *verb, "info", str(tmp_path / "run/policy"))
    assert "a policy: kind cloning, window 1, chunks of 3" in " ".join(told.stdout.split())
    words = ("--settings.chains=1", "--settings.max_steps=6", "--execute=3", "--workers=1")
    evaluated = run(
        site, *verb, "evaluate", "--policy", str(tmp_path / "run/policy"), "--out", str(tmp_path / "out"), *words
    )
    assert evaluated.returncode == 0, evaluated.stderr
    wrong = run(site, *verb, "train", "--config", str(config), "--policy.head.kind=gpt")
    assert wrong.returncode == 2 and "policy.head.kind" in wrong.stderr
    alone = run(tmp_path, *verb, "train", "--config", str(config))
    assert alone.returncode == 2 and "policy.kind 'cloning' does not exist; choose one of roboflamingo" in alone.stderr


def test_installed_heads_and_encoders_are_found_by_name_and_broken_ones_with_their_package(
    site: Path, tmp_path: Path
) -> None:
    script = tmp_path / "a.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from policies import a_batch, small_config\n"
        "from roboflamingo.backbone import VisionConfig\n"
        "from roboflamingo.heads import HeadConfig\n"
        "from roboflamingo.policy.roboflamingo import RoboFlamingo\n"
        "from dataclasses import replace\n"
        "config = small_config(head=HeadConfig(kind='linear'))\n"
        "vision = VisionConfig(kind='pixels', width=16, settings={'every': 8})\n"
        "policy = RoboFlamingo(replace(config, backbone=replace(config.backbone, vision=vision)))\n"
        "policy.loss(a_batch(policy.config))['loss'].backward()\n"
        "print(type(policy.head).__module__, type(policy.backbone.vision_encoder).__module__)\n"
        "for kind in ('broken', 'policy', 'none'):\n"
        "    try:\n"
        "        RoboFlamingo(small_config(head=HeadConfig(kind=kind)))\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = run(site, str(script))
    assert done.returncode == 0, done.stderr
    found, broken, policy, none = done.stdout.splitlines()
    assert found == "their_cloning their_cloning"
    assert "is of the package roboflamingo-cloning 1.2, whose their_cloning:Nowhere cannot be loaded" in broken
    assert "whose their_cloning:Cloning is no Head" in policy
    assert "'none' does not exist; choose one of bins, broken, diffusion, flow, gpt, linear, lstm" in none
