"""The processes of a run on several devices: which one speaks, and that none outlives or outruns the run.

Lightning starts one process a device by running the same command again. Those processes train and end; what follows
`train` in the command is the main process's alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

LAUNCHER = "ROBOFLAMINGO_LAUNCHER"
"""Environment variable of the processes that a run starts: the id of the process that started them."""
VARIABLES = (LAUNCHER, "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
"""What starting processes leaves in the environment."""
END_S = 60.0
"""Seconds that the other processes have to end after the run has."""


def is_main_process() -> bool:
    """Whether this process writes files and speaks: the first of all that train together."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def is_launched() -> bool:
    """Whether a run has started this process to share its work."""
    return LAUNCHER in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def follow_launcher() -> None:
    """Lets a launched process end when the main process does, however it ends, and leaves signals to that one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ[LAUNCHER]):
        os._exit(1)


@contextmanager
def launched_processes(trainer: Trainer) -> Iterator[None]:
    """Around `trainer.fit`: the processes that it starts are gone afterwards, and so is what it left behind for them.

    Where something else has started the processes (torchrun, SLURM, a run), nothing is done.
    """
    launcher = trainer.strategy.launcher
    environment = getattr(launcher, "cluster_environment", None)
    if environment is None or environment.creates_processes_externally:
        yield
        return
    before, threads = {name: os.environ.get(name) for name in VARIABLES}, torch.get_num_threads()
    os.environ[LAUNCHER] = str(os.getpid())
    grace_s = 0.0
    try:
        yield
        grace_s = END_S
    finally:
        _end(launcher.procs, grace_s)  # type: ignore[union-attr]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)
        if torch.distributed.is_initialized():  # the next run in this process needs another
            torch.distributed.destroy_process_group()


def _end(processes: list[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Waits for processes, and ends by force those that take longer."""
    running = list(processes)
    processes.clear()  # Lightning's observer ends this process, too, where it finds one that was killed
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        process.kill()
        process.wait()
