"""Kills every long command at many instants, lets it go on, and compares what it leaves with an uninterrupted run.

    python benchmarks/kills.py [--instants 25] [--parts collect pack train evaluate] [--signal KILL]

The instants are spread evenly from the first file that a command writes to its end. After each kill there must be no
process left a second later, the same command must run to its end, and then everything must be as in the uninterrupted
run, but for clocks. The last line is one line of JSON; the exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from calvin_eval.system.files import read_lines
from calvin_eval.system.provenance import fingerprint, provenance

CLOCKS = ("elapsed_s", "frames_per_s")
PACK = """
import sys
from pathlib import Path
from roboflamingo.data.sources import open_source
from roboflamingo.data.store.packing import pack
from roboflamingo.data.store.settings import PackSettings
if __name__ == "__main__":
    split = Path(sys.argv[1])
    settings = PackSettings(cameras={"rgb_static": 96, "rgb_gripper": 64}, vectors=("robot_obs", "scene_obs"))
    pack(open_source(split.parent, split.name), Path(sys.argv[2]), settings, processes=2)
"""
SMALL = {
    "validate_every_steps": 10,
    "validation_windows": 32,
    "save_every_steps": 5,
    "log_every_steps": 2,
    "batch_size": 4,
    "max_steps": 40,
    "accelerator": "cpu",
}


@dataclass(frozen=True)
class Part:
    """A command that is killed.

    Attributes:
        command: writes into the folder that takes the place of "OUT".
        digest: what the folder holds, clocks left out.
    """

    command: list[str]
    digest: Callable[[Path], str]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Starts the command in a session of its own, so that all of its processes can be found."""
        words = [word.replace("OUT", str(out)) for word in self.command]
        with (out.parent / "log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)

    def finish(self, out: Path) -> None:
        """Runs the command to its end.

        Raises:
            SystemExit: it failed.
        """
        if self.start(out).wait():
            raise SystemExit(f"{' '.join(self.command)} failed:\n{(out.parent / 'log').read_text()[-4000:]}")


def verb(*words: str) -> list[str]:
    """A command of roboflamingo."""
    return [sys.executable, "-m", "roboflamingo.cli.main", *words]


def digest_data(folder: Path) -> str:
    """Frames and index files; how long it all took is left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "collection.json"):
        digest.update(f"{path.relative_to(folder)} {fingerprint(path)}\n".encode())
    return digest.hexdigest()


def digest_packed(folder: Path) -> str:
    """The arrays."""
    return " ".join(fingerprint(path) for path in sorted(folder.rglob("*.npy")))


def digest_run(folder: Path) -> str:
    """The policy and the log, without clocks."""
    lines = [{k: v for k, v in line.items() if k not in CLOCKS} for line in read_lines(folder / "metrics.jsonl")]
    return f"{fingerprint(folder / 'policy')} {json.dumps(lines)}"


def digest_chains(folder: Path) -> str:
    """Every chain once, in order."""
    return json.dumps(sorted((line["index"], line["solved"], line["steps"]) for line in _chains(folder)))


def _chains(folder: Path) -> list[dict[str, int]]:
    return read_lines(folder / "chains.jsonl")


def parts(scratch: Path) -> dict[str, Part]:
    """All parts; the data set that some of them read is collected first."""
    python, data = sys.executable, scratch / "data"
    collect = ["--settings.episodes=12", "--settings.validation_episodes=2", "--workers=2"]
    subprocess.run(verb("collect", f"--out={data}", *collect), check=True, stdout=subprocess.DEVNULL)
    config = scratch / "train.yaml"
    config.write_text(yaml.safe_dump({"run": "", "data": {"folders": {f"{data}/task_D_D": 1.0}}} | SMALL))
    chains = ["--settings.chains=40", "--renderer=none", "--workers=2", "--batch=2"]
    return {
        "collect": Part(verb("collect", "--out=OUT", *collect), digest_data),
        "pack": Part([python, "-c", PACK, f"{data}/task_D_D/training", "OUT"], digest_packed),
        "train": Part(verb("train", f"--config={config}", "--run=OUT"), digest_run),
        "evaluate": Part(verb("evaluate", "--policy=expert", "--out=OUT", *chains), digest_chains),
    }


def in_session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue  # it has just ended
        if int(session) == leader and state != "Z":
            found.append(int(folder.name))
    return found


def uninterrupted(part: Part, out: Path) -> tuple[float, float, str]:
    """Seconds until the first file, seconds in all, and the digest."""
    started, first = time.monotonic(), 0.0
    process = part.start(out)
    while process.poll() is None:
        if not first and out.exists():
            first = time.monotonic() - started
        time.sleep(0.005)
    part.finish(out)  # finds it complete, or says why not
    return first, time.monotonic() - started, part.digest(out)


def kill_at(part: Part, out: Path, after_s: float, number: int, expected: str) -> tuple[bool, int, list[str]]:
    """Whether something was lost, how many processes outlived the kill, and temporary files left at the end."""
    process = part.start(out)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, number)
    process.wait()
    time.sleep(1.0)
    left = in_session(process.pid)
    for each in left:
        os.kill(each, signal.SIGKILL)
    part.finish(out)
    litter = [str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".hydra"]
    return part.digest(out) != expected, len(left), litter


def main() -> None:
    """Kills and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instants", type=int, default=25, help="kills of each part")
    parser.add_argument("--parts", nargs="+", default=["collect", "pack", "train", "evaluate"], help="which")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL", help="how they are killed")
    given = parser.parse_args()
    number, results, bad = getattr(signal, f"SIG{given.signal}"), {}, False
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        every = parts(scratch)
        for name in given.parts:
            part, work = every[name], scratch / name
            work.mkdir()
            first, end, expected = uninterrupted(part, work / "whole")
            lost, outlived, litter = 0, 0, set[str]()
            for instant in range(given.instants):
                after = first + (end - first) * (instant + 0.5) / given.instants
                was_lost, left, files = kill_at(part, work / "killed", after, number, expected)
                lost, outlived, litter = lost + was_lost, outlived + left, litter | set(files)
                shutil.rmtree(work / "killed")
            results[name] = {"kills": given.instants, "lost": lost, "outlived": outlived, "litter": sorted(litter)}
            bad = bad or bool(lost or outlived or litter)
            print(f"{name:9s} {given.instants} kills from {first:.1f} to {end:.1f} s: {results[name]}", flush=True)
    print(json.dumps({**results, "signal": given.signal, "made_with": provenance()}))
    raise SystemExit(int(bad))


if __name__ == "__main__":
    main()
