"""What an ablation comes to: one table, one paragraph, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from calvin_eval.benchmark.metrics import wilson
from calvin_eval.evaluation.folder import read_results
from calvin_eval.system.files import read_json, read_lines
from calvin_eval.system.provenance import provenance
from roboflamingo.cli.ablations.claims import RULE, Found, compare, difference, verdict
from roboflamingo.cli.ablations.grid import Grid
from roboflamingo.cli.ablations.planning import Plan
from roboflamingo.cli.ablations.running import MADE_WITH

COLUMNS = ("SR@1", "SR@5", "average length", "against the first", "calls/s", "jerk, m/s^3", "steps", "minutes")


def collect_results(plan: Plan) -> dict[str, Any]:
    """Everything that tables, plot and paragraph are made of, as JSON values.

    Raises:
        UserError: results of a member are missing or damaged.
    """
    grid = plan.grid
    evaluations = {
        member.name: read_results(Path(plan.unit_of(member.name).evaluations[member.name].out) / "results.json")
        for member in grid.members
    }
    order = [c for c in grid.claim.order if c.first in evaluations and c.second in evaluations]
    found = [compare(evaluations, each) for each in order]
    first = next(iter(evaluations))
    members = []
    for member in grid.members:
        unit, results = plan.unit_of(member.name), evaluations[member.name]
        lines = read_lines(unit.folder / "train" / "metrics.jsonl")
        members.append(
            {
                "name": member.name,
                "keys": {"train": dict(member.train), "evaluate": dict(member.evaluate)},
                "results": _short(results),
                "against_first": None if member.name == first else difference(results, evaluations[first])[:2],
                "reported": (grid.claim.reported or {}).get(member.name),
                "steps": max((line["step"] for line in lines), default=0),
                "minutes": max((line["elapsed_s"] for line in lines), default=0.0) / 60,
                "held_out": [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line],
                "trained_with": read_json(unit.folder / MADE_WITH, "what a training ran on"),
                "training": str(unit.folder / "train"),
                "evaluation": unit.evaluations[member.name].out,
            }
        )
    return {
        "ablation": grid.name,
        "about": grid.about,
        "smoke": grid.smoke,
        "curves": grid.curves,
        "claim": {"text": grid.claim.text, "source": grid.claim.source},
        "rule": RULE,
        "comparisons": [asdict(each) for each in found],
        "verdict": verdict(found),
        "paragraph": paragraph(grid, evaluations, found),
        "members": members,
        "made_with": provenance(),
    }


def _short(results: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluation's results is told here."""
    names = (
        "avg_seq_len",
        "chain_sr",
        "chains",
        "calls_per_second",
        "jerk",
        "scene",
        "execute",
        "ensemble",
        "made_with",
    )
    return {
        **{name: results.get(name) for name in names},
        "interval": results["intervals"]["avg_seq_len"],
        "settings": results["settings"],
        "lengths": results["lengths"],
    }


def paragraph(grid: Grid, evaluations: Mapping[str, Mapping[str, Any]], found: Sequence[Found]) -> str:
    """What was claimed, what was found, and whether it holds."""
    lengths = []
    for name, results in evaluations.items():
        low, high = results["intervals"]["avg_seq_len"]
        lengths.append(f"{name} {results['avg_seq_len']:.2f} [{low:.2f}, {high:.2f}]")
    differences = f" Differences of average length, chain by chain: {'; '.join(map(str, found))}." if found else ""
    return (
        f"Claimed: {grid.claim.text.rstrip('.')} ({grid.claim.source.rstrip('.')}). "
        f"Found, {_protocol(evaluations)}: {', '.join(lengths)}."
        f"{differences} {verdict(found)}"
    )


def _protocol(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """What all evaluations share."""
    words = []
    for label, values in {
        "{}": [f"{each['chains']} chains for {each['settings']['set']}" for each in evaluations.values()],
        "scene {}": [each["scene"] for each in evaluations.values()],
        "E = {}": [each["execute"] for each in evaluations.values()],
        "leash {} m": [each["settings"]["leash"] for each in evaluations.values()],
    }.items():
        if len(set(values)) == 1 and values[0] is not None:
            words.append(label.format(values[0]))
    return f"average length over {', '.join(words)}, one training each"


def table_rows(summary: Mapping[str, Any], *, rates_alone: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table; columns in which nothing stands are left out.

    Args:
        summary: of `collect_results`.
        rates_alone: without their intervals, as a terminal is narrow.
    """
    heads, rows = ["", *COLUMNS, "reported"], [_row(member) for member in summary["members"]]
    if rates_alone:
        rows = [[row[0], *(cell.partition(" [")[0] for cell in row[1:3]), *row[3:]] for row in rows]
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _row(member: Mapping[str, Any]) -> list[str]:
    results = member["results"]
    against = ""
    if member["against_first"] is not None:
        value, (low, high) = member["against_first"]
        against = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    low, high = results["interval"]
    measures = [results["calls_per_second"], results["jerk"]]
    return [
        member["name"],
        _rate(results, "1"),
        _rate(results, "5"),
        f"{results['avg_seq_len']:.2f} [{low:.2f}, {high:.2f}]",
        against,
        *("" if value is None else f"{value:.1f}" for value in measures),
        f"{member['steps']:,}",
        f"{member['minutes']:.1f}",
        member["reported"] or "",
    ]


def _rate(results: Mapping[str, Any], k: str) -> str:
    rate, chains = results["chain_sr"][k], results["chains"]
    low, high = wilson(round(rate * chains), chains)
    return f"{100 * rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """The table and the paragraph on the terminal."""
    heads, rows = table_rows(summary, rates_alone=True)
    table = Table(title=f"{summary['ablation']}: {summary['about']}")
    for head in heads:
        table.add_column(head, justify="left" if head == "" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(summary["paragraph"], soft_wrap=True, highlight=False, markup=False)


def markdown(summary: Mapping[str, Any], plot: str) -> str:
    """Table, plot and paragraph as a section of a document.

    Args:
        summary: of `collect_results`.
        plot: the picture's path from the document.
    """
    heads, rows = table_rows(summary)
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    made = summary["made_with"]
    by = sorted({member["trained_with"]["processor"] for member in summary["members"]})
    revisions = sorted({member["trained_with"]["git"] for member in summary["members"]} | {made["git"]})
    return "\n".join(
        [
            f"### `{summary['ablation']}`: {summary['about']}",
            "",
            summary["paragraph"],
            "",
            *lines,
            "",
            f"![average length of every member]({plot})",
            "",
            f"`{summary['command']}`, commit {', '.join(revisions)}; trained on {'; '.join(by)}. "
            "Brackets are 95 % intervals over chains; no interval covers the luck of a training seed. The rule: "
            f"{RULE}.",
            "",
        ]
    )
