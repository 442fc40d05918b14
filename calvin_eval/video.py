"""Films of chains: both cameras side by side, the instruction and its outcome written below."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from calvin_eval.protocol import CONTROL_RATE_HZ, Observation

SIZE = 320
"""Height (pixels) of the pictures."""
BAR = 44
HOLD = 12
"""Frames that an outcome stays on screen."""
INK, PAPER = (240, 240, 240), (24, 26, 30)
GREEN, RED = (92, 200, 110), (232, 92, 80)


class Clip:
    """A film of one chain.

    Args:
        path: where the mp4 goes; it appears there when it is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""
        self._count = 0
        self._last: Observation | None = None
        self._frames: list[np.ndarray] = []
        self._font = ImageFont.load_default(size=17)

    def begin(self, number: int, instruction: str) -> None:
        """A task begins."""
        self._text = f"{number}  {instruction}"

    def add(self, observation: Observation) -> None:
        """One control step; every second one is shown, at real speed."""
        self._count += 1
        if self._count % 2 == 0:
            self._frames.append(self._draw(observation, None))
        self._last = observation

    def end(self, success: bool) -> None:
        """The task is over."""
        if self._last is not None:
            self._frames += [self._draw(self._last, success)] * HOLD

    def save(self) -> None:
        """Writes the film."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.part.mp4")
        with imageio.get_writer(
            temporary, fps=CONTROL_RATE_HZ // 2, codec="libx264", quality=6, macro_block_size=4
        ) as writer:
            for frame in self._frames:
                writer.append_data(frame)
        os.replace(temporary, self.path)

    def _draw(self, observation: Observation, success: bool | None) -> np.ndarray:
        page = Image.new("RGB", (2 * SIZE, SIZE + BAR), PAPER)
        for column, image in enumerate((observation.rgb_static, observation.rgb_gripper)):
            picture = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            page.paste(picture, (column * SIZE, 0))
        draw = ImageDraw.Draw(page)
        draw.text((12, SIZE + 12), self._text, fill=INK, font=self._font)
        if success is not None:
            word, colour = ("solved", GREEN) if success else ("failed", RED)
            draw.text((2 * SIZE - 12, SIZE + 12), word, fill=colour, font=self._font, anchor="ra")
        return np.asarray(page)
