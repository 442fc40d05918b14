"""`roboflamingo report`: a page of plots and videos from evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from calvin_eval.evaluate import EPOCH
from calvin_eval.report import print_table, write_report
from roboflamingo.cli.arguments import parse, shown_without_traceback, verb_parser

EXAMPLES = """
roboflamingo report runs/demo/closed_loop runs/demo/open_loop --out report.html
roboflamingo report runs/a runs/b --metrics runs/a/metrics.jsonl --title "Ablation"
"""


def main(arguments: Sequence[str]) -> None:
    """Makes the page."""
    parser = verb_parser(
        "report",
        "Makes a page of plots and videos from evaluations.",
        EXAMPLES,
        "FOLDER [FOLDER ...] [--KEY VALUE ...]",
    )
    parser.add_argument("folders", nargs="+", type=str, help="folders that `roboflamingo evaluate` wrote")
    parser.add_argument("--out", type=str, default="report.html", help="where the page goes")
    parser.add_argument("--title", type=str, default="Evaluation", help="its headline")
    parser.add_argument("--metrics", type=str, default=None, help="metrics.jsonl of the training")
    options = parse(parser, arguments)
    with shown_without_traceback("report", ValueError, FileNotFoundError):
        evaluations, videos = {}, []
        for name in options.folders:
            folder = Path(name)
            if not (folder / "results.json").is_file():
                raise FileNotFoundError(
                    f"{folder} holds no results.json; run `roboflamingo evaluate --out {folder}` first"
                )
            evaluations[folder.name] = json.loads((folder / "results.json").read_text())[EPOCH]
            videos += sorted((folder / "videos").glob("*.mp4"))
        out = Path(options.out)
        metrics = Path(options.metrics) if options.metrics else None
        write_report(out, options.title, evaluations, metrics=metrics, videos=videos)
    print_table(evaluations)
    print(f"report in {out}")
