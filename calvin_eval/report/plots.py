"""The report's plots, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2f6fde", "#e07a2f", "#3a9d6e", "#9a5bd0", "#c8434f")


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Training losses and held-out errors over training time, from the lines of metrics.jsonl."""
    figure, (left, right) = _figure(2, (9.6, 3.2))
    minutes = np.array([line["elapsed_s"] / 60 for line in lines])
    for index, name in enumerate(("pose", "gripper", "auxiliary")):
        values = [(m, line[name]) for m, line in zip(minutes, lines, strict=True) if name in line]
        if values:
            x, y = np.array(values).T
            left.plot(x, _smooth(y), color=COLOURS[index], label=name, linewidth=1.4)
        held_out = [(m, line[f"val_{name}"]) for m, line in zip(minutes, lines, strict=True) if f"val_{name}" in line]
        if held_out:
            left.plot(*np.array(held_out).T, "o", color=COLOURS[index], markersize=4, label=f"{name}, held out")
    left.set_yscale("log")
    left.set_title("loss", loc="left")
    for index, (name, label) in enumerate(
        (("val_translation_error", "translation"), ("val_rotation_error", "rotation"))
    ):
        values = [(m, line[name]) for m, line in zip(minutes, lines, strict=True) if name in line]
        if values:
            right.plot(*np.array(values).T, "o-", color=COLOURS[index], label=label, markersize=4)
    right.set_title("held-out action error (1 = 2 cm or 0.05 rad)", loc="left")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("minutes of training")
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def success_rates(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """SR@1..5 of each evaluation, with 95 % intervals."""
    figure, (axes,) = _figure(1, (6.4, 3.2))
    width = 0.8 / len(evaluations)
    for index, (label, results) in enumerate(evaluations.items()):
        ks = sorted(results["chain_sr"], key=int)
        rates = np.array([results["chain_sr"][k] for k in ks])
        bounds = np.array([results["intervals"]["chain_sr"][k] for k in ks]).T
        x = np.arange(len(ks)) + (index - (len(evaluations) - 1) / 2) * width
        error = np.abs(bounds - rates)
        axes.bar(x, rates, width * 0.92, color=COLOURS[index % len(COLOURS)], label=label)
        axes.errorbar(x, rates, error, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.set_xticks(range(5), [f"{k} in a row" for k in range(1, 6)])
    axes.set_ylim(0, 1.02)
    axes.set_title("share of chains with at least k tasks solved", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def per_task(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Successes per task, with the number of attempts."""
    tasks = sorted({task for results in evaluations.values() for task in results["task_info"]})
    figure, (axes,) = _figure(1, (9.6, 0.24 * len(tasks) * max(1, len(evaluations) / 1.5) + 0.8))
    height = 0.84 / len(evaluations)
    for index, (label, results) in enumerate(evaluations.items()):
        info = [results["task_info"].get(task, {"success": 0, "total": 0}) for task in tasks]
        rates = [entry["success"] / entry["total"] if entry["total"] else 0.0 for entry in info]
        y = np.arange(len(tasks)) + (index - (len(evaluations) - 1) / 2) * height
        axes.barh(y, rates, height * 0.92, color=COLOURS[index % len(COLOURS)], label=label)
        for position, rate, entry in zip(y, rates, info, strict=True):
            axes.text(
                rate + 0.008,
                position,
                f"{entry['success']}/{entry['total']}",
                va="center",
                fontsize=6.5,
                color=QUIET,
            )
    axes.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in tasks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.grid(axis="y", visible=False)
    axes.set_title("success per task, attempts beside the bars", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure)


def length_against_execute(evaluations: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Average chain length against E, the actions executed per prediction; None with fewer than two values of E."""
    points = sorted(
        (results["execute"], results["avg_seq_len"], *results["intervals"]["avg_seq_len"])
        for results in evaluations.values()
        if "execute" in results and results.get("ensemble") is None
    )
    if len({point[0] for point in points}) < 2:
        return None
    figure, (axes,) = _figure(1, (4.6, 3.2))
    execute, length, low, high = np.array(points).T
    axes.errorbar(execute, length, [length - low, high - length], fmt="o-", color=COLOURS[0], capsize=3)
    axes.set_xticks(execute)
    axes.set_ylim(0, 5)
    axes.set_xlabel("E, actions executed per prediction")
    axes.set_title("average length of chains", loc="left")
    return _svg(figure)


def _figure(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure drawn without any window system and without pyplot's global state."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, count, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=QUIET, labelsize=8)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.title.set_color(INK)
        axes.title.set_fontsize(10)
    return figure, list(grid)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over a fiftieth of the curve."""
    width = max(1, len(values) // 50)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
