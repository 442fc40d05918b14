"""Makes sure that the tokens of packed splits lie on the disk: one process makes them, others wait."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from roboflamingo.data.errors import DataError
from roboflamingo.data.store.packing import cache_errors, locked
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.store.showing import bar_when_slow
from roboflamingo.data.tokens.evicting import make_room
from roboflamingo.data.tokens.making import DONE, Encode, TokenFolder
from roboflamingo.data.tokens.reading import FrameTokens
from roboflamingo.data.tokens.shifts import Shift


@dataclass(frozen=True)
class WantedTokens:
    """Which tokens of a packed split are wanted.

    Attributes:
        packed: the split, opened with the cameras' sizes.
        shapes: (V, D) of an image's tokens, by camera.
        shifts: of each camera's images, no shift first.
    """

    packed: PackedFolder
    shapes: Mapping[str, tuple[int, int]]
    shifts: Mapping[str, Sequence[Shift]]

    def folders(self, encode: Encode, root: Path) -> dict[str, list[TokenFolder]]:
        """A folder for every shift, by camera."""
        return {
            camera: [TokenFolder(self.packed, camera, shift, self.shapes[camera], encode, root) for shift in shifts]
            for camera, shifts in self.shifts.items()
        }


def cache_tokens(
    wanted: Sequence[WantedTokens], root: Path, encode: Encode, most_bytes: float, console: Console
) -> list[FrameTokens]:
    """Makes sure that all tokens lie below a folder, whole.

    Whoever finds all of them takes no lock and writes nothing, so a read-only folder will do then. Else older tokens
    that no process uses give way.

    Args:
        wanted: which tokens, split by split.
        root: the folder for folders of tokens; made if missing.
        encode: what makes them; asked for a few even where all are there.
        most_bytes: that all tokens below `root` may take.
        console: for progress and notes.

    Raises:
        DataError: tokens are not finite, or the disk is too small or cannot be written to. Says what to set.
    """
    splits = [each.folders(encode, root) for each in wanted]
    all_folders = {f.target: f for split in splits for shifts in split.values() for f in shifts}
    missing = _missing(list(all_folders.values()), console)
    if missing:
        advice = (
            f"vision tokens are cached in {root}: set data.cache to a folder that can be written to and has room, or "
            "data.vision_tokens to never"
        )
        with cache_errors(root, advice):
            root.mkdir(parents=True, exist_ok=True)
            with locked(root, "caching vision tokens", console):
                missing = _missing(missing, None)  # another process may have made them meanwhile
                make_room(root, list(all_folders), most_bytes - sum(f.size for f in all_folders.values()), console)
                _check_space(missing, root)
                total = sum(folder.packed.frames for folder in missing)
                with bar_when_slow("caching vision tokens", total, console) as advance:
                    for folder in missing:
                        folder.make(advance)
    return [FrameTokens({camera: [f.target for f in shifts] for camera, shifts in split.items()}) for split in splits]


def _missing(folders: Sequence[TokenFolder], console: Console | None) -> list[TokenFolder]:
    """Those that cannot be used as they lie there; says why, where they do."""
    missing = []
    quiet, together = console or Console(quiet=True), sum(folder.size for folder in folders)
    with bar_when_slow("checking vision tokens", together, quiet) as advance:
        for folder in folders:
            problem = folder.problem(together, advance)
            if problem is not None:
                missing.append(folder)
            if problem:
                quiet.print(f"vision tokens are made again: {problem}", soft_wrap=True, markup=False, highlight=False)
    return missing


def _check_space(folders: Sequence[TokenFolder], root: Path) -> None:
    """Refuses to begin what the disk cannot hold."""
    need = sum(folder.size for folder in folders if not (folder.building / DONE).exists())
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataError(
            f"the vision tokens need {need / 1e9:.1f} GB, {root} has {free / 1e9:.1f} GB; set data.cache to a folder "
            "on a larger disk, data.token_gb to less, or data.vision_tokens to never"
        )
