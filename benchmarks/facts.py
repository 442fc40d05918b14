"""What every benchmark's line of JSON says about where it was made."""

from __future__ import annotations

from dataclasses import asdict

from calvin_eval.system.machine import matmul_gflops, processor
from calvin_eval.system.provenance import provenance


def made_on(threads: int) -> dict[str, object]:
    """The processor with its instruction sets, its speed, and versions.

    Args:
        threads: that the benchmark computed with.
    """
    speed = round(matmul_gflops(), 1)  # by NumPy, in fp32
    return {"processor": asdict(processor()), "matmul_gflops": speed, "threads": threads, "made_with": provenance()}
