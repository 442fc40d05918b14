"""Frames of mp4 videos: read at exact times, and written at a fixed rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import need


def read_frames(path: Path, times: Sequence[float], fps: float) -> Iterator[np.ndarray]:
    """The frames of a video at given times.

    Between two frames of a rate lie 1 / fps seconds; the frame within a quarter of that is the one of a time, so that
    no other can be taken for it. Decoding begins at the key frame before the first time and keeps one frame.

    Args:
        path: of the video.
        times: seconds into it, ascending.
        fps: frames a second.

    Yields:
        (H, W, 3) uint8 for each time.

    Raises:
        DataError: the video is missing or damaged, or has no frame at a time. Names file and time.
    """
    av = need("av")
    if not path.is_file():
        raise DataError(f"{path} is missing")
    tolerance, wanted = 0.25 / fps, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            # a frame of which a part is broken is an error; by default such parts are painted over. A few changed bytes
            # may still make another image: mp4 holds no checksums.
            stream.codec_context.options = {"err_detect": "explode"}
            container.seek(_ticks(times[0], stream), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or frame.is_corrupt:
                    raise DataError(f"{path}: a frame before {times[wanted]:.4f} s is damaged")
                time = float(frame.pts * stream.time_base)
                if time > times[wanted] + tolerance:
                    break
                if time >= times[wanted] - tolerance:
                    yield frame.to_ndarray(format="rgb24")
                    wanted += 1
                    if wanted == len(times):
                        return
    except DataError:
        raise
    except Exception as error:  # damage makes PyAV raise almost anything
        raise DataError(f"{path} cannot be read at {times[wanted]:.4f} s: {error}") from error
    raise DataError(
        f"{path} has no frame at {times[wanted]:.4f} s: {wanted} of the {len(times)} frames from {times[0]:.4f} s on "
        "are there"
    )


def _ticks(time: float, stream: Any) -> int:
    """A time in the units of a stream, a little before it, so that rounding cannot pass the key frame."""
    return max(0, int(time / stream.time_base) - 1)


def video_size(path: Path) -> tuple[int, int]:
    """Height and width of a video's frames (pixels).

    Raises:
        DataError: the video is missing or damaged.
    """
    av = need("av")
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            return int(context.height), int(context.width)
    except Exception as error:  # damage makes PyAV raise almost anything
        raise DataError(f"{path} cannot be read: {error}") from error


def pixel_format(size: tuple[int, int], wanted: str) -> str:
    """How colours are kept: `yuv420p` at half the resolution, `yuv444p` whole, as images of odd sides need it."""
    return wanted if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"


class VideoWriter:
    """Writes frames one after another into an mp4 file (H.264).

    The same frames are not always the same bits: even with one thread, x264 now and then encodes a block in another
    way that looks no worse.

    Args:
        path: of the file.
        fps: frames a second.
        size: height and width of the frames (pixels).
        quality: constant rate factor: 0 (best) to 51.
        key_frame_every: frames; reading at random begins at a key frame.
        pix_fmt: see `pixel_format`.
    """

    def __init__(
        self, path: Path, fps: float, size: tuple[int, int], quality: int, key_frame_every: int, pix_fmt: str
    ) -> None:
        av = need("av")
        self._av = av
        self._container: Any = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        # without B-frames the frames stand in the file in the order in which they are shown, which every reader takes
        options = {"crf": str(quality), "g": str(key_frame_every), "preset": "medium", "bf": "0"}
        rate = Fraction(fps).limit_denominator(1001)
        self._tick = 1 / rate
        self._stream = self._container.add_stream("libx264", rate, options=options)
        self._stream.codec_context.time_base = self._tick
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = pixel_format(size, pix_fmt)
        self._stream.codec_context.thread_count = 1  # each process writes videos of its own
        self._frames = 0

    def add(self, image: np.ndarray, *, key: bool = False) -> None:
        """Adds a frame.

        Args:
            image: (H, W, 3) uint8.
            key: whether it must be a key frame, as where an episode begins.
        """
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self._frames
        frame.time_base = self._tick
        if key:
            frame.pict_type = self._av.video.frame.PictureType.I
        self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def close(self) -> None:
        """Ends the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
