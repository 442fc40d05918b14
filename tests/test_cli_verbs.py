"""Every verb from its words to what it leaves, and how verbs end: errors, signals, closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from published import publish
from roboflamingo.cli import main as cli
from roboflamingo.cli.main import main
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.weights.checkpoint import load_policy, save_policy
from runs import tiny_policy

COMMAND = [sys.executable, "-m", "roboflamingo.cli.main"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that knows no better."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    save_policy(RoboFlamingo(tiny_policy(window=1, chunk=8).with_words(["open the drawer"])).eval(), folder)
    return folder


def ends(code: int, *words: str) -> None:
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    assert exit.value.code == code


def test_evaluate_and_report(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chains"
    words = ["--policy", str(policy), "--out", str(out), "--workers", "1", "--batch", "2", "--execute", "8"]
    main(["evaluate", *words, "--settings.chains", "2", "--settings.max_steps", "8"])
    results = json.loads((out / "results.json").read_text())["0"]
    assert results["execute"] == 8 and results["settings"]["chains"] == 2
    assert "results in" in capsys.readouterr().out
    page = tmp_path / "page.html"
    main(["report", str(out), "--out", str(page)])
    assert "<svg" in page.read_text()


def test_collect_with_a_policy_that_acts_first(policy: Path, tmp_path: Path) -> None:
    main(["collect", "--out", str(tmp_path), "--policy", str(policy), "--execute", "2", "--workers", "1",
          "--settings.episodes", "2", "--settings.validation_episodes", "1", "--settings.episode.tasks", "1",
          "--settings.episode.max_steps", "150"])  # fmt: skip
    data = tmp_path / "task_D_D"
    assert json.loads((data / "settings.json").read_text())
    assert list((data / "training").glob("episode_*.npz"))


def test_info_of_a_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", str(policy)])
    assert "weights.safetensors" in capsys.readouterr().out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mpt = publish(tmp_path / "mpt", "mpt")
    config = tmp_path / "convert.yaml"
    config.write_text(yaml.safe_dump({"policy": json.loads(json.dumps(asdict(mpt.config())))}))
    main(["convert", "--config", str(config), "--checkpoint", str(mpt.checkpoint), "--out", str(tmp_path / "policy")])
    assert "lstm head, window 3, chunks of 2, post fusion" in capsys.readouterr().out
    assert load_policy(tmp_path / "policy").config.chunk == 2
    ends(1, "convert", "--config", str(config), "--checkpoint", str(config), "--out", str(tmp_path / "none"))
    message = capsys.readouterr().err
    assert "convert.yaml" in message and message.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_weights_without_a_network_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ends(1, "weights", "get", "mpt-1b-dolly", "--cache", str(tmp_path))
    assert capsys.readouterr().err.startswith("roboflamingo weights: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--execute", "99"], "99"),
        (["--renderer", "none"], "and the play table with renderer none renders no images"),
        (["--ensemble=-1"], "ensemble is -1"),
        (["--batch", "0"], "batch is 0"),
        (["--workers", "0"], "workers is 0"),
        (["--settings.videos", "9", "--settings.chains", "3"], "only 3 chains"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_by_the_parent(
    words: list[str], message: str, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends(2, "evaluate", "--policy", str(policy), "--out", str(tmp_path / "out"), *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "chains.jsonl").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_a_message(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends(2, "evaluate", "--policy", str(policy), "--out", str(tmp_path), "--device", "cuda")
    assert "no GPU" in capsys.readouterr().err


def test_a_collection_with_too_long_a_horizon_is_refused(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends(2, "collect", "--out", str(tmp_path), "--policy", str(policy), "--execute", "9")
    assert "1..8" in capsys.readouterr().err


# --- how verbs end -----------------------------------------------------------------------------


class Verb:
    """Stands for a verb's module."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, words: list[str]) -> None:
        raise self.error


def run(error: BaseException, monkeypatch: pytest.MonkeyPatch, verb: str = "train") -> None:
    """Calls a verb that raises."""
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Verb(error))
    main([verb])


def test_what_a_user_can_mend_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from calvin_eval.system.errors import MissingExtraError, UsageError, UserError
    from calvin_eval.system.processes import WorkerKilledError

    for error, message, code in (
        (UserError("mend this"), "mend this", 1),
        (UsageError("these two keys contradict"), "these two keys contradict", 2),
        (FileNotFoundError("x is no file"), "x is no file", 1),
        (PermissionError(13, "Permission denied", "/a"), "/a: Permission denied", 1),
        (MissingExtraError("pip install 'roboflamingo[lora]'"), "pip install 'roboflamingo[lora]'", 1),
        (WorkerKilledError("a worker was killed"), "a worker was killed", 1),
    ):
        with pytest.raises(SystemExit) as exit:
            run(error, monkeypatch)
        assert exit.value.code == code
        assert capsys.readouterr().err == f"roboflamingo train: error: {message}\n"


def test_a_fault_of_ours_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from calvin_eval.system.processes import WorkerError

    for error in (ValueError("a"), KeyError("0"), ImportError("torch"), RuntimeError("b"), WorkerError("Traceback")):
        with pytest.raises(type(error)) as raised:
            run(error, monkeypatch)
        assert raised.value is error


def test_a_signal_is_one_line_and_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from calvin_eval.system.signals import Stopped

    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in a shell's background
    for error, code, name in (
        (Stopped(signal.SIGTERM), 143, "SIGTERM"),
        (Stopped(signal.SIGINT), 130, "SIGINT"),
        (KeyboardInterrupt(), 130, "SIGINT"),
    ):
        for verb, again in (("collect", "; the same command continues it"), ("info", "")):
            with pytest.raises(SystemExit) as exit:
                run(error, monkeypatch, verb)
            assert exit.value.code == code
            assert capsys.readouterr().err == f"roboflamingo {verb}: stopped by {name}{again}\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("verb", ["train", "collect", "info"])
def test_a_signal_in_the_first_seconds_prints_no_traceback(verb: str) -> None:
    words = {"train": ["--config", "absent.yaml"], "collect": ["--settings.episodes", "x"], "info": ["absent"]}[verb]
    for number, wait in ((signal.SIGINT, 0.25), (signal.SIGTERM, 0.45), (signal.SIGINT, 0.7)):
        process = subprocess.Popen([*COMMAND, verb, *words], stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        if "stopped by" in said:
            assert said.count("\n") == 1 and process.returncode == 128 + number
        else:  # it had come to its own end, or had not begun
            assert process.returncode in (1, 2, -number)


def test_a_reader_that_has_enough_is_no_error() -> None:
    for words in (["--help"], ["--version"], ["report", "--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writing)
        assert done.stderr == "" and done.returncode in (0, 1)  # argparse does not mind


def test_no_arguments_are_no_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roboflamingo", "trian"])
    main([])
    assert "usage: roboflamingo VERB" in capsys.readouterr().out
