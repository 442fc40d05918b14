"""What a user can put right, kept apart from faults of this project."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right. The message names file, key or value, and says what to do.

    The command line shows the message alone; any other exception is a fault of ours and shows its traceback.
    """


class MissingExtraError(UserError, ImportError):
    """An optional library is not installed. The message says what needs it, and the command that installs it."""


class UsageError(UserError):
    """Keys of a command line that contradict each other or what they are of. The command line ends with status 2."""
