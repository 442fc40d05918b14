"""Runs a function in several processes that have imported everything once, as `torchrun` would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["processes", "roboflamingo.training.train"])


def run_in_processes(count: int, function: Callable[..., object], *arguments: Any) -> None:
    """Calls `function(*arguments)` in `count` processes and waits; fails if one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        FORKSERVER.Process(target=_as_rank, args=(rank, count, port, function, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, f"exit codes {codes}; what the processes printed says why"


def _as_rank(rank: int, count: int, port: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """What the environment of one of torchrun's processes is like, and then the function."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    rank_zero_only.rank = rank  # Lightning reads it when it is imported, which here came before
    function(*arguments)
