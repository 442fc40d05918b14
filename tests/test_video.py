"""Films are whole, or an error that names them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from calvin_eval.calvin import calvin_observation
from calvin_eval.evaluation.films import BAR, SIZE, Clip
from calvin_eval.protocol import Observation


def film(path: Path, steps: int = 60) -> Clip:
    """A film of noise, which is hard to compress."""
    rng, clip = np.random.default_rng(0), Clip(path, 30)
    for step in range(steps):
        images = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (200, 84))
        observation = calvin_observation(*images, np.zeros(15))
        if step == 0:
            clip.begin("open the drawer", observation)
        else:
            clip.add(observation)
    clip.end(True)
    return clip


def test_a_film_appears_when_it_is_complete_and_alone(tmp_path: Path) -> None:
    clip = film(tmp_path / "videos" / "chain_000.mp4")
    assert not clip.path.exists()
    clip.save()
    assert [file.name for file in clip.path.parent.iterdir()] == ["chain_000.mp4"]
    assert imageio.mimread(clip.path, memtest=False)[0].shape == (SIZE + BAR, 2 * SIZE, 3)


@pytest.mark.parametrize("shapes", [{"top": (48, 48)}, {"front": (90, 160), "wrist": (64, 64), "top": (100, 75)}])
def test_a_film_has_a_column_for_each_camera_in_its_proportions(
    tmp_path: Path, shapes: dict[str, tuple[int, int]]
) -> None:
    clip = Clip(tmp_path / "film.mp4", rate_hz=10)
    colours = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
    images = {name: np.full((*size, 3), c, np.uint8) for (name, size), c in zip(shapes.items(), colours, strict=False)}
    clip.begin("a long instruction that does not fit below a single small picture at all", Observation(images))
    clip.end(False)
    clip.save()
    reader: Any = imageio.get_reader(clip.path)
    frames = [reader.get_data(number) for number in range(reader.count_frames())]
    widths = [SIZE * width / height for height, width in shapes.values()]
    assert reader.get_meta_data()["fps"] == 10 and len(frames) == 1 + 8
    assert frames[-1].shape[0] == SIZE + BAR and abs(frames[-1].shape[1] - sum(widths)) <= 2 * len(widths)
    middles = np.cumsum(widths) - np.array(widths) / 2
    for middle, colour in zip(middles, colours, strict=False):
        np.testing.assert_allclose(frames[-1][SIZE // 2, int(middle)], colour, atol=12)
    word = frames[-1][SIZE:, -60:].astype(int)
    assert (word[..., 0] - word[..., 1] > 60).mean() > 0.02  # "failed" in red, and no instruction behind it
    assert not ((word.min(axis=-1) > 150).any(axis=0)).any()


def test_a_film_that_nobody_completes_leaves_nothing(tmp_path: Path) -> None:
    clip = film(tmp_path / "chain_000.mp4", 5)
    clip.discard()
    clip.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, 200_000])
def test_a_full_disk_is_one_line_that_names_the_film_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    program = (
        "import resource; from pathlib import Path; from test_video import film\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"film(Path({str(tmp_path / 'chain_000.mp4')!r})).save()"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: [Errno 5] the encoder ")
    assert last.endswith(f"is the disk full?: '{tmp_path / 'chain_000.mp4'}'")
    assert not list(tmp_path.iterdir())
