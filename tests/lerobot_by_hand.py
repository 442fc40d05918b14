"""A small LeRobotDataset v3.0 laid out as `lerobot` 0.4 to 0.6 lay one out, written with pyarrow and av alone.

Two episodes in one table and one row group; the videos of the episodes one after another in one file, with frames that
refer to later ones; a depth camera; a task that changes within the second episode; columns that no policy reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS = 20
LENGTHS = (6, 9)
TASKS = ["lift the block", "push the block"]
SIZE = (32, 48)
KEY = "observation.images.front"


def pictures() -> np.ndarray:
    """(15, 32, 48, 3) uint8: grey, and lighter from frame to frame."""
    return np.stack([np.full((*SIZE, 3), 16 * number, np.uint8) for number in range(sum(LENGTHS))])


def numbers() -> dict[str, np.ndarray]:
    """The vectors of all frames."""
    frames = np.arange(sum(LENGTHS), dtype=np.float32)[:, None]
    return {
        "observation.state": frames + np.arange(8, dtype=np.float32) / 10,
        "observation.force": frames.astype(np.float64) * 2,
        "action": -frames + np.arange(8, dtype=np.float32) / 10,
    }


def task_numbers() -> np.ndarray:
    """(15,) the first episode has the first task; the second begins with it and goes on with the second."""
    return np.array([0] * (LENGTHS[0] + 4) + [1] * (LENGTHS[1] - 4))


def write_video(path: Path, images: np.ndarray, fps: int = FPS) -> None:
    """An mp4 file with frames that refer to later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", fps, options={"crf": "5", "g": "5", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def feature(dtype: str, *shape: int, names: Any = None, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names, **more}


def write_by_hand(folder: Path, *, splits: dict[str, str] | None = None, video: bool = True) -> Path:
    """Writes the set."""
    one = {key: feature(kind, 1) for key, kind in INDICES.items()}
    axes = ["height", "width", "channels"]
    features = {
        KEY: feature("video", *SIZE, 3, names=axes, info={"video.fps": FPS, "video.codec": "h264"}),
        "observation.images.depth": feature("image", *SIZE, 1, names=axes, info={"is_depth_map": True}),
        "observation.state": feature("float32", 8, names={"motors": [f"joint_{n}" for n in range(7)] + ["gripper"]}),
        "observation.force": feature("float64", 1),
        "action": feature("float32", 8, names=[f"joint_{n}" for n in range(7)] + ["gripper"]),
        "next.reward": feature("float32", 1),
        **one,
    }
    if not video:
        features.pop(KEY)
    info = {
        "codebase_version": "v3.0",
        "robot_type": "by hand",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": splits if splits is not None else {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    # pandas calls an index without a name so
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": TASKS}), folder / "meta" / "tasks.parquet")
    _write_episodes(folder, video)
    _write_rows(folder)
    if video:
        write_video(folder / "videos" / KEY / "chunk-000" / "file-000.mp4", pictures())
    return folder


INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def _write_episodes(folder: Path, video: bool) -> None:
    rows = []
    for number, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:number])
        place = {"chunk_index": 0, "file_index": 0}
        row = {
            "episode_index": number,
            "tasks": TASKS[: number + 1],
            "length": length,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            "stats/action/mean": [0.0] * 8,
            **{f"data/{key}": value for key, value in place.items()},
            **{f"meta/episodes/{key}": value for key, value in place.items()},
        }
        if video:
            row |= {f"videos/{KEY}/{key}": value for key, value in place.items()}
            row[f"videos/{KEY}/from_timestamp"] = first / FPS
            row[f"videos/{KEY}/to_timestamp"] = (first + length) / FPS
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")


def _write_rows(folder: Path) -> None:
    frames = np.concatenate([np.arange(length) for length in LENGTHS])
    values = numbers()
    table = {
        "observation.state": pa.FixedSizeListArray.from_arrays(values["observation.state"].ravel(), 8),
        "observation.force": values["observation.force"][:, 0],
        "action": pa.array(values["action"].tolist(), pa.list_(pa.float32())),  # a list without a fixed size
        "next.reward": np.zeros(len(frames), np.float32),
        "timestamp": (frames / FPS).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(len(frames)),
        "task_index": task_numbers(),
    }
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(table), path)
