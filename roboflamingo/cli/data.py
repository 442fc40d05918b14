"""`roboflamingo data`: what a data set holds, whether it is whole, its packed copy, and other formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from calvin_eval.system.errors import UserError
from roboflamingo.cli.arguments import parse, parse_config, verb_parser
from roboflamingo.cli.data_convert import USAGE, convert, convert_options
from roboflamingo.cli.data_wordings import wordings, wordings_options
from roboflamingo.data.sources.base import Source

EXAMPLES = """
roboflamingo data inspect data/task_D_D                           # what it holds, as text
roboflamingo data inspect data/task_D_D --html task_D_D.html      # the same as a page, with pictures
roboflamingo data verify data/task_D_D                            # reads every frame; status 1 if one is damaged
roboflamingo data verify data/task_D_D/packed                     # checks every packed copy there
roboflamingo data pack data/task_D_D --out stores/task_D_D        # all of it, compressed; a data set of its own
roboflamingo data pack --config configs/train_tiny.yaml --run runs/tiny     # what this training would pack
roboflamingo data convert --from data/task_D_D --to data/task_D_D_lerobot --format lerobot   # and back: calvin
roboflamingo data wordings lang_annotation_cache.json --out wordings.yaml   # for data.wordings
"""


class Action(NamedTuple):
    """One thing that the verb does."""

    summary: str
    usage: str
    options: Callable[[ArgumentParser], object]
    run: Callable[[Namespace], None]


def main(arguments: Sequence[str]) -> None:
    """Does what the first word says.

    Raises:
        SystemExit: 1 where `verify` found damage; 2 for wrong arguments.
    """
    words = list(arguments)
    action = ACTIONS.get(words[0]) if words else None
    if action is None:
        _overview(words)
        return
    if words[0] == "pack" and any(word.partition("=")[0] == "--config" for word in words):
        pack_for_training(words[1:])
        return
    parser = verb_parser("data", action.summary, EXAMPLES, f"{words[0]} {action.usage}")
    action.options(parser)
    action.run(parse(parser, words[1:]))


def _overview(words: Sequence[str]) -> None:
    """Help, or an error that says which actions there are."""
    usage = f"{{{','.join(ACTIONS)}}} PATH [--KEY VALUE ...]"
    summary = "; ".join(
        f"{name}: {action.summary[0].lower()}{action.summary[1:-1]}" for name, action in ACTIONS.items()
    )
    parser = verb_parser("data", f"{summary}.", EXAMPLES, usage)
    parser.add_argument("action", choices=list(ACTIONS), help="what to do; data ACTION --help tells all about one")
    parse(parser, words)


def _path(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=str, help="a data set: CALVIN's folder, or another kind's folder or file")


def _reading(parser: ArgumentParser) -> None:
    _path(parser)
    parser.add_argument(
        "--language", type=str, default="lang_annotations", help="CALVIN: the sub-folder of annotations"
    )
    parser.add_argument(
        "--segment_ends", choices=["exclusive", "inclusive"], default="exclusive",
        help="CALVIN: whether a segment's end is the frame after its last, or its last",
    )  # fmt: skip
    parser.add_argument(
        "--out_of_range",
        choices=["error", "clip"],
        default="error",
        help="actions beyond their bounds: damage, or clip",
    )
    parser.add_argument("--processes", type=int, default=None, help="that read at once; one a core by default")


# --- inspect -------------------------------------------------------------------------------------


def _inspect_options(parser: ArgumentParser) -> None:
    _reading(parser)
    parser.add_argument(
        "--frames", type=int, default=2000, help="that are read of every split, evenly spread; 0 for all"
    )
    parser.add_argument("--html", type=str, default=None, help="also writes a page")


def inspect(options: Namespace) -> None:
    """Tells what a data set holds.

    Raises:
        UserError: it is no data set, or what describes its frames is damaged.
    """
    from calvin_eval.system.files import write_text
    from roboflamingo.data.inspecting import inspect as look
    from roboflamingo.data.inspecting import rows_to_read
    from roboflamingo.data.showing import page, rows_of_text
    from roboflamingo.data.store.showing import bar_when_slow

    console, facts = Console(), []
    for source in _sources(options):
        most = options.frames or None
        total = len(rows_to_read(len(source), most))
        with bar_when_slow(f"reading {source.title}", total, Console(stderr=True)) as advance:
            facts.append(look(source, most, _processes(options), advance))
        rows = list(rows_of_text(facts[-1]))
        width = max(len(label) for label, _ in rows[1:])
        for label, text in rows:
            console.print(f"{label:<{width}}  {text}", soft_wrap=True, markup=False, highlight=False)
    if options.html:
        write_text(Path(options.html), page(Path(options.path).name, facts))
        console.print(f"page in {options.html}", soft_wrap=True, highlight=False)


# --- verify --------------------------------------------------------------------------------------


def verify(options: Namespace) -> None:
    """Reads every frame of a data set, or checks every byte of packed copies, and names all that is damaged.

    Raises:
        SystemExit: 1 where something is.
        UserError: there is nothing to verify.
    """
    from roboflamingo.data.places import folder_at, packed_at

    path, console = folder_at(options.path), Console(stderr=True)
    packed = packed_at(path)
    problems = _verify_packed(packed, console) if packed else _verify_frames(options, console)
    if problems:
        print(f"{problems} damaged")
        raise SystemExit(1)


def _verify_packed(folders: Sequence[Path], console: Console) -> int:
    from roboflamingo.data.errors import DataError
    from roboflamingo.data.store.arrays import size_of
    from roboflamingo.data.store.index import arrays_of, read_index
    from roboflamingo.data.store.showing import bar_when_slow
    from roboflamingo.data.store.verifying import problems_of

    count = 0
    for folder in folders:
        try:
            index = read_index(folder)
            total = size_of(arrays_of(index)) + sum(size for size, _ in index["shards"].values())
            with bar_when_slow(f"checking {folder.name}", total, console) as advance:
                found = list(problems_of(folder, index, advance))
        except DataError as error:
            found = [str(error)]
        for problem in found:
            print(problem)
        if not found:
            print(f"{folder}: {index['frames']} frames, whole")
        count += len(found)
    return count


def _verify_frames(options: Namespace, console: Console) -> int:
    import numpy as np

    from roboflamingo.data.inspecting import read_rows
    from roboflamingo.data.store.showing import bar_when_slow

    count = 0
    for source in _sources(options):
        if source.annotated:
            len(source.samples)  # read, so that damage there is told
        before = count
        with bar_when_slow(f"reading {source.title}", len(source), console) as advance:
            for looked in read_rows(source, np.arange(len(source)), _processes(options), advance):
                for problem in looked.damaged:
                    print(problem)
                count += len(looked.damaged)
        whole = "whole" if count == before else f"{count - before} of them damaged"
        print(f"{source.title}: {len(source)} frames, {whole}")
    return count


# --- pack ----------------------------------------------------------------------------------------


def _pack_options(parser: ArgumentParser) -> None:
    _reading(parser)
    parser.add_argument("--out", type=str, required=True, help="the folder that becomes a data set of its own")
    parser.add_argument(
        "--rows", choices=["all", "annotated"], default="all", help="every frame, or those of annotated segments alone"
    )
    parser.add_argument(
        "--damaged",
        choices=["error", "leave_out"],
        default="error",
        help="a frame that cannot be read: error, or left out",
    )


def pack(options: Namespace) -> None:
    """Packs all splits of a data set, compressed, into a folder that is a data set of its own.

    Raises:
        UserError: the data set is damaged, or the disk too small.
    """
    from roboflamingo.data.places import folder_at
    from roboflamingo.data.store.packing import pack_as
    from roboflamingo.data.store.settings import PackSettings

    out = folder_at(options.out)
    for source in _sources(options):
        settings = PackSettings(images="compressed", rows=options.rows, damaged=options.damaged, options=source.options)
        folder = pack_as(source, out, source.split, settings, _processes(options), Console(stderr=True))
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e9:.2f} GB")


def pack_for_training(words: Sequence[str]) -> None:
    """Packs what a training with this configuration would."""
    from roboflamingo.training.config import TrainConfig
    from roboflamingo.training.datamodule import open_windows

    summary = "Packs what `roboflamingo train` with the same words would pack."
    config = parse_config(TrainConfig, "data", words, summary=summary, examples=EXAMPLES)
    for windows in open_windows(config, Console(stderr=True)):
        for folder in windows.folders if windows is not None else ():
            print(folder.folder)


# --- shared --------------------------------------------------------------------------------------


def _sources(options: Namespace) -> list[Source]:
    from roboflamingo.data.places import folder_at
    from roboflamingo.data.sources import kind_of, open_source
    from roboflamingo.data.sources.base import SourceOptions

    path = folder_at(options.path)
    chosen = SourceOptions(options.language, "relative", options.segment_ends, options.out_of_range)
    return [open_source(path, split, chosen) for split in kind_of(path).splits(path)]


def _processes(options: Namespace) -> int:
    from calvin_eval.system.machine import cores

    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes is {options.processes}; it must be at least 1")
    return options.processes or cores()


ACTIONS = {
    "inspect": Action("Tells what a data set holds.", "PATH [--html FILE]", _inspect_options, inspect),
    "verify": Action("Reads every frame and names what is damaged.", "PATH", _reading, verify),
    "pack": Action(
        "Makes the packed copy ahead of training.",
        "PATH --out FOLDER [--config FILE.yaml] [--KEY VALUE ...]",
        _pack_options,
        pack,
    ),
    "convert": Action("Writes a data set as one of another kind.", USAGE, convert_options, convert),
    "wordings": Action("Makes a file for data.wordings.", "FILE --out FILE", wordings_options, wordings),
}
"""A further action is one line."""
