"""The benchmarks run, and say where their figures were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calvin_eval.system.machine import cores

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("benchmark", "arguments", "ratio"),
    [
        ("act.py", "--steps 2 --rounds 1 --threads 1 --precision fp32", "ratio"),
        ("store.py", "--frames 50 --seconds 0.05 --rounds 1 --rows 201000", "bytes_ratio"),
        ("tokens.py", "--frames 50 --batch 1 --shifts 2 --rounds 1 --steps 1", "ratio"),
        ("world.py", "--steps 30 --rounds 1 --resets 20", "panda3d_over_tinyrenderer"),
    ],
)
def test_a_benchmark_ends_with_a_line_of_json(benchmark: str, arguments: str, ratio: str) -> None:
    """Its figures, a ratio within the one run, and the machine."""
    script = [sys.executable, str(ROOT / "benchmarks" / benchmark), *arguments.split()]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said[ratio] > 0
    assert said["matmul_gflops"] > 0 and said["threads"] == 1
    assert said["processor"]["cores"] == cores() and said["made_with"]["git"]
