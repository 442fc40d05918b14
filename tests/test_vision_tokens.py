"""Training from kept vision tokens is training from images, but for rounding and for which shifts are drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from policies import a_batch, frozen_policy
from processes import run_in_processes
from roboflamingo.policy.config import calvin_cameras
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig, TrainableConfig
from roboflamingo.training.train import train
from roboflamingo.training.vision_tokens import Demand, FrozenEncoder
from roboflamingo.weights.checkpoint import load_policy
from runs import deterministic_policy, losses, metrics, tiny_policy, tiny_run, without_clocks
from synthetic import write_dataset

QUIET = Console(quiet=True)
FROZEN = TrainableConfig(everything=False)
FUSIONS = ("post", "pre", "two_way", "vit_concat", "first_only")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def run_of(run: Path, dataset: Path, tokens: str = "always", shifts: int = 1, **changed: Any) -> TrainConfig:
    """A run whose vision encoder is frozen."""
    settings: dict[str, Any] = {"trainable": FROZEN, "loggers": ["jsonl"], "validation_windows": 8}
    config = tiny_run(run, dataset, **(settings | changed))
    data = replace(config.data, vision_tokens=tokens, token_shifts=shifts)
    return replace(config, data=data)


def tokens_in(dataset: Path) -> list[Path]:
    return sorted((dataset / "packed" / "tokens").glob("*/tokens.npy"))


# --- the policy ----------------------------------------------------------------------------------


def encoded(policy: Any, batch: dict[str, Any], dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """The batch with tokens in the place of its images."""

    def tokens(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return policy.backbone.vision_encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2]).to(dtype)

    return batch | {name: tokens(batch[name]) for name in policy.config.cameras}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_policy_computes_the_same_from_tokens(fusion: str) -> None:
    policy = frozen_policy(cameras=calvin_cameras(32, 32, 0, 0))
    backbone = replace(policy.config.backbone, fusion=fusion)
    policy = frozen_policy(cameras=calvin_cameras(32, 24, 0, 0), backbone=backbone)
    batch = a_batch(policy.config)
    seen, kept = policy.loss(batch), policy.loss(encoded(policy, batch, torch.float32))
    for name, value in seen.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-6)
    kept["loss"].backward()
    assert all(p.grad is not None for p in policy.backbone.perceiver.parameters())
    policy.eval()
    said, again = policy.predict(batch), policy.predict(encoded(policy, batch))
    for name, value in said.items():
        torch.testing.assert_close(again[name], value, rtol=1e-2, atol=1e-2)


def test_the_encoder_computes_as_training_does(tmp_path: Path) -> None:
    policy = frozen_policy()
    images = torch.randint(0, 256, (70, 32, 32, 3), dtype=torch.uint8)
    for precision in ("fp32", "bf16"):
        config = replace(tiny_run(tmp_path, tmp_path), precision=precision)
        encoder = FrozenEncoder(policy.vision(), config)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            wanted = policy.backbone.vision_encoder(images).float()
        torch.testing.assert_close(torch.from_numpy(encoder(images.numpy())), wanted)
        assert encoder.shape(32) == (16, 16)
    assert policy.backbone.vision_encoder.training


def test_weights_settings_and_precision_tell_encoders_apart(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tmp_path)
    policy, vision = frozen_policy(), frozen_policy().vision()
    found = [FrozenEncoder(policy.vision(), config).fingerprint, FrozenEncoder(vision, config).fingerprint]
    assert found[0] == found[1]  # another object of the same content
    found.append(FrozenEncoder(vision, replace(config, precision="bf16")).fingerprint)
    found.append(FrozenEncoder(vision._replace(settings={"heads": 3}), config).fingerprint)
    next(policy.backbone.vision_encoder.parameters()).data.view(-1)[0] += 1e-3
    found.append(FrozenEncoder(policy.vision(), config).fingerprint)
    assert len(set(found)) == 4


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["decoded", "compressed"])
def test_losses_are_those_of_training_on_images(tmp_path: Path, dataset: Path, images: str) -> None:
    runs = []
    for tokens in ("never", "always"):
        config = run_of(tmp_path / tokens, dataset, tokens, policy=deterministic_policy(), validate_every_steps=3)
        train(replace(config, data=replace(config.data, images=images)), console=QUIET)
        runs.append(metrics(tmp_path / tokens))
    for one, other in zip(*map(without_clocks, runs), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-3), (one["step"], name)
    assert len(tokens_in(dataset)) == 4  # two cameras and two splits


def test_a_continued_run_is_the_uninterrupted_one(tmp_path: Path, dataset: Path) -> None:
    optimizer = OptimizerConfig(warmup_steps=3, learning_rate=2e-3, schedule="constant")
    changes: dict[str, Any] = {"optimizer": optimizer, "shifts": 3, "validate_every_steps": 4}
    train(run_of(tmp_path / "whole", dataset, **changes, max_steps=8), console=QUIET)
    train(run_of(tmp_path / "parts", dataset, **changes, max_steps=4), console=QUIET)
    train(run_of(tmp_path / "parts", dataset, **changes, max_steps=8), console=QUIET)
    assert without_clocks(metrics(tmp_path / "parts")) == without_clocks(metrics(tmp_path / "whole"))
    mine, other = (load_policy(tmp_path / name / "policy").state_dict() for name in ("parts", "whole"))
    assert all(torch.equal(mine[name], value) for name, value in other.items())


def test_shifts_are_drawn_in_training_and_none_in_validation(tmp_path: Path, dataset: Path) -> None:
    still = OptimizerConfig(learning_rate=0.0)
    lines = {}
    for shifts in (1, 3):
        config = run_of(tmp_path / str(shifts), dataset, shifts=shifts, optimizer=still, policy=tiny_policy(window=1))
        train(config, console=QUIET)
        lines[shifts] = metrics(tmp_path / str(shifts))
    assert len(tokens_in(dataset)) == 2 + 2 * 3  # of the validation split, and of the training split
    values = {shifts: [line["val_loss"] for line in found if "val_loss" in line] for shifts, found in lines.items()}
    assert values[1] == values[3]
    assert losses(tmp_path / "1") != losses(tmp_path / "3")


def test_runs_with_the_same_encoder_share_tokens_and_others_make_their_own(tmp_path: Path, dataset: Path) -> None:
    train(run_of(tmp_path / "one", dataset), console=QUIET)
    first = {path: path.stat().st_mtime_ns for path in tokens_in(dataset)}
    train(run_of(tmp_path / "same", dataset, batch_size=2), console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in tokens_in(dataset)} == first
    train(run_of(tmp_path / "other", dataset, seed=1), console=QUIET)  # other random weights
    assert len(tokens_in(dataset)) == 2 * len(first)


def test_processes_make_tokens_once_and_train_as_one(tmp_path: Path, dataset: Path) -> None:
    changes: dict[str, Any] = {"policy": deterministic_policy(), "validation_windows": 0, "max_steps": 3}
    run_in_processes(2, train, run_of(tmp_path / "two", dataset, devices=2, batch_size=2, **changes))
    assert not list((dataset / "packed" / "tokens").glob("*.building"))
    train(run_of(tmp_path / "one", dataset, batch_size=4, **changes), console=QUIET)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_a_policy_trained_from_tokens_acts_on_images(tmp_path: Path, dataset: Path) -> None:
    policy = load_policy(train(run_of(tmp_path / "run", dataset), console=QUIET))
    batch = a_batch(policy.config) | {"instruction": ["please open drawer 0"] * 2}
    assert policy.predict(batch)["pose"].shape[:3] == (2, 2, 3)


# --- whether it is done --------------------------------------------------------------------------


@given(st.data())
def test_as_many_shifts_are_kept_as_fit_by_sizes_alone(data: st.DataObject) -> None:
    count = st.integers(1, 1000)
    possible = {name: data.draw(st.sampled_from([1, 9, 25])) for name in "ab"}
    demand = Demand({"a": 100, "b": 10}, possible, data.draw(count), data.draw(count), data.draw(st.none() | count))
    asked, most, saves = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 300_000)), data.draw(st.booleans())
    chosen, why = demand.choose(asked, most, saves=saves)

    def fits(shifts: int) -> bool:
        sees = demand.looked_at is None or not saves or demand.encoded(shifts) <= demand.looked_at
        return demand.bytes(shifts) <= most and sees

    best = min(asked, max(possible.values()))
    assert chosen == max((shifts for shifts in range(1, best + 1) if fits(shifts)), default=0)
    assert bool(why) == (chosen < best)


def said(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> str:
    train(config, console=Console(width=400))
    return capsys.readouterr().out


def test_auto_keeps_tokens_where_that_saves_time_and_space(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = said(run_of(tmp_path / "long", dataset, "auto", 3, max_steps=9, validation_windows=0), capsys)
    assert "training from vision tokens of up to 2 shifts of each image: 2.75e-05 GB in" in long
    assert "of no more, as training looks at 72 frames, and 3 shifts of each image are 99 to encode (data" in long
    short = said(run_of(tmp_path / "short", dataset, "auto", 3, max_steps=4, validation_windows=0), capsys)
    assert "vision tokens are not kept: training looks at 32 frames, and the images are 33 to encode" in short
    config = run_of(tmp_path / "large", dataset, "auto", 3, max_steps=9, validation_windows=0)
    large = said(replace(config, data=replace(config.data, token_gb=1e-5)), capsys)
    assert "vision tokens are not kept: the images would take 1.37e-05 GB, and data.token_gb is 1e-05" in large


def test_a_continued_run_does_what_it_began_with(tmp_path: Path, dataset: Path) -> None:
    short = run_of(tmp_path, dataset, "auto", max_steps=4, validation_windows=0)
    train(short, console=QUIET)
    train(replace(short, max_steps=40), console=QUIET)
    assert not tokens_in(dataset)
    longer = run_of(tmp_path / "long", dataset, "auto", max_steps=10, validation_windows=0)
    train(longer, console=QUIET)
    assert tokens_in(dataset)
    data = replace(longer.data, token_gb=1e-9)
    train(replace(longer, data=data, max_steps=11), console=QUIET)
    assert json.loads((tmp_path / "long" / "data.json").read_text())["token_shifts"] == 1


def test_a_run_older_than_the_key_goes_on_with_images(tmp_path: Path, dataset: Path) -> None:
    train(run_of(tmp_path, dataset, "never", max_steps=10), console=QUIET)
    path = tmp_path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for key in ("vision_tokens", "token_shifts", "token_gb"):
        del content["data"][key]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    config = tiny_run(tmp_path, dataset, trainable=FROZEN, loggers=["jsonl"], validation_windows=8, max_steps=20)
    train(config, console=QUIET)
    assert not tokens_in(dataset)


def test_auto_leaves_an_encoder_that_trains_alone(tmp_path: Path, dataset: Path) -> None:
    train(run_of(tmp_path, dataset, "auto", max_steps=20, trainable=TrainableConfig()), console=QUIET)
    assert not tokens_in(dataset)


@pytest.mark.parametrize(
    "changed",
    [
        {"trainable": TrainableConfig()},
        {"trainable": TrainableConfig(everything=False, vision=True)},
    ],
)
def test_always_with_an_encoder_that_trains_is_an_error_before_data_are_packed(
    tmp_path: Path, dataset: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.vision_tokens is always, and the vision encoder trains .*; set train"
    ):
        train(run_of(tmp_path, dataset, **changed), console=QUIET)
    assert not (dataset / "packed").exists()


def test_always_that_takes_too_much_is_an_error_that_names_the_key(tmp_path: Path, dataset: Path) -> None:
    config = run_of(tmp_path, dataset)
    with pytest.raises(ConfigError, match=r"is always, and the images would take .*; raise data\.token_gb"):
        train(replace(config, data=replace(config.data, token_gb=1e-9)), console=QUIET)
