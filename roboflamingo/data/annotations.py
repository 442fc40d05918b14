"""Reads the language annotations of a CALVIN split: which frames belong to which instruction.

CALVIN keeps them as a pickled dictionary inside an .npy file. Unpickling can run any code a file names, so
the files are read by an unpickler that admits plain containers and numpy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from calvin_eval.system.errors import UserError


class DataError(UserError):
    """A file of a data set is missing, broken or not what CALVIN's format says. The message names it."""


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` - 1 carry out one instruction.

    CALVIN writes `stop` as start + length and its loader never reads frame `stop` (CALVIN SPEC 1.12).
    """

    start: int
    stop: int
    task: str
    instruction: str


class PlainUnpickler(pickle.Unpickler):
    """Admits dict, list, tuple, str, int, float, bool, None and numpy arrays of them; refuses all else."""

    _ALLOWED = frozenset(
        (module, name)
        for core in ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and numpy 2
        for module, name in (
            (core, "_reconstruct"),
            (core, "scalar"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        """The few constructors that numpy arrays need.

        Raises:
            pickle.UnpicklingError: for any other.
        """
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def load_plain_dict(path: Path) -> dict[str, Any]:
    """The dictionary that `np.save(path, dictionary)` wrote, read without running code from the file.

    Raises:
        DataError: the file is missing, broken, holds something else than a dictionary, or asks for code.
    """
    try:
        with path.open("rb") as file:
            _read_object_header(file)
            content = PlainUnpickler(file).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (pickle.UnpicklingError, ValueError, EOFError, AttributeError, TypeError, IndexError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    content = content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where a dictionary is expected")
    return content


def _read_object_header(file: IO[bytes]) -> None:
    """Moves past the .npy header, so that the pickle follows."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        _, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f".npy version {version} is not known")
    if not dtype.hasobject:
        raise ValueError(f"it is an array of {dtype}, not a dictionary")


def read_segments(split: Path, language: str = "lang_annotations") -> list[Segment]:
    """The annotated segments of a CALVIN split folder, in the file's order.

    Args:
        split: a `training` or `validation` folder.
        language: its sub-folder with `auto_lang_ann.npy`. CALVIN ships several (`lang_clip_ViTB32`, ...),
            which differ in the embedding of the sentences and not in the segments.

    Raises:
        DataError: a missing folder, key, or a segment without frames. Names the file.
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
    if not len(sentences) == len(tasks) == len(bounds):
        raise DataError(f"{path}: {len(sentences)} sentences, {len(tasks)} tasks and {len(bounds)} segments differ")
    segments = [
        Segment(int(start), int(stop), str(task), str(sentence))
        for (start, stop), task, sentence in zip(bounds, tasks, sentences, strict=True)
    ]
    for number, segment in enumerate(segments):
        if segment.stop <= segment.start or segment.start < 0:
            raise DataError(f"{path}: segment {number} has no frames: {segment.start} to {segment.stop}")
    if not segments:
        raise DataError(f"{path} holds no segments")
    return segments
