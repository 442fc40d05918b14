"""What can be wrong with a data set."""

from __future__ import annotations

from calvin_eval.system.errors import UserError


class DataError(UserError):
    """A file of a data set is missing, broken or not what CALVIN's format says. The message names it."""
