"""What a recorded value must be before anything is packed or trained on: the same rules for every kind of data set."""

from __future__ import annotations

from typing import Literal

import numpy as np

from calvin_eval.specs import ActionSpec
from roboflamingo.data.errors import DataError

ROUNDING = 1e-6
"""By how much an action may pass its bounds: CALVIN clips its own in arithmetic of its own."""


def check_image(where: object, key: str, value: np.ndarray) -> None:
    """Makes sure that an image is uint8 (H, W, 3) with pixels.

    Raises:
        DataError: it is not. Names `where` it stands and its key.
    """
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise DataError(f"{where}: {key} is {value.dtype} {value.shape}; expected is uint8 (H, W, 3)")


def as_vector(where: object, key: str, value: np.ndarray, length: int) -> np.ndarray:
    """A vector in float32: so many numbers, that are finite there, too.

    Raises:
        DataError: they are not. Names `where` they stand, key and place.
    """
    if value.dtype.kind not in "fiu" or value.shape != (length,):
        raise DataError(f"{where}: {key} of shape {value.shape} and type {value.dtype} is not {length} finite numbers")
    with np.errstate(over="ignore"):  # it is looked for in the next line
        single = value.astype(np.float32)
    if not np.isfinite(single).all():
        place = int(np.flatnonzero(~np.isfinite(single))[0])
        raise DataError(
            f"{where}: {key} of shape {value.shape} is not {length} finite numbers in float32: "
            f"[{place}] is {value[place]}"
        )
    return single


def as_action(
    where: object, key: str, value: np.ndarray, spec: ActionSpec, out_of_range: Literal["error", "clip"]
) -> tuple[np.ndarray, float]:
    """A recorded action (A,) float32 that a head can say.

    Args:
        where: for messages.
        key: likewise.
        value: as recorded.
        spec: what an action is.
        out_of_range: what happens to continuous numbers beyond their bounds.

    Returns:
        The action, and the largest absolute value that was clipped; 0 where none was.

    Raises:
        DataError: it is no action of the specification, or out of range. Names the number.
    """
    action = as_vector(where, key, value, spec.size)
    beyond = 0.0
    for part, place in zip(spec.parts, spec.slices().values(), strict=True):
        numbers, first = action[place], place.start
        if part.kind == "binary" and numbers[0] not in (-1, 1):
            raise DataError(f"{where}: {key}[{first}] is {numbers[0]}; {part.name} is -1 or 1")
        if part.kind == "categorical" and numbers[0] not in range(part.choices):
            raise DataError(f"{where}: {key}[{first}] is {numbers[0]}; {part.name} is one of 0 to {part.choices - 1}")
        low, high = (-np.inf if part.low is None else part.low), (np.inf if part.high is None else part.high)
        excess = np.maximum(low - numbers, numbers - high)
        if part.kind != "continuous" or excess.max() <= ROUNDING:
            continue
        worst = int(excess.argmax())
        if out_of_range == "error":
            raise DataError(
                f"{where}: {key}[{first + worst}] is {numbers[worst]:g}; {part.name} lies in [{low:g}, {high:g}], and "
                "no policy can say more; correct the data, or set data.out_of_range to clip"
            )
        beyond = max(beyond, float(np.abs(numbers[excess > ROUNDING]).max()))
        action = action.copy()
        action[place] = numbers.clip(low, high)
    return action, beyond
