"""Resizes camera images.

Training data and live observations both go through here, so that a policy meets at evaluation the very kind
of pixels that it was trained on.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) uint8 as (size, size, 3) uint8.

    Shrinking averages exactly the area that each new pixel covers (fractions of pixels included), which
    keeps thin edges from flickering between frames; enlarging is bicubic. An image that already fits is
    returned as it is.
    """
    if image.shape[:2] == (size, size):
        return image
    shrinks = size <= min(image.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(image))
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((size, size), method))
