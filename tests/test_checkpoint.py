"""Checkpoints: whole, self-contained, and nothing in them is run."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from policies import a_batch, small_policy
from roboflamingo.checkpoint import load_policy, save_policy


@pytest.fixture
def saved(tmp_path):
    policy = small_policy()
    save_policy(policy, tmp_path / "policy")
    return policy, tmp_path / "policy"


def test_a_policy_comes_back_bit_for_bit_from_its_folder_alone(saved):
    policy, folder = saved
    again = load_policy(folder)
    assert again.config == policy.config and not again.training
    batch = a_batch(policy.config)
    for ours, theirs in zip(policy.predict(batch), again.predict(batch), strict=True):
        assert torch.equal(ours, theirs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        load_policy(tmp_path)


def test_an_unknown_key_in_the_config_is_named_with_its_file(saved):
    _, folder = saved
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["windwo"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="windwo") as error:
        load_policy(folder)
    assert "config.yaml" in str(error.value)


def test_tensors_that_do_not_fit_are_named(saved):
    _, folder = saved
    path = folder / "weights.safetensors"
    weights = load_file(path)
    name = "head.output.out.bias"
    save_file({k: v for k, v in weights.items() if k != name}, path)
    with pytest.raises(ValueError, match=f"lacks tensor {name}"):
        load_policy(folder)
    save_file(weights | {name: torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=f"{name} is \\(3,\\)"):
        load_policy(folder)


def test_a_file_that_is_no_safetensors_is_refused(saved):
    _, folder = saved
    torch.save({"a": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_policy(folder)
