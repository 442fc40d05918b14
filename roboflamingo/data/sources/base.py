"""What every kind of data set gives: frames in rows, episodes, samples, and what identifies their content.

A data set lies at one path and has splits (`training`, `validation`). A `Source` is one split of it. The store, the
verbs of `roboflamingo data` and training see data sets only through this file, so a new kind is one new file beside
this one and a line in `sources/__init__.py`.

Rows are numbered 0 to N - 1 in the order of recording; rows of one episode follow one another. A row is one control
step: the images and states of that moment, and the action that was taken then.

Non-obvious behaviours
    - Opening a source is cheap: it reads what describes the frames and no frame. Heavy libraries (pyarrow, av, h5py)
      are imported where they are used, not at the top of a file, as `recognises` is asked of every kind.
    - A frame that the data set promises and does not have is a row like any other, whose reading gives an error.
    - `Reader`s are sent to worker processes: they hold what their rows need and no list of all frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from calvin_eval.specs import RobotSpec
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.columns import Columns

DIGEST_BYTES = 16
ACTIONS = "actions"
"""The name of the recorded actions among a frame's arrays, whatever their source calls them."""
SPLITS = ("training", "validation")
"""What the splits are called here, whatever the data set calls them."""

SampleKind: TypeAlias = Literal["language", "play", "goal", "caption"]


class Sample(NamedTuple):
    """Rows `first` to `stop` - 1 of one episode, and what is said of them.

    Attributes:
        first: the first row.
        stop: the row after the last.
        kind: language: they carry out `instruction`. caption: each of them shows what `instruction` says, and nothing
            is done. Sources give these two; play and goal samples are made from episodes (see `samples.py`).
        instruction: the sentence; "" where there is none.
        task: a name for tables and balanced drawing; "" where the data set has none.
        bounds: how the data set itself writes the two bounds, which is what lists of subsets name (CALVIN: the ids in
            `info.indx`); None where they are `first` and `stop`.
    """

    first: int
    stop: int
    kind: SampleKind = "language"
    instruction: str = ""
    task: str = ""
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True)
class Frame:
    """One row, checked.

    Attributes:
        arrays: by name. Images (H, W, 3) uint8 at their recorded size; everything else (n,) float32 and finite.
            Actions, as `spec.actions` describes them, are under `ACTIONS`.
        digest: (16,) uint8 that differ where anything recorded in the row differs. It depends neither on where the data
            set lies nor on which arrays were asked for.
        beyond: the largest absolute value of an action that was brought into its bounds; 0 where none was.
    """

    arrays: Mapping[str, np.ndarray]
    digest: np.ndarray
    beyond: float = 0.0


class Reader(ABC):
    """Some rows of a source, in order; picklable, and small."""

    @abstractmethod
    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """Every row with the named arrays: a frame, or what is wrong with it (file and key), which ends nothing.

        Args:
            names: cameras, states and privileged states of the spec, and `ACTIONS`. Nothing else is decoded.
        """

    @abstractmethod
    def digests(self) -> Iterator[np.ndarray]:
        """What `Frame.digest` of every row is, from as few bytes as possible; zeros for a row that cannot be read."""


@dataclass(frozen=True)
class SourceOptions:
    """How a data set is read. Kinds leave aside what does not concern them.

    Attributes:
        language: CALVIN: the sub-folder with the annotations.
        actions: relative ones, or absolute poses, where a data set has both (CALVIN).
        segment_ends: CALVIN: whether a segment's end is the frame after its last (exclusive, as its loader reads), or
            its last (inclusive).
        out_of_range: actions beyond their bounds: error, or clip.
        columns: which columns of a recorded vector are which part of an action, and which state. CALVIN says so itself.
    """

    language: str = "lang_annotations"
    actions: Literal["relative", "absolute"] = "relative"
    segment_ends: Literal["exclusive", "inclusive"] = "exclusive"
    out_of_range: Literal["error", "clip"] = "error"
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        for name, known in (
            ("actions", ("relative", "absolute")),
            ("segment_ends", ("exclusive", "inclusive")),
            ("out_of_range", ("error", "clip")),
        ):
            if getattr(self, name) not in known:
                raise DataError(f"data.{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")


class Source(ABC):
    """One split of a data set.

    Args:
        path: where the data set lies: a folder or a file.
        split: one of `splits(path)`.
        options: how it is read.

    Raises:
        DataError: what describes the frames is missing, damaged or contradicts itself. Names the file.
    """

    kind: ClassVar[str]
    """Its name in the registry, as "calvin"."""

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        self.path, self.split, self.options = path, split, options

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a data set of this kind lies there, judged by names of files or a few bytes; never an error."""

    @classmethod
    @abstractmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """Which of `SPLITS` the data set has.

        Raises:
            DataError: it is damaged.
        """

    @property
    @abstractmethod
    def spec(self) -> RobotSpec:
        """Cameras at their recorded size, states, privileged states, actions, rate. What the first frame holds counts.

        Raises:
            DataError: the first frame is damaged.
        """

    @abstractmethod
    def __len__(self) -> int:
        """N, how many rows there are, missing frames counted."""

    @property
    @abstractmethod
    def episodes(self) -> np.ndarray:
        """(E, 2) int64, the first row of every episode and the one after its last, ascending."""

    @property
    def annotated(self) -> bool:
        """Whether anything is said of the frames; where not, `samples` may be an error that says what is missing."""
        return True

    @property
    @abstractmethod
    def samples(self) -> tuple[Sample, ...]:
        """Language and caption samples, in the data set's own order, which decides the numbers of windows."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What a row is called in messages: its file and, where a file holds many, its place in it."""

    @property
    @abstractmethod
    def notes(self) -> str:
        """Digest (hex) of what describes the frames: annotations, episodes, scenes. No frame's content is in it.

        It must be cheap (well under a second at millions of frames), and the same wherever the data set lies.
        """

    @abstractmethod
    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """(n, 3) int64 for each of the rows: size and two times of change of the file that holds it.

        They say which rows are worth comparing by digest. -1 for a missing frame.
        """

    @abstractmethod
    def stamp(self) -> str:
        """One cheap digest that changes when files come or go; for data sets of too many files to look at each."""

    @property
    def missing(self) -> np.ndarray:
        """(M,) int64, rows that are known to be missing before any frame is read."""
        return np.zeros(0, np.int64)

    @abstractmethod
    def reader(self, rows: np.ndarray) -> Reader:
        """Reads these rows (n,), ascending."""

    @property
    def title(self) -> str:
        """The split as users know it."""
        return f"{self.path.name}/{self.split}"
