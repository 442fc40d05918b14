"""Makes one page out of an experiment: numbers with intervals, plots, videos, and the recipe that made them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from calvin_eval.report import plots
from calvin_eval.system.files import write_text


def write_report(
    path: Path,
    title: str,
    evaluations: Mapping[str, Mapping[str, Any]],
    *,
    metrics: Path | None = None,
    recipe: str = "",
    videos: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> None:
    """Writes the report.

    Args:
        path: where the HTML goes. Plots are in it, and beside it as `plots/*.svg` for use elsewhere; videos stay
            beside it and are linked.
        title: its headline.
        evaluations: results (see `calvin_eval.evaluate.evaluate`) by label.
        metrics: metrics.jsonl of the training, if there was one.
        recipe: the configuration, as YAML.
        videos: films to show.
        notes: sentences on how to read the numbers.

    Raises:
        ValueError: there are no evaluations.
    """
    if not evaluations:
        raise ValueError("a report needs at least one evaluation")
    lines = read_metrics(metrics) if metrics is not None else []
    drawings = {
        "curves": plots.learning_curves(lines) if lines else None,
        "rates": plots.success_rates(evaluations),
        "execute": plots.length_against_execute(evaluations),
        "tasks": plots.per_task(evaluations),
    }
    first = next(iter(evaluations.values()))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        rows=[_row(label, results) for label, results in evaluations.items()],
        notes=notes,
        **drawings,
        videos=[os.path.relpath(video, path.parent) for video in videos],
        recipe=recipe,
        provenance={"renderer": first["renderer"], "seed": first["settings"]["seed"], **first["made_with"]},
    )
    write_text(path, page)
    for name, drawing in drawings.items():
        if drawing is not None:
            write_text(path.parent / "plots" / f"{name}.svg", drawing)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def print_table(evaluations: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Prints success rates and average lengths as a table that fits a terminal."""
    table = Table(title="chains of five tasks, 95 % intervals in brackets", title_justify="left")
    table.add_column("")
    for k in range(1, 6):
        table.add_column(f"SR@{k}", justify="right")
    table.add_column("length", justify="right")
    table.add_column("chains", justify="right")
    for label, results in evaluations.items():
        row = _row(label, results)
        table.add_row(
            label,
            *[rate["value"] for rate in row["rates"]],
            f"{row['length']} {row['interval']}",
            row["chains"],
        )
    (console or Console()).print(table)


def _row(label: str, results: Mapping[str, Any]) -> dict[str, Any]:
    low, high = results["intervals"]["avg_seq_len"]
    return {
        "label": label,
        "rates": [
            {
                "value": f"{100 * results['chain_sr'][str(k)]:.1f}",
                "interval": "{:.0f}-{:.0f}".format(*(100 * b for b in results["intervals"]["chain_sr"][str(k)])),
            }
            for k in range(1, 6)
        ],
        "length": f"{results['avg_seq_len']:.2f}",
        "interval": f"[{low:.2f}, {high:.2f}]",
        "chains": str(results["chains"]),
    }
