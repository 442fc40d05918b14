"""`roboflamingo data`: what it says of whole and of damaged data sets, and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from calvin_eval.benchmark.chains import chains
from roboflamingo.cli.main import main
from roboflamingo.data.lists import read_wordings
from roboflamingo.data.places import splits_at
from roboflamingo.training.train import train
from runs import losses, tiny_run, write_yaml
from synthetic import QUIET, write_dataset, write_frame


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What a command prints, its status checked."""
    capsys.readouterr()
    if status:
        with pytest.raises(SystemExit) as ended:
            main(["data", *words])
        assert ended.value.code == status
    else:
        main(["data", *words])
    streams = capsys.readouterr()
    return streams.out + streams.err


def test_inspect_tells_what_a_set_holds(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inspect", str(dataset), "--processes", "1")
    assert "set/training" in text and "calvin: 41 frames in 1 episodes, 30 Hz" in text
    assert "rgb_static 40 x 40, rgb_gripper 24 x 24" in text
    assert "robot_obs (15)" in text and "scene_obs (24)" in text
    assert "pose (continuous, 6), gripper (binary, 1)" in text
    assert "4 of 4 tasks, 5 to 12 frames, 8 in the middle; 33 windows" in text
    assert "4, as: please open drawer 0; please close drawer 1" in text
    assert "open_drawer" in text and "none; all frames read" in text and "pose[0] (m)" in text and "█" in text
    assert "set/validation" in text


def test_inspect_names_missing_and_damaged_frames_and_writes_a_page(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "training" / "episode_0000101.npz").unlink()
    (dataset / "training" / "episode_0000103.npz").write_bytes(b"no archive")
    page = tmp_path / "page.html"
    text = said(capsys, "inspect", str(dataset), "--processes", "1", "--html", str(page))
    assert "1: " in text and "episode_0000101.npz" in text
    assert "2: " in text and "episode_0000103.npz: the archive cannot be read" in text
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 2 * 5 + 2 * 6 + 2  # strips of both cameras, histograms
    assert "episode_0000103.npz: the archive cannot be read" in html and "Missing and damaged frames" in html
    assert "http" not in html.replace("https://www.w3.org", "")  # it stands alone
    text = said(capsys, "inspect", str(dataset), "--processes", "1", "--frames", "3")
    assert "3 of 41 frames read" in text


def test_inspect_of_a_set_without_annotations(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("training", "validation"):
        shutil.rmtree(dataset / split / "lang_annotations")
    assert "nothing is said of its frames" in said(capsys, "inspect", str(dataset), "--processes", "1")


def test_verify_reads_every_frame_and_names_the_damaged(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "verify", str(dataset), "--processes", "1")
    assert "set/training: 41 frames, whole" in text and "set/validation: 18 frames, whole" in text
    write_frame(dataset / "training" / "episode_0000139.npz", np.random.default_rng(0), robot_obs=np.full(15, np.nan))
    (dataset / "validation" / "episode_0009001.npz").unlink()
    text = said(capsys, "verify", str(dataset), "--processes", "2", status=1)
    assert "training/episode_0000139.npz: robot_obs" in text  # no segment needs it
    assert "validation/episode_0009001.npz is missing, but segment 0" in text
    assert "set/training: 41 frames, 1 of them damaged" in text and "2 damaged" in text


def test_pack_makes_a_set_of_its_own_that_trains(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    text = said(capsys, "pack", str(dataset), "--out", str(store), "--processes", "1")
    assert f"{store / 'training'}: 0.00 GB" in text
    shutil.rmtree(dataset)
    assert splits_at(store) == ("training", "validation")
    text = said(capsys, "inspect", str(store), "--processes", "1")
    assert "packed: 41 frames in 1 episodes" in text and "4 of 4 tasks" in text and "none; all frames read" in text
    main(["info", str(store)])
    assert "training" in (told := capsys.readouterr().out) and "places" in told and "41 x 2 x 3 uint32" in told
    text = said(capsys, "verify", str(store))
    assert f"{store / 'training'}: 41 frames, whole" in text
    config = tiny_run(tmp_path / "run", store, max_steps=2, validation_windows=4, loggers=["jsonl"])
    train(config, console=QUIET)
    assert len(losses(tmp_path / "run")) == 2
    shard = next((store / "training").glob("images-*.bin"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    (store / "validation" / "actions.npy").unlink()
    text = said(capsys, "verify", str(store), status=1)
    assert f"{shard} is damaged" in text and "actions.npy cannot be read: No such file" in text and "2 damaged" in text


def test_pack_again_does_nothing_and_leaves_out_as_asked(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pack", str(dataset), "--out", str(tmp_path / "store"), "--processes", "1")
    said(capsys, *words)
    written = (tmp_path / "store" / "training" / "index.json").stat().st_mtime_ns
    assert "packed again" not in said(capsys, *words)
    assert (tmp_path / "store" / "training" / "index.json").stat().st_mtime_ns == written
    (dataset / "training" / "episode_0000103.npz").write_bytes(b"no archive")
    assert "episode_0000103.npz: the archive cannot be read" in said(capsys, *words, status=1)
    assert "1 of 41 frames cannot be read" in said(capsys, *words, "--damaged", "leave_out")
    config = tiny_run(tmp_path / "run", tmp_path / "store", max_steps=1, validation_windows=0)
    with pytest.raises(Exception, match=r"set data\.damaged to leave_out, or mend the data"):
        train(config, console=QUIET)


def test_pack_with_a_configuration_packs_what_training_would(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tiny_run(tmp_path / "run", dataset, max_steps=1), tmp_path / "run.yaml")
    text = said(capsys, "pack", "--config", str(config))
    folders = sorted((dataset / "packed").iterdir())
    assert len(folders) == 2 and all(str(folder) in text for folder in folders)
    assert "images are packed decoded" in text and "is packed" not in said(capsys, "pack", "--config", str(config))


def test_wordings_of_chains_become_sentences_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = [[f"{task} please {number % 3}" for task in chain.tasks] for number, chain in enumerate(chains(30))]
    (tmp_path / "cache.json").write_text(json.dumps(held))
    out = tmp_path / "wordings.yaml"
    said(capsys, "wordings", str(tmp_path / "cache.json"), "--out", str(out))
    task = chains(1)[0].tasks[0]
    assert f"{task} please 0" in read_wordings(out, [task])[task]
    assert len(yaml.safe_load(out.read_text())[task]) <= 3
    (tmp_path / "cache.json").write_text(json.dumps([["one"]]))
    assert "chain 0 needs 5 sentences" in said(
        capsys, "wordings", str(tmp_path / "cache.json"), "--out", str(out), status=1
    )


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (["bake"], "invalid choice", 2),
        (["inspect", "nowhere"], "nowhere does not exist", 1),
        (["verify", "."], "is no data set of a known kind", 1),
        (["inspect", ".", "--processes", "0"], "no data set", 1),
    ],
)
def test_wrong_words_are_messages(
    words: list[str], message: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in said(capsys, *words, status=status)
