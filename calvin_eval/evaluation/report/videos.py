"""Videos that travel with a page: in it as long as they are small, else copied beside it."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from calvin_eval.system.files import write_atomic

EMBEDDED_BYTES = 20_000_000
"""Of videos that are put into a page, all together; a mail takes 25 MB, and base64 makes a third more of them."""


LONGEST_NAME = 60
"""Characters of a caption that the name of a copy keeps."""


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


def films_of(folder: Path, results: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The films of an evaluation by what they show: of chains that were solved whole, and of those that were not.

    Args:
        folder: the evaluation's.
        results: its results, which tell what failed; of results that do not, all films are of the first kind.
    """
    whole, failed = dict[str, Path](), dict[str, Path]()
    for film in sorted((folder / "videos").glob("chain_*.mp4")):
        number = film.stem.removeprefix("chain_").lstrip("0") or "0"
        failure = results.get("failures", {}).get(number)
        if failure is None:
            whole[f"chain {number}"] = film
        else:
            done = ", ".join(f"{each['task']} (step {each['step']})" for each in failure["instead"])
            failed[f"chain {number}: {failure['task']} failed; done instead: {done or 'nothing'}"] = film
    return whole, failed


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
            copy = beside / f"{number:02d}_{re.sub(r'[^A-Za-z0-9]+', '_', caption)[:LONGEST_NAME]}{video.suffix}"
            _copy(video, copy)
            shown.append(Shown(caption, quote(copy.relative_to(page.parent).as_posix()), embedded=False))
    return shown


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content:
        write_atomic(target, lambda file: shutil.copyfileobj(content, file))
