"""The configurations of published rows: each is read, made small, and trains."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from roboflamingo.backbone.config import CrossAttentionConfig, ResamplerConfig
from roboflamingo.cli.arguments import parse_config
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.policy.config import calvin_cameras
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from roboflamingo.weights.presets import preset
from runs import metrics
from synthetic import write_dataset

ROWS = sorted((Path(__file__).parents[1] / "configs" / "rows").glob("*.yaml"))

EPOCHS = {"m3b_ift_abcd": 3, "m3b_ift_5x": 2, "m9b_5x": 1}
"""After which epoch the published figure was measured, where the source says so."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def small(config, run, dataset):
    """The same row with random weights of a few thousand numbers, on one process."""
    backbone = config.policy.backbone
    language = replace(backbone.language, width=16, layers=4, heads=2, vocabulary=None, source=None)
    if language.kind != "mpt":
        language = replace(language, settings=language.settings | {"intermediate_size": 32})
    backbone = replace(
        backbone,
        weights="random",
        checkpoint=None,
        vision=replace(backbone.vision, image_size=28, width=16, layers=1, heads=2, source=None),
        language=language,
        resampler=ResamplerConfig(latents=2, heads=2, head_width=8, separate=False),
        cross_attention=CrossAttentionConfig(every=backbone.cross_attention.every, heads=2, head_width=8),
    )
    policy = replace(
        config.policy, backbone=backbone, head=replace(config.policy.head, hidden=8, perceptrons=(8,)), window=2,
        cameras=calvin_cameras(28, 28, 2, 1),
    )  # fmt: skip
    everything = bool(config.trainable.everything)
    return replace(
        config, run=str(run), policy=policy, data=replace(config.data, folders={str(dataset): 1.0}, workers=0),
        trainable=replace(config.trainable, everything=everything), devices=1, max_epochs=None, max_steps=2,
        accelerator="cpu", validation_windows=0, log_every_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_rows_commands_are_commands_and_say_in_which_world_they_end(path):
    text = path.read_text()
    commands = {line.split()[2]: line.split()[3:] for line in text.splitlines() if line.startswith("#   roboflamingo ")}
    assert set(commands) == {"train", "evaluate"}
    assert commands["train"][:2] == ["--config", f"configs/rows/{path.name}"]
    trained = parse_config(
        TrainConfig, "train", ["--config", str(path), *commands["train"][2:]], summary="", examples=""
    )
    evaluated = parse_config(EvaluateConfig, "evaluate", commands["evaluate"], summary="", examples="")
    assert (evaluated.device, evaluated.scene, evaluated.execute) == ("cuda", "D", None)
    assert evaluated.settings.chains == 1000 and evaluated.settings.leash is None
    assert evaluated.out == f"{trained.run}/chains"
    assert (evaluated.settings.sentences == "enriched") == ("with enriched instructions" in text.splitlines()[0])
    assert "CALVIN's own simulator" in text and "this project's play table" in text
    epoch = EPOCHS.get(path.stem)
    if epoch is None:
        assert evaluated.policy == f"{trained.run}/policy" and "Which epoch's policy it is of" in text
    else:
        assert evaluated.policy == f"{trained.run}/epochs/{epoch}" and trained.max_epochs >= epoch


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_names_its_figures_and_trains(tmp_path, dataset, path):
    text = path.read_text()
    assert re.search(r"^# reported: .*average length [\d.]+", text, re.MULTILINE) and "# source: " in text
    assert f"configs/rows/{path.name}" in text
    config = parse_config(TrainConfig, "train", ["--config", str(path), "--run", "x"], summary="", examples="")
    assert config.policy.backbone.weights == "published" and config.policy.head == preset("mpt-1b").head
    assert config.windows_a_step == 48 and config.optimizer.decay_only is not None
    run = small(config, tmp_path / "run", dataset)
    policy = load_policy(train(run, console=Console(quiet=True)))
    assert policy.config.backbone.cross_attention.every == config.policy.backbone.cross_attention.every
    assert len(metrics(tmp_path / "run")) == 2
