"""LeRobot sets as CALVIN folders.

A set that was made of a CALVIN folder becomes that folder again: frames under their old numbers, each once, however
many segments hold it; scenes, settings and names of tasks from `meta/calvin.json`. Any other set that gives what
CALVIN's frames hold is numbered from 0. Sentence embeddings are zeros: no sentence model belongs to this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.calvin import (
    BLOCKS,
    CALVIN_ACTIONS,
    GRIPPER,
    MAX_REL_ORN,
    MAX_REL_POS,
    ROBOT_OBS,
    SCENE_OBS,
    STATIC,
)
from calvin_eval.specs import PolicySpec
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, write_atomic, write_text
from calvin_eval.system.processes import run_jobs
from roboflamingo.data.converting.to_lerobot import ABSOLUTE, FRAME_ID, feature_names, reordered
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import STATS, Feature, Info
from roboflamingo.data.lerobot.tables import Episode, RowReader, numbers
from roboflamingo.data.sources.base import ACTIONS, Reader
from roboflamingo.data.sources.calvin.scenes import BlockOrder
from roboflamingo.data.sources.lerobot import LeRobotSource

NOTE = "meta/calvin.json"
EMBEDDING = 384
"""Width of the (zero) sentence embeddings, that of the model CALVIN ships."""
CONSTANT = 1e-6
"""A spread below this is rounding: the value never changes and is not to be divided by."""
ANNOTATIONS = "lang_annotations/auto_lang_ann.npy"


@dataclass(frozen=True)
class FramesJob:
    """An episode's frames, as files.

    Attributes:
        folder: of the split.
        info: of the LeRobot set.
        episode: which.
        reader: of its frames that are wanted.
        rows: numbers of these in the episode, ascending.
        ids: numbers in the names of their files.
        order: (n, 3) places of the red, blue and pink block in the scene_obs to be written.
        keys: features by CALVIN's names, whose numbers are taken as they lie in the table.
        names: cameras, states and actions to be read.
    """

    folder: Path
    info: Info
    episode: Episode
    reader: Reader
    rows: np.ndarray
    ids: np.ndarray
    order: np.ndarray
    keys: Mapping[str, Feature]
    names: tuple[str, ...]

    def run(self) -> int:
        """Writes the files that are not there yet, each whole or not there.

        Returns:
            How many frames there are.

        Raises:
            DataError: a frame cannot be read. Names it.
            OSError: the disk is full. Names the file.
        """
        exact = self._exact()
        before: tuple[int, dict[str, np.ndarray]] | None = None
        for place, frame in enumerate(self.reader.frames(self.names)):
            if isinstance(frame, DataError):
                raise frame
            arrays = {n: v if v.dtype == np.uint8 else v.astype(np.float64) for n, v in frame.arrays.items()}
            arrays["rel_actions"] = arrays.pop(ACTIONS)
            arrays |= {name: column[self.rows[place]] for name, column in exact.items()}
            if SCENE_OBS in arrays:
                arrays[SCENE_OBS] = reordered(arrays[SCENE_OBS], np.argsort(self.order[place]))
            if before is not None:
                self._write(*before, arrays[ROBOT_OBS])
            before = place, arrays
        if before is not None:
            self._write(*before, None)
        return len(self.rows)

    def _exact(self) -> dict[str, np.ndarray]:
        """Numbers as they lie in the table, of all frames of the episode, by CALVIN's names."""
        if not self.keys:
            return {}
        path = self.info.data_file(self.episode.chunk, self.episode.file)
        table = RowReader(self.info, [feature.key for feature in self.keys.values()]).rows(self.episode)
        return {
            name: numbers(path, feature.key, table.column(feature.key), feature.shape[0])
            for name, feature in self.keys.items()
        }

    def _write(self, place: int, arrays: dict[str, np.ndarray], after: np.ndarray | None) -> None:
        """Writes one frame; `after` is the next one's robot_obs, None behind the last.

        CALVIN's absolute action is the pose found at the next frame (CALVIN SPEC 1.4); at the end it is where the
        relative one leads.
        """
        path = self.folder / frame_file(int(self.ids[place]))
        if path.exists():
            return
        if "actions" not in arrays:
            pose = arrays[ROBOT_OBS][:6] + arrays["rel_actions"][:6] * ([MAX_REL_POS] * 3 + [MAX_REL_ORN] * 3)
            arrays["actions"] = np.append(pose if after is None else after[:6], arrays["rel_actions"][6])
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def frame_file(number: int) -> str:
    """The name of a frame's file."""
    return f"episode_{number:07d}.npz"


def check_calvin(source: LeRobotSource) -> None:
    """Makes sure that a set gives what CALVIN's frames hold.

    Raises:
        DataError: it does not. Names what is missing, and what there is.
    """
    try:
        PolicySpec((STATIC,), {ROBOT_OBS: 15}, CALVIN_ACTIONS).check(source.spec, str(source.path))
    except UserError as error:
        wanted = f"a CALVIN folder holds images of {STATIC}, 15 numbers of {ROBOT_OBS} and actions of pose and gripper"
        raise DataError(f"{wanted}: {str(error).replace('the policy', 'it')}") from error


def write_split(
    folder: Path, source: LeRobotSource, processes: int, on_frames: Callable[[int], object] = lambda count: None
) -> None:
    """Writes a split of a LeRobot set as a CALVIN split.

    Args:
        folder: of the split. Frames that lie there are kept.
        source: the split to be written.
        processes: how many work at once.
        on_frames: told how many frames more are there.

    Raises:
        DataError: a frame cannot be read. Names it.
        OSError: the disk is full. Names the file.
    """
    note = read_json(source.path / NOTE, "what a CALVIN folder holds") if (source.path / NOTE).is_file() else {}
    split = note.get(source.split, {})
    folder.mkdir(parents=True, exist_ok=True)
    _write_scenes(folder, split)
    ids = _frame_numbers(source)
    jobs = list(_jobs(folder, source, ids, bool(split)))
    workers, counted = min(processes, len(jobs)), 0
    for count in run_jobs(FramesJob.run, jobs, workers) if workers > 1 else map(FramesJob.run, jobs):
        on_frames(count)
        counted += count
    on_frames(len(source) - counted)  # rows of frames that several segments hold
    _write_index(folder, source, ids, split)


def _frame_numbers(source: LeRobotSource) -> np.ndarray:
    """(N,) the number in the name of every row's file."""
    if FRAME_ID not in source.info.features:
        return np.arange(len(source))
    reader = RowReader(source.info, [FRAME_ID])
    found = []
    for episode in source.entries:
        path = source.info.data_file(episode.chunk, episode.file)
        found.append(numbers(path, FRAME_ID, reader.rows(episode).column(FRAME_ID), 1)[:, 0])
    return np.concatenate(found)


def _jobs(folder: Path, source: LeRobotSource, ids: np.ndarray, exact: bool) -> Iterator[FramesJob]:
    """What is to be written: of every number the first frame."""
    spec, features = source.spec, feature_names(source.spec)
    cameras = [name for name in (STATIC, GRIPPER) if name in spec.cameras]
    privileged = [SCENE_OBS] if spec.privileged.get(SCENE_OBS) == 24 else []
    keys: dict[str, Feature] = {}
    if exact:
        wanted = {ROBOT_OBS: features[ROBOT_OBS], "rel_actions": features[ACTIONS], "actions": ABSOLUTE}
        wanted |= {name: features[name] for name in privileged}
        keys = {name: source.info.features[key] for name, key in wanted.items() if key in source.info.features}
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    orders = BlockOrder(folder)
    for episode, (start, stop) in zip(source.entries, source.episodes.tolist(), strict=True):
        rows = np.flatnonzero(first[start:stop])
        if len(rows):
            yield FramesJob(
                folder,
                source.info,
                episode,
                source.reader(start + rows),
                rows,
                ids[start + rows],
                orders.of(ids[start + rows]),
                keys,
                (*cameras, ROBOT_OBS, *privileged, ACTIONS),
            )


def _write_scenes(folder: Path, note: Mapping[str, Any]) -> None:
    """Writes what says in which scene, and with blocks in which order, frames were recorded."""
    blocks: dict[str, Any] = {"scene": {"objects": {"movable_objects": {block: {} for block in BLOCKS}}}}
    config = note.get("merged_config", None if note else yaml.safe_dump(blocks, sort_keys=False))
    if config is not None:
        write_text(folder / ".hydra" / "merged_config.yaml", config)
    if note.get("scene_info"):
        _save(folder / "scene_info.npy", np.array(note["scene_info"], dtype=object))


def _write_index(folder: Path, source: LeRobotSource, ids: np.ndarray, note: Mapping[str, Any]) -> None:
    """Writes the files that describe the frames."""
    if FRAME_ID in source.info.features:
        there = np.unique(ids)
        cuts = np.flatnonzero(np.diff(there) > 1)
        spans = np.stack([there[np.append(0, cuts + 1)], there[np.append(cuts, len(there) - 1)]], axis=1)
    else:
        spans = source.episodes - [0, 1]
    _save(folder / "ep_start_end_ids.npy", spans)
    _save(folder / "ep_lens.npy", spans[:, 1] - spans[:, 0] + 1)
    samples = source.samples
    tasks = note.get("tasks", [])
    if len(tasks) != len(samples):  # the set was changed since
        tasks = [sample.task for sample in samples]
    annotations = {
        "language": {
            "ann": [sample.instruction for sample in samples],
            "task": list(tasks),
            "emb": np.zeros((len(samples), 1, EMBEDDING), np.float32),
        },
        # CALVIN's second bound is the frame after the last (CALVIN SPEC 1.12)
        "info": {"episodes": [], "indx": [(int(ids[s.first]), int(ids[s.stop - 1]) + 1) for s in samples]},
    }
    _save(folder / ANNOTATIONS, np.array(annotations, dtype=object))
    sentences: dict[str, list[str]] = {}
    for task, sample in zip(tasks, samples, strict=True):
        if sample.instruction not in sentences.setdefault(task, []):
            sentences[task].append(sample.instruction)
    embeddings = {
        task: {"emb": np.zeros((len(texts), 1, EMBEDDING), np.float32), "ann": texts}
        for task, texts in sentences.items()
    }
    _save(folder / "lang_annotations" / "embeddings.npy", np.array(embeddings, dtype=object))
    write_text(folder / "statistics.yaml", note.get("statistics") or _statistics(source))


def _statistics(source: LeRobotSource) -> str:
    """CALVIN's statistics.yaml from those of the LeRobot set."""
    found = read_json(source.path / STATS, "statistics of a LeRobot data set")
    features = feature_names(source.spec)
    result: dict[str, Any] = {}
    try:
        for name in (ROBOT_OBS, SCENE_OBS):
            if name in features:
                each = found[features[name]]
                spread = [value if value > CONSTANT else 1.0 for value in each["std"]]
                target = "calvin_agent.utils.transforms.NormalizeVector"
                result[name] = [{"_target_": target, "mean": each["mean"], "std": spread}]
        actions = found[features[ACTIONS]]
        result |= {"act_min_bound": actions["min"], "act_max_bound": actions["max"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{source.path / STATS} lacks {error}") from error
    return yaml.safe_dump(result)


def _save(path: Path, value: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, value, allow_pickle=True))
