"""Numbers that mean what they say: held-out losses, units, precisions, what trains, and policies of past epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from policies import a_batch, small_config
from published import LANGUAGE_MODELS, publish
from roboflamingo.backbone.config import CrossAttentionConfig
from roboflamingo.data.windows import last_frames, to_tensors
from roboflamingo.heads import HeadConfig
from roboflamingo.heads.base import frame_at
from roboflamingo.policy.actions import Absolute, Statistics, action_space
from roboflamingo.policy.config import calvin_cameras
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.checkpoint import load_state
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig, TrainableConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.train import train
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.weights.checkpoint import WEIGHTS, load_policy
from roboflamingo.weights.making import make_policy
from runs import deterministic_policy, metrics, tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)
STILL = OptimizerConfig(learning_rate=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def held_out(run: Path, key: str) -> list[float]:
    return [line[key] for line in metrics(run) if key in line]


# --- heads that sample ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_held_out_loss_of_a_head_that_samples_changes_with_its_weights_alone(
    tmp_path: Path, dataset: Path, kind: str
) -> None:
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    policy = tiny_policy(head=HeadConfig(kind=kind, hidden=16), cameras=calvin_cameras(24, 16, 0, 0))
    for run, batch in (("four", 4), ("seven", 7)):
        config = tiny_run(tmp_path / run, dataset, policy=policy, optimizer=STILL, validate_every_steps=2)
        train(replace(config, batch_size=batch), console=QUIET)
    for key in ("val_pose", "val_gripper", "val_pose_m"):
        values = held_out(tmp_path / "four", key)
        assert len(values) == 3
        assert values == [values[0]] * 3
    # the noise belongs to a window, not to its batch (whose mean weighs windows with fewer actions higher)
    assert held_out(tmp_path / "seven", "val_pose")[0] == pytest.approx(
        held_out(tmp_path / "four", "val_pose")[0], 0.05
    )


@pytest.mark.parametrize("fusion", ["post", "vit_concat"])
def test_drawn_noise_reaches_the_head(fusion: Any) -> None:
    torch.manual_seed(0)
    backbone = replace(small_config().backbone, fusion=fusion)
    policy = RoboFlamingo(small_config(backbone=backbone, head=HeadConfig(kind="flow", hidden=16))).eval()
    torch.nn.init.normal_(policy.head.denoiser.output.weight)  # type: ignore[arg-type,union-attr]
    batch = a_batch(policy.config)
    from roboflamingo.heads import Draws

    def draws(seed: int) -> Draws:
        random = torch.Generator().manual_seed(seed)
        frames = batch["actions"].shape[:2]
        return Draws(torch.randn(batch["actions"].shape, generator=random), torch.rand(frames, generator=random))

    with torch.no_grad():
        loss = [float(policy.loss(batch, draws(seed))["loss"]) for seed in (1, 1, 2)]
        pose = [policy.predict(batch, draws(seed).noise)["pose"] for seed in (1, 1, 2)]
    assert loss[0] == loss[1] != loss[2]
    assert torch.equal(pose[0], pose[1]) and not torch.equal(pose[0], pose[2])


# --- units ---------------------------------------------------------------------------------------


def test_a_unit_of_each_action_space_is_as_long_as_it_says() -> None:
    statistics = Statistics((0.1, 0.2, 0.3, 0.0, 0.1, 0.2), (0.5, 0.4, 0.3, 1.0, 0.2, 3.0))
    assert action_space("relative").spec.parts[0].one == (0.02,) * 3 + (0.05,) * 3
    assert action_space("absolute", statistics).spec.parts[0].one == statistics.scale
    state = torch.zeros(1, 15)
    for axis in range(6):
        value = torch.zeros(1, 1, 7)
        value[..., axis] = 0.1
        space = action_space("tcp_relative")
        command = space.decode(value, state)[0, 0]
        size = command * torch.tensor([0.02] * 3 + [0.05] * 3 + [1.0])
        assert float(size[axis]) == pytest.approx(0.1 * space.spec.parts[0].one[axis], rel=1e-5)
    poses = Absolute(statistics).poses(torch.stack([torch.zeros(7), torch.full((7,), 0.1)]))
    torch.testing.assert_close((poses[1] - poses[0])[:6], 0.1 * torch.tensor(statistics.scale), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("actions", ["relative", "tcp_relative", "absolute"])
def test_action_errors_are_logged_in_metres_and_radians(tmp_path: Path, dataset: Path, actions: Any) -> None:
    console = Console(record=True, file=(tmp_path / "out").open("w"), width=200)
    config = tiny_run(tmp_path / "run", dataset, policy=tiny_policy(actions=actions), max_steps=2)
    train(config, console=console)
    (line,) = [line for line in metrics(tmp_path / "run") if "val_loss" in line]
    policy = load_policy(tmp_path / "run" / "policy")
    _, held_out = open_windows(config)
    assert held_out is not None
    batch = to_tensors(held_out.__getitems__(range(len(held_out))))
    with torch.no_grad():
        said, wanted = policy.head.actions.likeliest(policy.predict(batch)), policy.targets(batch)
    last = last_frames(batch["frame_mask"])
    error, inside = frame_at(said - wanted, last)[:, 0].abs(), frame_at(batch["action_mask"], last)[:, 0]
    error = (error[..., :6] * torch.tensor(policy.action_space.spec.parts[0].one))[inside]
    assert line["val_pose_m"] == pytest.approx(float(error[:, :3].mean()), rel=1e-4)
    assert line["val_pose_rad"] == pytest.approx(float(error[:, 3:].mean()), rel=1e-4)
    text = f", pose error {1000 * line['val_pose_m']:.1f} mm and {line['val_pose_rad']:.3f} rad, gripper right "
    assert text in console.export_text()
    assert not any("translation" in name for name in line)


# --- what trains, and in which precision ---------------------------------------------------------


@pytest.mark.parametrize("part", ["vision", "language"])
def test_what_trains_is_fp32_whatever_the_frozen_precision(tmp_path: Path, dataset: Path, part: str) -> None:
    config = publish(tmp_path / "published", "mpt").config(window=2)
    run = tiny_run(
        tmp_path / "run",
        dataset,
        policy=config,
        max_steps=2,
        validation_windows=0,
        precision="bf16",
        frozen_precision="bf16",
        trainable=TrainableConfig(**{part: True}),  # type: ignore[arg-type]
    )
    train(run, console=QUIET)
    saved = load_state(tmp_path / "run" / "last.ckpt")
    assert saved is not None
    inside = {"vision": "backbone.vision_encoder.", "language": ".decoder_layer."}
    assert any(inside[part] in name for name in saved["weights"])
    assert {value.dtype for value in saved["weights"].values()} == {torch.float32}
    states = [value for state in saved["optimizer"]["state"].values() for value in state.values()]
    assert {value.dtype for value in states} == {torch.float32}
    written = load_file(tmp_path / "run" / "policy" / WEIGHTS)
    other = {"vision": ".decoder_layer.ffn.up_proj.weight", "language": "vision_encoder.conv1.weight"}[part]
    frozen = [value.dtype for name, value in written.items() if other in name]
    assert frozen and set(frozen) == {torch.bfloat16}


def test_a_trained_vision_encoder_beside_frozen_bf16_trains_windows_of_several_frames(
    tmp_path: Path, dataset: Path
) -> None:
    trainable = TrainableConfig(everything=False, vision=True)
    config = tiny_run(tmp_path, dataset, max_steps=3, precision="bf16", frozen_precision="bf16", trainable=trainable)
    assert config.policy.window == 2
    train(config, console=QUIET)
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    written = load_file(tmp_path / "policy" / WEIGHTS)
    vision = {name: value for name, value in saved["weights"].items() if ".vision_encoder." in name}
    assert len(vision) > 5
    for name, value in vision.items():
        assert value.dtype == written[name].dtype == torch.float32
    assert written["backbone.lang_encoder.blocks.0.decoder_layer.ffn.up_proj.weight"].dtype == torch.bfloat16


def penultimate(kind: str, layers: int = 3, **cross: Any) -> RoboFlamingo:
    """A policy that reads the states before the last layer, of one of the architectures."""
    backbone = small_config().backbone
    language = replace(backbone.language, kind=kind, layers=layers, output="penultimate")  # type: ignore[arg-type]
    attention = CrossAttentionConfig(heads=2, head_width=8, **cross)
    torch.manual_seed(0)
    return RoboFlamingo(small_config(backbone=replace(backbone, language=language, cross_attention=attention)))


@pytest.mark.parametrize("kind", sorted(LANGUAGE_MODELS))
def test_idle_parameters_are_those_without_gradient(kind: str) -> None:
    policy = penultimate(kind).train()
    policy.loss(a_batch(policy.config))["loss"].backward()
    idle = policy.idle()
    without = {name for name, p in policy.named_parameters() if p.grad is None}
    assert without == {name for name, p in policy.named_parameters() if id(p) in idle}
    assert any("gated_cross_attn_layer" in name for name in without)


def published_run(tmp_path: Path, **trainable: Any) -> TrainConfig:
    return tiny_run(tmp_path, tmp_path, trainable=TrainableConfig(everything=False, **trainable))


def test_the_last_layers_of_cross_attention_are_counted_among_those_that_run(tmp_path: Path) -> None:
    policy = penultimate("mpt")
    choose_trainable(policy, published_run(tmp_path, cross_attention=1))
    trains = {
        number
        for number, layer in enumerate(policy.backbone.layers)
        if any(p.requires_grad for p in layer.gated_cross_attn_layer.parameters())  # type: ignore[union-attr]
    }
    assert trains == {1}
    with pytest.raises(ConfigError, match=r"trainable\.cross_attention is 3; in this policy 2 such layers run"):
        choose_trainable(policy, published_run(tmp_path, cross_attention=3))


def test_what_never_runs_never_trains(tmp_path: Path) -> None:
    policy = penultimate("llama")
    choose_trainable(policy, replace(published_run(tmp_path), trainable=TrainableConfig(everything=True)))
    idle = policy.idle()
    assert idle and not any(p.requires_grad for p in policy.parameters() if id(p) in idle)


# --- continuing ----------------------------------------------------------------------------------


def test_a_learning_rate_that_jumps_is_said_at_the_start(tmp_path: Path, dataset: Path) -> None:
    def start_of(steps: int, **changed: Any) -> str:
        console = Console(record=True, file=(tmp_path / "out").open("w"), width=80)
        optimizer = OptimizerConfig(warmup_steps=0, learning_rate=1e-3)
        config = tiny_run(tmp_path / "run", dataset, max_steps=steps, optimizer=optimizer, validation_windows=0)
        train(replace(config, **changed), console=console)
        return console.export_text()

    assert "learning rate goes" not in start_of(10)
    before = metrics(tmp_path / "run")[-1]["lr"]
    text = start_of(20)
    now = metrics(tmp_path / "run")[10]["lr"]
    assert (before, now) == (pytest.approx(2.447e-5, rel=1e-3), pytest.approx(5e-4))
    assert "the learning rate goes from 2.45e-05 (last step before) to 0.0005: the run's end has moved from 10" in text
    assert "schedule cosine is laid over the whole length" in text


def test_values_that_start_from_replaces_are_named(tmp_path: Path, dataset: Path) -> None:
    first = train(tiny_run(tmp_path / "first", dataset, max_steps=1), console=QUIET)
    console = Console(record=True, file=(tmp_path / "out").open("w"), width=500)
    config = tiny_run(tmp_path / "second", dataset, max_steps=1, start_from=str(first), policy=tiny_policy(chunk=5))
    train(config, console=console)
    assert "so these are not used: policy.chunk = 5 (3 there)\n" in console.export_text()
    config = tiny_run(tmp_path / "third", dataset, max_steps=1, start_from=str(first))
    console = Console(record=True, file=(tmp_path / "out").open("w"), width=500)
    train(config, console=console)
    assert "not used" not in console.export_text()


# --- policies of past epochs ---------------------------------------------------------------------


def test_the_policy_of_every_epoch_is_kept_and_is_the_same_after_a_pause(tmp_path: Path, dataset: Path) -> None:
    same: dict[str, Any] = {
        "max_steps": None,
        "batch_size": 7,
        "validation_windows": 0,
        "snapshot_every_epochs": 1,
        "policy": deterministic_policy(),
        "optimizer": OptimizerConfig(schedule="constant", ema=0.9),
    }
    whole = tmp_path / "whole"
    train(tiny_run(whole, dataset, max_epochs=2.2, **same), console=QUIET)
    assert sorted(path.name for path in (whole / "epochs").iterdir()) == ["1", "2"]
    for epochs in (0.7, 2.2):
        train(tiny_run(tmp_path / "parts", dataset, max_epochs=epochs, **same), console=QUIET)
    weights = [
        {number: load_file(run / "epochs" / number / WEIGHTS) for number in ("1", "2")}
        for run in (whole, tmp_path / "parts")
    ]
    for number in ("1", "2"):
        assert load_policy(whole / "epochs" / number).config == load_policy(whole / "policy").config
        for name, value in weights[0][number].items():
            assert torch.equal(value, weights[1][number][name])
    changed = "head.output.out.weight"
    assert not torch.equal(weights[0]["1"][changed], weights[0]["2"][changed])
    train(tiny_run(tmp_path / "two", dataset, max_epochs=2.0, **same), console=QUIET)
    last = load_file(tmp_path / "two" / "policy" / WEIGHTS)
    assert all(torch.equal(value, last[name]) for name, value in weights[0]["2"].items())


def test_snapshots_need_whole_epochs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="snapshot_every_epochs is 0"):
        tiny_run(tmp_path, tmp_path, snapshot_every_epochs=0)


def test_make_policy_halves_what_does_not_train(tmp_path: Path) -> None:
    config = publish(tmp_path, "mpt").config()
    policy = make_policy(config, half=True, trained=["vision"])
    assert {p.dtype for p in policy.backbone.vision_encoder.parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in policy.backbone.lang_encoder.parameters()}
