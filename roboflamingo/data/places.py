"""Finds what a user names: a data set of any kind, or one that is packed already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources import kind_of, open_source
from roboflamingo.data.sources.packed import PackedSource
from roboflamingo.data.store.index import INDEX, read_index
from roboflamingo.data.store.packing import pack_all, tell_shortcomings
from roboflamingo.data.store.settings import PackSettings


def folder_at(text: str | Path) -> Path:
    """The folder that a user names: `~` is the home, relative ones start here, a trailing slash means nothing."""
    return Path(os.path.abspath(Path(text).expanduser()))


def is_packed(path: Path) -> bool:
    """Whether packed splits lie there, as `roboflamingo data pack` leaves them."""
    return PackedSource.recognises(path)


def packed_at(path: Path) -> list[Path]:
    """The packed folders that lie at a path, or one level below it; none where a data set lies there."""
    found = [path] if (path / INDEX).is_file() else sorted(index.parent for index in path.glob(f"*/{INDEX}"))
    return [folder for folder in found if not folder.name.endswith(".building")]


def cache_beside(path: Path) -> Path:
    """Where what is made of a data set goes, if nothing else is asked for: `packed/` in it, or beside it if a file."""
    return path.with_name(f"{path.name}.packed") if path.is_file() else path / "packed"


def splits_at(path: Path) -> tuple[str, ...]:
    """The splits of the data set, packed or not, that lies there.

    Raises:
        DataError: there is none. Says what is known.
    """
    return kind_of(path).splits(path)


def pack_or_find(
    places: Sequence[tuple[Path, str]],
    cache: Path | None,
    settings: PackSettings,
    images: Literal["auto", "decoded", "compressed"] = "auto",
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> list[Path]:
    """The packed folder of every split, made where there is none yet.

    Args:
        places: path and split of each; at least one.
        cache: where packed folders go; None for `packed/` in the first data set, or beside it where that is a file.
        settings: see `pack_all`, likewise the others.
        images: likewise.
        processes: likewise.
        console: likewise.

    Raises:
        DataError: see `pack_all`; a packed folder holds what `settings` forbid.
    """
    console = console or Console(stderr=True)
    cache = cache or cache_beside(places[0][0])
    sources = [open_source(path, split, settings.options) for path, split in places if not is_packed(path)]
    made = iter(pack_all(sources, cache, settings, images, processes=processes, console=console) if sources else [])
    folders = []
    for path, split in places:
        if is_packed(path):
            folders.append(_checked(path, split, settings, console))
        else:
            folders.append(next(made))
    return folders


def _checked(path: Path, split: str, settings: PackSettings, console: Console) -> Path:
    """A split that was packed ahead, if it may be used as it is."""
    if split not in splits_at(path):
        raise DataError(f"{path} has no packed split {split}; it has {', '.join(splits_at(path))}")
    index = read_index(path / split)
    if index["damaged"] and settings.damaged == "error":
        raise DataError(
            f"{path / split} was packed without {len(index['damaged'])} damaged frames (the first: "
            f"{index['damaged'][0][1]}); set data.damaged to leave_out, or mend the data and pack them again"
        )
    if index["clipped"] and settings.options.out_of_range == "error":
        raise DataError(
            f"{path / split} holds {index['clipped']} actions that were clipped; set data.out_of_range to clip, or "
            "pack the data again"
        )
    tell_shortcomings(path / split, console)
    return path / split
