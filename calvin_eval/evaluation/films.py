"""Films of episodes: all cameras side by side, the instruction and its outcome written below."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from calvin_eval.protocol import Observation
from calvin_eval.specs import ActionSpec
from calvin_eval.system.files import naming

SIZE = 320
"""Height (pixels) of each picture."""
BLOCK = 4
"""Width and height of a film are multiples of this (pixels)."""
BAR = 44
FRAMES_PER_SECOND = 15
"""About so many has a film, where there are as many control steps in a second; films run at real speed."""
HOLD_S = 0.8
"""Seconds that an outcome stays on screen."""
INK, PAPER = (240, 240, 240), (24, 26, 30)
GREEN, RED = (92, 200, 110), (232, 92, 80)


class Clip:
    """A film of one episode, encoded as it goes. Which cameras it shows is decided by what is seen first.

    Args:
        path: where the mp4 goes; it appears there when it is complete.
        rate_hz: control steps a second.
        judged: whether the outcome is written at the end of a sub-task.
    """

    bar = BAR
    """Height (pixels) of what is written below the pictures."""

    def __init__(self, path: Path, rate_hz: float, judged: bool = True) -> None:
        self.path = path
        self._every = max(1, round(rate_hz / FRAMES_PER_SECOND))
        self._rate = rate_hz / self._every
        self._widths: dict[str, int] = {}
        self._temporary = path.with_name(f".{path.name}.part.mp4")
        self._writer: Any = None
        self._judged = judged
        self._text = self._note = ""
        self._steps = 0
        self._last: Observation | None = None
        self._font, self._small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)

    def begin(self, text: str, observation: Observation) -> None:
        """A sub-task begins with what is seen now."""
        self._text, self._note, self._steps, self._last = text, "", 0, observation
        self._show(observation)

    def add(self, observation: Observation, action: np.ndarray | None = None) -> None:
        """One control step: what is seen after it, and the action (A,), for films that tell it."""
        self._steps += 1
        self._note = "" if action is None else self.note(self._steps, action)
        self._last = observation
        if self._steps % self._every == 0:
            self._show(observation)

    def note(self, step: int, action: np.ndarray) -> str:
        """What stands below the instruction from that step on; nothing here."""
        return ""

    def end(self, success: bool) -> None:
        """The sub-task is over."""
        if self._last is not None:
            for _ in range(max(1, round(HOLD_S * self._rate))):
                self._show(self._last, success if self._judged else None)

    def save(self) -> None:
        """Completes the film.

        Raises:
            ValueError: nothing was filmed.
            OSError: the disk is full, or cannot be written to. Names the file; the half film is removed.
        """
        if self._writer is None:
            raise ValueError(f"nothing was filmed for {self.path}")
        with self._encoding():
            self._writer.close()
            if not _is_whole(self._temporary):  # the encoder says nothing when the disk is full
                raise OSError(errno.EIO, "the encoder could not complete the film; is the disk full?")
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        self._writer = None

    def discard(self) -> None:
        """Ends a film that will not be completed, and removes what there is of it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._encoding():
                writer.close()
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Lets errors of the encoder name the film, in one line, and removes what it has written."""
        try:
            with naming(self.path):
                yield
        except OSError as error:
            self._writer = None
            self._temporary.unlink(missing_ok=True)
            if error.errno is None:  # imageio's, which quotes all that the encoder has said
                raise OSError(errno.EIO, "the encoder failed; is the disk full?", str(self.path)) from error
            raise

    def _show(self, observation: Observation, success: bool | None = None) -> None:
        with self._encoding():
            if self._writer is None:
                self._widths = {name: _width(image) for name, image in observation.images.items()}
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = imageio.get_writer(
                    self._temporary, fps=self._rate, codec="libx264", quality=6, macro_block_size=BLOCK
                )
            self._writer.append_data(self._draw(observation, success))

    def _draw(self, observation: Observation, success: bool | None) -> np.ndarray:
        """One frame (SIZE + bar, W, 3) uint8, a column for each camera."""
        width, left = sum(self._widths.values()), 0
        page = Image.new("RGB", (width, SIZE + self.bar), PAPER)
        for name, column in self._widths.items():
            picture = Image.fromarray(observation.images[name]).resize((column, SIZE), Image.Resampling.BICUBIC)
            page.paste(picture, (left, 0))
            left += column
        draw = ImageDraw.Draw(page)
        draw.text((12, SIZE + 12), self._text, fill=INK, font=self._font)
        if success is not None:
            word, colour = ("solved", GREEN) if success else ("failed", RED)
            place = (width - 12, SIZE + 12)
            beside = draw.textbbox(place, word, font=self._font, anchor="ra")[0] - 12
            draw.rectangle((beside, SIZE, width, SIZE + BAR), fill=PAPER)  # over the end of a long instruction
            draw.text(place, word, fill=colour, font=self._font, anchor="ra")
        if self._note:
            draw.text((12, SIZE + BAR), self._note, fill=INK, font=self._small)
        return np.asarray(page)


class ClipWithActions(Clip):
    """A film that tells each step's number and action as well.

    Args:
        path: see `Clip`.
        rate_hz: see `Clip`.
        judged: see `Clip`.
        actions: what an action is.
    """

    bar = BAR + 24

    def __init__(self, path: Path, rate_hz: float, judged: bool, actions: ActionSpec) -> None:
        super().__init__(path, rate_hz, judged)
        self._actions = actions

    def note(self, step: int, action: np.ndarray) -> str:
        """As "step 12   pose +0.40 -0.12 ...   gripper +1"."""
        words, first = [f"step {step}"], 0
        for part in self._actions.parts:
            numbers = action[first : first + part.size]
            first += part.size
            shown = [f"{value:+.2f}" if part.kind == "continuous" else f"{value:+g}" for value in numbers]
            words.append(" ".join([part.name, *shown]))
        return "   ".join(words)


def _width(image: np.ndarray) -> int:
    """How wide (pixels) a picture (H, W, 3) is drawn at height SIZE, as a whole number of blocks."""
    height, width = image.shape[:2]
    return max(1, round(SIZE * width / height / BLOCK)) * BLOCK


def _is_whole(path: Path) -> bool:
    """Whether an mp4's boxes end where the file ends, its index among them, which comes last."""
    size, position, kinds = path.stat().st_size, 0, set[bytes]()
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == 1:  # a long one
                length = int.from_bytes(file.read(8), "big")
            if length < 8:
                return False
            position += length
            kinds.add(kind)
    return position == size and b"moov" in kinds
