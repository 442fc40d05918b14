"""Do we and the package `lerobot` read each other's LeRobotDatasets v3.0 alike?

    python benchmarks/lerobot_proof.py --python /path/to/venv/bin/python

`--python` is a Python in which lerobot is installed (`pip install 'lerobot[dataset]'` in a virtual environment of its
own; it needs Python 3.12). Sets with videos and with images in the tables are written by us and read by LeRobotDataset,
and recorded by LeRobotDataset and read by us; several episodes to a file, several files, a task that changes within an
episode. Numbers, times and texts must be equal, images too where no video lies between. Of videos the decoded images
are compared (two versions of FFmpeg may round differently), and each must be nearer to what was recorded at its time
than to the two frames before and behind.

With `--data`, a CALVIN folder is converted exactly and with videos, read by LeRobotDataset, and made a CALVIN folder
again, whose arrays are compared; bytes and PSNR are of the videos.

The last line is JSON. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.converting.convert import convert
from roboflamingo.data.lerobot.files import EpisodePlan, WriteSettings
from roboflamingo.data.lerobot.writing import write_dataset
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.data.sources.lerobot import LeRobotSource

SIDE = Path(__file__).with_name("lerobot_side.py")
FPS = 30
LENGTHS = (40, 25, 61, 12, 33)
TASKS = ("pick up the cup", "put it down", "öffne die Schublade")
CAMERAS = {"observation.images.front": (96, 128), "observation.images.wrist": (64, 64)}
ROUNDING = 3
"""Grey levels by which two decoders' colours may differ."""


@dataclass(frozen=True)
class Made:
    """A `Recording` of smooth noise, by a seed.

    Attributes:
        cameras: dtype of the cameras.
        seed: of the noise.
        first: first episode.
        stop: the one after the last.
    """

    cameras: str
    seed: int = 0
    first: int = 0
    stop: int = len(LENGTHS)

    fps = float(FPS)

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Recording`."""
        images = {
            key: {"dtype": self.cameras, "shape": [*size, 3], "names": ["height", "width", "channels"]}
            for key, size in CAMERAS.items()
        }
        return images | {
            "observation.state": {"dtype": "float32", "shape": [8], "names": [f"joint_{i}" for i in range(8)]},
            "observation.force": {"dtype": "float32", "shape": [1], "names": ["force"]},
            "action": {"dtype": "float32", "shape": [8], "names": [f"joint_{i}" for i in range(8)]},
        }

    @property
    def episodes(self) -> Sequence[EpisodePlan]:
        """See `Recording`."""
        return [EpisodePlan(LENGTHS[i], TASKS[i % len(TASKS)]) for i in range(self.first, self.stop)]

    def frames(self, episode: int) -> Iterator[Mapping[str, np.ndarray]]:
        """See `Recording`."""
        random = np.random.default_rng([self.seed, self.first + episode])
        for frame in range(LENGTHS[self.first + episode]):
            vector = random.normal(size=8).astype(np.float32)
            yield {key: _image(size, random, frame) for key, size in CAMERAS.items()} | {
                "observation.state": vector,
                "observation.force": random.normal(size=1).astype(np.float32),
                "action": (vector / 3).astype(np.float32),
            }

    def part(self, first: int, stop: int) -> Made:
        """See `Recording`."""
        return replace(self, first=self.first + first, stop=self.first + stop)


def _image(size: tuple[int, int], random: np.random.Generator, frame: int) -> np.ndarray:
    """Blocks of colours that change from frame to frame, under noise, which makes the files large."""
    blocks = random.integers(0, 128, (size[0] // 8, size[1] // 8, 3), np.uint8)
    image = blocks.repeat(8, 0).repeat(8, 1) + random.integers(0, 128, (*size, 3), np.uint8)
    image[:8, : 8 + frame] = 255
    return image


def ours(folder: Path, split: str = "training") -> dict[str, np.ndarray]:
    """All frames of a split as our source reads them, under lerobot's names."""
    source = LeRobotSource(folder, split, SourceOptions())
    names = (*source.spec.cameras, *source.spec.state, *source.spec.privileged, "actions")
    vectors = {name: source.vectors.state[source.states.needed(name)[0]] for name in source.spec.state}
    keys = {**source.vectors.cameras, **vectors, **source.vectors.privileged, "actions": "action"}
    columns: dict[str, list[Any]] = {keys[name]: [] for name in names}
    for frame in source.reader(np.arange(len(source))).frames(names):
        if isinstance(frame, Exception):
            raise frame
        for name in names:
            columns[keys[name]].append(frame.arrays[name])
    found = {key: np.array(value) for key, value in columns.items()}
    tasks = np.empty(len(source), object)
    for sample in source.samples:
        tasks[sample.first : sample.stop] = sample.instruction
    number = np.searchsorted(source.episodes[:, 1], np.arange(len(source)), side="right")
    frames = np.arange(len(source)) - source.episodes[number, 0]
    return found | {"task": tasks, "episode_index": number, "timestamp": (frames / source.info.fps).astype(np.float32)}


def truth(made: Made) -> dict[str, np.ndarray]:
    """All frames of a recording."""
    frames = [frame for number in range(len(LENGTHS)) for frame in made.frames(number)]
    return {key: np.array([frame[key] for frame in frames]) for key in frames[0]}


def compare(what: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], images: float) -> float:
    """Compares the columns that both have, and prints the greatest difference of each.

    Returns:
        The greatest difference of images.

    Raises:
        SystemExit: numbers, times or texts differ, or images by more than `images` grey levels.
    """
    worst = 0.0
    for key in sorted(first.keys() & second.keys()):
        a, b = first[key], second[key]
        if key == "task":
            equal, shown = list(a) == list(b), f"{len(set(a))} texts"
        elif a.dtype == np.uint8:
            gap = np.abs(a.astype(int) - b.astype(int)) if a.shape == b.shape else np.array([256])
            worst = max(worst, float(gap.max()))
            equal, shown = gap.max() <= images, f"greatest {gap.max()} of 255, mean {gap.mean():.4f}"
        else:
            a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            # ours are in float32
            gap = np.abs(a.astype(np.float32) - b.astype(np.float32)).max() if a.shape == b.shape else np.inf
            equal, shown = gap == 0, f"greatest difference {gap:g}"
        print(f"  {what:<34} {key:<26} {len(a):>4} frames  {shown}", flush=True)
        if not equal:
            sys.exit(f"{what}: {key} differs")
    return worst


def calvin(python: str, data: Path, scratch: Path) -> dict[str, Any]:
    """Converts a CALVIN folder to LeRobot and back, in both ways, and compares.

    Raises:
        SystemExit: something differs that should not.
    """
    result: dict[str, Any] = {}
    for name, settings in (
        ("exact", WriteSettings(images="png", numbers="recorded")),
        ("video", WriteSettings()),
        ("video444", WriteSettings(pix_fmt="yuv444p", quality=10)),
    ):
        made, back = scratch / f"lerobot-{name}", scratch / f"calvin-{name}"
        started = time.perf_counter()
        convert(data, made, "lerobot", settings)
        seconds = time.perf_counter() - started
        run(python, "read", made, made.with_suffix(".npz"))
        theirs = {key: value for key, value in np.load(made.with_suffix(".npz")).items()}
        mine = ours(made, "training")
        count = len(mine["task"])
        theirs = {key: value[:count] for key, value in theirs.items()}  # the validation split stands behind
        print(f"{data.name} as LeRobot set, {name}: {count} frames of training/")
        compare("lerobot against our reader", theirs, mine, 0 if name == "exact" else ROUNDING)
        convert(made, back, "calvin", settings)
        gaps, errors = _gaps(data, back)
        for key, gap in gaps.items():
            print(f"  there and back                     {key:<26} greatest difference {gap:g}")
        if name == "exact" and any(gaps.values()):
            sys.exit("there and back: an array differs")
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        result[name] = {
            "frames": count,
            "bytes_a_frame": round(size / sum(1 for _ in back.glob("*/episode_*.npz"))),
            "frames_per_s": round(sum(1 for _ in back.glob("*/episode_*.npz")) / seconds, 1),
            "psnr_db": {key: round(10 * np.log10(255**2 / e), 1) if e else None for key, e in errors.items()},
        }
    return result


def _gaps(first: Path, second: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Greatest difference of each array of two CALVIN folders' frames, and mean squared error of the images."""
    gaps: dict[str, float] = {}
    squares: dict[str, list[float]] = {}
    for path in sorted(second.glob("*/episode_*.npz")):
        with np.load(path) as a, np.load(first / path.relative_to(second)) as b:
            for key in a.files:
                gap = a[key].astype(float) - b[key].astype(float)
                gaps[key] = max(gaps.get(key, 0.0), float(np.abs(gap).max()))
                if key.startswith("rgb_"):
                    squares.setdefault(key, []).append(float(np.square(gap).mean()))
    return gaps, {key: float(np.mean(each)) for key, each in squares.items()}


def in_place(what: str, read: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> None:
    """Makes sure that every image read is that of its time.

    Raises:
        SystemExit: one is nearer to another frame.
    """
    for key in CAMERAS:
        images, frames = read[key].astype(int), recorded[key].astype(int)
        for number, image in enumerate(images):
            near = range(max(0, number - 2), min(len(images), number + 3))
            if min(near, key=lambda other: np.abs(image - frames[other]).mean()) != number:
                sys.exit(f"{what}: {key} of frame {number} is another frame's")
        print(f"  {what:<34} {key:<26} {len(images):>4} frames  each at its time", flush=True)


def ours_there(python: str, cameras: str, scratch: Path) -> dict[str, Any]:
    """A set that we write and LeRobotDataset reads.

    Raises:
        SystemExit: something differs.
    """
    made, folder = Made(cameras), scratch / f"ours-{cameras}"
    wanted = truth(made)
    numbers = {key: value for key, value in wanted.items() if key not in CAMERAS or cameras == "image"}
    settings = WriteSettings(images="png" if cameras == "image" else "video", frames_per_file=60)
    splits = {"train": (0, len(LENGTHS))}
    write_dataset(folder, made, settings, content="proof", splits=splits, processes=1)
    run(python, "read", folder, folder.with_suffix(".npz"))
    theirs = dict(np.load(folder.with_suffix(".npz")))
    files = len(list(folder.glob("data/*/*"))), len(list(folder.glob("videos/*/*/*")))
    print(f"written by us, {cameras}: {len(LENGTHS)} episodes, {files[0]} tables, {files[1]} videos")
    compare("lerobot against what was written", theirs, numbers, 0)
    gap = compare("lerobot against our reader", theirs, ours(folder), ROUNDING if cameras == "video" else 0)
    in_place("lerobot against what was written", theirs, wanted)
    return {"frames": len(theirs["task"]), "image_difference": gap, "files": files}


def theirs_here(python: str, name: str, crf: int | None, scratch: Path) -> dict[str, Any]:
    """A set that LeRobotDataset records, with tasks that change within episodes, and we read.

    Raises:
        SystemExit: something differs.
    """
    cameras = "image" if name == "image" else "video"
    made, folder, given = Made(cameras), scratch / f"theirs-{name}", scratch / f"given-{name}.npz"
    wanted = truth(made)
    numbers = {key: value for key, value in wanted.items() if key not in CAMERAS or cameras == "image"}
    tasks = [TASKS[i // 30 % len(TASKS)] for i in range(sum(LENGTHS))]
    told = {"fps": FPS, "features": made.features, "files": 1, "videos": cameras == "video", "crf": crf}
    np.savez(given, settings=json.dumps(told | {"episodes": LENGTHS, "tasks": tasks}), **wanted)
    run(python, "write", folder, given)
    run(python, "read", folder, folder.with_suffix(".npz"))
    theirs = dict(np.load(folder.with_suffix(".npz")))
    files = len(list(folder.glob("data/*/*"))), len(list(folder.glob("videos/*/*/*")))
    print(f"recorded by lerobot, {name}: {len(LENGTHS)} episodes, {files[0]} tables, {files[1]} videos")
    mine = ours(folder)
    compare("our reader against what was given", mine, numbers | {"task": np.array(tasks)}, 0)
    gap = compare("our reader against lerobot", mine, theirs, ROUNDING if cameras == "video" else 0)
    in_place("our reader against what was given", mine, wanted)
    return {"frames": len(theirs["task"]), "image_difference": gap, "files": files}


def run(python: str, *arguments: str | Path) -> None:
    """Runs lerobot's half.

    Raises:
        SystemExit: it failed. Shows what it said.
    """
    done = subprocess.run([python, SIDE, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{SIDE.name} {arguments[0]} failed:\n{done.stderr}")


def main() -> None:
    """Runs both directions for videos and images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="a Python in which lerobot is installed")
    parser.add_argument("--data", type=Path, help="a CALVIN folder to convert there and back as well")
    options, result = parser.parse_args(), {}
    python = options.python
    with tempfile.TemporaryDirectory() as scratch:
        if options.data:
            result["calvin"] = calvin(python, options.data, Path(scratch))
        for cameras in ("video", "image"):
            result[f"ours_{cameras}"] = ours_there(python, cameras, Path(scratch))
        for name, crf in (("av1", None), ("h264", 5), ("image", None)):
            result[f"theirs_{name}"] = theirs_here(python, name, crf, Path(scratch))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
