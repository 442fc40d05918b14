"""Writes demonstrations as CALVIN folders that CALVIN's own loader reads (CALVIN SPEC 1.12).

Many processes record at once, each episode into a folder of its own (a *piece*) that appears when it is
whole; `Recorder.finish` then numbers the frames by episode, so that the data set does not depend on who was
first. Killed at any moment, recording goes on where it was: whole pieces are kept.

What the frames say
    - `rel_actions[t]` is the demonstrator's clean action at frame t, also where noise was executed instead.
    - `actions[t]` is the tool pose (euler) and gripper command found at frame t + 1 (CALVIN SPEC 1.4).
    - Sentence embeddings are zeros: no sentence model belongs to this package.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.instructions import sentences
from calvin_eval.scene_config import merged_config
from calvin_eval.segments import Segment
from calvin_eval.system.files import write_atomic, write_json, write_text
from calvin_eval.tasks import TASKS

EMBEDDING = 384
"""Width of the (zero) sentence embeddings, that of the model CALVIN ships."""
CONSTANT = 1e-6
"""A spread below this is rounding: the value never changes and is not to be divided by."""
PIECES = ".pieces"
PLAN = ".plan.json"


class Recorder:
    """One split (training or validation) of a data set.

    Args:
        folder: the split's folder.
        scenes: the scenes it shows, in the order of their episodes.
    """

    def __init__(self, folder: Path, scenes: str) -> None:
        self.folder, self.scenes = folder, scenes
        self._pieces = folder / PIECES

    @property
    def finished(self) -> bool:
        """Whether the split is complete."""
        indexed = (self.folder / "lang_annotations" / "auto_lang_ann.npy").is_file()
        return indexed and not self._pieces.exists() and not (self.folder / PLAN).exists()

    def has(self, episode: int) -> bool:
        """Whether the episode is recorded already; all are once finishing has begun."""
        return (self._piece(episode) / "piece.json").is_file() or (self.folder / PLAN).exists()

    def write(self, episode: int, scene: str, segments: Sequence[Segment]) -> int:
        """Records the solved segments of one episode and returns how many frames they have.

        Args:
            episode: its number, which decides where its frames go.
            scene: where it happened.
            segments: tasks in a row; the first unsolved one ends what is kept.
        """
        kept: list[Segment] = []
        for segment in segments:
            if not segment.solved:
                break
            kept.append(segment)
        temporary = self._piece(episode).with_suffix(".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        frame, notes, vectors = 0, [], []
        for segment in kept:
            notes.append([frame, len(segment.labels), segment.task, segment.instruction])
            for index, label in enumerate(segment.labels):
                arrays = frame_arrays(segment, index, label)
                write_npz(temporary / f"{frame:05d}.npz", arrays)
                vectors.append([arrays["robot_obs"], arrays["scene_obs"], arrays["actions"]])
                frame += 1
        write_json(
            temporary / "piece.json",
            {"scene": scene, "frames": frame, "segments": notes, "moments": _moments(vectors)},
        )
        shutil.rmtree(self._piece(episode), ignore_errors=True)
        temporary.rename(self._piece(episode))
        return frame

    def finish(self, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Numbers all frames and writes the split's index files.

        Args:
            on_progress: told (episodes done, episodes in all).

        Returns:
            Counts: episodes, segments, frames, bytes.

        Raises:
            ValueError: nothing was recorded.
        """
        plan = self._plan()
        for done, (name, piece) in enumerate(plan.items()):
            source = self._pieces / name
            for frame in range(piece["frames"]):
                old = source / f"{frame:05d}.npz"
                if old.exists():  # moved already, where an earlier finish was killed
                    old.rename(self.folder / f"episode_{piece['first'] + frame:07d}.npz")
            if on_progress:
                on_progress(done + 1, len(plan))
        counts = self._write_index(list(plan.values()))
        if self._pieces.exists():  # not so, where an earlier finish was killed just here
            shutil.rmtree(self._pieces)
        (self.folder / PLAN).unlink()
        return counts

    def _piece(self, episode: int) -> Path:
        return self._pieces / f"{episode:06d}"

    def _plan(self) -> dict[str, Any]:
        """Where each piece's frames go; written down before the first frame moves."""
        path = self.folder / PLAN
        if not path.exists():
            plan, first = {}, 0
            for file in sorted(self._pieces.glob("*/piece.json")):
                piece = json.loads(file.read_text())
                if piece["frames"] and file.parent.suffix != ".part":
                    plan[file.parent.name] = {**piece, "first": first}
                    first += piece["frames"]
            if not plan:
                raise ValueError(f"{self.folder} holds no solved demonstration; nothing to finish")
            write_json(path, plan)
        return json.loads(path.read_text())

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
            (piece["first"] + start, length, task, sentence)
            for piece in pieces
            for start, length, task, sentence in piece["segments"]
        ]
        annotations = {
            "language": {
                "ann": [sentence for _, _, _, sentence in notes],
                "task": [task for _, _, task, _ in notes],
                "emb": np.zeros((len(notes), 1, EMBEDDING), np.float32),
            },
            "info": {"episodes": [], "indx": [(first, first + length) for first, length, _, _ in notes]},
        }
        _save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object))
        size = sum(file.stat().st_size for file in folder.glob("episode_*.npz"))
        return {"episodes": len(pieces), "segments": len(notes), "frames": spans[-1][1] + 1, "bytes": size}


def frame_arrays(segment: Segment, index: int, label: np.ndarray) -> dict[str, np.ndarray]:
    """What one frame's file holds: CALVIN's keys and dtypes.

    Raises:
        ValueError: the frame lacks scene_obs or an image.
    """
    now, after = segment.observations[index], segment.observations[index + 1]
    if now.scene_obs is None:
        raise ValueError("recording needs scene_obs, and this environment does not give it")
    if now.rgb_static.size == 0 or now.rgb_gripper.size == 0:
        raise ValueError("recording needs images; choose a renderer, and step and reset with render=True")
    return {
        "actions": np.append(after.robot_obs[:6], after.robot_obs[14]).astype(np.float64),
        "rel_actions": np.asarray(label, np.float64),
        "robot_obs": now.robot_obs.astype(np.float64),
        "scene_obs": now.scene_obs.astype(np.float64),
        "rgb_static": now.rgb_static,
        "rgb_gripper": now.rgb_gripper,
    }


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz as np.savez_compressed does, but faster (deflate level 1); same arrays, same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal frames are equal files
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)


def _save(path: Path, value: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, value, allow_pickle=True))


def _moments(vectors: list[list[np.ndarray]]) -> dict[str, Any]:
    """Count, sums, sums of squares and bounds of robot_obs, scene_obs and actions."""
    moments: dict[str, Any] = {"count": len(vectors)}
    for column, name in enumerate(("robot_obs", "scene_obs", "actions")):
        if vectors:
            values = np.array([row[column] for row in vectors])
            moments[name] = {
                "sum": values.sum(0).tolist(),
                "square": (values**2).sum(0).tolist(),
                "min": values.min(0).tolist(),
                "max": values.max(0).tolist(),
            }
    return moments


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
