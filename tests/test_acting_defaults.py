"""E and leash are saved with a policy: evaluation takes them unless told otherwise, and says who chose them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from calvin_eval.evaluation.chains import ChainSettings
from calvin_eval.system.errors import UserError
from policies import small_config, small_policy
from roboflamingo.cli import evaluate as verb
from roboflamingo.cli.contents import describe
from roboflamingo.cli.defaults import main as defaults
from roboflamingo.cli.policies import EXPERT, how_to_act
from roboflamingo.data.collected import recorded_leash
from roboflamingo.policy.base_config import ActingConfig
from roboflamingo.training.train import train
from roboflamingo.weights.acting import identity, read_acting, save_acting
from roboflamingo.weights.checkpoint import CONFIG, WEIGHTS, load_policy, save_policy
from runs import tiny_run
from synthetic import write_dataset


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    save_policy(small_policy(window=1), tmp_path / "policy")
    return tmp_path / "policy"


# --- in the policy's folder --------------------------------------------------------------------


def test_they_are_changed_in_a_whole_folder_whose_weights_stay_where_they_are(folder: Path) -> None:
    assert read_acting(folder) == ActingConfig(None, None)
    inode, mode = (folder / WEIGHTS).stat().st_ino, (folder / CONFIG).stat().st_mode
    save_acting(folder, ActingConfig(4, 0.05))
    assert load_policy(folder).config.acting == ActingConfig(4, 0.05)  # which checks every file's checksum
    assert (folder / WEIGHTS).stat().st_ino == inode and (folder / CONFIG).stat().st_mode == mode
    assert os.listdir(folder.parent) == ["policy"]
    save_policy(load_policy(folder), folder)
    assert read_acting(folder) == ActingConfig(4, 0.05)


def test_a_policy_stays_the_same_one_when_they_are_chosen_and_is_another_with_other_weights_or_config(
    folder: Path,
) -> None:
    before = identity(folder)
    save_acting(folder, ActingConfig(4, 0.05))
    assert identity(folder) == before
    values = yaml.safe_load((folder / CONFIG).read_text())
    del values["acting"]
    (folder / CONFIG).write_text(yaml.safe_dump(values))  # as from before there were such
    assert identity(folder) == before
    (folder / CONFIG).write_text(yaml.safe_dump(values | {"stride": 2}))
    assert identity(folder) != before
    policy = small_policy(window=1)
    with torch.no_grad():
        next(policy.head.parameters()).add_(0.01)
    save_policy(policy, folder)
    assert identity(folder) != before


def test_what_cannot_be_is_refused_and_changes_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.acting\.execute is 9, more actions than the 4 that policy\.chunk"):
        save_acting(folder, ActingConfig(9))
    assert read_acting(folder) == ActingConfig()
    with pytest.raises(UserError, match="holds no policy"):
        save_acting(folder.parent, ActingConfig(1))
    with pytest.raises(UserError, match=r"policy\.acting\.execute is 5"):
        small_config(acting=ActingConfig(execute=5))


def test_the_verb_shows_and_changes_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    defaults([str(folder)])
    assert "E not chosen (closed loop), leash none" in capsys.readouterr().out
    defaults([str(folder), "--execute", "2", "--leash", "0.05"])
    defaults([str(folder), "--execute", "4"])
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}: E 4, leash 0.05 m"
    defaults([str(folder), "--leash", "none"])
    assert read_acting(folder) == ActingConfig(4, None)
    for words, message in ((["--execute", "two"], "takes a whole number or none"), (["--leash", "0"], "above 0")):
        with pytest.raises(UserError, match=message):
            defaults([str(folder), *words])


# --- in evaluation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "execute", "leash", "origins"),
    [
        ({}, 4, 0.05, ("policy", "policy")),
        ({"execute": 2}, 2, 0.05, ("given", "policy")),
        ({"leash": 0.1}, 4, 0.1, ("policy", "given")),
        ({"leash": 0}, 4, None, ("policy", "given")),  # none, whatever the policy says
        ({"ensemble": 0.01}, 1, 0.05, ("default", "policy")),  # which predicts at every step
    ],
)
def test_what_is_given_wins_over_what_is_saved(
    folder: Path, given: dict[str, Any], execute: int, leash: float | None, origins: tuple[str, str]
) -> None:
    save_acting(folder, ActingConfig(4, 0.05))
    acting = how_to_act(str(folder), **given)
    assert (acting.execute, acting.leash) == (execute, leash)
    assert acting.origins == dict(zip(("execute", "leash"), origins, strict=True))


def test_where_nobody_says_it_is_closed_loop_without_a_leash(folder: Path) -> None:
    for who in (str(folder), EXPERT):
        acting = how_to_act(who)
        assert (acting.execute, acting.leash) == (1, None) and set(acting.origins.values()) == {"default"}


def test_results_say_how_it_acted_and_who_said_so(folder: Path, tmp_path: Path) -> None:
    save_acting(folder, ActingConfig(4, 0.05))
    config = verb.EvaluateConfig(
        policy=str(folder), out=str(tmp_path / "chains"), renderer="tinyrenderer", workers=1, batch=1,
        settings=ChainSettings("choosing", chains=1, max_steps=3),
    )  # fmt: skip
    first: dict[str, Any] = verb.run(config)
    assert (first["execute"], first["settings"]["leash"], first["settings"]["set"]) == (4, 0.05, "choosing")
    assert first["acting_from"] == {"execute": "policy", "leash": "policy"}
    assert first["hardware"]["matmul_gflops"] > 0
    assert first["hardware"]["torch_instructions"] == torch.backends.cpu.get_cpu_capability()
    told = dict((*describe(tmp_path / "chains"), *describe(folder)))
    assert told["  set of chains"] == "choosing" and told["  acts with"] == "E 4, leash 0.05"
    line = (tmp_path / "chains" / "chains.jsonl").read_text()
    again: dict[str, Any] = verb.run(replace(config, execute=4))  # the same, so nothing is run again
    assert again["acting_from"]["execute"] == "given"
    assert (tmp_path / "chains" / "chains.jsonl").read_text() == line
    with pytest.raises(UserError, match="an evaluation with other set choosing"):
        verb.run(replace(config, settings=replace(config.settings, set="reporting")))


# --- in training -------------------------------------------------------------------------------


def collected(folder: Path, leash: Any) -> Path:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"settings": {"episode": {"leash": leash}}}))
    return folder


def test_data_sets_tell_their_leash_if_all_have_the_same(tmp_path: Path) -> None:
    a, b, c, none = (collected(tmp_path / str(i), leash) for i, leash in enumerate((0.05, 0.05, 0.1, None)))
    assert recorded_leash([a, b]) == 0.05 and recorded_leash([none]) is None
    assert recorded_leash([a, c]) is None and recorded_leash([a, none]) is None
    assert recorded_leash([a, tmp_path / "elsewhere"]) is None  # CALVIN's own, or a packed one
    with pytest.raises(UserError, match=r"settings\.episode\.leash is 'long'"):
        recorded_leash([collected(tmp_path / "d", "long")])


def test_training_saves_the_leash_of_its_data_with_the_policy_and_a_given_one_wins(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    (data / "settings.json").write_text(json.dumps({"settings": {"episode": {"leash": 0.05}}}))
    config = tiny_run(tmp_path / "run", data, max_steps=1)
    policy = train(config, console=Console(quiet=True))
    assert read_acting(policy) == ActingConfig(None, 0.05)
    longer = replace(config, max_steps=2, policy=replace(config.policy, acting=ActingConfig(3, 0.1)))
    assert read_acting(train(longer, console=Console(quiet=True))) == ActingConfig(3, 0.1)
