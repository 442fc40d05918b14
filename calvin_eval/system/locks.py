"""One writer at a time: a folder that a run fills is locked while it does.

The system releases a lock when its process dies, however it dies, so a kill leaves nothing to clean up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calvin_eval.system.errors import UserError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network file systems without locks answer."""


@contextmanager
def folder_lock(folder: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a folder for this process, as long as a `with` block lasts. Makes the folder where it is missing.

    Args:
        folder: what is written to.
        doing: who writes, for the message, as "roboflamingo train".
        wait: waits for another process instead of refusing.

    Raises:
        UserError: another process holds the folder. Names both.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _open_locked(path, folder, wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{doing}, process {os.getpid()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def hold_in_use(path: Path) -> int:
    """Marks a file as used by this process, as others may at the same time, until the returned handle is closed.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise
    return handle


def is_in_use(path: Path) -> bool:
    """Whether a process marks a file as used (see `hold_in_use`); always where the file system has no locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or nobody can tell
        return True
    finally:
        os.close(handle)
    return False


def _open_locked(path: Path, folder: Path, wait: bool) -> int:
    """An open, locked file that still has its name: one that its owner has just removed locks nothing."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except FileNotFoundError:
            pass  # removed between the two calls: once more
        except BlockingIOError:
            owner = path.read_text(errors="replace") if path.exists() else ""
            os.close(handle)
            raise UserError(
                f"{folder} is in use by {owner or 'another process'}; wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            warnings.warn(f"{folder} is on a file system without locks: run one process at a time", stacklevel=4)
            return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
