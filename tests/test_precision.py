"""Device and precision are what this machine can do, or are refused before any work is done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from roboflamingo.heads.base import HeadConfig
from roboflamingo.heads.lstm import lstm_computes_in, window_lstm
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.precision import device_for, runs_in_bf16, settle
from roboflamingo.training.train import train
from runs import losses, tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)
WITHOUT_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
ON_A_PROCESSOR_WITHOUT_BF16 = """
from dataclasses import replace
from pathlib import Path
import torch
from rich.console import Console
from policies import a_batch, frozen_policy
from roboflamingo.heads.lstm import lstm_computes_in, window_lstm
from roboflamingo.heads.base import HeadConfig
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.precision import computes_in_bf16, settle
from runs import tiny_run

assert not lstm_computes_in(torch.bfloat16, "cpu") and not computes_in_bf16("auto")
torch.manual_seed(0)
lstm, features = window_lstm(HeadConfig(hidden=16, layers=2), 8), torch.randn(2, 3, 8)
with torch.autocast("cpu", torch.bfloat16):
    computed = lstm(features.bfloat16())[0]
assert torch.equal(computed, lstm(features.bfloat16().float())[0])
for head in ("lstm", "flow", "bins"):
    policy = frozen_policy(head=HeadConfig(kind=head, hidden=16))
    with torch.autocast("cpu", torch.bfloat16):
        loss = policy.loss(a_batch(policy.config))["loss"]
    loss.backward()
    assert loss.isfinite() and policy.head.rnn.weight_ih_l0.grad.isfinite().all()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert policy.predict(a_batch(policy.config))["pose"].isfinite().all()
run = tiny_run(Path("nowhere"), Path("nowhere"), precision="auto")
assert settle(run, Console(quiet=True)).precision == "fp32"
assert settle(replace(run, precision="bf16"), Console(quiet=True)).precision == "bf16"
try:
    settle(replace(run, frozen_precision="bf16"), Console(quiet=True))
except ConfigError as error:
    assert "frozen_precision: fp32" in str(error)
else:
    raise AssertionError("frozen bf16 weights in fp32 computation")
"""


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="the limits name instruction sets of x86 processors")
def test_bf16_works_on_a_processor_without_it() -> None:
    """In a process of its own: torch reads its limits once."""
    script = [sys.executable, "-c", ON_A_PROCESSOR_WITHOUT_BF16]
    environment = os.environ | WITHOUT_BF16
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_autocast_changes_nothing_of_an_lstm_that_computes_in_bf16() -> None:
    if not lstm_computes_in(torch.bfloat16, "cpu"):
        pytest.skip("needs a processor whose LSTM computes in bf16 (AVX-512)")
    lstm, features = window_lstm(HeadConfig(hidden=16), 8), torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm(features)[0].dtype == torch.bfloat16
        assert torch.equal(lstm(features)[0], torch.nn.LSTM.forward(lstm, features)[0])


def test_trying_what_works_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    for tried in (lambda: lstm_computes_in(torch.bfloat16, "cpu"), lambda: runs_in_bf16("cpu")):
        lstm_computes_in.cache_clear()
        runs_in_bf16.cache_clear()
        assert tried() in (True, False)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_data_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accelerator is cuda, .* finds no GPU here; set accelerator: cpu"):
        train(tiny_run(tmp_path, tmp_path / "no data", accelerator="cuda"), console=QUIET)
    assert not (tmp_path / "config.yaml").exists()
    with pytest.raises(ConfigError, match="device is cuda"):
        device_for("cuda", "device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_gpus_than_there_are_are_refused(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"devices is {count + 1}, .* set devices: {count}"):
        settle(tiny_run(tmp_path, tmp_path, accelerator="cuda", devices=count + 1), QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_mac_trains_on_its_cpu_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    said = io.StringIO()
    dataset = write_dataset(tmp_path / "data")
    run = tiny_run(tmp_path / "run", dataset, accelerator="auto", max_steps=1, validation_windows=0)
    train(run, console=Console(file=said))
    assert "accelerator auto: computing on the CPU" in said.getvalue()
    assert len(losses(tmp_path / "run")) == 1


def test_a_run_with_automatic_precision_goes_on_in_the_one_it_began_with(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    for precision in ("fp32", "bf16"):
        run = tiny_run(tmp_path / precision, dataset, precision=precision, policy=tiny_policy(window=1), max_steps=1)
        train(replace(run, validation_windows=0), console=QUIET)
        assert settle(replace(run, precision="auto"), QUIET).precision == precision
