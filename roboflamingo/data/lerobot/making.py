"""A data set in the making: beside its place until it is whole, and continued where a kill left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calvin_eval.system.files import replace_folder, write_json
from calvin_eval.system.locks import folder_lock
from roboflamingo.data.errors import DataError

PLAN, PROGRESS, SET = "plan.json", "progress.jsonl", "set"


def check_free(folder: Path) -> None:
    """Makes sure that nothing lies where a data set will be written.

    Raises:
        DataError: something does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already; name another folder, or remove it")


@contextmanager
def making(folder: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Lets a `with` block make a data set, and puts it in its place at the end.

    Args:
        folder: where it will lie; nothing may be there.
        plan: of what it is made, as JSON holds it. What was begun for the same plan is kept, of another nothing.

    Yields:
        The folder to work in, locked: the set is made in its `SET`; `PROGRESS` beside it says what is done.

    Raises:
        DataError: something lies there.
        UserError: another process makes it.
        OSError: the disk is full.
    """
    folder = folder.absolute()
    check_free(folder)
    work = folder.with_name(f".{folder.name}.part")
    with folder_lock(work, f"writing {folder.name}"):
        try:
            before = json.loads((work / PLAN).read_bytes())
        except (OSError, ValueError):
            before = None
        if before != json.loads(json.dumps(plan)):
            shutil.rmtree(work / SET, ignore_errors=True)
            (work / PROGRESS).unlink(missing_ok=True)
            write_json(work / PLAN, plan)
        (work / SET).mkdir(exist_ok=True)
        yield work
        replace_folder(work / SET, folder)
        for name in (PLAN, PROGRESS):
            (work / name).unlink(missing_ok=True)
    work.rmdir()
