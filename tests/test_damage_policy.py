"""A damaged policy folder is noticed: by its checksums, and without them it ends in a message, never in a traceback."""

from __future__ import annotations

import shutil

import pytest

from calvin_eval.system.errors import UserError
from mutations import damaged
from policies import small_policy
from published import publish
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.making import make_policy

COUNT = 200
FILES = ("weights.safetensors", "config.yaml", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy with a tokenizer of its own."""
    root = tmp_path_factory.mktemp("policy")
    save_policy(make_policy(publish(root / "published", "mpt").config()).eval(), root / "policy")
    return root / "policy"


@pytest.mark.parametrize("name", [*FILES, "sha256.json"])
def test_every_damage_is_noticed_and_named(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    original = (folder / name).read_bytes()
    for content in damaged(original, COUNT):
        (copy / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            load_policy(copy)
        assert str(copy) in str(error.value)
    (copy / name).write_bytes(original)
    load_policy(copy)


@pytest.mark.parametrize("name", FILES)
def test_without_checksums_damage_is_at_least_a_message(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "sha256.json").unlink()
    for content in damaged((folder / name).read_bytes(), 50, seed=1):
        (copy / name).write_bytes(content)
        try:
            load_policy(copy)
        except UserError as error:
            assert str(copy) in str(error)


@pytest.mark.parametrize("missing", [*FILES, "tokenizer"])
def test_a_file_that_is_gone_is_named(folder, tmp_path, missing):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=missing):
        load_policy(copy)


def test_a_policy_of_words_needs_no_tokenizer(tmp_path):
    save_policy(small_policy(), tmp_path / "policy")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "config.yaml", "sha256.json", "weights.safetensors"
    }  # fmt: skip
