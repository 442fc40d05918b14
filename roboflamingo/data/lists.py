"""Lists that choose or vary samples: subsets of segments, and further sentences for tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roboflamingo.data.errors import DataError
from roboflamingo.data.samples import SampleTable
from roboflamingo.data.sources.calvin.plain import text_of, whole_number


def read_subset(path: Path) -> list[int] | list[tuple[int, int]]:
    """Numbers of segments, or pairs of bounds as the data set writes them (the reference's list of a tenth is such).

    Args:
        path: a list in JSON, an array in .npy, or text with one number or two in a line.

    Raises:
        DataError: it is missing, empty or something else. Names file and entry.
    """
    rows = _rows(path)
    found: list[Any] = []
    for number, row in enumerate(rows):
        try:
            found.append(tuple(map(whole_number, row)) if isinstance(row, list | tuple) else whole_number(row))
        except ValueError as error:
            raise DataError(f"{path}: entry {number}: {error}") from error
    kinds = {len(entry) if isinstance(entry, tuple) else 1 for entry in found}
    if kinds not in ({1}, {2}):
        raise DataError(f"{path} must hold numbers of segments, or pairs of first frame and end, at least one")
    if len(set(found)) != len(found):
        twice = next(entry for entry in found if found.count(entry) > 1)
        raise DataError(f"{path} names {twice} twice")
    return found


def _rows(path: Path) -> list[Any]:
    try:
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False).tolist()
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text("utf-8").splitlines()]
            rows = [[int(word) for word in line] if len(line) > 1 else int(line[0]) for line in lines if line]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; data.subset names it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of segments: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; a list of segments is needed")
    return rows


def subset_of(samples: SampleTable, lists: Mapping[int, Path]) -> np.ndarray:
    """The numbers of the samples that lists name; of folders without a list, all.

    Args:
        samples: of all folders.
        lists: a file for the numbers of some folders.

    Raises:
        DataError: a list names a segment that is not there.
    """
    kept = np.isin(samples.folders, list(lists), invert=True)
    for folder, path in lists.items():
        members = np.flatnonzero(samples.folders == folder)
        wanted = read_subset(path)
        if isinstance(wanted[0], tuple):
            pairs = set(wanted)
            chosen = [i for i in members.tolist() if samples.named[i] in pairs]
            if gone := pairs - {samples.named[i] for i in chosen}:
                raise DataError(f"{path} names frames {min(gone)}, which are no segment of the data ({len(gone)} such)")
        else:
            numbers = np.array(wanted)
            if len(beyond := numbers[(numbers < 0) | (numbers >= len(members))]):
                raise DataError(f"{path} names segment {beyond[0]}; the data set has 0 to {len(members) - 1}")
            chosen = members[numbers].tolist()
        kept[chosen] = True
    return np.flatnonzero(kept)


def read_wordings(path: Path, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Further sentences by task, from JSON or YAML.

    This is the format of the reference's enriched annotations. Its other one, a list of five sentences for every
    official chain, becomes such a file by `roboflamingo data wordings`, as only the benchmark knows the chains.

    Args:
        path: the file.
        tasks: those of the data; one at least must have a sentence.

    Raises:
        DataError: it is missing, or holds something else. Names file and task.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; data.wordings names it") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as sentences by task: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; a mapping from tasks to sentences is needed")
    found: dict[str, tuple[str, ...]] = {}
    for task, sentences in content.items():
        if not isinstance(sentences, list) or not sentences:
            raise DataError(f"{path}: {task} needs a list of sentences, at least one")
        try:
            found[str(task)] = tuple(text_of(sentence) for sentence in sentences)
        except ValueError as error:
            raise DataError(f"{path}: {task}: {error}") from error
    if not found.keys() & set(tasks):
        raise DataError(f"{path} has sentences for {', '.join(list(found)[:5])} ...; none is a task of the data")
    return found
