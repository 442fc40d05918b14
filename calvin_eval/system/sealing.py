"""Values that carry a checksum of themselves, so that a flipped digit in a file is seen and not believed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from calvin_eval.system.errors import UserError

CHECKSUM = "checksum"


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A value as JSON will give it back, and its checksum."""
    plain = json.loads(json.dumps(value))
    return {**plain, CHECKSUM: _checksum(plain)}


def opened(value: Any, what: str) -> dict[str, Any]:
    """The value that `sealed` was given.

    Args:
        value: as read.
        what: where it comes from, for the message.

    Raises:
        UserError: it was changed since, or is something else.
    """
    if not isinstance(value, dict) or CHECKSUM not in value:
        raise UserError(f"{what} has no checksum: it is damaged, or of another version")
    plain = {key: item for key, item in value.items() if key != CHECKSUM}
    if value[CHECKSUM] != _checksum(plain):
        raise UserError(f"{what} does not fit its checksum: it is damaged, or was edited")
    return plain


def _checksum(plain: dict[str, Any]) -> str:
    """The first 16 digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
