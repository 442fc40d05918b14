"""Packs CALVIN splits once into arrays that are mapped into memory, so that reading a window costs a copy.

A split of small compressed files takes milliseconds a frame to read; its packed form takes microseconds.
Only frames that an annotated segment covers are packed, resized to what the policy sees.

A packed folder holds `rgb_static.npy` (N, S, S, 3) and `rgb_gripper.npy` (N, G, G, 3) uint8,
`robot_obs.npy` (N, 15), `scene_obs.npy` (N, 24, blocks always red, blue, pink) and `actions.npy` (N, 7)
float32, as far as the policy reads them, `digests.npy` (N, 16) and `stamps.npy` (N, 3) of the frames' files, and
`index.json`.

Non-obvious behaviours
    - The folder appears under its name when it is complete. A killed packing leaves `<name>.building`,
      which the next call continues.
    - All splits are looked through, and their first frames read, before the first is packed.
    - Several processes may ask for the same folder: one packs, the others wait. Whoever finds all complete takes no
      lock and writes nothing, so a read-only cache will do.
    - A packed folder belongs to content, not to a path: a data set that was moved keeps it. Frames whose files were
      touched since are read and compared by digest; when one, an annotation or a setting has changed, or the folder is
      damaged, it is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores
from roboflamingo.data.building import DONE, Packing
from roboflamingo.data.errors import DataError
from roboflamingo.data.frames import PackSettings, read_frame
from roboflamingo.data.split import read_split
from roboflamingo.data.store import INDEX, read_sealed


def pack(
    split: Path,
    cache: Path,
    settings: PackSettings,
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> Path:
    """Makes sure that `split` lies packed under `cache`: `pack_all` for one."""
    return pack_all([split], cache, settings, processes=processes, console=console)[0]


def pack_all(
    splits: Sequence[Path],
    cache: Path,
    settings: PackSettings,
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Makes sure that all splits lie packed under `cache`.

    Args:
        splits: CALVIN `training` or `validation` folders.
        cache: the folder for packed folders; made if missing.
        settings: image sizes and the like.
        processes: how many read in parallel; None for one per core.
        console: where progress and notes go; None for the terminal.

    Returns:
        The packed folder of each.

    Raises:
        DataError: a source file is missing or broken, the disk is too small, or the cache cannot be written to.
            Names file and key.
    """
    console = console or Console(stderr=True)
    sources = [read_split(split, settings.language) for split in splits]
    for source in sources:  # what is wrong with all frames comes out before any is packed
        read_frame(source.folder / source.names[0], settings, source.block_order[0])
    packings = [Packing(source, cache, settings, console) for source in sources]
    found = [packing.find() for packing in packings]
    missing = [packing for packing, folder in zip(packings, found, strict=True) if folder is None]
    if missing:
        with _cache_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            _check_space(missing, cache)
            with _locked(cache, console):
                for packing in missing:
                    packing.make(processes or cores())
    folders = [folder or packing.target for folder, packing in zip(found, packings, strict=True)]
    for folder in dict.fromkeys(folders):
        _tell_clipped(folder, console)
    return folders


def _check_space(packings: Sequence[Packing], cache: Path) -> None:
    """Refuses to begin what the disk cannot hold."""
    need = sum(packing.size for packing in packings if not (packing.building / DONE).exists())
    free = shutil.disk_usage(cache).free
    if need > free:
        names = ", ".join(str(packing.source.folder) for packing in packings)
        raise DataError(
            f"packing {names} needs {need / 1e9:.1f} GB, {cache} has {free / 1e9:.1f} GB; "
            "set data.cache to a folder on a larger disk"
        )


@contextmanager
def _locked(cache: Path, console: Console) -> Iterator[None]:
    """Holds the cache for this process; says so where it has to wait for another."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(cache, "packing"))
        except UserError as error:
            owner = str(error).split(";")[0]
            console.print(f"waiting: {owner}", soft_wrap=True, markup=False, highlight=False)
            stack.enter_context(folder_lock(cache, "packing", wait=True))
        yield


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """Turns errors of the disk into advice."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or cache}: {error.strerror or error}; data is packed into {cache}: set data.cache to a "
            "folder that can be written to and has room"
        ) from error


def _tell_clipped(folder: Path, console: Console) -> None:
    index = read_sealed(folder / INDEX) or {}
    if index.get("clipped"):
        console.print(
            f"{index['source']}: {index['clipped']} of {index['frames']} frames have relative actions beyond [-1, 1] "
            f"(up to {index['beyond']:g}); they are clipped (data.out_of_range: clip)",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
