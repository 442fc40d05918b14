"""What all tests share: where the reference data lies, and one thread a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "calvin"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of CALVIN reference data, which lies beside the project and not in it."""
    if not REFERENCE.is_dir():
        pytest.skip(f"CALVIN reference data is not at {REFERENCE}; it is not part of the project")
    return REFERENCE
