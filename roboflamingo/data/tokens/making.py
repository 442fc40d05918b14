"""Makes the tokens of one camera's images at one shift: a folder that content decides, whole or not there.

Non-obvious behaviours
    - A folder is known by the encoder's fingerprint, the content of the packed split, how its images are kept and how
      large they are, the camera and the shift. Whatever differs makes another folder.
    - A killed process leaves `<name>.building` with a line for every block that is on the disk; the next one computes
      the others.
    - Whenever tokens are asked for, those of a few images are computed anew and compared, so that an encoder whose code
      has changed, which no fingerprint of weights shows, is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_lines, replace_folder
from calvin_eval.system.sealing import opened, sealed
from roboflamingo.data.errors import DataError
from roboflamingo.data.store.arrays import (
    Arrays,
    create_arrays,
    damaged_blocks,
    needs_verifying,
    note_verified,
    open_array,
    size_of,
    write_rows,
)
from roboflamingo.data.store.index import arrays_as_json, read_sealed, write_sealed
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.tokens.reading import FORMAT, INDEX, TOKENS
from roboflamingo.data.tokens.shifts import Shift, shifted

DONE = "done.jsonl"
BLOCK = 256
"""Rows whose tokens are computed, written and summed up together."""
PROBED = 2
"""Images whose tokens are computed anew whenever a folder is asked for."""
TOLERANCE = 0.05
"""By how much of their length tokens of two machines, or of two precisions of a matrix product, may differ."""


class Encode(Protocol):
    """What makes tokens of images."""

    @property
    def fingerprint(self) -> str:
        """What tells this encoder and its weights from others."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D) float32."""


@dataclass
class TokenFolder:
    """Tokens of one camera's images at one shift, on their way to the disk.

    Attributes:
        packed: the split, which shows this camera.
        camera: its name.
        shift: by how much the images are moved.
        shape: (V, D) of an image's tokens.
        encode: what makes them.
        root: the folder for such folders.
    """

    packed: PackedFolder
    camera: str
    shift: Shift
    shape: tuple[int, int]
    encode: Encode
    root: Path

    def __post_init__(self) -> None:
        told = [FORMAT, self.encode.fingerprint, self.packed.content, self.packed.images, self.camera]
        told += [self.packed.frames, self.packed.edge(self.camera), self.shift, self.shape, BLOCK]
        self.key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        name = re.sub(r"[^\w.-]+", "_", f"{self.camera}-{self.key[:16]}")
        self.target, self.building = self.root / name, self.root / f"{name}.building"
        self.arrays: Arrays = {TOKENS: ((self.packed.frames, *self.shape), np.float16)}

    @property
    def size(self) -> int:
        """Bytes."""
        return size_of(self.arrays)

    # --- are they there? -------------------------------------------------------------------------

    def problem(
        self, together: int | None = None, on_bytes: Callable[[int], object] = lambda count: None
    ) -> str | None:
        """What keeps the folder from being used; None where it is whole, and empty where there is none.

        Args:
            together: see `needs_verifying`.
            on_bytes: told how many bytes more were read.
        """
        if not self.target.is_dir():
            return ""
        index = read_sealed(self.target / INDEX)
        if index is None or index.get("key") != self.key:
            return f"{self.target / INDEX} is damaged"
        try:
            if needs_verifying(self.target, self.arrays, together):
                for _, row in damaged_blocks(self.target, self.arrays, index["blocks"], BLOCK, on_bytes):
                    return f"{self.target / TOKENS}.npy is damaged in rows {row} to {row + BLOCK - 1}"
                note_verified(self.target, self.arrays)
            return self._disagreement()
        except (DataError, OSError) as error:
            return str(error)

    def _disagreement(self) -> str | None:
        """Whether the encoder now makes other tokens of a few images."""
        whole = np.setdiff1d(np.arange(self.packed.frames), self.packed.damaged)
        rows = whole[np.linspace(0, len(whole) - 1, min(PROBED, len(whole))).astype(int)]
        if not len(rows):
            return None
        kept = open_array(self.target, TOKENS, *self.arrays[TOKENS])[rows].astype(np.float32)
        now = self._encoded(rows)
        if np.linalg.norm(now - kept) <= TOLERANCE * np.linalg.norm(now):
            return None
        return f"the encoder makes other tokens of {self.camera} now than {self.target} holds, though of equal weights"

    # --- make them -------------------------------------------------------------------------------

    def make(self, on_rows: Callable[[int], object] = lambda count: None) -> None:
        """Computes them, from where a killed process stopped. The caller holds the lock of the folder.

        Args:
            on_rows: told how many rows more are done.

        Raises:
            DataError: tokens are not finite, or too large for fp16. Names the frame.
            OSError: the disk is full. Names the file.
        """
        done = self._continued()
        if done is None:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building.mkdir()
            create_arrays(self.building, self.arrays)
            append_line(self.building / DONE, sealed({"key": self.key}))
            done = {}
        for first, rows in self._blocks():
            if first not in done:
                shape, _ = self.arrays[TOKENS]
                done[first] = write_rows(self.building, TOKENS, shape, first, self._tokens(rows))
                append_line(self.building / DONE, sealed({"first": first, "crc": done[first]}))
            on_rows(len(rows))
        note_verified(self.building, self.arrays)
        blocks = {TOKENS: {str(first): done[first] for first in sorted(done)}}
        index = {"format": FORMAT, "key": self.key, "block": BLOCK, "arrays": arrays_as_json(self.arrays)}
        about = {"source": str(self.packed.folder), "camera": self.camera, "shift": list(self.shift)}
        write_sealed(self.building / INDEX, {**index, **about, "blocks": blocks})
        (self.building / DONE).unlink()
        replace_folder(self.building, self.target)

    def _continued(self) -> dict[int, int] | None:
        """Checksums of the blocks that a killed process has written, by their first rows; None where there is none."""
        held = []
        for line in read_lines(self.building / DONE, mend=True, on_damage=lambda number, problem: None):
            with suppress(UserError):  # a damaged line is a block that is computed again
                held.append(opened(line, DONE))
        if not held or held[0] != {"key": self.key}:
            return None
        done = {line["first"]: line["crc"] for line in held[1:]}
        checksums = {TOKENS: {str(first): checksum for first, checksum in done.items()}}
        try:
            damaged = {row for _, row in damaged_blocks(self.building, self.arrays, checksums, BLOCK)}
        except DataError:
            return None
        return {first: checksum for first, checksum in done.items() if first not in damaged}

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, self.packed.frames, BLOCK):
            yield first, np.arange(first, min(first + BLOCK, self.packed.frames))

    def _tokens(self, rows: np.ndarray) -> np.ndarray:
        """Tokens (n, V, D) fp16 of rows; zeros where the image could not be read when it was packed."""
        tokens = np.zeros((len(rows), *self.shape), np.float16)
        whole = ~np.isin(rows, self.packed.damaged)
        if whole.any():
            with np.errstate(over="ignore"):
                tokens[whole] = self._encoded(rows[whole])
        wrong = np.flatnonzero(~np.isfinite(tokens).all(axis=(1, 2)))
        if len(wrong):
            raise DataError(
                f"{self.packed.folder}, row {rows[wrong[0]]}: the vision encoder's tokens of {self.camera} are not "
                f"finite, or beyond {np.finfo(np.float16).max:.0f}, the most that fp16 holds; set data.vision_tokens "
                "to never"
            )
        return tokens

    def _encoded(self, rows: np.ndarray) -> np.ndarray:
        """Tokens (n, V, D) float32 of rows, whatever they are."""
        return self.encode(shifted(self.packed.take(self.camera, rows), self.shift))
