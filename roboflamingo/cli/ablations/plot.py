"""One plot of an ablation: average length of every member, and what else its members differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calvin_eval.benchmark.chains import LENGTH
from calvin_eval.evaluation.report.plots import COLOURS, GRID, INK, QUIET
from calvin_eval.system.files import write_atomic

MEASURES = {
    "calls_per_second": "calls of the policy, per second of the robot's time",
    "jerk": "jerk of the tool, m/s$^3$",
}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the plot as PNG.

    Args:
        summary: of `results.collect_results`.
        path: where it goes.
    """
    members = summary["members"]
    shown = list(_panels(summary))
    figure = Figure(figsize=(4.8 + 3.4 * len(shown), 1.2 + 0.38 * max(5, len(members))), layout="constrained", dpi=120)
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _lengths(axes[0], members)
    for place, name in zip(axes[1:], shown, strict=True):
        if name == "held_out":
            _curves(place, members)
        else:
            _bars(place, members, name)
    figure.suptitle(_text(f"{summary['ablation']}: {summary['about']}"), fontsize=10, color=INK, x=0.01, ha="left")
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def _panels(summary: Mapping[str, Any]) -> list[str]:
    """What stands beside the lengths: held-out losses where they are asked for, measures where they differ much."""
    if summary.get("curves"):
        return ["held_out"]
    found = []
    for name in MEASURES:
        values = [member["results"][name] for member in summary["members"]]
        if None not in values and max(values) > 1.5 * min(values):
            found.append(name)
    return found if "calls_per_second" in found else []


def _lengths(axes: Axes, members: Sequence[Mapping[str, Any]]) -> None:
    for row, member in enumerate(members):
        value, (low, high) = member["results"]["avg_seq_len"], member["results"]["interval"]
        axes.errorbar(
            value, row, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", capsize=3, color=COLOURS[0]
        )
        axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center")
    axes.set_xlim(-0.05, LENGTH + 0.05)
    _rows(axes, members, "average length of chains, 95 %")


def _bars(axes: Axes, members: Sequence[Mapping[str, Any]], name: str) -> None:
    values = [member["results"][name] for member in members]
    axes.barh(range(len(members)), values, color=COLOURS[1], height=0.6)
    _rows(axes, members, MEASURES[name])


def _curves(axes: Axes, members: Sequence[Mapping[str, Any]]) -> None:
    """Held-out loss over optimizer steps; a training that several members share is drawn once."""
    drawn = set()
    for index, member in enumerate(members):
        if member["training"] not in drawn and member["held_out"]:
            drawn.add(member["training"])
            steps, losses = zip(*member["held_out"], strict=True)
            axes.plot(
                steps, losses, "o-", markersize=3, color=COLOURS[index % len(COLOURS)], label=_text(member["name"])
            )
    if drawn:
        axes.legend(frameon=False, fontsize=7)
    axes.set_xlabel("optimizer steps", fontsize=8)
    _style(axes, "held-out loss")


def _rows(axes: Axes, members: Sequence[Mapping[str, Any]], title: str) -> None:
    axes.set_yticks(range(len(members)), [_text(member["name"]) for member in members])
    axes.set_ylim(len(members) - 0.5, -0.6)
    _style(axes, title)


def _style(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=QUIET, labelsize=8)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=9, color=INK)


def _text(words: str) -> str:
    """Words as they are: to matplotlib a dollar sign begins mathematics."""
    return words.replace("$", r"\$")
