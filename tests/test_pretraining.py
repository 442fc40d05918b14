"""Pre-training: what of a text counts, what is right, that runs continue, and what becomes of the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from calvin_eval.captions.gathering import GatherSettings, gather
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_lines
from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.cli.pretrain import PretrainVerb
from roboflamingo.pretraining import PretrainConfig, pretrain
from roboflamingo.pretraining.accuracy import accuracy
from roboflamingo.pretraining.model import _masks
from roboflamingo.pretraining.pictures import Joined, Pictures, given, order, written
from roboflamingo.pretraining.train import _Run

TINY = BackboneConfig(
    vision=VisionConfig(image_size=32, patch_size=16, width=32, layers=1, heads=2, stem_width=8),
    language=LanguageConfig(width=32, layers=2, heads=2, max_tokens=48),
    resampler=ResamplerConfig(latents=2, heads=2, head_width=8),
    cross_attention=CrossAttentionConfig(heads=2, head_width=8),
)
SMALL = GatherSettings(frames=12, shard=6, per_world=6, static=32, gripper=32, questions=4, scattered=0.5)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    gather(out / "train", SMALL, workers=1)
    gather(out / "held_out", replace(SMALL, frames=6, seed=9), workers=1)
    return out


def config(recordings: Path, run: Path, **changed: object) -> PretrainConfig:
    made = PretrainConfig(
        run=str(run),
        data=[str(recordings / "train")],
        held_out=[str(recordings / "held_out")],
        backbone=TINY,
        max_steps=4,
        batch_size=4,
        texts=3,
        warmup_steps=1,
        precision="fp32",
        log_every_steps=2,
        validate_every_steps=3,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def run_of(recordings: Path, folder: Path, **changed: object) -> _Run:
    return _Run(config(recordings, folder, **changed), ("zebra",), Console(quiet=True))


def test_what_is_given_does_not_count_as_answer(recordings: Path, tmp_path: Path) -> None:
    run = run_of(recordings, tmp_path)
    asked = [[("where_block", "where is the red block", "on the table")], [("caption", "caption", "the led is off")]]
    rows, starts, picture = run.batches.tokens(asked)
    tokenizer = run.model.backbone.instructions.tokenizer
    said = [tokenizer.convert_ids_to_tokens(row[start:]) for row, start in zip(rows, starts, strict=True)]
    assert said == [["on", "the", "table", "<|endofchunk|>"], ["the", "led", "is", "off", "<|endofchunk|>"]]
    assert picture == [0, 1] and {row[0] for row in rows} == {tokenizer.convert_tokens_to_ids("<image>")}
    length = max(map(len, rows))
    before, answer = _masks(rows, starts, [0, 1], torch.zeros(2, length, dtype=torch.long))
    assert answer.sum(1).tolist() == [4, 5] and before.sum(1).tolist() == [starts[0] - 1, starts[1] - 1]
    assert not bool((before & answer).any())


def test_a_text_is_a_question_and_its_answer() -> None:
    assert written("led", "is the led on", "no") == "question is the led on answer no"
    assert written("caption", "", "the led is off") == "the led is off" and given("caption", "") == ""


def test_every_picture_comes_once_before_any_comes_again() -> None:
    numbers = order(5, seed=3)
    first, second = [next(numbers) for _ in range(5)], [next(numbers) for _ in range(5)]
    assert sorted(first) == sorted(second) == list(range(5)) and first != second
    again = order(5, seed=3)
    assert [next(again) for _ in range(10)] == first + second


def test_pictures_of_several_folders_stand_in_a_row(recordings: Path) -> None:
    train, held_out = Pictures(recordings / "train"), Pictures(recordings / "held_out")
    both = Joined([train, held_out])
    assert len(both) == 18 and both[12].texts == held_out[0].texts and both[11].texts == train[11].texts
    assert (both[17].images["static"] == held_out[5].images["static"]).all()
    assert train.digest != held_out.digest and train.sizes == {"static": 32, "gripper": 32}


def test_a_model_that_has_learned_a_picture_answers_about_it(recordings: Path, tmp_path: Path) -> None:
    run = run_of(recordings, tmp_path, max_steps=400, learning_rate=4e-3, shift=0.0, held_out=[], texts=4)
    few = [run.pictures[0], run.pictures[1]]
    held = Pictures(recordings / "train")
    before = accuracy(run.model, held, run.batches, run.arithmetic, most=1)
    first = run._step(few)
    for step in range(1, 120):
        run.step = step
        last = run._step(few)
    after = accuracy(run.model, held, run.batches, run.arithmetic, most=1)  # of the first picture
    assert last["loss"] < 0.3 * first["loss"]
    assert after["answers"] > 0.9 and before["answers"] < 0.5 and after["state"] < 0.6 * before["state"]


def test_a_continued_run_is_the_uninterrupted_one(recordings: Path, tmp_path: Path) -> None:
    whole = pretrain(config(recordings, tmp_path / "whole"), console=Console(quiet=True))
    cut = _Run(config(recordings, tmp_path / "cut"), (), Console(quiet=True))
    cut._check_same(None)
    numbers = order(12, 0)
    for step in range(2):
        cut.step = step
        cut._step([cut.pictures[next(numbers)] for _ in range(4)])
    cut.step = 2
    cut._save()
    again = pretrain(config(recordings, tmp_path / "cut"), console=Console(quiet=True))
    assert (whole / "weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 3, 4, 4] and "held_out.answers" in lines[-1]
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["accuracy"]["held_out"].keys() >= {"answers", "state"} and results["seed"] == 0
    assert "| answers |" in (whole / "README.md").read_text() and results["pictures"] == 12
    mine = [path.stat().st_mtime_ns for path in sorted(whole.iterdir())]
    assert pretrain(config(recordings, tmp_path / "whole"), console=Console(quiet=True)) == whole
    assert mine == [path.stat().st_mtime_ns for path in sorted(whole.iterdir())]
    with pytest.raises(UserError, match="began with seed 0, and now it is 1"):
        pretrain(config(recordings, tmp_path / "whole", seed=1), console=Console(quiet=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": []}, "data is empty"),
        ({"data": ["nowhere"]}, "nowhere has no shards"),
        ({"shift": 0.7}, "must be below 0.5"),
    ],
)
def test_what_cannot_be_learned_from_is_named(
    recordings: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(config(recordings, tmp_path / "run", **changed), console=Console(quiet=True))


def test_held_out_pictures_are_not_learned_from(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds what data has"):
        pretrain(config(recordings, tmp_path, held_out=[str(recordings / "train")]), console=Console(quiet=True))


def test_an_unfinished_or_damaged_recording_is_refused(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    for shard in (recordings / "train").glob("shard_00000"):
        (folder / shard.name).mkdir(parents=True)
        for file in shard.iterdir():
            (folder / shard.name / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="holds 6 of 12 pictures"):
        Pictures(folder)
    (folder / "shard_00000" / "texts.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="shard_00000 is damaged"):
        Pictures(folder)


def test_scene_d_is_never_learned_from(tmp_path: Path) -> None:
    training = PretrainConfig(run=str(tmp_path))
    with pytest.raises(UserError, match=r"pictures\.scenes has D"):
        PretrainVerb(training, pictures=replace(SMALL, scenes=("A", "D"), varied=False))


def test_pictures_that_would_not_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.data does nothing here"):
        PretrainVerb(PretrainConfig(run=str(tmp_path), data=["elsewhere"]))
