"""What the packed store costs and gives, beside CALVIN's own files: bytes, windows a second, PSNR, start of a run.

    python benchmarks/store.py [--frames 600] [--seconds 5] [--rows 2400000] [--codecs]

Frames are drawn by the play table and written as CALVIN writes them, with depth (from TinyRenderer) and with tactile
images, which are a smooth image and the noise (sd 7) that CALVIN's simulated sensor adds. All figures come from one
run; the last line is one line of JSON:

    bytes_ratio      bytes of the .npz files over those of the packed folder
    windows_ratio    windows a second from the packed folder over those from the .npz files, at random. Windows are
                     those of the default policy, 1 frame (T) and 8 actions (K); only what they hold is read, and
                     images are resized alike. Both come from the disk, as CALVIN does not fit into memory; one process
                     reads, and the store decodes in a thread for every core
    in_memory_*      the same of files that the system holds in memory: of other windows; of all arrays of a file
                     (whole_files); of processor time in one thread (one_thread)
    psnr_db          of the images, all pixels of both cameras
    start_s          from opening a data set of `--rows` frames to its first batch, imports left aside
    start_mb         memory of that process that no other shares (RssAnon), imports included
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from facts import made_on
from rich.console import Console

from calvin_eval.system.machine import cores
from calvin_eval.worlds.playtable.tiny_renderer import TinyRenderer
from calvin_eval.worlds.playtable.world import PlayTable
from roboflamingo.data.images import resize_image
from roboflamingo.data.places import pack_or_find
from roboflamingo.data.sources import open_source
from roboflamingo.data.store import building, making
from roboflamingo.data.store.arrays import note_verified
from roboflamingo.data.store.images import encode, shard_name
from roboflamingo.data.store.index import INDEX, arrays_as_json, arrays_of, read_index, write_sealed
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.store.settings import PackSettings
from roboflamingo.data.windows import Windows

BATCH, SEGMENT = 32, 50
SIZES = {"rgb_static": 96, "rgb_gripper": 64}
VECTORS = ("robot_obs", "scene_obs")
SETTINGS = PackSettings(SIZES, VECTORS, images="compressed")
QUIET = Console(quiet=True)
TASKS = tuple(f"task_{i}" for i in range(34))


# --- frames as CALVIN has them -------------------------------------------------------------------


def write_set(folder: Path, frames: int) -> None:
    """A data set of episodes of random actions, one segment each."""
    split, rng = folder / "training", np.random.default_rng(0)
    split.mkdir(parents=True)
    with PlayTable("D") as world, PlayTable("D", "tinyrenderer") as twin:  # in the same state: physics repeats itself
        eye = twin._renderer
        assert isinstance(eye, TinyRenderer)
        for frame in range(frames):
            if frame % SEGMENT == 0:
                world.reset(), twin.reset(render=False)
            action = np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0]))
            observation = world.step(action)
            twin.step(action, render=False)
            static, gripper = eye.depth()
            np.savez_compressed(
                split / f"episode_{frame:07d}.npz",
                actions=np.append(observation.state["robot_obs"][:6], action[6]),
                rel_actions=action,
                robot_obs=observation.state["robot_obs"].astype(np.float64),
                scene_obs=observation.privileged["scene_obs"].astype(np.float64),
                **observation.images,  # type: ignore[arg-type]
                rgb_tactile=tactile(rng),
                depth_static=static,
                depth_gripper=gripper,
                depth_tactile=np.full((160, 120, 2), 0.02, np.float32),
            )
    write_annotations(split, [(i, i + SEGMENT) for i in range(0, frames - SEGMENT + 1, SEGMENT)])


def tactile(rng: np.random.Generator) -> np.ndarray:
    """Two sensors' images (160, 120, 6) that touch nothing."""
    rows, columns = np.mgrid[0:160, 0:120]
    smooth = np.stack([rows, columns, 160 - rows, columns, rows, 120 - columns], -1) * 0.6 + 70
    return np.clip(smooth + rng.normal(0, 7, smooth.shape), 0, 255).astype(np.uint8)


def write_annotations(split: Path, bounds: list[tuple[int, int]]) -> None:
    """Annotations and configuration of a split."""
    (split / "lang_annotations").mkdir(parents=True)
    (split / ".hydra").mkdir()
    tasks = [TASKS[i % len(TASKS)] for i in range(len(bounds))]
    notes = {"language": {"ann": [f"do {task}" for task in tasks], "task": tasks}, "info": {"indx": bounds}}
    np.save(split / "lang_annotations" / "auto_lang_ann.npy", np.array(notes, object), allow_pickle=True)
    blocks = "{block_red: {}, block_blue: {}, block_pink: {}}"
    (split / ".hydra" / "merged_config.yaml").write_text(f"scene: {{objects: {{movable_objects: {blocks}}}}}\n")


# --- how fast, how large, how good ---------------------------------------------------------------


def rates_of(
    ways: dict[str, Callable[[np.ndarray], object]], seconds: float, rounds: int, count: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Windows that each way reads in a second of a clock, given numbers of `BATCH` windows at a time.

    The ways take turns, so that a machine that others use, too, is as slow for one as for the other; the best of
    so many rounds counts.
    """
    best = dict.fromkeys(ways, 0.0)
    for turn in range(rounds):
        for name, read in ways.items():
            rng, done, started = np.random.default_rng(turn), 0, clock()
            while clock() - started < seconds / rounds:
                read(rng.integers(0, count, BATCH))
                done += BATCH
            best[name] = max(best[name], done / (clock() - started))
    return best


def figures_of(folder: Path, packed: Path, frames: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Bytes, windows a second and PSNR."""
    files = [folder / "training" / f"episode_{frame:07d}.npz" for frame in range(frames // SEGMENT * SEGMENT)]

    def whole_files(numbers: np.ndarray) -> None:
        for number in numbers:
            with np.load(files[number]) as file:
                _ = {name: file[name] for name in file.files}

    ways: dict[str, Callable[[np.ndarray], object]] = {"npz_whole": whole_files}
    read = []
    for window, chunk in ((1, 8), (1, 1), (12, 10)):
        windows = Windows([packed], window=window, chunk=chunk, cameras=SIZES, vectors=VECTORS)
        ways[f"npz_T{window}_K{chunk}"] = FromFiles(files, window, chunk).read
        ways[f"store_T{window}_K{chunk}"] = windows.__getitems__
        read.append(windows)
    rates = rates_of(ways, seconds, rounds, len(files), time.perf_counter)
    for windows in read:
        windows.folders[0].threads = 1
    alone = rates_of(ways, seconds, rounds, len(files), time.process_time)
    os.sync()  # what is not on the disk yet cannot be forgotten
    disk: dict[str, Callable[[np.ndarray], object]] = {}
    for windows in read:
        windows.folders[0].threads = cores()
        name = f"T{windows.window}_K{windows.chunk}"
        disk[f"npz_{name}"] = FromFiles(files, windows.window, windows.chunk, cold=True).read
        disk[f"store_{name}"] = from_disk(windows, packed)
    cold = rates_of(disk, seconds, rounds, len(files), time.perf_counter)
    bytes_npz = sum(file.stat().st_size for file in files)
    bytes_store = sum(file.stat().st_size for file in packed.iterdir())
    return {
        "bytes_ratio": round(bytes_npz / bytes_store, 2),
        "windows_ratio": round(cold["store_T1_K8"] / cold["npz_T1_K8"], 2),
        "windows_ratio_T12_K10": round(cold["store_T12_K10"] / cold["npz_T12_K10"], 2),
        "in_memory_T1_K8": round(rates["store_T1_K8"] / rates["npz_T1_K8"], 2),
        "in_memory_T1_K1": round(rates["store_T1_K1"] / rates["npz_T1_K1"], 2),
        "in_memory_T12_K10": round(rates["store_T12_K10"] / rates["npz_T12_K10"], 2),
        "in_memory_whole_files": round(rates["store_T1_K1"] / rates["npz_whole"], 2),
        "in_memory_T1_K8_one_thread": round(alone["store_T1_K8"] / alone["npz_T1_K8"], 2),
        "in_memory_whole_files_one_thread": round(alone["store_T1_K1"] / alone["npz_whole"], 2),
        "windows_per_s_from_disk": {name: round(value, 1) for name, value in cold.items()},
        "windows_per_s_in_memory": {name: round(value, 1) for name, value in rates.items()},
        "decoding_threads": cores(),
        "npz_bytes_a_frame": bytes_npz // len(files),
        "store_bytes_a_frame": bytes_store // len(files),
        "psnr_db": round(psnr(files, packed), 2),
    }


class FromFiles:
    """Windows of T frames and K actions straight from frames' files, of which no more is read than a window holds.

    Args:
        files: in order; segments of `SEGMENT`.
        window: T.
        chunk: K.
        cold: whether the system forgets a file before it is read, as it has where a data set is larger than memory.
    """

    def __init__(self, files: list[Path], window: int, chunk: int, cold: bool = False) -> None:
        self.files, self.window, self.chunk, self.cold = files, window, chunk, cold

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of windows that end at these frames, without masks and sentences."""
        rows: dict[str, list[np.ndarray]] = {name: [] for name in (*SIZES, *VECTORS, "actions")}
        for last in numbers.tolist():
            first, stop = last // SEGMENT * SEGMENT, last // SEGMENT * SEGMENT + SEGMENT
            past = [max(first, last - back) for back in range(self.window - 1, -1, -1)]
            ahead = [min(last + step, stop - 1) for step in range(1, self.chunk)]
            frames = {number: self._frame(number, (*SIZES, *VECTORS, "rel_actions")) for number in set(past)}
            frames |= {number: self._frame(number, ("rel_actions",)) for number in set(ahead) - set(past)}
            for name in (*SIZES, *VECTORS):
                rows[name].append(np.stack([frames[number][name] for number in past]))
            steps = [[min(number + k, stop - 1) for k in range(self.chunk)] for number in past]
            rows["actions"].append(np.array([[frames[number]["rel_actions"] for number in row] for row in steps]))
        return {name: np.stack(values) for name, values in rows.items()}

    def _frame(self, number: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        if self.cold:
            forget(self.files[number])
        with np.load(self.files[number]) as file:
            return {name: _shown(name, file[name]) for name in names}


def from_disk(windows: Windows, packed: Path) -> Callable[[np.ndarray], object]:
    """Reads windows of a packed folder that the system has forgotten."""

    def read(numbers: np.ndarray) -> dict[str, Any]:
        for file in packed.iterdir():
            forget(file)
        return windows.__getitems__(numbers)

    return read


def forget(file: Path) -> None:
    """Lets the system forget a file's content, so that it is read from the disk."""
    handle = os.open(file, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _shown(name: str, value: np.ndarray) -> np.ndarray:
    return resize_image(value, SIZES[name]) if name in SIZES else value.astype(np.float32)


def psnr(files: list[Path], packed: Path) -> float:
    """Of both cameras' images, over all pixels (dB)."""
    folder, square, count = PackedFolder(packed), 0.0, 0
    for row in range(0, len(files), 7):
        with np.load(files[row]) as file:
            for name in SIZES:
                error = folder.take(name, np.array([row]))[0].astype(float) - file[name]
                square, count = square + float((error**2).sum()), count + error.size
    return float(10 * np.log10(255**2 / (square / count)))


# --- the start of a run on a set of CALVIN's size ------------------------------------------------


def simulate(folder: Path, packed: Path, rows: int) -> Path:
    """A data set of so many frames and its packed copy, made of one shard of another; frames' files are left out.

    The copy is what packing such a set leaves: index, checksums, places of the images, all of full size.
    """
    split = folder / "training"
    write_annotations(split, [(i, min(i + 100, rows)) for i in range(0, rows, 100)])
    (split / "episode_0000000.npz").write_bytes(next((packed.parents[1] / "set").rglob("*.npz")).read_bytes())
    source = open_source(folder)
    small = read_index(packed)
    block = small["block"]
    target = building.Packing(source, folder / "packed", SETTINGS, QUIET).target
    target.mkdir(parents=True)
    arrays = {name: ((rows, *shape[1:]), kind) for name, (shape, kind) in arrays_of(small).items()}
    one = {name: np.load(packed / f"{name}.npy")[:block] for name in arrays}
    one = {name: np.resize(value, (block, *value.shape[1:])) for name, value in one.items()}
    building.create_arrays(target, arrays)
    blocks: dict[str, dict[str, int]] = {}
    for name in arrays:
        file = np.load(target / f"{name}.npy", mmap_mode="r+")
        for first in range(0, rows, block):
            file[first : first + block] = one[name][: rows - first]
        file.flush()
        whole, last = zlib.crc32(one[name].tobytes()), zlib.crc32(one[name][: rows % block or block].tobytes())
        blocks[name] = {str(first): whole if first + block <= rows else last for first in range(0, rows, block)}
    for first in range(0, rows, block):
        os.link(packed / shard_name(0), target / shard_name(first))
    samples = [
        {"rows": [s.first, s.stop], "kind": s.kind, "task": s.task, "instruction": s.instruction, "bounds": s.bounds}
        for s in source.samples
    ]
    index = small | {
        "key": making.key_of(source, SETTINGS),
        "frames": rows,
        "arrays": arrays_as_json(arrays),
        "samples": samples,
        "episodes": [[0, rows]],
        "blocks": blocks,
        "shards": {str(first): small["shards"]["0"] for first in range(0, rows, block)},
    }
    note_verified(target, arrays)
    write_sealed(target / INDEX, index)
    write_sealed(target / building.LOOKED, {"stamp": source.stamp()})
    return folder


def start(folder: Path) -> None:
    """What a training process does first, in a process of its own; prints time and memory."""
    begin = time.perf_counter()
    assert set(SIZES) <= open_source(folder).spec.cameras.keys()
    found = pack_or_find([(folder, "training")], None, SETTINGS, "compressed", console=QUIET)
    from roboflamingo.data.sampling import BatchNumbers, WindowStream

    windows = Windows(found, window=12, chunk=10, cameras=SIZES, vectors=VECTORS)
    numbers = iter(BatchNumbers(WindowStream(windows.draw_weights(), 0), BATCH))
    windows.__getitems__(next(numbers))
    seconds, first = time.perf_counter() - begin, _memory()
    for _ in range(20):
        windows.__getitems__(next(numbers))
    print(
        json.dumps({"windows": len(windows), "start_s": round(seconds, 2), **first, "later_mb": _memory()["start_mb"]})
    )


def _memory() -> dict[str, float]:
    held = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {name: float(held[name].split()[0]) / 1e3 for name in ("RssAnon", "VmRSS")}
    return {"start_mb": round(sizes["RssAnon"], 1), "start_with_shared_mb": round(sizes["VmRSS"], 1)}


# --- which codec ---------------------------------------------------------------------------------


def codecs(folder: Path) -> None:
    """Prints size, PSNR and times of ways to keep one camera's images."""
    import simplejpeg
    from PIL import Image

    files = sorted((folder / "training").glob("episode_*.npz"))[::11][:40]
    images = [np.load(file)["rgb_static"] for file in files]

    def pillow(**how: Any) -> Callable[[np.ndarray], bytes]:
        def write(image: np.ndarray) -> bytes:
            held = io.BytesIO()
            Image.fromarray(image).save(held, **how)
            return held.getvalue()

        return write

    def by_pillow(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    def by_torchvision(data: bytes) -> np.ndarray:
        from torchvision.io import decode_jpeg

        held = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        shown: np.ndarray = decode_jpeg(held).permute(1, 2, 0).numpy()
        return shown

    ways: dict[str, tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]] = {
        "JPEG 90, simplejpeg": (encode, simplejpeg.decode_jpeg),
        "JPEG 90, Pillow": (encode, by_pillow),
        "JPEG 90, torchvision": (encode, by_torchvision),
        "JPEG 95, simplejpeg": (
            lambda i: simplejpeg.encode_jpeg(i, 95, colorsubsampling="444"),
            simplejpeg.decode_jpeg,
        ),
        "WebP 90, Pillow": (pillow(format="WEBP", quality=90), by_pillow),
        "WebP lossless, Pillow": (pillow(format="WEBP", lossless=True, method=0), by_pillow),
        "PNG, Pillow": (pillow(format="PNG"), by_pillow),
    }
    for name, (write, read) in ways.items():
        read(write(images[0]))  # what is imported or made once does not count
        begin = time.process_time()
        held = [write(image) for image in images]
        middle = time.process_time()
        shown = [read(data) for data in held]
        took, took_back = middle - begin, time.process_time() - middle
        error = float(np.mean([(a.astype(float) - b) ** 2 for a, b in zip(images, shown, strict=True)]))
        quality = f"{10 * np.log10(255**2 / error):5.1f} dB" if error else "  exact "
        size = np.mean([len(data) for data in held]) / 1e3
        milliseconds = f"{took / len(images) * 1e3:5.2f} ms to write, {took_back / len(images) * 1e3:5.2f} ms to read"
        print(f"{name:22s} {size:6.1f} kB {quality} {milliseconds}")


def videos(folder: Path) -> None:
    """Prints the same of one camera's images as H.264, each drawn at random."""
    import av

    files = sorted((folder / "training").glob("episode_*.npz"))[:SEGMENT]
    images, rng = [np.load(file)["rgb_static"] for file in files], np.random.default_rng(0)
    for apart in (2, 30):
        held = io.BytesIO()
        with av.open(held, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "18", "g": str(apart)})
            stream.width, stream.height, stream.pix_fmt = images[0].shape[1], images[0].shape[0], "yuv420p"
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        with av.open(io.BytesIO(held.getvalue())) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        with av.open(io.BytesIO(held.getvalue())) as container:
            stream, times = container.streams.video[0], []
            for number in rng.integers(0, len(images), 60).tolist():
                begin, wanted = time.process_time(), round(number / 30 / stream.time_base)
                container.seek(wanted, stream=stream)
                next(frame for frame in container.decode(stream) if frame.pts >= wanted).to_ndarray(format="rgb24")
                times.append(time.process_time() - begin)
        error = float(np.mean([(a.astype(float) - b) ** 2 for a, b in zip(images, shown, strict=True)]))
        figures = f"{len(held.getvalue()) / len(images) / 1e3:6.1f} kB {10 * np.log10(255**2 / error):5.1f} dB"
        print(f"H.264, key every {apart:<6d} {figures} {np.median(times) * 1e3:5.2f} ms to read")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=600, help="that are drawn")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each rate")
    parser.add_argument("--rounds", type=int, default=4, help="of which the best counts")
    parser.add_argument("--rows", type=int, default=2_400_000, help="of the data set whose start is measured")
    parser.add_argument("--codecs", action="store_true", help="compare ways to keep images, too")
    parser.add_argument("--scratch", type=Path, help="a folder with room for some GB; else the system's")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.start:
        start(options.start)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch) / "set"
        write_set(folder, max(options.frames, SEGMENT))
        begin = time.perf_counter()
        (packed,) = pack_or_find(
            [(folder, "training")], Path(scratch) / "packed", SETTINGS, "compressed", console=QUIET
        )
        seconds = time.perf_counter() - begin
        figures = figures_of(folder, packed, options.frames, options.seconds, options.rounds)
        if options.codecs:
            codecs(folder)
            videos(folder)
        large = simulate(Path(scratch) / "large", packed, options.rows)
        command = [sys.executable, __file__, "--start", str(large)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures |= json.loads(done.stdout.splitlines()[-1])
    frames = options.frames // SEGMENT * SEGMENT
    figures |= {"frames": frames, "rows": options.rows, "packing_frames_per_s": round(frames / seconds, 1)}
    for name, figure in figures.items():
        print(f"{name:28s} {figure}")
    print(json.dumps({**figures, **made_on(1)}))


if __name__ == "__main__":
    main()
