"""pybullet, imported without the line about its build that it prints into every process's standard error."""

from __future__ import annotations

import os
from types import ModuleType


def _import_quietly() -> ModuleType:
    shown = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # the line comes from C, past sys.stderr
    try:
        import pybullet
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)
    return pybullet


pybullet = _import_quietly()
