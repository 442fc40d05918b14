"""Reads the language annotations of a CALVIN split: which frames belong to which instruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.errors import DataError as DataError
from roboflamingo.data.sources.calvin.plain import load_plain_dict as load_plain_dict
from roboflamingo.data.sources.calvin.plain import text_of, whole_number

LONGEST = 1_000_000
"""Frames of a segment beyond which its bounds are taken to be damaged; CALVIN's have 33 to 64."""


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` - 1 carry out one instruction.

    CALVIN writes the second bound as start + length and its loader never reads that frame; some converters take it for
    the last (CALVIN SPEC 1.12).
    """

    start: int
    stop: int
    task: str
    instruction: str


def read_segments(split: Path, language: str = "lang_annotations", *, inclusive: bool = False) -> list[Segment]:
    """The annotated segments of a CALVIN split folder, in the file's order.

    Sentences and tasks may be bytes, or each in a list of its own; they become text.

    Args:
        split: a `training` or `validation` folder.
        language: its sub-folder with `auto_lang_ann.npy`. CALVIN ships several (`lang_clip_ViTB32`, ...),
            which differ in the embedding of the sentences and not in the segments.
        inclusive: whether the second bound is a segment's last frame, and not the one after it.

    Raises:
        DataError: a missing folder or key, a sentence that is no text, or a segment without frames. Names the file,
            and where there is one the segment, counted from 0.
    """
    path = split / language / "auto_lang_ann.npy"
    if not path.is_file():
        others = sorted(folder.parent.name for folder in split.glob("lang*/auto_lang_ann.npy"))
        hint = f"set data.language to one of {', '.join(others)}" if others else "no lang_* folder is there either"
        raise DataError(f"{path} is missing; {hint}")
    content = load_plain_dict(path)
    try:
        sentences, tasks = content["language"]["ann"], content["language"]["task"]
        bounds = content["info"]["indx"]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} lacks {error}; language.ann, language.task and info.indx are needed") from error
    for name, value in (("language.ann", sentences), ("language.task", tasks), ("info.indx", bounds)):
        if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and not value.ndim):
            raise DataError(
                f"{path}: {name} is a {type(value).__name__}; a list with a row for every segment is needed"
            )
    if not len(sentences) == len(tasks) == len(bounds):
        raise DataError(f"{path}: {len(sentences)} sentences, {len(tasks)} tasks and {len(bounds)} segments differ")
    rows = enumerate(zip(sentences, tasks, bounds, strict=True))
    segments = [_segment(path, number, *row, inclusive) for number, row in rows]
    if not segments:
        raise DataError(f"{path} holds no segments")
    return segments


def _segment(path: Path, number: int, sentence: Any, task: Any, bounds: Any, inclusive: bool) -> Segment:
    """One row of the file.

    Raises:
        DataError: the row is damaged. Names file and row.
    """
    what = "language.ann"
    try:
        instruction = text_of(sentence)
        what = "language.task"
        name = text_of(task)
        what = "info.indx"
        start, stop = (whole_number(bound) for bound in bounds)
        stop += inclusive
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {what} of segment {number}: {error}") from error
    if stop <= start or start < 0:
        raise DataError(f"{path}: segment {number} has no frames: {start} to {stop}")
    if stop - start > LONGEST:
        raise DataError(f"{path}: segment {number} has {stop - start} frames, {start} to {stop}; that cannot be right")
    return Segment(start, stop, name, instruction)
