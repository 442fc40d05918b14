"""`roboflamingo report`: a page of numbers, protocol, plots and videos from evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calvin_eval.evaluation.report import print_table, refuse_others, write_report
from calvin_eval.evaluation.report.reading import Found, find, read_results, short_names
from calvin_eval.evaluation.report.videos import films_of
from calvin_eval.system.errors import UsageError, UserError
from roboflamingo.cli.arguments import parse, verb_parser

EXAMPLES = """
roboflamingo report runs/demo                                   # all its evaluations; writes runs/demo/report.html
roboflamingo report runs/tiny/chains                            # one evaluation; writes runs/tiny/chains/report.html
roboflamingo report runs/a/chains runs/b/chains --out ab.html   # labels a and b
roboflamingo report small=runs/a/chains large=runs/b/chains --out ab.html --title "Small and large"
roboflamingo report runs/a/chains --metrics runs/a/metrics.jsonl
"""


def main(arguments: Sequence[str]) -> None:
    """Makes the page."""
    parser = verb_parser(
        "report",
        "Makes a page from evaluations: success rates and lengths with intervals, the protocol and where it is not the "
        "benchmark's own, differences chain by chain, plots and videos.",
        EXAMPLES,
        "[NAME=]FOLDER [[NAME=]FOLDER ...] [--KEY VALUE ...]",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=str,
        help="folders that `roboflamingo evaluate` wrote, or runs with such folders in them; NAME= chooses the label",
    )
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="where the page goes; report.html in the folder, if there is one only. Replaces only pages of ours",
    )
    parser.add_argument("--title", type=str, default="Evaluation", help="its headline")
    parser.add_argument(
        "--metrics", type=str, default=None, help="metrics.jsonl of the training; by default that of the run given"
    )
    options = parse(parser, arguments)
    run(options.folders, options.out, options.title, options.metrics)


def run(given: Sequence[str], out: str | None, title: str, metrics: str | None) -> Path:
    """Makes the page, prints the table, and returns where the page is.

    Args:
        given: folders, each perhaps with `NAME=` before it.
        out: the page's path.
        title: its headline.
        metrics: path of the training's metrics.jsonl.

    Raises:
        UsageError: labels collide, a folder is given twice, or a page of several folders has no place.
        UserError: a folder holds no evaluation or a damaged one, or the page may not go there.
    """
    named = [_split(word) for word in given]
    found = {folder: find(folder) for _, folder in named}
    if len(found) < len(named):
        raise UsageError("a folder is given twice; give it once")
    if out is None and len(named) > 1:
        raise UsageError("say where a page of several folders goes, as --out report.html")
    page = named[0][1] / "report.html" if out is None else Path(out).expanduser()
    refuse_others(page)
    labels = _labels(named, found)
    evaluations = {label: read_results(folder) for label, folder in labels.items()}
    videos, failures = dict[str, Path](), dict[str, Path]()
    for label, folder in labels.items():
        whole, failed = films_of(folder, evaluations[label])
        videos |= {f"{label}, {caption}": film for caption, film in whole.items()}
        failures |= {f"{label}, {caption}": film for caption, film in failed.items()}
    only = next(iter(found.values())) if len(found) == 1 else Found(())
    recipe, curves = only.recipe, only.metrics
    if metrics is not None:
        curves = (Path(metrics).expanduser(),)
        if not curves[0].is_file():
            raise UserError(f"--metrics {metrics}: there is no such file; a training writes it into its run")
        beside = curves[0].with_name("config.yaml")
        recipe = beside if beside.is_file() else None
    unfinished = [f"{child} is not finished and left out." for each in found.values() for child in each.unfinished]
    text = "" if recipe is None else recipe.read_text(encoding="utf-8", errors="replace")
    write_report(
        page, title, evaluations, metrics=curves, recipe=text, videos=videos, failures=failures, notes=unfinished
    )
    print_table(evaluations)
    for note in unfinished:
        print(note)
    print(f"report in {page}")
    return page


def _split(word: str) -> tuple[str | None, Path]:
    """`NAME=FOLDER` as name and folder; a folder whose own name has an = is that folder."""
    name, separator, rest = word.partition("=")
    if separator and name and "/" not in name and not Path(word).expanduser().exists():
        if not rest:
            raise UsageError(f"{word} names no folder; give NAME=FOLDER")
        return name, Path(rest).expanduser()
    return None, Path(word).expanduser()


def _labels(named: Sequence[tuple[str | None, Path]], found: dict[Path, Found]) -> dict[str, Path]:
    """Folders of evaluations by label.

    Raises:
        UserError: two have the same.
    """
    listed = [(name, folder, evaluation) for name, folder in named for evaluation in found[folder].evaluations]
    short = iter(short_names([evaluation for name, _, evaluation in listed if name is None]))
    labels: dict[str, Path] = {}
    for name, folder, evaluation in listed:
        named_after = name if evaluation == folder else f"{name} {evaluation.name}"
        label = next(short) if name is None else str(named_after)
        if label in labels:
            raise UsageError(
                f"{labels[label]} and {evaluation} are both called {label!r}; name one: OTHER={evaluation}"
            )
        if evaluation.resolve() in {other.resolve() for other in labels.values()}:
            raise UsageError(f"{evaluation} is given twice; give it once")
        labels[label] = evaluation
    return labels
