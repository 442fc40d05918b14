"""Damaged files of a run: 200 seeded mutations of each are recognised, or do no harm, and never end in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calvin_eval.system.errors import UserError
from mutations import damaged
from roboflamingo.training.checkpoint import FORMAT, check_state, load_state, save_state
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.metrics import MetricsLog
from roboflamingo.training.resolved import check_same_config, write_config
from runs import tiny_run

STATE = {
    "weights": {"head.weight": torch.arange(600.0).view(20, 30), "head.bias": torch.ones(20)},
    "optimizer": {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.rand(20, 30)}}, "param_groups": []},
    "average": None,
    "step": 5,
    "elapsed_s": 1.5,
    "means": {"sums": {}, "count": 0},
    "validated_step": 5,
    "best": 0.25,
}


def test_every_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_state(STATE, path)
    content = path.read_bytes()
    for number, copy in enumerate(damaged(content, 200)):
        path.write_bytes(copy)
        with pytest.raises(ConfigError, match=r"last\.ckpt is no training state.*start anew"):
            load_state(path)
            pytest.fail(f"mutation {number} passed")
    path.write_bytes(content)
    loaded = load_state(path)
    assert loaded is not None
    check_state(loaded)
    assert torch.equal(loaded["weights"]["head.weight"], STATE["weights"]["head.weight"])  # type: ignore[index]


def test_a_state_of_another_version_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(STATE | {"format": FORMAT - 1}, path)
    with pytest.raises(ConfigError, match=r"another version wrote it; delete it to start anew, or .* start_from"):
        load_state(path)


@pytest.mark.parametrize("key", [key for key in STATE if key != "average"])
def test_a_state_that_lacks_something_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks '{key}'"):
        check_state({name: value for name, value in STATE.items() if name != key})


def test_a_state_with_a_number_that_is_none_is_refused() -> None:
    weights = {"head.bias": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ConfigError, match=r"weights\.head\.bias is not finite"):
        check_state(STATE | {"weights": weights})


def test_a_damaged_log_is_continued_or_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "epoch": step / 7, "lr": 1e-3, "loss": 1 / step} for step in range(1, 20)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    refused = 0
    for copy in damaged(content, 200):
        path.write_bytes(copy)
        try:
            log = MetricsLog(tmp_path, step=15)
        except UserError as error:
            assert "metrics.jsonl, line" in str(error)
            refused += 1
            continue
        log.write({"step": 16, "loss": 0.5})
        log.close()
        assert json.loads(path.read_bytes().splitlines()[-1]) == {"step": 16, "loss": 0.5}
    assert 0 < refused < 200


def test_a_damaged_configuration_is_named_or_the_same(tmp_path: Path) -> None:
    config, path = tiny_run(tmp_path, tmp_path), tmp_path / "config.yaml"
    write_config(config, path)
    for copy in damaged(path.read_bytes(), 200):
        path.write_bytes(copy)
        try:
            check_same_config(config, path)
        except ConfigError as error:
            assert "config.yaml" in str(error)
    path.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml is missing"):
        check_same_config(config, path)
