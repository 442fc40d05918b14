"""Makes one page out of an experiment: numbers with intervals, its protocol, plots, videos, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from calvin_eval.evaluation.report import plots
from calvin_eval.evaluation.report.protocol import OFFICIAL, Results, by_horizon, protocol_table, versions_table
from calvin_eval.evaluation.report.tables import differences, failed_tasks, not_compared, row
from calvin_eval.evaluation.report.videos import EMBEDDED_BYTES, captioned, travelling
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_lines, write_text

MARK = '<meta name="generator" content="roboflamingo report">'
"""By which a page of ours is known."""
MARK_BEFORE = "Chains of five tasks in a row, without reset in between."
"""By which pages of earlier versions are."""


def write_report(
    path: Path,
    title: str,
    evaluations: Mapping[str, Results],
    *,
    metrics: Path | Sequence[Path] | None = None,
    recipe: str = "",
    videos: Mapping[str, Path] | Sequence[Path] = (),
    failures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
    embed: int = EMBEDDED_BYTES,
) -> None:
    """Writes the report.

    Args:
        path: where the HTML goes. Plots and small videos are in it. Beside it, `report_files/` (the page's name with
            `_files`) has the plots as SVG files for use elsewhere, and the videos that are too large for the page.
        title: its headline.
        evaluations: results (see `calvin_eval.evaluation.chains.evaluate_chains`) by label.
        metrics: metrics.jsonl of the training, if there was one; several one after the other.
        recipe: the training's configuration, as YAML.
        videos: films to show, by caption if they are a mapping.
        failures: films of chains that failed, by caption (see `report.videos.films_of`).
        notes: sentences on how to read the numbers.
        embed: most bytes of videos that go into the page.

    Raises:
        UserError: there are no evaluations, metrics.jsonl is damaged, or path is a file that is no report of ours.
        OSError: something cannot be read or written.
    """
    if not evaluations:
        raise UserError("a report needs at least one evaluation")
    refuse_others(path)
    evaluations = by_horizon(evaluations)
    lines = read_metrics(*([] if metrics is None else [metrics] if isinstance(metrics, Path) else metrics))
    drawings = {
        "curves": plots.learning_curves(lines) if lines else None,
        "rates": plots.success_rates(evaluations),
        "execute": plots.length_against_execute(evaluations),
        "tasks": plots.per_task(evaluations),
    }
    beside = path.with_name(f"{path.stem}_files")
    films = dict(videos) if isinstance(videos, Mapping) else captioned(videos)
    shown = travelling({**films, **(failures or {})}, path, beside, embed)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        mark=MARK,
        title=title,
        official=OFFICIAL,
        rows=[row(label, results) for label, results in evaluations.items()],
        differences=differences(evaluations),
        not_compared=not_compared(evaluations),
        labels=list(evaluations),
        protocol=protocol_table(evaluations),
        versions=versions_table(evaluations),
        notes=notes,
        **drawings,
        videos=shown,
        galleries={
            "Videos": [video for video in shown if video.caption not in (failures or {})],
            "Failures": [video for video in shown if video.caption in (failures or {})],
        },
        failed={label: failed_tasks(results) for label, results in evaluations.items()},
        beside=beside.name,
        recipe=recipe,
    )
    write_text(path, _encodable(page))
    for name, drawing in drawings.items():
        if drawing is not None:
            write_text(beside / f"{name}.svg", _encodable(drawing))


def refuse_others(path: Path) -> None:
    """Makes sure that a page may be written there.

    Raises:
        UserError: it is a folder, or a file that is no report of ours.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; say which file in it, as {path / 'report.html'}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            beginning = file.read(8192).decode("utf-8", errors="replace")
        if MARK not in beginning and MARK_BEFORE not in beginning:
            raise UserError(f"{path} is there and is no report of ours; choose another name with --out, or remove it")


def read_metrics(*paths: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a time, without those of files that are not there.

    Several files are trainings one after the other: their times add up.

    Raises:
        UserError: a line is damaged. Names file and line.
    """
    found, before = list[dict[str, Any]](), 0.0
    for path in paths:
        lines = [line for line in read_lines(path) if isinstance(line, dict) and _is_number(line.get("elapsed_s"))]
        found += [{**line, "elapsed_s": line["elapsed_s"] + before} for line in lines]
        before = found[-1]["elapsed_s"] if found else 0.0
    return found


def print_table(evaluations: Mapping[str, Results], console: Console | None = None) -> None:
    """Prints success rates and average lengths as a table that fits a terminal, and what is not official in them."""
    console = console or Console()
    table = Table(title="chains of five tasks, 95 % intervals in brackets", title_justify="left")
    table.add_column("", overflow="fold")
    for k in range(1, 6):
        table.add_column(f"SR@{k}", justify="right")
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("chains", justify="right")
    evaluations, reasons = by_horizon(evaluations), dict[str, list[str]]()
    for label, results in evaluations.items():
        line = row(label, results)
        if line["departures"]:
            reasons.setdefault(", ".join(line["departures"]), []).append(label)
        name = f"{label}*" if line["departures"] else label
        table.add_row(
            name.replace("[", r"\["),
            *[rate["value"] for rate in line["rates"]],
            rf"{line['length']} {line['interval']}".replace("[", r"\["),
            line["chains"],
        )
    console.print(table)
    for reason, labels in reasons.items():
        who = "" if len(labels) == len(evaluations) else f" ({', '.join(labels)})"
        console.print(f"* not the official protocol{who}: {reason}", highlight=False, markup=False)


def _encodable(text: str) -> str:
    """The text without what UTF-8 cannot say: half a character that a name or a damaged file brought in."""
    return text.encode("utf-8", errors="replace").decode()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < plots.LARGEST
