"""The command line: overview, help, and errors that name the key and the file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from roboflamingo.cli.arguments import parse_config
from roboflamingo.cli.main import VERBS, main
from roboflamingo.training.config import TrainConfig
from runs import metrics, tiny_run, write_yaml
from synthetic import write_dataset


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roboflamingo.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Calls the command line, expects status 2 and returns the message."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_overview_is_fast_and_has_an_example_for_every_verb() -> None:
    began = time.monotonic()
    result = run_cli("--help")
    assert time.monotonic() - began < 1.0
    assert result.returncode == 0
    for verb in ("demo", "collect", "train", "evaluate", "report", "info"):
        assert f"roboflamingo {verb} {VERBS[verb].example}" in result.stdout


def test_overview_does_not_import_torch() -> None:
    code = "import sys; from roboflamingo.cli.main import main; main(['--help']);sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_an_unknown_verb_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "trian")
    assert "trian" in message
    assert "train" in message


@pytest.mark.parametrize("verb", ["train", "info"])
def test_help_of_a_verb_ends_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    last = capsys.readouterr().out.split("examples:")[1].strip().splitlines()
    assert all(line.strip().startswith(f"roboflamingo {verb}") for line in last)


def test_the_help_of_train_explains_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "draws every task equally often" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("max_stepz: 5", "max_stepz"),
        ("data: {folders: {a: 1.0}, wrokers: 2}", "wrokers"),
        ("data: {folders: {a: 1.0}}\nbatch_size: many", "batch_size"),
        ("data: {folders: {a: often}}", "data.folders"),
        ("data: {folders: {a: 1.0}}\nprecision: fp8", "precision"),
        ("optimizer: {schedule: quadratic}", "optimizer.schedule"),
    ],
)
def test_a_wrong_key_or_type_in_a_file_is_named_with_the_file(
    text: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    message = fails(capsys, "train", "--config", str(path), "--run", str(tmp_path / "run"), "--max_steps", "3")
    assert str(path) in message
    assert key in message
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_on_the_command_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "right.yaml"
    path.write_text("data: {folders: {a: 1.0}}\nmax_steps: 5\nrun: r")
    message = fails(capsys, "train", "--config", str(path), "--batch_sizes", "3")
    assert "batch_sizes" in message
    assert str(path) not in message


def test_broken_yaml_and_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "broken.yaml" in fails(capsys, "train", "--config", str(tmp_path / "broken.yaml"))
    assert "absent.yaml" in fails(capsys, "train", "--config", str(tmp_path / "absent.yaml"))


def test_values_that_contradict_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "train", "--run", "r", "--data.folders", "{a: 1.0}")
    assert "one of max_steps, max_epochs and max_minutes" in message


def test_a_missing_data_set_is_an_error_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_yaml(tiny_run(tmp_path / "run", tmp_path / "nowhere"), tmp_path / "run.yaml")
    with pytest.raises(SystemExit) as exit:
        main(["train", "--config", str(config)])
    assert exit.value.code == 1
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "Traceback" not in message


def test_train_runs_and_its_resolved_config_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "data")
    config = write_yaml(tiny_run(tmp_path / "a", dataset), tmp_path / "run.yaml")
    main(["train", "--config", str(config), "--max_steps", "2"])
    assert str(tmp_path / "a" / "policy") in capsys.readouterr().err
    main(["train", "--config", str(tmp_path / "a" / "config.yaml"), "--run", str(tmp_path / "b")])
    keys = ("step", "loss", "pose", "gripper", "lr")
    first, second = ([[line.get(key) for key in keys] for line in metrics(tmp_path / run)] for run in "ab")
    assert first == second
    main(["info", str(tmp_path / "a")])
    assert "2 steps" in capsys.readouterr().out
    main(["info", str(dataset)])
    assert "4 of 4 tasks" in capsys.readouterr().out


def test_info_tells_versions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    assert "torch" in capsys.readouterr().out


def test_info_names_a_folder_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


def test_a_yes_or_no_key_is_a_switch(capsys: pytest.CaptureFixture[str]) -> None:
    from roboflamingo.cli.arguments import parse_config
    from roboflamingo.cli.collect import CollectConfig

    for words, check in ((["--check"], True), (["--check", "--starts", "3"], True), (["--check", "false"], False)):
        assert parse_config(CollectConfig, "collect", words, summary="", examples="").check is check


def test_a_preset_gives_defaults_that_other_keys_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("policy: {backbone: {preset: rpj-3b, resampler: {latents: 32}}, window: 6}\n")
    given = ["--config", str(tmp_path / "run.yaml"), "--run", "x", "--max_steps", "1", "--data.folders", "{a: 1.0}"]
    policy = parse_config(TrainConfig, "train", [*given, "--policy.head.hidden", "512"], summary="", examples="").policy
    assert (policy.backbone.language.width, policy.backbone.cross_attention.every) == (2560, 2)
    assert (policy.backbone.resampler.latents, policy.backbone.resampler.depth) == (32, 6)
    assert (policy.window, policy.chunk, policy.head.hidden, policy.head.layers) == (6, 1, 512, 4)
    with pytest.raises(SystemExit):
        parse_config(TrainConfig, "train", [*given, "--policy.backbone.preset", "mpt-9b"], summary="", examples="")
    known = "choose one of scratch, tiny, smollm2-135m, mpt-1b"
    assert f"backbone.preset 'mpt-9b' does not exist; {known}" in capsys.readouterr().err
