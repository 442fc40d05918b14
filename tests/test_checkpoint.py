"""Checkpoints: whole, self-contained, and nothing in them is run."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from calvin_eval.system.errors import UserError
from policies import a_batch, small_policy
from roboflamingo.weights.checkpoint import load_policy, save_policy


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
    ours, theirs = policy.predict(batch), again.predict(batch)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[part], theirs[part]) for part in ours)


def unchecked(folder):
    """The same folder as one from before checksums, so that what is in it is read at all."""
    (folder / "sha256.json").unlink(missing_ok=True)
    return folder


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        load_policy(tmp_path)


def test_an_unknown_key_in_the_config_is_named_with_its_file(saved):
    folder = unchecked(saved[1])
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["windwo"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="windwo") as error:
        load_policy(folder)
    assert "config.yaml" in str(error.value)


def test_tensors_that_do_not_fit_are_named(saved):
    folder = unchecked(saved[1])
    path = folder / "weights.safetensors"
    weights = load_file(path)
    name = "head.output.out.bias"
    save_file({k: v for k, v in weights.items() if k != name}, path)
    with pytest.raises(UserError, match=f"lacks tensor {name}"):
        load_policy(folder)
    save_file(weights | {name: torch.zeros(3)}, path)
    with pytest.raises(UserError, match=f"{name} is \\(3,\\)"):
        load_policy(folder)


def test_a_file_that_is_no_safetensors_is_refused(saved):
    folder = unchecked(saved[1])
    torch.save({"a": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_policy(folder)


def test_the_run_says_where_its_policy_is(saved):
    _, folder = saved
    with pytest.raises(UserError, match=f"holds no policy.* its policy is {folder}$"):
        load_policy(folder.parent)


def test_a_changed_file_is_named_and_what_to_do_if_it_was_meant(saved):
    _, folder = saved
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("window: 3", "window: 2"))
    with pytest.raises(UserError, match=r"config\.yaml is not as it was saved.*delete .*sha256\.json"):
        load_policy(folder)


def test_the_checksums_are_those_of_sha256sum(saved):
    _, folder = saved
    sums = json.loads((folder / "sha256.json").read_text())
    assert set(sums) == {"config.yaml", "weights.safetensors"}
    for name, wanted in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted


def test_a_policy_replaces_a_policy_and_nothing_else(saved):
    policy, folder = saved
    save_policy(policy, folder)
    assert {path.name for path in folder.parent.iterdir()} == {"policy"}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of a policy"):
        save_policy(policy, folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_files_have_the_mode_of_other_files(saved):
    _, folder = saved
    (folder / "other").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / "other").stat().st_mode}


def test_a_save_that_fails_leaves_the_old_policy_and_no_leftovers(saved, monkeypatch):
    policy, folder = saved
    before = (folder / "sha256.json").read_bytes()
    policy.config.statistics["bad"] = object()  # which YAML cannot say
    with pytest.raises(Exception, match="object"):
        save_policy(policy, folder)
    assert (folder / "sha256.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]
    load_policy(folder)


def test_a_policy_with_damaged_checksums_is_replaced_all_the_same(saved):
    policy, folder = saved
    for content in ("", "[1]", "{"):
        (folder / "sha256.json").write_text(content)
        save_policy(policy, folder)
        assert load_policy(folder).config == policy.config


def test_a_config_of_another_version_is_called_that(saved):
    _, folder = saved
    (folder / "sha256.json").unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config + "static_size: 96\n")
    with pytest.raises(UserError, match=r"config\.yaml: static_size is no key .* another version wrote it"):
        load_policy(folder)
