"""The report's plots, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calvin_eval.benchmark.metrics import wilson
from calvin_eval.evaluation.report.protocol import same_but_for_horizon
from calvin_eval.evaluation.report.tables import length_interval

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2f6fde", "#e07a2f", "#3a9d6e", "#9a5bd0", "#c8434f", "#17a2b8", "#8c6d46", "#d66bb0", "#6b7280", "#a3b02c")
LARGEST = 1e30
"""What is beyond is left out of curves: no loss, and nothing that axes can be made for."""
SHOWN_AS = {"m": ("mm", 1000.0), "rad": ("degrees", 180 / np.pi), "error": ("its own unit", 1.0)}
"""Units of held-out errors that are drawn as others, and what they are multiplied with."""
NO_LOSS = ("step", "epoch", "elapsed_s", "lr", "loss", "grad_norm", "frames_per_s")
"""What else a training logs at a step."""


def learning_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Training losses and held-out errors over training time.

    Args:
        lines: of metrics.jsonl.
    """
    figure, (left, right) = _figure(2, (9.6, 3.2))
    losses = _losses(lines)
    for index, name in enumerate(losses):
        minutes, values = _points(lines, name)
        if len(values):
            left.plot(minutes, _smooth(values), color=COLOURS[index], label=name, linewidth=1.4)
        minutes, values = _points(lines, f"val_{name}")
        if len(values):
            left.plot(minutes, values, "o", color=COLOURS[index], markersize=4, label=f"{name}, held out")
    left.set_yscale("log")
    left.set_title("loss", loc="left")
    for index, (label, name, factor) in enumerate(_action_errors(lines, losses)):
        minutes, values = _points(lines, name)
        if len(values):
            right.plot(minutes, factor * values, "o-", color=COLOURS[index], label=label, markersize=4)
    right.set_title("held-out action error", loc="left")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("minutes of training")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Minutes of training and a value, where it is a finite number."""
    pairs = [
        (line["elapsed_s"] / 60, line[name])
        for line in lines
        if type(line.get(name)) in (int, float) and abs(line[name]) < LARGEST
    ]
    minutes, values = np.array(pairs, float).reshape(-1, 2).T
    return minutes, values


def _losses(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parts of the loss, as many as there are colours: of each part of an action, and others."""
    names = dict.fromkeys(name for line in lines for name in line if not name.startswith("val_"))
    return [name for name in names if name not in NO_LOSS][: len(COLOURS)]


def _action_errors(lines: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> list[tuple[str, str, float]]:
    """Label, key and factor of the held-out errors of each part of an action; keys are val_PART_UNIT."""
    found = {}
    for key in dict.fromkeys(key for line in lines for key in line):
        for part in losses:
            unit = key.removeprefix(f"val_{part}_")
            if unit not in (key, "accuracy"):
                shown, factor = SHOWN_AS.get(unit, (unit.replace("_per_", "/"), 1.0))
                found[key] = (f"{part}, {shown}", key, factor)
    return list(found.values())[: len(COLOURS)]


def success_rates(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """SR@1..5 of each evaluation, with 95 % intervals."""
    figure, (axes,) = _figure(1, (6.4, 3.2))
    width = 0.8 / len(evaluations)
    for index, (label, results) in enumerate(evaluations.items()):
        ks, chains = sorted(results["chain_sr"], key=int), results["chains"]
        rates = np.array([results["chain_sr"][k] for k in ks])
        bounds = np.array([wilson(round(rate * chains), chains) for rate in rates]).T
        x = np.arange(len(ks)) + (index - (len(evaluations) - 1) / 2) * width
        error = np.abs(bounds - rates)
        axes.bar(x, rates, width * 0.92, **_style(index), label=_name(label))
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
        axes.barh(y, rates, height * 0.92, **_style(index), label=_name(label))
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
    """Average length against E, the actions executed per prediction, a line for each policy; None without one.

    Evaluations are of one line if they share policy and rules. A line needs two values of E.
    """
    groups: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    policies: dict[tuple[str, ...], str] = {}
    for results in evaluations.values():
        if results.get("execute") is not None and results.get("ensemble") is None:
            point = (results["execute"], results["avg_seq_len"], *length_interval(results))
            group = same_but_for_horizon(results)
            groups.setdefault(group, []).append(point)
            policies[group] = str(results.get("policy", "policy"))
    lines = {group: sorted(points) for group, points in groups.items() if len({point[0] for point in points}) > 1}
    if not lines:
        return None
    figure, (axes,) = _figure(1, (4.6, 3.2))
    for index, (group, points) in enumerate(lines.items()):
        execute, length, low, high = np.array(points).T
        error = np.abs([length - low, high - length])
        colour, name = COLOURS[index % len(COLOURS)], _name(policies[group])
        axes.errorbar(execute, length, error, fmt="o-", color=colour, capsize=3, label=name)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7)
    axes.set_xticks(sorted({point[0] for points in lines.values() for point in points}))
    axes.set_ylim(0, 5.05)
    axes.set_xlabel("E, actions executed per prediction")
    axes.set_title("average length of chains", loc="left")
    return _svg(figure)


def _style(index: int) -> dict[str, Any]:
    """Colour of the bars of an evaluation; hatched where colours come round again."""
    hatches = (None, "//", "..", "xx")
    return {"color": COLOURS[index % len(COLOURS)], "hatch": hatches[index // len(COLOURS) % len(hatches)]}


def _name(label: str) -> str:
    """A label as matplotlib shows it as it is: no mathematics, and not left out for a leading underscore."""
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")


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
