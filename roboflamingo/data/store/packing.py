"""Packs data sets once, so that reading a window costs a copy, or a copy and a decoding.

A split of small compressed files takes milliseconds a frame to read. Its packed form is one of two:
    - decoded: raw arrays at the size that the policy sees, made from the source's own pixels. Microseconds a frame, and
      about 40 kB at the sizes of `tiny`, 300 kB at those of published models.
    - compressed: JPEG at the recorded size, about 20 kB a frame with both of CALVIN's cameras; a fraction of a
      millisecond to decode. It serves policies of any image size.
Left to itself, packing decodes what takes at most `DECODED_LIMIT` bytes, and says which it chose.

A packed folder holds an array in a file for every state, the actions and the decoded images; `images-*.bin`, compressed
images, and `places.npy`, where each of them lies; `digests.npy` and `stamps.npy` of the frames' files; and `index.json`
with the samples and a checksum of every block. It can be moved, and read without what it was packed from.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Source
from roboflamingo.data.store.building import DONE, Packing
from roboflamingo.data.store.index import INDEX, read_sealed
from roboflamingo.data.store.settings import Images, PackSettings, spec_from_json

DECODED_LIMIT = 32_000_000_000
"""Bytes up to which packing decodes images where nothing else is asked for: all splits of a call together."""


def pack(
    source: Source,
    cache: Path,
    settings: PackSettings,
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> Path:
    """Makes sure that a source lies packed under `cache`, as its settings say: `pack_all` for one."""
    return pack_all([source], cache, settings, settings.images, processes=processes, console=console)[0]


def pack_all(
    sources: Sequence[Source],
    cache: Path,
    settings: PackSettings,
    images: Literal["auto", "decoded", "compressed"] = "auto",
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Makes sure that all sources lie packed under `cache`.

    Args:
        sources: splits of data sets.
        cache: the folder for packed folders; made if missing.
        settings: what is taken of them; their `images` do not count here.
        images: how images are kept; auto decides by size.
        processes: how many read in parallel; None for one per core.
        console: where progress and notes go; None for the terminal.

    Returns:
        The packed folder of each.

    Raises:
        DataError: a source file is missing or broken, the disk is too small, or the cache cannot be written to.
            Names file and key.
    """
    console = console or Console(stderr=True)
    kinds: list[Images] = ["decoded", "compressed"] if images == "auto" else [images]
    tries = {
        kind: [Packing(source, cache, replace(settings, images=kind), console) for source in sources] for kind in kinds
    }
    found: dict[Images, list[Path | None]] = {}
    for kind in kinds:  # where all lie packed as they should, nothing else of the sources is read
        found[kind] = [packing.find() for packing in tries[kind]]
        if all(found[kind]) and (len(kinds) == 1 or _by_size(_packed_size(tries["decoded"], found[kind])) == kind):
            chosen = kind
            break
    else:
        chosen = _chosen(tries, console)
    packings = tries[chosen]
    if not all(found[chosen]):
        _make(packings, found[chosen], cache, processes or cores(), console)
    folders = [folder or packing.target for folder, packing in zip(found[chosen], packings, strict=True)]
    for folder in dict.fromkeys(folders):
        tell_shortcomings(folder, console)
    return folders


def pack_as(source: Source, folder: Path, name: str, settings: PackSettings, processes: int, console: Console) -> Path:
    """Makes sure that a source lies packed as `name` in a folder, which so becomes a data set of its own.

    Args:
        source: the split.
        folder: for packed splits.
        name: of the packed folder, as "training".
        settings: what is taken of it.
        processes: how many read in parallel.
        console: where progress and notes go.

    Raises:
        DataError: see `pack_all`.
    """
    packing = Packing(source, folder, settings, console, name)
    if (found := packing.find()) != packing.target:
        _make([packing], [None], folder, processes, console)
        found = packing.target
    tell_shortcomings(found, console)
    return found


def _by_size(size: int) -> Images:
    """How images are kept where nothing is asked for: it depends on nothing but what decoded ones would take."""
    return "decoded" if size <= DECODED_LIMIT else "compressed"


def _packed_size(decoded: Sequence[Packing], folders: Sequence[Path | None]) -> int:
    """Bytes that decoded images take or would take, from what packed folders of either kind say of themselves."""
    size = 0
    for packing, folder in zip(decoded, folders, strict=True):
        index = read_sealed((folder or packing.target) / INDEX) or {}
        size += packing.settings.size(spec_from_json(index["spec"]), index["frames"])
    return size


def _chosen(tries: Mapping[Images, Sequence[Packing]], console: Console) -> Images:
    """Decides by size where there is a choice, and says so."""
    if len(tries) == 1:
        return next(iter(tries))
    for packing in tries["decoded"]:
        packing.look()
    size = sum(packing.size for packing in tries["decoded"])
    kind = _by_size(size)
    limit = DECODED_LIMIT / 1e9
    about = f"decoded images take {size / 1e9:.1f} GB, and the limit is {limit:.0f} GB"
    console.print(f"images are packed {kind}: {about} (data.images decides otherwise)", soft_wrap=True, highlight=False)
    return kind


def _make(
    packings: Sequence[Packing], found: Sequence[Path | None], cache: Path, processes: int, console: Console
) -> None:
    """Packs those that were not found."""
    missing = [packing for packing, folder in zip(packings, found, strict=True) if folder is None]
    for packing in missing:  # what is wrong with all frames comes out before any is packed
        packing.look()
    advice = f"data is packed into {cache}: set data.cache to a folder that can be written to and has room"
    with cache_errors(cache, advice):
        cache.mkdir(parents=True, exist_ok=True)
        _check_space(missing, cache)
        with locked(cache, "packing", console):
            for packing in missing:
                packing.make(processes)


def _check_space(packings: Sequence[Packing], cache: Path) -> None:
    """Refuses to begin what the disk cannot hold."""
    need = sum(packing.size for packing in packings if not (packing.building / DONE).exists())
    free = shutil.disk_usage(cache).free
    if need > free:
        names = ", ".join(packing.source.title for packing in packings)
        raise DataError(
            f"packing {names} needs {need / 1e9:.1f} GB, {cache} has {free / 1e9:.1f} GB; "
            "set data.cache to a folder on a larger disk, or data.images to compressed"
        )


@contextmanager
def locked(cache: Path, doing: str, console: Console) -> Iterator[None]:
    """Holds a folder for this process, which is `doing` something; says so where it has to wait for another."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(cache, doing))
        except UserError as error:
            owner = str(error).split(";")[0]
            console.print(f"waiting: {owner}", soft_wrap=True, markup=False, highlight=False)
            stack.enter_context(folder_lock(cache, doing, wait=True))
        yield


@contextmanager
def cache_errors(cache: Path, advice: str) -> Iterator[None]:
    """Turns errors of the disk into advice."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or cache}: {error.strerror or error}; {advice}") from error


def tell_shortcomings(folder: Path, console: Console) -> None:
    """Says what of a packed folder is not as it was recorded: clipped actions, frames that were left out."""
    index = read_sealed(folder / INDEX) or {}
    if index.get("clipped"):
        console.print(
            f"{index['source']}: {index['clipped']} of {index['frames']} frames have actions out of range "
            f"(up to {index['beyond']:g}); they are clipped (data.out_of_range: clip)",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    if index.get("damaged"):
        console.print(
            f"{index['source']}: {len(index['damaged'])} of {index['frames']} frames cannot be read; windows that need "
            f"them are left out (data.damaged: leave_out). The first: {index['damaged'][0][1]}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
