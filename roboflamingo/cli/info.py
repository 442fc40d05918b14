"""`roboflamingo info`: versions and what this machine computes with, or what a file or folder holds."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import roboflamingo
from roboflamingo.cli.arguments import parse, verb_parser
from roboflamingo.cli.contents import Rows, describe

EXAMPLES = """
roboflamingo info
roboflamingo info data/task_D_D
roboflamingo info runs/tiny
roboflamingo info runs/tiny/policy
roboflamingo info checkpoint.pth
"""

LIBRARIES = ("torch", "lightning", "transformers", "open_clip_torch", "open_flamingo", "pybullet", "panda3d")


def main(arguments: Sequence[str]) -> None:
    """Prints a table."""
    parser = verb_parser(
        "info",
        "Tells what is installed and how fast this machine is, or what a file or folder holds.",
        EXAMPLES,
        usage="[PATH]",
    )
    what = "a data set, run, evaluation, policy or demo; a published model; or a file of weights"
    parser.add_argument("path", nargs="?", type=str, help=what)
    path = parse(parser, arguments).path
    rows = list(installation() if path is None else describe(Path(path).expanduser()))
    table = Table(show_header=False, box=None)
    for _ in range(2):
        table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    Console().print(table)


def installation() -> Rows:
    """Versions, devices, speed, and the precision that suits them."""
    import torch

    from calvin_eval.system.machine import matmul_gflops, processor
    from roboflamingo.training.precision import computes_in_bf16

    yield "roboflamingo", roboflamingo.__version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in LIBRARIES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "processor", f"{processor()}; torch uses {torch.get_num_threads()} threads"
    yield "speed", f"{matmul_gflops():.0f} GFLOP/s in an fp32 matrix product"
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "cuda", "none"
    yield "precision: auto", "bf16 here" if computes_in_bf16("auto") else "fp32 here"
