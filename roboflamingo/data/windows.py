"""Windows of consecutive frames with their instruction and the actions to come, read from packed splits.

There is one window for every frame of every sample (see `samples.py`; a sample is an annotated segment unless something
else is asked for): the frame is the window's last, and the T - 1 before it are the past that a policy would have seen
by then. Before the sample's start there is no past, and `frame_mask` is False for what fills the window up. A policy
that has just been given its instruction sees its window grow, so there the frames that exist stand first and copies of
the last one follow; for policies that act on full windows only, copies of the first frame stand before them (see
`PolicyConfig.grows`).

A batch is a dictionary (B windows, T frames, K actions). Arrays of frames go by the names of the data set; CALVIN's are
    rgb_static   (B, T, S, S, 3) uint8
    rgb_gripper  (B, T, G, G, 3) uint8
    robot_obs    (B, T, 15) float32
    scene_obs    (B, T, 24) float32, blocks in the order red, blue, pink
and whatever the data set,
    actions      (B, T, K, A) float32, the recorded actions of frames t .. t + K - 1
    action_mask  (B, T, K) bool, False past the sample's end
    frame_mask   (B, T) bool
    instruction  list of B sentences
    goal_NAME    (B, S, S, 3) uint8 for every camera, where samples are goals: a later frame of the sample
What was not packed is left out, as for policies that do not read it. Where tokens of a frozen vision encoder are kept
(`with_tokens`), they stand in the place of the images: (B, T, V, D) fp16, goals' (B, V, D). Windows that need a frame
that could not be read do not exist.

Whatever of a window is drawn at random (its length, the wording, the goal) is a function of a seed and of its place in
the stream of windows: a number beyond the windows' count says both, `place * len(windows) + number`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.samples import SampleTable, sample_table
from roboflamingo.data.sources.base import ACTIONS, SampleKind
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.tokens.reading import FrameTokens
from roboflamingo.data.variety import Variety


class Windows(Dataset[Any]):
    """The windows of one or several packed splits, a torch data set whose items are whole batches.

    Args:
        packed: folders that `store.packing` made.
        window: T, frames in a window.
        chunk: K, actions to come at every frame.
        stride: recorded frames from one frame of a window to the next; the actions to come are never strided.
        grows: whether windows at a sample's start are filled up behind their frames, and not before.
        weights: for every folder, how often a window of it is drawn relative to the other folders' windows.
        cameras: edge (pixels) of each camera's images; None for all cameras, as they lie there.
        vectors: which states are given; None for all.
        kind: which samples windows are made of.
        variety: what is drawn anew each time; None for nothing.

    Attributes:
        contents: digest of what every folder was packed from: its frames' and annotations' bytes, wherever they lay.
        samples: the samples, in the order of their windows.

    Raises:
        DataError: no folder, weights that do not fit, folders that hold different things, or no samples.
    """

    def __init__(
        self,
        packed: Sequence[Path],
        *,
        window: int,
        chunk: int,
        stride: int = 1,
        grows: bool = False,
        weights: Sequence[float] | None = None,
        cameras: Mapping[str, int] | None = None,
        vectors: Sequence[str] | None = None,
        kind: SampleKind = "language",
        variety: Variety | None = None,
    ) -> None:
        self._weights = [1.0] * len(packed) if weights is None else list(weights)
        if not packed or len(self._weights) != len(packed):
            many = f"{len(packed)} data folders and {len(self._weights)} weights"
            raise DataError(f"{many}; one of each is needed at least")
        if min(window, chunk, stride) < 1 or not all(0 < weight < float("inf") for weight in self._weights):
            raise DataError(
                f"window {window}, chunk {chunk}, stride {stride} and weights {self._weights} must be positive"
            )
        self.window, self.chunk, self.stride, self.grows = window, chunk, stride, grows
        self.kind, self.variety = kind, variety
        self.folders = [PackedFolder(folder, cameras) for folder in packed]
        self.contents = [folder.content for folder in self.folders]
        self._tokens: tuple[FrameTokens, ...] = ()
        self._names = self._common_names(cameras, vectors)
        self._first_rows = np.concatenate([[0], np.cumsum([folder.frames for folder in self.folders])])
        self.samples = sample_table(self.folders, kind)
        self._count()

    def _common_names(self, cameras: Mapping[str, int] | None, vectors: Sequence[str] | None) -> tuple[str, ...]:
        """The arrays that are given of every frame."""
        first, *others = (folder.names for folder in self.folders)
        if cameras is None and vectors is None and any(set(names) != set(first) for names in others):
            raise DataError(f"{', '.join(str(f.folder) for f in self.folders)} were packed with different settings")
        shown = [name for name in first if name in self.folders[0].spec.cameras]
        told = [name for name in first if name not in shown and name != ACTIONS]
        names = (*(shown if cameras is None else cameras), *(told if vectors is None else vectors))
        for folder in self.folders:
            if missing := [name for name in names if name not in folder.names]:
                raise DataError(f"{folder.folder} has no {', '.join(missing)}; it holds {', '.join(folder.names)}")
        return names

    def _count(self) -> None:
        """Numbers the windows, those left out that need a damaged row."""
        self._bounds, self._lengths = self.samples.bounds, self.samples.lengths
        self._ends = np.cumsum(self._lengths)
        damaged = np.concatenate([f.damaged + row for f, row in zip(self.folders, self._first_rows[:-1], strict=True)])
        self._kept: np.ndarray | None = None
        if len(damaged):
            whole = np.ones(int(self._ends[-1]), bool)
            for row in damaged.tolist():
                whole[self._needing(row)] = False
            self._kept = np.flatnonzero(whole)
            if not len(self._kept):
                raise DataError("no window is left: all need frames that cannot be read")

    def _needing(self, row: int) -> np.ndarray:
        """The numbers of the windows that show a row or hold its action, before any are left out."""
        past, ahead = np.arange(self.window) * self.stride, np.arange(self.chunk)
        lasts = np.unique(row + past[:, None] - ahead)
        samples = np.flatnonzero((self._bounds[:, 0] <= row) & (row < self._bounds[:, 1]))
        found = [np.zeros(0, np.int64)]
        for number in samples.tolist():
            first, stop = self._bounds[number].tolist()
            inside = lasts[(lasts >= first) & (lasts < stop)] if self.kind != "goal" else np.arange(first, stop)
            found.append(inside - first + self._ends[number] - self._lengths[number])
        return np.concatenate(found)

    def restrict(self, samples: SampleTable) -> None:
        """Leaves out all windows but those of these samples, which `samples.only` or `samples.share` gave."""
        self.samples = samples
        self._count()

    def with_tokens(self, tokens: Sequence[FrameTokens], seed: int | None = None) -> Windows:
        """The same windows with tokens in the place of images.

        Args:
            tokens: of every folder, with the same cameras and shifts.
            seed: decides which shift of each camera's images a window shows, with its place in the stream; None shows
                images that were not moved.
        """
        other = copy(self)
        other._tokens = tuple(tokens)
        shifts = {camera: count for camera, count in tokens[0].cameras.items() if count > 1}
        if seed is not None and shifts:
            other.variety = replace(self.variety or Variety(seed), shifts=shifts)
        return other

    @property
    def instructions(self) -> tuple[str, ...]:
        """The sentence of every sample."""
        return self.samples.instructions

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task of every sample."""
        return self.samples.tasks

    @property
    def wordings(self) -> list[str]:
        """Every sentence that a window may have."""
        varied = self.variety.wordings if self.variety else {}
        return [*self.instructions, *(text for task in dict.fromkeys(self.tasks) for text in varied.get(task, ()))]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def _of_windows(self, values: np.ndarray) -> np.ndarray:
        """A value of every sample for each of its windows."""
        repeated = np.repeat(values, self._lengths)
        return repeated if self._kept is None else repeated[self._kept]

    def draw_weights(self, *, balance_tasks: bool = False) -> np.ndarray:
        """How often each window is to be drawn, (len(self),) and relative.

        Args:
            balance_tasks: whether every task is drawn equally often; within a task the folders' weights hold.
        """
        weights = np.array(self._weights)[self.samples.folders]
        if balance_tasks:
            _, task = np.unique(np.array(self.tasks), return_inverse=True)
            weights = weights / np.bincount(task, weights=weights * self._lengths)[task]
        return self._of_windows(weights)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """The batch of the windows with these numbers, as numpy arrays."""
        if (reader := get_worker_info()) is not None:  # one of several processes that read ahead
            for folder in self.folders:
                folder.threads = max(1, cores() // reader.num_workers)
        place, window = np.divmod(np.asarray(indices, np.int64), len(self))
        if self._kept is not None:
            window = self._kept[window]
        sample = np.searchsorted(self._ends, window, side="right")
        first, stop = self._bounds[sample].T[:, :, None]  # each (B, 1)
        last = first + (window - self._ends[sample] + self._lengths[sample])[:, None]
        instructions, tasks = ([named[i] for i in sample] for named in (self.instructions, self.tasks))
        goals, moved = last[:, 0], {}
        if self.variety is not None or self.kind == "goal":
            told, stops = list(zip(instructions, tasks, strict=True)), self._bounds[sample, 1]
            drawn = (self.variety or Variety()).draw(place, window, goals, stops, told, self.window)
            first = np.maximum(first, last - self.stride * (drawn.shown[:, None] - 1))
            instructions, moved, goals = drawn.sentences, drawn.moved, drawn.goals
        frames_BT = last - self.stride * np.arange(self.window - 1, -1, -1)
        frame_mask = frames_BT >= first
        if self.grows:
            missing = (~frame_mask).sum(1, keepdims=True)
            frames_BT, frame_mask = frames_BT + self.stride * missing, np.arange(self.window) < self.window - missing
            frames_BT = np.minimum(frames_BT, last)
        frames_BT = np.maximum(frames_BT, first)
        steps_BTK = frames_BT[:, :, None] + np.arange(self.chunk)
        action_mask = steps_BTK < stop[:, :, None]
        steps_BTK = np.minimum(steps_BTK, stop[:, :, None] - 1)
        batch: dict[str, Any] = {name: self._take(name, frames_BT, moved.get(name)) for name in self._names}
        if self.kind == "goal":
            cameras = [name for name in self._names if name in self.folders[0].spec.cameras]
            batch |= {f"goal_{name}": self._take(name, goals, moved.get(name)) for name in cameras}
        return batch | {
            "actions": self._take(ACTIONS, steps_BTK),
            "action_mask": action_mask if self.kind != "caption" else np.zeros_like(action_mask),
            "frame_mask": frame_mask,
            "instruction": instructions,
        }

    def of_task(self, task: str) -> np.ndarray:
        """The numbers of a task's windows."""
        return np.flatnonzero(self._of_windows(np.array(self.tasks) == task))

    def column(self, name: str) -> np.ndarray:
        """One packed array of numbers whole, (frames of all folders, ...); rows that could not be read left out."""
        return np.concatenate([np.delete(f.column(name), f.damaged, axis=0) for f in self.folders])

    def _take(self, name: str, rows: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
        """`rows` of one array, counted through all folders; its shape follows that of `rows`.

        Args:
            name: of the array; a camera's are its tokens, where these are kept.
            rows: (B, ...).
            moved: (B,) number of the shift of every window's images; None for none.
        """
        if len(self.folders) == 1:
            return self._held(0, name, rows, moved)
        if moved is not None:
            moved = np.broadcast_to(moved.reshape(-1, *[1] * (rows.ndim - 1)), rows.shape)
        taken: np.ndarray | None = None
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        for i in np.unique(owner):
            mine = owner == i
            part = self._held(i, name, rows[mine] - self._first_rows[i], None if moved is None else moved[mine])
            if taken is None:
                taken = np.empty(rows.shape + part.shape[1:], part.dtype)
            taken[mine] = part
        assert taken is not None
        return taken

    def _held(self, folder: int, name: str, rows: np.ndarray, moved: np.ndarray | None) -> np.ndarray:
        """The same of one folder, whose rows are counted from 0."""
        if self._tokens and name in self._tokens[folder].cameras:
            return self._tokens[folder].take(name, rows, moved)
        return self.folders[folder].take(name, rows)


def last_frames(frame_mask: torch.Tensor) -> torch.Tensor:
    """Where the last frames of windows are that are no filling: (B, T) -> (B,)."""
    return frame_mask.shape[1] - 1 - frame_mask.flip(1).int().argmax(1)


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with torch tensors that share the arrays' memory; sentences stay a list."""
    return {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in batch.items()}
