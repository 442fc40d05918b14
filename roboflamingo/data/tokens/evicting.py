"""Removes old tokens where new ones need the room that tokens may take."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from calvin_eval.system.locks import is_in_use
from roboflamingo.data.tokens.reading import INDEX, TOKENS


def make_room(root: Path, kept: Collection[Path], most_bytes: float, console: Console) -> None:
    """Removes folders of tokens, the oldest first, until the others take no more than so many bytes.

    Those that a process reads stay, even if all then take more. The caller holds the lock of `root`, so none is being
    made.

    Args:
        root: the folder of such folders.
        kept: folders that stay, complete or begun, and do not count.
        most_bytes: that the others may take.
        console: for what is removed.
    """
    names = {folder.name for folder in kept}
    arrays = [path for path in root.glob(f"*/{TOKENS}.npy") if path.parent.name.removesuffix(".building") not in names]
    sizes = {path.parent: path.stat().st_size for path in arrays}
    total, removed = sum(sizes.values()), 0
    for folder in sorted(sizes, key=lambda each: (each / f"{TOKENS}.npy").stat().st_mtime_ns):
        if total - removed <= most_bytes:
            break
        with suppress(FileNotFoundError):  # one that was only begun has no index, and nobody reads it
            if is_in_use(folder / INDEX):
                continue
        shutil.rmtree(folder)
        removed += sizes[folder]
    if removed:
        text = f"{removed / 1e9:.3g} GB of older vision tokens are removed from {root} (data.token_gb)"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
