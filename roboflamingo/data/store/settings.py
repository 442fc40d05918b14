"""What is taken of a data set, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from calvin_eval.specs import ActionPart, ActionSpec, RobotSpec
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, DIGEST_BYTES, Source, SourceOptions
from roboflamingo.data.store.arrays import Arrays, size_of

Images: TypeAlias = Literal["decoded", "compressed"]

DECODED_ROWS, COMPRESSED_ROWS = 256, 1024
"""Rows that one job packs, and that one checksum covers, of a decoded and of a compressed copy."""


@dataclass(frozen=True)
class PackSettings:
    """What is taken of a data set, and how it is kept.

    Attributes:
        cameras: edge (pixels) of each camera's images in a decoded copy. A compressed one has all cameras at their
            recorded size.
        vectors: states and privileged states of a decoded copy; a compressed one has all.
        images: decoded: resized and raw, quick to read. compressed: JPEG at the recorded size.
        rows: annotated: rows of samples alone; all: every row, which play windows need.
        damaged: a row that cannot be read: error, or leave_out, which leaves out the windows that need it.
        options: how the source is read.
    """

    cameras: Mapping[str, int] = field(default_factory=dict)
    vectors: tuple[str, ...] = ()
    images: Images = "decoded"
    rows: Literal["annotated", "all"] = "annotated"
    damaged: Literal["error", "leave_out"] = "error"
    options: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        for name, known in (
            ("images", ("decoded", "compressed")),
            ("rows", ("annotated", "all")),
            ("damaged", ("error", "leave_out")),
        ):
            if getattr(self, name) not in known:
                raise DataError(f"data.{name} must be {' or '.join(known)}, not {getattr(self, name)!r}")
        if wrong := {name: size for name, size in self.cameras.items() if size < 1}:
            raise DataError(f"images of {wrong} pixels are impossible")
        if taken := set(self.vectors) & {*self.cameras, ACTIONS, "rel_actions", "frame_mask", "action_mask"}:
            raise DataError(f"policy.vectors names {', '.join(sorted(taken))}, which a policy cannot read as vectors")

    @property
    def block(self) -> int:
        """Rows of a job."""
        return DECODED_ROWS if self.images == "decoded" else COMPRESSED_ROWS

    def layout(self) -> dict[str, Any]:
        """What tells one packed copy from another of the same content: how damage is met does not."""
        kept = asdict(self.options)
        del kept["out_of_range"]
        if self.images == "compressed":
            return {"images": "compressed", "rows": self.rows, "options": kept}
        sizes = {"cameras": dict(self.cameras), "vectors": list(self.vectors)}
        return {"images": "decoded", "rows": self.rows, "options": kept, **sizes}

    def names(self, spec: RobotSpec) -> tuple[str, ...]:
        """What of a row is read: cameras, vectors, actions."""
        if self.images == "compressed":
            return (*spec.cameras, *spec.state, *spec.privileged, ACTIONS)
        return (*self.cameras, *self.vectors, ACTIONS)

    def shots(self, spec: RobotSpec) -> tuple[str, ...]:
        """The cameras whose images are compressed."""
        return tuple(spec.cameras) if self.images == "compressed" else ()

    def arrays(self, spec: RobotSpec, rows: int) -> Arrays:
        """Shape and type of each array of a packed copy of so many rows; `places` says where compressed images lie."""
        lengths = {**spec.state, **spec.privileged, ACTIONS: spec.actions.size}
        arrays: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
        for name in self.names(spec):
            if name in lengths:
                arrays[name] = (rows, lengths[name]), np.float32
            elif self.images == "decoded":
                arrays[name] = (rows, self.cameras[name], self.cameras[name], 3), np.uint8
        if shots := self.shots(spec):
            arrays["places"] = (rows, len(shots), 3), np.uint32
        return {**arrays, "digests": ((rows, DIGEST_BYTES), np.uint8)}

    def size(self, spec: RobotSpec, rows: int) -> int:
        """Bytes of a packed copy of so many rows; for a compressed one, about."""
        pixels = sum(height * width for height, width in spec.cameras.values()) if self.images == "compressed" else 0
        return size_of(self.arrays(spec, rows)) + rows * pixels // 2  # JPEG takes 0.4 to 0.5 bytes a pixel

    def check(self, source: Source) -> None:
        """Makes sure that the data set has what is to be taken.

        Raises:
            DataError: it has not. Names what is missing, and what is there.
        """
        spec = source.spec
        vectors = {**spec.state, **spec.privileged}
        for what, wanted, there in (("camera", self.cameras, spec.cameras), ("state", self.vectors, vectors)):
            if missing := [name for name in wanted if name not in there]:
                held = ", ".join(there) or "none"
                raise DataError(f"{source.name(0)} has no {', '.join(missing)}; of each {what} it holds {held}")


def spec_as_json(spec: RobotSpec) -> dict[str, Any]:
    """A robot's specification for an index."""
    return {
        "cameras": {name: list(size) for name, size in spec.cameras.items()},
        "state": dict(spec.state),
        "privileged": dict(spec.privileged),
        "rate_hz": spec.rate_hz,
        "actions": [asdict(part) for part in spec.actions.parts],
    }


def spec_from_json(held: Mapping[str, Any]) -> RobotSpec:
    """The specification that `spec_as_json` turned into plain values."""
    return RobotSpec(
        cameras={name: (size[0], size[1]) for name, size in held["cameras"].items()},
        state=held["state"],
        privileged=held["privileged"],
        rate_hz=held["rate_hz"],
        actions=ActionSpec(tuple(ActionPart(**part) for part in held["actions"])),
    )
