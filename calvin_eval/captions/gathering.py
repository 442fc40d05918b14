"""Records pictures of play tables with texts and states about them: parallel, seeded, resumable.

A recording is a folder of shards, each a folder of its own that is whole or not there:

    settings.json                what was asked for, and the code that made it
    shard_00000/static.npy       (n, S, S, 3) uint8, the static camera's pictures
                gripper.npy      (n, G, G, 3) uint8
                states.npy       (n, m) float32, see `states.state_targets`
                texts.jsonl      a line for each picture: a list of [kind, question, answer]
                index.json       names of states and kinds, scenes, seeds, versions

Shard i is a pure function of settings and i, so a killed recording goes on without a trace. Texts have random numbers
of their own: the pictures of a seed stay what they are as kinds of questions come along.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from calvin_eval.calvin import GRIPPER, SCENES, STATIC
from calvin_eval.captions.facts import facts_of
from calvin_eval.captions.moments import expert_moments, scattered_moments
from calvin_eval.captions.questions import KINDS, ask
from calvin_eval.captions.states import state_names, state_targets
from calvin_eval.protocol import Observation
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, replace_folder, write_atomic, write_json, write_text
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.provenance import code_version, provenance
from calvin_eval.system.ranges import COUNT, PROBABILITY, SEED, Range, check_ranges
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.variations import UNSEEN, random_variation
from calvin_eval.worlds.playtable.world import PlayTable

SETTINGS, INDEX, TEXTS = "settings.json", "index.json", "texts.jsonl"
DRAWN = CameraSizes()
"""Sizes at which pictures are drawn."""
PICTURES, ASKING, WORLDS = range(3)
"""What a shard's generators of random numbers are for."""


@dataclass(frozen=True)
class GatherSettings:
    """What to record.

    Attributes:
        scenes: what worlds are, or start from, in equal shares.
        varied: whether most worlds are varied ones (`variations.py`); otherwise all are the scenes themselves.
        plain: share of worlds that are the scenes themselves, where the others are varied.
        frames: how many pictures.
        shard: pictures of a shard; the last one may have fewer.
        per_world: pictures of one world.
        scattered: share of pictures of random states; the others show scripted experts at work.
        every: control steps from one picture of an expert to the next, on average.
        questions: texts about a picture, at most.
        static: edge (pixels) of the static camera's pictures, which are drawn at CALVIN's size and made smaller as a
            policy's images are: each pixel is the mean of the area that it covers.
        gripper: edge of the gripper camera's.
        seed: decides everything.
    """

    scenes: tuple[str, ...] = ("A", "B", "C")
    varied: bool = True
    plain: float = 0.25
    frames: int = 100_000
    shard: int = 1000
    per_world: int = 250
    scattered: float = 0.3
    every: int = 4
    questions: int = 12
    static: int = 96
    gripper: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scenes", tuple(self.scenes))
        check_ranges(
            self, "settings", plain=PROBABILITY, frames=COUNT, shard=COUNT, per_world=COUNT, scattered=PROBABILITY,
            every=COUNT, questions=COUNT, static=Range(8, DRAWN.static), gripper=Range(8, DRAWN.gripper),
            seed=SEED,
        )  # fmt: skip
        if not self.scenes or set(self.scenes) - set(SCENES) or len(set(self.scenes)) < len(self.scenes):
            raise UserError(f"settings.scenes is {self.scenes}; scenes are {', '.join(SCENES)}, each once")
        if self.varied and UNSEEN in self.scenes:
            raise UserError(
                f"settings.scenes has {UNSEEN}, which is never varied; set varied to false, or leave it out"
            )

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.frames // self.shard)

    def size(self, shard: int) -> int:
        """Pictures of a shard."""
        return min(self.shard, self.frames - shard * self.shard)


def gather(out: Path, settings: GatherSettings, workers: int | None = None) -> Path:
    """Records into a folder and returns it. One that is complete is returned at once.

    Args:
        out: the folder.
        settings: what to record.
        workers: processes; one per core by default.

    Raises:
        UserError: the folder holds a recording of other settings, or one that other code began; or another process
            fills it.
        OSError: the disk is full, or cannot be written to. Names the file.
        WorkerError: a worker process was killed, or failed by a fault that is no user's.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    missing = _missing(out, settings)
    if not missing:  # without a lock, so that a read-only recording serves too
        _check(out, settings, complete=True)
        return out
    with folder_lock(out, "the recording of pictures and texts"):
        _check(out, settings, complete=False)
        write_json(out / SETTINGS, _claim(settings))
        missing = _missing(out, settings)
        _record(out, settings, missing, min(workers or cores(), max(1, len(missing))))
    return out


def shard_folder(out: Path, shard: int) -> Path:
    """Where a shard of a recording is."""
    return out / f"shard_{shard:05d}"


def _missing(out: Path, settings: GatherSettings) -> list[int]:
    return [shard for shard in range(settings.shards) if not (shard_folder(out, shard) / INDEX).is_file()]


def _claim(settings: GatherSettings) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps({"settings": asdict(settings), "code": code_version()}))
    return value


def _check(out: Path, settings: GatherSettings, complete: bool) -> None:
    """Makes sure that what lies in the folder is of the same settings, and, unless it is complete, of the same code."""
    path, mine = out / SETTINGS, _claim(settings)
    if not path.exists():
        if any(out.glob("shard_*")):
            raise UserError(f"{out} holds shards without {SETTINGS}: choose another folder, or remove it")
        return
    theirs = read_json(path, "the settings of a recording")
    if not isinstance(theirs, dict) or not isinstance(theirs.get("settings"), dict):
        raise UserError(f"{path} should hold the settings of a recording and is damaged; remove the folder")
    before, now = theirs["settings"], mine["settings"]
    if different := [key for key in {**now, **before} if before.get(key) != now.get(key)]:
        values = "; ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in different)
        raise UserError(
            f"{out} was recorded with other settings ({values}); choose another folder, or remove it to record anew"
        )
    if not complete and theirs.get("code") != mine["code"]:
        raise UserError(
            f"{out} was begun by another version of this code ({theirs.get('code')}, now {mine['code']}), whose "
            "pictures and texts may differ; finish it with that version, or remove it to record anew"
        )


def _record(out: Path, settings: GatherSettings, missing: list[int], workers: int) -> None:
    """Records all missing shards on several processes."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        done = settings.frames - sum(settings.size(shard) for shard in missing)
        bar = progress.add_task("Recording pictures", total=settings.frames, completed=done)
        # OMP_NUM_THREADS: a process, a core
        for frames in run_jobs(_Job(out, settings), missing, workers, environment={"OMP_NUM_THREADS": "1"}):
            progress.update(bar, advance=frames)


@dataclass(frozen=True)
class _Job:
    """Records shards, in a worker process."""

    out: Path
    settings: GatherSettings

    def __call__(self, shard: int) -> int:
        """Records one shard and returns how many pictures it has."""
        folder, size = shard_folder(self.out, shard), self.settings.size(shard)
        fresh = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            write_json(fresh / INDEX, self._fill(fresh, shard, size))
            replace_folder(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return size

    def _fill(self, folder: Path, shard: int, size: int) -> dict[str, Any]:
        """Writes a shard's arrays and texts, and returns its index."""
        settings = self.settings
        static = np.empty((size, settings.static, settings.static, 3), np.uint8)
        gripper = np.empty((size, settings.gripper, settings.gripper, 3), np.uint8)
        states, texts, worlds = [], [], []
        asking = np.random.default_rng([settings.seed, shard, ASKING])
        number = 0
        for scene, world, count in self._worlds(shard, size):
            worlds.append({"scene": scene, "first": number, "layout": _layout(world)})
            rng = np.random.default_rng([settings.seed, shard, PICTURES, len(worlds)])
            for observation in _moments(world, rng, count, settings):
                seen = world.observe()
                static[number] = _smaller(seen.images[STATIC], settings.static)
                gripper[number] = _smaller(seen.images[GRIPPER], settings.gripper)
                facts = facts_of(world.geometry, observation, world.info(), world.masks())
                states.append(state_targets(facts))
                texts.append(ask(facts, asking, settings.questions))
                number += 1
        for name, array in (("static", static), ("gripper", gripper), ("states", np.stack(states))):
            write_atomic(folder / f"{name}.npy", partial(np.save, arr=array))
        write_text(folder / TEXTS, "".join(json.dumps(line) + "\n" for line in texts))
        return {
            "frames": size,
            "shard": shard,
            "states": state_names(),
            "kinds": list(KINDS),
            "scenes": sorted({world["scene"] for world in worlds}),
            "worlds": worlds,
            "settings": asdict(settings),
            "code": code_version(),
            "made_with": provenance(),
        }

    def _worlds(self, shard: int, size: int) -> Iterator[tuple[str, PlayTable, int]]:
        """The worlds of a shard, one after another: the scene's name, the world, and how many pictures of it."""
        settings = self.settings
        first = shard * -(-settings.shard // settings.per_world)
        for number, start in enumerate(range(0, size, settings.per_world)):
            rng = np.random.default_rng([settings.seed, shard, WORLDS, number])
            scene = settings.scenes[(first + number) % len(settings.scenes)]
            count = min(settings.per_world, size - start)
            if settings.varied and rng.random() >= settings.plain:
                variation = random_variation(rng, (scene,))
                world = PlayTable(variation.geometry, sizes=DRAWN, appearance=variation.appearance)
            else:
                world = PlayTable(scene, sizes=DRAWN)
            with world:
                yield scene, world, count


def _moments(world: PlayTable, rng: np.random.Generator, count: int, settings: GatherSettings) -> Iterator[Observation]:
    """So many moments of a world: first of scripted experts at work, then random ones."""
    scattered = round(settings.scattered * count)
    yield from islice(expert_moments(world, rng, settings.every), count - scattered)
    yield from islice(scattered_moments(world, rng), scattered)


def _smaller(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, H, 3) uint8 as (size, size, 3) uint8."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def _layout(world: PlayTable) -> dict[str, Any]:
    """Where a world's fixtures are, for its index."""
    geometry = world.geometry
    return {
        "button": geometry.button[:2].tolist(),
        "switch": float(geometry.switch[0]),
        "slide": [float(geometry.slide[0]), geometry.slide_limit],
        "drawer": geometry.drawer_x,
        "block_lengths": geometry.block_lengths,
    }
