"""Files that are either whole or not there, and lines that a kill cannot damage.

Non-obvious behaviours
    - A file under construction has one fixed name (`.NAME.part`), so that a kill leaves at most one, which the next
      attempt overwrites. Two writers of one file must hold a lock (see `locks.py`).
    - Errors of the disk keep their type (`OSError`) and always name the file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from calvin_eval.system.errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a temporary file beside path, then puts it in place at once, safe on the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Names the file.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        what: what it is, for the message, as "the results of an evaluation".

    Raises:
        UserError: it is missing or broken. Names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it should hold {what}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} should hold {what} and is damaged: {error}") from None


def append_line(path: Path, value: Any) -> None:
    """Adds a line of JSON and waits until it is on the disk.

    Raises:
        OSError: the disk is full, or the file cannot be written to. Names the file; nothing of the line is left.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(json.dumps(value).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise


def read_lines(path: Path, *, mend: bool = False, on_damage: Callable[[int, str], object] | None = None) -> list[Any]:
    """The values of a file that `append_line` made; a last line that a kill cut short is left out.

    Args:
        path: the file; none is as good as an empty one.
        mend: also cuts such a last line off, so that others can follow.
        on_damage: told the number of another damaged line and what is wrong, where that is no error.

    Raises:
        UserError: another line is damaged. Names file and line.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and whole != content:
        write_atomic(path, lambda file: file.write(whole))
    values = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            if on_damage is None:
                raise UserError(f"{path}, line {number} is damaged ({error}); remove the line") from None
            on_damage(number, str(error))
    return values


def replace_folder(fresh: Path, folder: Path) -> None:
    """Puts a complete folder in another's place; at any moment one of the two, or for an instant none, is there."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def reserve(file: BinaryIO, size: int) -> None:
    """Claims the disk space of a file, so that writing it through memory cannot end in a bus error.

    Raises:
        OSError: the disk is too small.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS has none: there the space is claimed by writing it
        for first in range(0, size, 1 << 24):
            file.write(bytes(min(1 << 24, size - first)))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets errors of the operating system that name no file name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
