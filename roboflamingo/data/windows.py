"""Windows of consecutive frames with their instruction and the actions to come, read from packed splits.

There is one window for every frame of every segment: the frame is the window's last, and the T - 1 before
it are the past that a policy would have seen by then. Before the segment's start there is no past, and
`frame_mask` is False for what fills the window up. A policy that has just been given its instruction sees
its window grow, so there the frames that exist stand first and copies of the last one follow; for policies
that act on full windows only, copies of the first frame stand before them (see `PolicyConfig.grows`).

A batch is a dictionary (B windows, T frames, K actions):
    rgb_static   (B, T, S, S, 3) uint8
    rgb_gripper  (B, T, G, G, 3) uint8
    robot_obs    (B, T, 15) float32
    scene_obs    (B, T, 24) float32, blocks in the order red, blue, pink
    actions      (B, T, K, 7) float32, the recorded actions of frames t .. t + K - 1
    action_mask  (B, T, K) bool, False past the segment's end
    frame_mask   (B, T) bool
    instruction  list of B sentences
    and further vectors of the frames by name (B, T, n) float32, if they were packed
rgb_gripper and scene_obs are left out where they were not packed, as for policies that do not read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from roboflamingo.data.errors import DataError
from roboflamingo.data.frames import PackSettings
from roboflamingo.data.store import open_array, read_index


class Windows(Dataset[Any]):
    """The windows of one or several packed splits, a torch data set whose items are whole batches.

    Args:
        packed: folders that `packing.pack` made.
        window: T, frames in a window.
        chunk: K, actions to come at every frame.
        stride: recorded frames from one frame of a window to the next; the actions to come are never strided.
        grows: whether windows at a segment's start are filled up behind their frames, and not before.
        weights: for every folder, how often a window of it is drawn relative to the other folders' windows.

    Attributes:
        contents: digest of what every folder was packed from: its frames' and annotations' bytes, wherever they lay.

    Raises:
        DataError: no folder, or weights that do not fit.
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
    ) -> None:
        weights = [1.0] * len(packed) if weights is None else list(weights)
        if not packed or len(weights) != len(packed):
            raise DataError(f"{len(packed)} data folders and {len(weights)} weights; one of each is needed at least")
        if min(window, chunk, stride) < 1 or not all(0 < weight < float("inf") for weight in weights):
            raise DataError(f"window {window}, chunk {chunk}, stride {stride} and weights {weights} must be positive")
        self.window, self.chunk, self.stride, self.grows = window, chunk, stride, grows
        self._folders = [Path(folder) for folder in packed]
        indices = [read_index(folder) for folder in self._folders]
        self._shapes = [PackSettings(**index["settings"]).arrays(index["frames"]) for index in indices]
        self._arrays = tuple(self._shapes[0])
        if any(tuple(shapes) != self._arrays for shapes in self._shapes):
            raise DataError(f"{', '.join(map(str, packed))} were packed with different settings")
        self.contents = [str(index["content"]) for index in indices]
        segments = [(i, segment) for i, index in enumerate(indices) for segment in index["segments"]]
        self._first_rows = np.concatenate([[0], np.cumsum([index["frames"] for index in indices])])
        self.instructions = [segment["instruction"] for _, segment in segments]
        self.tasks = [segment["task"] for _, segment in segments]
        # first frame and the one after the last of every segment, counted through all folders: (segments, 2)
        self._bounds = np.array([segment["rows"] for _, segment in segments])
        self._bounds += self._first_rows[[i for i, _ in segments], None]
        self._segment_weights = np.array([weights[i] for i, _ in segments])
        self._count()
        self._open()

    def _count(self) -> None:
        self._lengths = self._bounds[:, 1] - self._bounds[:, 0]
        self._ends = np.cumsum(self._lengths)

    def keep(self, fraction: float, seed: int) -> None:
        """Leaves out all but a share of each task's segments, at least one, drawn by seed."""
        if fraction >= 1:
            return
        random, tasks = np.random.default_rng(seed), np.array(self.tasks)
        kept: list[int] = []
        for task in np.unique(tasks):
            members = np.flatnonzero(tasks == task)
            kept += random.permutation(members)[: max(1, round(fraction * len(members)))].tolist()
        kept.sort()
        self._bounds, self._segment_weights = self._bounds[kept], self._segment_weights[kept]
        self.instructions, self.tasks = [self.instructions[i] for i in kept], [self.tasks[i] for i in kept]
        self._count()

    def _open(self) -> None:
        self._maps: list[dict[str, np.ndarray]] = [
            {name: open_array(folder, name, *array) for name, array in shapes.items()}
            for folder, shapes in zip(self._folders, self._shapes, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draw_weights(self, *, balance_tasks: bool = False) -> np.ndarray:
        """How often each window is to be drawn, (len(self),) and relative.

        Args:
            balance_tasks: whether every task is drawn equally often; within a task the folders' weights hold.
        """
        weights = self._segment_weights
        if balance_tasks:
            _, task = np.unique(self.tasks, return_inverse=True)
            weights = weights / np.bincount(task, weights=weights * self._lengths)[task]
        return np.repeat(weights, self._lengths)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """The batch of the windows with these numbers, as numpy arrays."""
        window = np.asarray(indices, np.int64)
        segment = np.searchsorted(self._ends, window, side="right")
        first, stop = self._bounds[segment].T[:, :, None]  # each (B, 1)
        last = first + (window - self._ends[segment] + self._lengths[segment])[:, None]
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
        batch: dict[str, Any] = {name: self._take(name, frames_BT) for name in self._arrays if name != "actions"}
        return batch | {
            "actions": self._take("actions", steps_BTK),
            "action_mask": action_mask,
            "frame_mask": frame_mask,
            "instruction": [self.instructions[i] for i in segment],
        }

    def of_task(self, task: str) -> np.ndarray:
        """The numbers of a task's windows."""
        return np.flatnonzero(np.repeat(np.array(self.tasks) == task, self._lengths))

    def column(self, name: str) -> np.ndarray:
        """One packed array whole, (frames of all folders, ...)."""
        return np.concatenate([maps[name] for maps in self._maps])

    def _take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """`rows` of one array, counted through all folders; its shape follows that of `rows`."""
        if len(self._maps) == 1:
            return np.take(self._maps[0][name], rows, axis=0)
        sample = self._maps[0][name]
        taken = np.empty(rows.shape + sample.shape[1:], sample.dtype)
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        for i in np.unique(owner):
            taken[owner == i] = self._maps[i][name][rows[owner == i] - self._first_rows[i]]
        return taken


def last_frames(frame_mask: torch.Tensor) -> torch.Tensor:
    """Where the last frames of windows are that are no filling: (B, T) -> (B,)."""
    return frame_mask.shape[1] - 1 - frame_mask.flip(1).int().argmax(1)


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with torch tensors that share the arrays' memory; sentences stay a list."""
    return {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in batch.items()}
