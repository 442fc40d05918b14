"""What a collection leaves beside its splits: `settings.json`, how it is made; `collection.json`, what it holds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calvin_eval.demonstrations.pieces import read_sealed
from calvin_eval.demonstrations.recording import LAYOUT
from calvin_eval.demonstrations.segments import SHORTEST
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, write_json
from calvin_eval.system.machine import hardware
from calvin_eval.system.provenance import code_version, provenance
from calvin_eval.system.sealing import sealed

SAVE_EVERY_S = 1.0
"""Seconds between two notes of how long a collection has taken so far."""
POLICY_CODE = "policy_code"
SHOWN = 16
"""Characters of a value that messages show; a fingerprint's first ones tell it from others."""


class Claim:
    """How a folder's data set is made: settings, policy, code and layout. Other data never gets mixed into it.

    Args:
        folder: of the data set.
        settings: what is collected; JSON values.
        defaults: settings that count where a claim is older than them.
        about: what else decides the frames, as the policy's fingerprint; JSON values. "policy_code" counts as code.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        self.folder, self.path = folder, folder / "settings.json"
        code = " ".join([code_version(), *(str(about[key]) for key in (POLICY_CODE,) if key in about)])
        known = {key: value for key, value in about.items() if key != POLICY_CODE}
        self._mine = json.loads(json.dumps({"settings": settings, "about": known, "code": code, "layout": LAYOUT}))
        self._defaults = _flat(json.loads(json.dumps(defaults)))

    @property
    def maker(self) -> str:
        """Stands for settings, policy and code in every piece."""
        return hashlib.sha256(json.dumps(self._mine, sort_keys=True).encode()).hexdigest()

    def write(self) -> None:
        """Claims the folder, where that has not been done."""
        if not self.path.exists():
            write_json(self.path, self._mine)

    def check(self, finished: bool) -> None:
        """Makes sure that what lies in the folder is, or will be, what is asked for.

        Args:
            finished: whether the data set is complete; then other code or another layout is said, not refused.

        Raises:
            UserError: it was made with other settings, of another policy, or begun by other code or in another layout.
                Names what differs.
        """
        if not self.path.exists():
            if finished or any(self.folder.glob("*/episode_*.npz")):
                raise UserError(
                    f"{self.folder} holds a data set that was not collected here ({self.path.name} is missing); "
                    "choose another folder"
                )
            return
        theirs = read_json(self.path, "the settings of a collection")
        if not isinstance(theirs, dict):
            raise UserError(f"{self.path} should hold the settings of a collection and is damaged; restore it")
        if not isinstance(theirs.get("settings"), dict):  # as written before policies and code were noted
            theirs = {"settings": theirs, "about": {}, "code": "an older one"}
        before = {**self._defaults, **_flat(theirs["settings"]), **_flat(theirs.get("about"), "about")}
        now = {**_flat(self._mine["settings"]), **_flat(self._mine["about"], "about")}
        if different := [key for key in {**now, **before} if before.get(key) != now.get(key)]:
            values = "; ".join(
                f"{_name(key)} {_short(before.get(key))}, now {_short(now.get(key))}" for key in different
            )
            raise UserError(
                f"{self.folder} was collected with other settings ({values}); "
                "choose another folder, or remove it to collect anew"
            )
        layout = theirs.get("layout", 1)  # 1: as written before layouts were noted
        if theirs.get("code") == self._mine["code"] and layout == LAYOUT:
            return
        versions = f"{theirs.get('code')}, now {self._mine['code']}"
        if finished:
            print(f"{self.folder} is kept; another version of this code made it ({versions})")
            if layout != LAYOUT:
                print(
                    f"It has layout {layout}, now {LAYOUT}: training reads both, CALVIN's own loaders may trip on the "
                    "older one. Remove it to collect anew"
                )
            return
        differing = "whose frames may differ"
        if layout != LAYOUT:
            differing = f"which records another layout of folders (layout {layout}, now {LAYOUT})"
        raise UserError(
            f"{self.folder} was begun by another version of this code ({versions}), {differing}; "
            "finish it with that version, or remove it to collect anew"
        )


class Account:
    """`collection.json`: counts of both splits, and the seconds of all sessions. Also the clock of this session.

    Args:
        folder: of the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "collection.json"
        self._saved = self._started = time.monotonic()
        self._before: float | None = 0.0
        self.complete = False
        if self.path.exists():
            value = read_sealed(self.path)
            self._before = None if value is None else value["seconds"]
            self.complete = value is not None and "per_1000_frames" in value

    @property
    def seconds(self) -> float | None:
        """How long collecting has taken, all sessions together; None where an earlier account was damaged."""
        return None if self._before is None else self._before + time.monotonic() - self._started

    def tick(self) -> None:
        """Notes the time, now and then."""
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self._saved = time.monotonic()
            write_json(self.path, sealed({"seconds": self.seconds}))

    def close(self, counts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], about: Any) -> None:
        """Writes and prints the whole account.

        Args:
            counts: of each split, as `Recorder.finish` returns them.
            settings: how it was collected.
            about: see `Claim`.
        """
        frames, size = (sum(split[key] for split in counts.values()) for key in ("frames", "bytes"))
        seconds, megabytes = self.seconds, size / frames / 1000
        rate = None if seconds is None else 1000 * seconds / frames
        facts: dict[str, Any] = {"per_1000_frames": {"seconds": rate, "megabytes": megabytes}, "seconds": seconds}
        facts |= {"settings": settings, "about": about, "made_with": provenance()}
        facts["hardware"] = hardware()
        write_json(self.path, sealed({**counts, **facts}))
        took = "an unknown time" if seconds is None else f"{seconds:.0f} s"
        each = "" if rate is None else f"{rate:.1f} s and "
        print(f"{self.folder}: {frames} frames in {took}; per 1000 frames {each}{megabytes:.1f} MB")
        if short := sum(split.get("short", 0) for split in counts.values()):
            print(f"{short} solved tasks are not annotated: shorter than {SHORTEST} frames, CALVIN's shortest window")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted name."""
    if not isinstance(value, dict):
        return {name: value} if name else {}
    return {
        key: leaf
        for each, inner in value.items()
        for key, leaf in _flat(inner, f"{name}.{each}" if name else each).items()
    }


def _name(key: str) -> str:
    return key.removeprefix("about.")


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN or not isinstance(value, str) else text[:SHOWN] + "..."
