"""Writes demonstrations as CALVIN folders that CALVIN's own loaders and converters read (CALVIN SPEC 1.12).

Many processes record at once, each episode into a folder of its own (`pieces.py`) that appears when it is
whole; `Recorder.finish` then numbers the frames by episode, so that the data set does not depend on who was
first. Killed at any moment, recording goes on where it was: whole pieces are kept.

What the frames say
    - `rel_actions[t]` is the scripted expert's clean action at frame t, also where noise or a policy's action was
      executed instead.
    - `actions[t]` is the tool pose (euler) and gripper command that this action asks for. CALVIN's formula derives
      `rel_actions` from `actions` and `robot_obs`, here as there; but CALVIN's `actions[t]` is the pose found at frame
      t + 1 (CALVIN SPEC 1.4), which would hold the noise. That pose is in the `robot_obs` of frame t + 1.
    - An episode's last frame is its final observation, whose action is to stand still. CALVIN keeps no such frame. No
      segment covers it, but readers that take a segment's end to be included find it there.
    - Embeddings of instructions are zeros: no language model belongs to this package.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.pieces import frame_file, has_size, read_piece, read_sealed, write_piece
from calvin_eval.demonstrations.scene_config import merged_config
from calvin_eval.demonstrations.segments import SHORTEST, Segment
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_atomic, write_json, write_text
from calvin_eval.system.sealing import sealed

LAYOUT = 2
"""Which rules the folders follow. 1 had no final observations, annotated segments of any length, and kept the pose
of the next frame as `actions`; CALVIN's own loaders trip on it."""
FIRST_FRAME = 64
"""Id of a split's first frame. CALVIN's disk loader wants every segment and episode to end at an id beyond its longest
window, which is 64 frames in CALVIN's configurations; so none may end among the first 64 ids."""
EMBEDDING = 384
"""Width of the (zero) embeddings of instructions, that of the model CALVIN ships."""
CONSTANT = 1e-6
"""A spread below this is rounding: the value never changes and is not to be divided by."""
PIECES = ".pieces"
PLAN = ".plan.json"
COUNTS = "counts.json"


class Recorder:
    """One split (training or validation) of a data set.

    Args:
        folder: the split's folder.
        scenes: the scenes it shows, in the order of their episodes.
        maker: names the settings and code that record; pieces of others do not count.
    """

    def __init__(self, folder: Path, scenes: str, maker: str = "") -> None:
        self.folder, self.scenes, self.maker = folder, scenes, maker
        self._pieces = folder / PIECES

    @property
    def finished(self) -> bool:
        """Whether the split is complete."""
        indexed = (self.folder / "lang_annotations" / "auto_lang_ann.npy").is_file()
        return indexed and not self._pieces.exists() and not (self.folder / PLAN).exists()

    def has(self, episode: int) -> bool:
        """Whether the episode is recorded already and undamaged; all are once finishing has begun."""
        if (self.folder / PLAN).exists():
            return True
        folder = self._piece(episode)
        piece = read_piece(folder)
        return (
            piece is not None
            and piece["maker"] == self.maker
            and all(has_size(frame_file(folder, frame), size) for frame, size in enumerate(piece["sizes"]))
        )

    def write(self, episode: int, scene: str, segments: Sequence[Segment]) -> int:
        """Records what of one episode is kept and returns how many frames that are; see `write_piece`.

        Args:
            episode: its number, which decides where its frames go.
            scene: where it happened.
            segments: tasks in a row.

        Raises:
            UserError: a frame lacks scene_obs or an image.
            OSError: the disk is full, or cannot be written to. Names the file.
        """
        return write_piece(self._piece(episode), scene, segments, self.maker)

    def finish(self, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Numbers all frames and writes the split's index files.

        Args:
            on_progress: told (episodes done, episodes in all).

        Returns:
            Counts: episodes, segments, frames, first (id of the first frame), bytes, short (solved tasks too short to
            be annotated), and segments_per_task.

        Raises:
            UserError: nothing was recorded; a piece is damaged, or a frame is missing, which is noticed before
                anything is written; or the folder holds frames of another origin.
        """
        plan = self._plan()
        for done, (name, piece) in enumerate(plan.items()):
            for frame in range(piece["frames"]):
                old = frame_file(self._pieces / name, frame)
                if old.exists():  # moved already, where an earlier finish was killed
                    old.rename(self._frame(piece["first"] + frame))
            if on_progress:
                on_progress(done + 1, len(plan))
        self.count_frames(sum(piece["frames"] for piece in plan.values()))
        short = sum(piece["short"] for piece in plan.values())
        counts = self._write_index([piece for piece in plan.values() if piece["frames"]]) | {"short": short}
        write_json(self.folder / COUNTS, sealed(counts))
        if self._pieces.exists():  # not so, where an earlier finish was killed just here
            shutil.rmtree(self._pieces)
        (self.folder / PLAN).unlink()
        return counts

    def counts(self) -> dict[str, Any] | None:
        """What `finish` returned; None for a split that keeps no record of it."""
        return read_sealed(self.folder / COUNTS)

    def count_frames(self, expected: int, first: int = FIRST_FRAME) -> None:
        """Makes sure that the folder holds `expected` frames with ids from `first` on, and no others.

        Raises:
            UserError: it does not. Names the first file at fault.
        """
        found = {file.name for file in self.folder.glob("episode_*.npz")}
        wanted = {self._frame(number).name for number in range(first, first + expected)}
        if missing := sorted(wanted - found):
            raise UserError(
                f"{self.folder / missing[0]} is missing, and {len(missing) - 1} frames besides; "
                f"put it back, or remove {self.folder} to collect it anew"
            )
        if strange := sorted(found - wanted):
            raise UserError(
                f"{self.folder / strange[0]} is no frame of this data set, which has {expected}; "
                f"move it elsewhere ({len(strange)} such files)"
            )

    def _piece(self, episode: int) -> Path:
        return self._pieces / f"{episode:06d}"

    def _frame(self, number: int) -> Path:
        return self.folder / f"episode_{number:07d}.npz"

    def _plan(self) -> dict[str, Any]:
        """Where each piece's frames go; written down before the first frame moves."""
        path = self.folder / PLAN
        plan = read_sealed(path)
        if plan is None:  # not begun; or damaged, and then the pieces still tell
            if path.exists() and not self._pieces.exists():
                raise UserError(f"{path} is damaged; remove {self.folder} to collect it anew")
            plan = self._plan_of_pieces()
        for name, piece in plan.items():
            for frame, size in enumerate(piece["sizes"]):
                places = frame_file(self._pieces / name, frame), self._frame(piece["first"] + frame)
                if not any(has_size(place, size) for place in places):
                    raise UserError(
                        f"frame {places[0]} is missing or damaged; record episode {name} again, "
                        f"or remove {self.folder} to collect it anew"
                    )
        write_json(path, sealed(plan))
        return plan

    def _plan_of_pieces(self) -> dict[str, Any]:
        plan, first = dict[str, Any](), FIRST_FRAME
        for folder in sorted(self._pieces.glob("*[0-9]")):
            piece = read_piece(folder)
            if piece is None:
                raise UserError(f"{folder} is damaged; record episode {folder.name} again")
            if piece["maker"] == self.maker:
                plan[folder.name] = {**piece, "first": first}
                first += piece["frames"]
        if first == FIRST_FRAME:
            raise UserError(
                f"{self.folder} holds no solved demonstration of {SHORTEST} frames or more; nothing to finish. "
                "Remove it, and collect more episodes"
            )
        return plan

    def _write_index(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        folder = self.folder
        spans = [(piece["first"], piece["first"] + piece["frames"] - 1) for piece in pieces]
        _save(folder / "ep_start_end_ids.npy", np.array(spans))
        _save(folder / "ep_lens.npy", np.array([last - first + 1 for first, last in spans]))
        scenes: dict[str, list[int]] = {}
        for piece, (first, last) in zip(pieces, spans, strict=True):
            known = scenes.setdefault(f"calvin_scene_{piece['scene']}", [first, last])
            known[1] = last
        if folder.name == "training":  # CALVIN has none in validation
            _save(folder / "scene_info.npy", np.array(scenes, dtype=object))
        statistics = _statistics([piece["moments"] for piece in pieces])
        write_text(folder / "statistics.yaml", yaml.safe_dump(statistics))
        config = yaml.safe_dump(merged_config(self.scenes[0]), sort_keys=False)
        write_text(folder / ".hydra" / "merged_config.yaml", config)
        validation = {
            task: {"emb": np.zeros((1, 1, EMBEDDING), np.float32), "ann": list(sentences(task, "validation"))}
            for task in TASKS
        }
        _save(folder / "lang_annotations" / "embeddings.npy", np.array(validation, dtype=object))
        notes = [
            (piece["first"] + start, length, task, instruction)
            for piece in pieces
            for start, length, task, instruction in piece["segments"]
        ]
        annotations = {
            "language": {
                "ann": [instruction for _, _, _, instruction in notes],
                "task": [task for _, _, task, _ in notes],
                "emb": np.zeros((len(notes), 1, EMBEDDING), np.float32),
            },
            "info": {"episodes": [], "indx": [(first, first + length) for first, length, _, _ in notes]},
        }
        _save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object))
        size = sum(file.stat().st_size for file in folder.glob("episode_*.npz"))
        return {
            "episodes": len(pieces),
            "segments": len(notes),
            "frames": spans[-1][1] + 1 - FIRST_FRAME,
            "first": FIRST_FRAME,
            "bytes": size,
            "segments_per_task": dict(sorted(Counter(task for _, _, task, _ in notes).items())),
        }


def _save(path: Path, value: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, value, allow_pickle=True))


def _statistics(moments: list[dict[str, Any]]) -> dict[str, Any]:
    """CALVIN's statistics.yaml: mean and spread of the observations, bounds of the actions."""
    count = sum(m["count"] for m in moments)
    result: dict[str, Any] = {}
    for name in ("robot_obs", "scene_obs"):
        mean = sum(np.array(m[name]["sum"]) for m in moments) / count
        spread = np.sqrt(np.maximum(sum(np.array(m[name]["square"]) for m in moments) / count - mean**2, 0.0))
        result[name] = [
            {
                "_target_": "calvin_agent.utils.transforms.NormalizeVector",
                "mean": np.asarray(mean).tolist(),
                "std": np.where(spread > CONSTANT, spread, 1.0).tolist(),
            }
        ]
    result["act_min_bound"] = np.min([m["actions"]["min"] for m in moments], axis=0).tolist()
    result["act_max_bound"] = np.max([m["actions"]["max"] for m in moments], axis=0).tolist()
    return result
