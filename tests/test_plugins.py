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
import torch
from cloning import Pixels
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from policies import a_batch, small_config
from published import publish
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.encoders import VISION, VisionConfig, register_vision
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from roboflamingo.weights.making import make_policy
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


def test_a_published_language_model_is_read_beside_another_encoder(tmp_path: Path, pixels: VisionConfig) -> None:
    published = publish(tmp_path, "mpt")
    config = with_vision(published.config(), replace(pixels, width=32))
    policy, usual = make_policy(config), make_policy(published.config())
    assert isinstance(policy.backbone.vision_encoder, Pixels)
    for name, parameter in policy.backbone.named_parameters():
        if not name.startswith("vision_encoder.") and "wte" not in name:
            assert torch.equal(parameter, usual.backbone.get_parameter(name)), name
    policy.loss(a_batch(policy.config))["loss"].backward()


def test_a_vision_encoder_that_is_none_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"policy\.backbone\.vision\.kind 'resnet' does not exist; choose one of efficientnet_lite0, vit",
    ):
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


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # evaluation starts processes that import this file
    root = Path(sys.argv[1])
    from policies import a_batch, small_config
    from roboflamingo.backbone import VisionConfig
    from roboflamingo.cli.main import main
    from roboflamingo.heads import HeadConfig
    from roboflamingo.policy.roboflamingo import RoboFlamingo

    config = small_config(head=HeadConfig(kind="linear"))
    vision = VisionConfig(kind="pixels", width=16, settings={"every": 8})
    policy = RoboFlamingo(replace(config, backbone=replace(config.backbone, vision=vision)))
    policy.loss(a_batch(policy.config))["loss"].backward()
    print(type(policy.head).__module__, type(policy.backbone.vision_encoder).__module__)
    for kind in ("broken", "policy", "none"):
        try:
            RoboFlamingo(small_config(head=HeadConfig(kind=kind)))
        except ValueError as error:
            print(error)
    main(["train", "--config", str(root / "a.yaml"), "--policy.hidden=16"])
    folder = str(root / "run/policy")
    main(["evaluate", "--policy", folder, "--out", str(root / "out"), "--settings.chains=1", "--settings.max_steps=6",
          "--execute=3", "--workers=1"])
"""
TRAIN = """
run: {0}/run
max_steps: 2
accelerator: cpu
batch_size: 2
data: {{folders: {{{0}/data: 1.0}}, pack_processes: 1}}
policy: {{kind: cloning, hidden: 8, chunk: 3, cameras: {{rgb_static: {{size: 24}}}}}}
"""


def test_what_an_installed_package_offers_is_used_by_name(site: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "a.yaml").write_text(TRAIN.format(tmp_path))
    tests = Path(__file__).parent
    places = os.pathsep.join(map(str, (tests.parent, tests, site)))
    words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": places})
    assert done.returncode == 0, done.stderr
    found, broken, policy, none = done.stdout.splitlines()[:4]
    assert found == "their_cloning their_cloning"
    assert "is of the package roboflamingo-cloning 1.2, whose their_cloning:Nowhere cannot be loaded" in broken
    assert "whose their_cloning:Cloning is no Head" in policy
    assert "'none' does not exist; choose one of bins, broken, diffusion, flow, gpt, linear, lstm" in none
    saved = (tmp_path / "run/policy/config.yaml").read_text()
    assert saved.startswith("kind: cloning\n") and "hidden: 16" in saved
    assert (tmp_path / "out/results.json").is_file()
