"""What this machine computes with: cores that may be used, the processor's instruction sets, and its speed."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Instruction sets that decide how fast a policy is, as Linux names them."""
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that keep torch from using what the processor has."""


@dataclass(frozen=True)
class Processor:
    """A processor as results name it.

    Attributes:
        name: what it calls itself.
        instructions: those of `FLAGS` that it has; empty where the system does not say.
        cores: that this process may use.
        limits: settings of `LIMITS` in force, as "ONEDNN_MAX_CPU_ISA=AVX2".
    """

    name: str
    instructions: tuple[str, ...]
    cores: int
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [self.name, f"{self.cores} cores", " ".join(self.instructions), " ".join(self.limits)]
        return ", ".join(word for word in words if word)


def processor() -> Processor:
    """The processor of this machine."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        facts = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        name = facts.get("model name", name)
        flags = set((facts.get("flags") or facts.get("Features") or "").split())
    limits = tuple(f"{key}={os.environ[key]}" for key in LIMITS if key in os.environ)
    return Processor(name, tuple(flag for flag in FLAGS if flag in flags), cores(), limits)


def hardware() -> dict[str, Any]:
    """What figures that depend on speed must name: processor, instruction sets, their limits, cores, GFLOP/s.

    JSON values. `matmul_gflops` is measured, once in a process, so it differs a little from call to call of a program.
    """
    here = processor()
    return {
        "processor": here.name,
        "instructions": list(here.instructions),
        "limits": list(here.limits),
        "cores": here.cores,
        "matmul_gflops": round(matmul_gflops(), 1),
    }


def cores() -> int:
    """Cores that this process may use: those of its affinity, or fewer where a container's share is smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _container_share() or allowed))


def _container_share() -> int | None:
    """Whole cores that the control group grants (cgroup v2, or v1), None for no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return max(1, int(quota) // int(period))


def available_memory() -> int | None:
    """Bytes of memory that programs may still claim; None where the system does not say (it is no Linux)."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        found.append(int(most) - int(limit.with_name("memory.current").read_text()))
    return max(0, min(found)) if found else None


@lru_cache(maxsize=1)
def matmul_gflops() -> float:
    """Billions of fp32 operations a second in a large matrix product on all cores: the best of several tries."""
    size = 1024
    matrix = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
