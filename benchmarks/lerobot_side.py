"""The half of `lerobot_proof.py` that runs where the package `lerobot` is installed. It knows nothing of roboflamingo.

`lerobot_side.py read FOLDER OUT.npz` reads a data set frame by frame through LeRobotDataset;
`lerobot_side.py write FOLDER IN.npz` records one from arrays with LeRobotDataset.create.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def read(folder: str, out: str) -> None:
    """Writes every column of every frame to an .npz file; images as uint8 (N, H, W, 3)."""
    dataset = LeRobotDataset("local/set", root=folder, video_backend="pyav")
    columns: dict[str, list] = {}
    for number in range(len(dataset)):
        for key, value in dataset[number].items():
            if isinstance(value, torch.Tensor):
                value = value.numpy()
                if key in dataset.meta.camera_keys:
                    value = np.rint(value.transpose(1, 2, 0) * 255).astype(np.uint8)
            columns.setdefault(key, []).append(value)
    np.savez(out, **{key: np.array(value) for key, value in columns.items()})


def write(folder: str, given: str) -> None:
    """Records the arrays of an .npz file.

    `settings` in it is JSON: `fps`, `features`, `files` (MB a file), `episodes` (frames of each), `tasks` (of every
    frame), `videos` (or images), `crf` (of H.264 videos; None for AV1). The arrays go by the features' names, (N, ...).
    """
    arrays = np.load(given)
    settings = json.loads(str(arrays["settings"]))
    features = {key: {**value, "shape": tuple(value["shape"])} for key, value in settings["features"].items()}
    encoder = {}
    if settings["crf"] is not None:  # another codec than lerobot's own choice, AV1
        from lerobot.configs import RGBEncoderConfig

        encoder = {"rgb_encoder": RGBEncoderConfig(vcodec="h264", crf=settings["crf"])}
    dataset = LeRobotDataset.create(
        "local/set",
        settings["fps"],
        features,
        root=folder,
        use_videos=settings["videos"],
        robot_type="proof",
        **encoder,
    )
    dataset.meta.update_chunk_settings(
        data_files_size_in_mb=settings["files"], video_files_size_in_mb=settings["files"]
    )
    frame = 0
    for length in settings["episodes"]:
        for _ in range(length):
            values = {key: arrays[key][frame] for key in features}
            dataset.add_frame({**values, "task": settings["tasks"][frame]})
            frame += 1
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


if __name__ == "__main__":
    Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
