"""What data sets say of how `roboflamingo collect` made them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calvin_eval.system.files import read_json
from roboflamingo.data.errors import DataError

SETTINGS = "settings.json"


def recorded_leash(folders: Iterable[Path]) -> float | None:
    """How far (m) the target pose could lead the measured one in all of these data sets.

    None where one was collected without such a bound, does not say, or says something else than another.

    Raises:
        DataError: settings of a collection are damaged.
    """
    found = {_leash(folder) for folder in folders}
    return found.pop() if len(found) == 1 else None


def _leash(folder: Path) -> float | None:
    """Of one data set. Others may have a file of that name, and packed ones have none."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    value: Any = read_json(path, "the settings of a collection")
    for key in ("settings", "episode", "leash"):
        value = value.get(key) if isinstance(value, dict) else None
    if value is not None and (type(value) not in (int, float) or not value > 0):
        raise DataError(
            f"{path}: settings.episode.leash is {value!r}, and a leash has a length (m) above 0; restore it"
        )
    return None if value is None else float(value)
