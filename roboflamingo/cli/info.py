"""`roboflamingo info`: versions, devices, and what a folder of data, a run or a policy holds."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import roboflamingo
from roboflamingo.cli.arguments import parse, shown_without_traceback, verb_parser

EXAMPLES = """
roboflamingo info
roboflamingo info data/task_D_D
roboflamingo info runs/tiny
roboflamingo info runs/tiny/policy
"""

LIBRARIES = ("torch", "lightning", "transformers", "open_clip_torch", "open_flamingo", "pybullet", "panda3d")

Rows = Iterator[tuple[str, str]]


def main(arguments: Sequence[str]) -> None:
    """Prints a table."""
    parser = verb_parser("info", "Tells what is installed, or what a folder holds.", EXAMPLES, usage="[PATH]")
    parser.add_argument("path", nargs="?", type=str, help="a data set, run or policy folder")
    path = parse(parser, arguments).path
    with shown_without_traceback("info", ValueError, OSError):
        rows = list(installation() if path is None else describe(Path(path)))
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def installation() -> Rows:
    """Versions and devices."""
    import torch

    yield "roboflamingo", roboflamingo.__version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in LIBRARIES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "cuda", "none"


def describe(path: Path) -> Rows:
    """What a folder holds.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is of no kind that is known.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    if (path / "training").is_dir() or (path / "validation").is_dir():
        for split in (path / "training", path / "validation"):
            if split.is_dir():
                yield from _split(split)
    elif list(path.glob("lang*/auto_lang_ann.npy")):
        yield from _split(path)
    elif (path / "metrics.jsonl").is_file():
        yield from _run(path)
    elif list(path.glob("*.safetensors")):
        yield from _policy(path)
    else:
        raise ValueError(f"{path} is neither a CALVIN data set nor a run nor a policy")


def _split(folder: Path) -> Rows:
    """Segments and frames of a CALVIN split."""
    from roboflamingo.data.annotations import read_segments

    language = next(path.parent.name for path in sorted(folder.glob("lang*/auto_lang_ann.npy")))
    segments = read_segments(folder, language)
    frames = {frame for segment in segments for frame in range(segment.start, segment.stop)}
    tasks = Counter(segment.task for segment in segments)
    sentences = {segment.instruction for segment in segments}
    files = [entry for entry in os.scandir(folder) if entry.name.startswith("episode_")]
    size = sum(entry.stat().st_size for entry in files)
    yield folder.name, f"{len(files)} frames in {size / 1e9:.2f} GB, {len(frames)} of them annotated"
    yield (
        "  segments",
        f"{len(segments)} of {len(tasks)} tasks, {len(sentences)} sentences",
    )
    for task, count in sorted(tasks.items()):
        yield f"    {task}", str(count)


def _run(folder: Path) -> Rows:
    """How far a run is."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "val_loss" in line]
    if trained:
        last = trained[-1]
        yield "trained", f"{last['step']} steps, {last['epoch']} epochs, {last['elapsed_s'] / 60:.1f} minutes"
        yield "loss", f"{last['loss']:.4f}"
    if held_out:
        best = min(held_out, key=lambda line: line["val_loss"])
        yield (
            "held-out loss",
            f"{held_out[-1]['val_loss']:.4f}, best {best['val_loss']:.4f} at step {best['step']}",
        )
    for name in ("policy", "policy_best"):
        if (folder / name).is_dir():
            yield name, ""
            yield from ((f"  {key}", value) for key, value in _policy(folder / name))


def _policy(folder: Path) -> Rows:
    """Tensors and sizes of a policy."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            sizes: Counter[str] = Counter()
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                shape = file.get_slice(name).get_shape()
                sizes[name.split(".")[0]] += math.prod(shape)
        yield path.name, f"{sum(sizes.values()):,} numbers, {path.stat().st_size / 1e6:.1f} MB"
        for part, size in sizes.items():
            yield f"  {part}", f"{size:,}"
