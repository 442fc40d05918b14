"""The facts that every result carries, and what makes a thing the same: its content."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calvin_eval.system.machine import processor

PACKAGES = (
    "roboflamingo",
    "numpy",
    "scipy",
    "pybullet",
    "panda3d",
    "torch",
    "transformers",
    "open_clip_torch",
    "lightning",
)
"""Whose versions results name."""
BLOCK = 1 << 22
"""Bytes that are read at once."""


def provenance() -> dict[str, str]:
    """Versions of what computes results, the git revision, and the processor."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "git": git_revision(),
        "machine": platform.machine(),
        "processor": str(processor()),
        **versions,
    }


def fingerprint(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder; hidden ones are left out.

    The path itself does not matter: a copy has the same fingerprint.

    Args:
        path: file or folder.
        on_bytes: told how many bytes more were read.

    Raises:
        OSError: something cannot be read.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.relative_to(path).as_posix() if file != path else ""
        if any(part.startswith(".") for part in name.split("/")):
            continue
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        _take_in(file, digest, on_bytes)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as `sha256sum` prints it.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    _take_in(path, digest)
    return digest.hexdigest()


def _take_in(path: Path, digest: Any, on_bytes: Callable[[int], object] = lambda count: None) -> None:
    """Adds a file's content to a digest, block by block; Python 3.10 has no hashlib.file_digest."""
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            on_bytes(len(block))


@lru_cache
def code_version(package: str = "calvin_eval") -> str:
    """Fingerprint of a package's code and data: results of another version are not mixed with those of this.

    Args:
        package: its name, calvin_eval or roboflamingo; it is found, not imported.
    """
    found = find_spec(package)
    assert found is not None and found.origin is not None
    folder, digest = Path(found.origin).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".py", ".yaml", ".txt"):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def git_revision() -> str:
    """Revision of the checkout this code runs from, with "+" if files differ; "unknown" outside of one."""
    folder = Path(__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", __file__)  # a checkout around an installed copy says nothing
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()
