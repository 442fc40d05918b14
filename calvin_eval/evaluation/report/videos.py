"""Videos that travel with a page: in it as long as they are small, else copied beside it."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from calvin_eval.system.files import write_atomic

EMBEDDED_BYTES = 20_000_000
"""Of videos that are put into a page, all together; a mail takes 25 MB, and base64 makes a third more of them."""


@dataclass(frozen=True)
class Shown:
    """A video on the page.

    Attributes:
        caption: what it shows.
        source: for its `src`: its content, or its relative address.
        embedded: whether the page holds it.
    """

    caption: str
    source: str
    embedded: bool


def captioned(videos: Iterable[Path]) -> dict[str, Path]:
    """Videos by what their path says: `closed_loop/videos/chain_003.mp4` is "closed_loop, chain 3"."""
    found: dict[str, Path] = {}
    for video in videos:
        folder = video.parent.parent if video.parent.name == "videos" else video.parent
        words = re.sub(r"\b0+(?=\d)", "", video.stem.replace("_", " "))
        name = caption = f"{folder.name}, {words}"
        count = 1
        while caption in found:
            count += 1
            caption = f"{name} ({count})"
        found[caption] = video
    return found


def travelling(videos: Mapping[str, Path], page: Path, beside: Path, most: int = EMBEDDED_BYTES) -> list[Shown]:
    """Puts videos into the page while there is room, in order, and copies the others.

    Args:
        videos: by caption.
        page: where the page will be.
        beside: the folder for copies.
        most: bytes of all embedded videos.

    Raises:
        OSError: a video cannot be read, or its copy not be written. Names the file.
    """
    shown, used = [], 0
    for number, (caption, video) in enumerate(videos.items()):
        size = video.stat().st_size
        if used + size <= most:
            used += size
            content = base64.b64encode(video.read_bytes()).decode()
            shown.append(Shown(caption, f"data:video/mp4;base64,{content}", embedded=True))
        else:
            copy = beside / f"{number:02d}_{re.sub(r'[^A-Za-z0-9]+', '_', caption)}{video.suffix}"
            _copy(video, copy)
            shown.append(Shown(caption, quote(copy.relative_to(page.parent).as_posix()), embedded=False))
    return shown


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content:
        write_atomic(target, lambda file: shutil.copyfileobj(content, file))
