"""Reads rows of a packed folder, however its images are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.specs import RobotSpec
from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.images import resize_image
from roboflamingo.data.sources.base import Sample
from roboflamingo.data.store.arrays import open_array
from roboflamingo.data.store.images import ShardReader
from roboflamingo.data.store.index import arrays_of, read_index
from roboflamingo.data.store.settings import spec_from_json
from roboflamingo.data.store.verifying import shard_problem

FEW = 8
"""Images below which one thread decodes them sooner than several would begin."""
BESIDE = ("digests", "places")
"""Arrays of a packed folder that are none of a frame's."""


class PackedFolder:
    """One packed split. It travels to other processes without its arrays, which are opened there anew.

    Args:
        folder: the packed folder.
        cameras: edge (pixels) to which each camera's images are brought, where they are compressed; None leaves each at
            its recorded size.

    Attributes:
        content: digest of what it was packed from.
        spec: what the source says of itself.
        names: the arrays of a frame that `take` knows.
        frames: N, rows.
        episodes: (R, 2) int64, rows that follow one another in one episode.
        damaged: (M,) int64, rows that could not be read when they were packed.
        images: how they are kept, decoded or compressed.
        threads: that decode images; one a core, and no more where several processes read.

    Raises:
        DataError: it is missing, damaged, or holds decoded images of another size.
    """

    def __init__(self, folder: Path, cameras: Mapping[str, int] | None = None) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if (problem := shard_problem(self.folder, index)) is not None:
            raise DataError(f"{problem}; pack the data set again")
        self.content = str(index["content"])
        self.spec: RobotSpec = spec_from_json(index["spec"])
        self.frames = int(index["frames"])
        self.episodes = np.array(index["episodes"], np.int64).reshape(-1, 2)
        self.damaged = np.array([row for row, _ in index["damaged"]], np.int64)
        self.images = str(index["images"])
        self._block, self._shots = int(index["block"]), tuple(index["cameras"])
        self._arrays = arrays_of(index)
        self._sizes = self._shown(cameras)
        shown = [name for name in self._shots if name in self._sizes]
        self.names = (*shown, *(name for name in self._arrays if name not in BESIDE))
        self.threads = cores()
        self._open()

    def _shown(self, cameras: Mapping[str, int] | None) -> dict[str, int]:
        """Edge of each compressed camera's images as they are given; 0 for the recorded size."""
        if cameras is None:
            return dict.fromkeys(self._shots, 0)
        for name, size in cameras.items():
            if name not in self._shots and name not in self._arrays:
                held = ", ".join([*self._shots, *(n for n, (shape, _) in self._arrays.items() if len(shape) == 4)])
                raise DataError(f"{self.folder} has no images of {name}; it has those of {held or 'no camera'}")
            if name in self._arrays and self._arrays[name][0][1] != size:
                raise DataError(
                    f"{self.folder} holds images of {name} of {self._arrays[name][0][1]} pixels, not {size}; "
                    "pack the data set again"
                )
        return {name: cameras[name] for name in self._shots if name in cameras}

    def _open(self) -> None:
        self._maps = {name: open_array(self.folder, name, *array) for name, array in self._arrays.items()}
        self._shards = ShardReader(self.folder, self._maps["places"], self._block) if self._shots else None
        self._pool: ThreadPoolExecutor | None = None
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maps", "_shards", "_pool")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def samples(self) -> list[Sample]:
        """What is said of its rows. It is read from the disk: whoever needs it often keeps it."""
        return [
            Sample(
                first=held["rows"][0],
                stop=held["rows"][1],
                kind=held["kind"],
                instruction=held["instruction"],
                task=held["task"],
                bounds=(held["bounds"][0], held["bounds"][1]),
            )
            for held in read_index(self.folder)["samples"]
        ]

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows (...) of one array of a frame; its shape follows that of `rows`.

        Raises:
            DataError: a compressed image is damaged. Names file and row.
        """
        if name not in self._shots:
            taken: np.ndarray = np.take(self._maps[name], rows, axis=0)
            return taken
        different, places = np.unique(rows, return_inverse=True)
        camera, size = self._shots.index(name), self._sizes[name]
        shown = self._decoded(different.tolist(), camera, size)
        if len({image.shape for image in shown}) > 1:
            raise DataError(f"{self.folder} holds images of {name} of several sizes; say which it should be")
        return np.stack(shown)[places.reshape(rows.shape)]

    def _decoded(self, rows: list[int], camera: int, size: int) -> list[np.ndarray]:
        """Images of rows, resized; in several threads where there are many, as decoding leaves Python's lock alone."""
        shards = self._shards
        assert shards is not None

        def decode(some: list[int]) -> list[np.ndarray]:
            images = (shards.read(row, camera) for row in some)
            return [resize_image(image, size) if size else image for image in images]

        if self.threads == 1 or len(rows) < FEW:
            return decode(rows)
        if self._pool is None or self._owner != os.getpid():  # a forked process inherits a pool without its threads
            self._pool, self._owner = ThreadPoolExecutor(self.threads), os.getpid()
        piece = -(-len(rows) // self.threads)
        parts = self._pool.map(decode, [rows[first : first + piece] for first in range(0, len(rows), piece)])
        return [image for part in parts for image in part]

    def edge(self, camera: str) -> int:
        """Edge (pixels) of a camera's images as they are given; 0 where each has its recorded size."""
        return self._sizes[camera] if camera in self._shots else self._arrays[camera][0][1]

    @property
    def held(self) -> RobotSpec:
        """What of the source's specification was packed; decoded images have the size that they were brought to."""
        sizes = {name: size for name, size in self.spec.cameras.items() if name in self._shots}
        sizes |= {name: (shape[1], shape[2]) for name, (shape, _) in self._arrays.items() if len(shape) == 4}
        return replace(
            self.spec,
            cameras={name: sizes[name] for name in self.spec.cameras if name in sizes},
            state={name: size for name, size in self.spec.state.items() if name in self._arrays},
            privileged={name: size for name, size in self.spec.privileged.items() if name in self._arrays},
        )

    def digests(self, rows: np.ndarray) -> np.ndarray:
        """(n, 16) uint8, what tells the content of each row's source."""
        return self._maps["digests"][rows]

    def column(self, name: str) -> np.ndarray:
        """One array of numbers whole, (N, n)."""
        return self._maps[name]
