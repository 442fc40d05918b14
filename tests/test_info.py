"""`info` says of everything that this project writes or reads what it is, and of damaged files that they are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from calvin_eval.system.errors import UserError
from mutations import damaged
from policies import small_policy
from roboflamingo.cli.contents import describe
from roboflamingo.cli.main import main
from roboflamingo.weights.checkpoint import save_policy
from synthetic import write_dataset


def told(path):
    return "\n".join(f"{name}: {value}" for name, value in describe(path))


def write_run(folder):
    """What training leaves, its last line cut short by a kill."""
    folder.mkdir(parents=True)
    lines = [{"step": 5, "epoch": 1, "loss": 0.5, "elapsed_s": 60.0}, {"step": 5, "val_loss": 0.25}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 6, "lo')
    save_policy(small_policy(), folder / "policy")
    return folder


def write_evaluation(folder, *, finished=True):
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"settings": {"chains": 4}, "policy": "runs/x/policy"}))
    (folder / "environment.json").write_text(json.dumps({"scene": "D"}))
    (folder / "chains.jsonl").write_text('{"index": 0, "solved": 5}\n{"index": 1, "solved": 0}\n')
    if finished:
        summary = {"avg_seq_len": 2.5, "chain_sr": {"1": 0.5}}
        (folder / "results.json").write_text(json.dumps({"null": summary}))
    return folder


def test_a_run_with_half_a_last_line(tmp_path):
    text = told(write_run(tmp_path / "run"))
    assert "run: a training run" in text and "trained: 5 steps, 1 epochs, 1.0 minutes" in text
    assert "held-out loss: 0.2500, best 0.2500 at step 5" in text and "policy: a policy: preset" in text


def test_a_policy_and_its_files(tmp_path):
    policy = small_policy()
    save_policy(policy, tmp_path / "policy")
    numbers = sum(p.numel() for p in policy.parameters())
    assert f"weights.safetensors: {numbers:,} numbers (F32)" in told(tmp_path / "policy")
    text = told(tmp_path / "policy" / "weights.safetensors")
    assert f"tensors, {numbers:,} numbers (float32)" in text and "backbone: " in text


def test_a_checkpoint_of_others(tmp_path):
    torch.save({"model_state_dict": {"module.perceiver.latents": torch.zeros(3, 2)}}, tmp_path / "checkpoint.pth")
    assert "checkpoint.pth: weights: 1 tensors, 6 numbers (float32)" in told(tmp_path / "checkpoint.pth")


def test_an_evaluation_finished_and_not(tmp_path):
    text = told(write_evaluation(tmp_path / "chains"))
    assert "an evaluation: 2 of 4 chains" in text and "average length: 2.50 of 5" in text and "1: 50.0%" in text
    text = told(write_evaluation(tmp_path / "more", finished=False))
    assert "2 of 4 chains; the same `roboflamingo evaluate` continues it" in text


def test_a_demo_names_its_parts(tmp_path):
    demo = tmp_path / "demo"
    write_run(demo / "train1")
    write_evaluation(demo / "closed_loop")
    write_dataset(demo / "data" / "round1" / "task_D_D")
    (demo / "config.yaml").write_text("scene: D\n")
    shutil.copy(demo / "train1" / "metrics.jsonl", demo / "metrics.jsonl")
    (demo / "results.json").write_text(json.dumps({"closed loop": {"avg_seq_len": 1.5}}))
    text = told(demo)
    assert "demo: a demo" in text and "closed loop: average length 1.50" in text
    assert "train1: a training run" in text and "closed_loop: an evaluation" in text
    assert "data/round1/task_D_D: a data set" in text
    assert told(tmp_path) == f"{tmp_path.name}: a folder of:\n  demo: a demo"


def test_a_collection_finished_and_not(tmp_path):
    data = write_dataset(tmp_path / "task_D_D")
    settings = {"scenes": "D", "validation_scene": "D", "episodes": 8, "validation_episodes": 2}
    (data / "settings.json").write_text(json.dumps(settings))
    (data / "training" / ".pieces" / "3").mkdir(parents=True)
    (data / "training" / ".pieces" / "3" / "piece.json").write_text("{}")
    assert "not finished; the same `roboflamingo collect` continues it" in told(data)
    assert "training: 1 of 8 episodes recorded" in told(data)
    shutil.rmtree(data / "training" / ".pieces")
    (data / "collection.json").write_text(json.dumps({"made_with": {"git": "abc"}}))
    assert "collection: finished; scenes D, validation in D; made by revision abc" in told(data)
    empty = tmp_path / "task_ABC_D"
    empty.mkdir()
    (empty / "settings.json").write_text(json.dumps(settings))
    assert "training: 0 of 8 episodes recorded" in told(empty)


def test_a_set_without_annotations_and_with_other_names(tmp_path):
    data = write_dataset(tmp_path / "data")
    assert "4 of 4 tasks" in told(data)
    for split in ("training", "validation"):
        shutil.rmtree(data / split / "lang_annotations", ignore_errors=True)
    for file in (data / "training").glob("episode_*.npz"):
        file.rename(file.with_name(f"episode_{file.stem[-6:]}.npz"))
    text = told(data)
    assert "segments: none: no lang_*/auto_lang_ann.npy" in text
    assert "names: frame numbers of 6 digits, where CALVIN has 7" in text
    assert "segments: none" in told(data / "training")


def test_packed_data_and_published_models(tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("rgb_static", "rgb_gripper"):
        np.save(packed / f"{name}.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save(packed / "digests.npy", np.zeros((3, 16), np.uint8))
    assert "packed: packed data" in told(packed) and "rgb_static: 3 x 8 x 8 x 3 uint8" in told(packed)
    (packed / "rgb_static.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"rgb_static\.npy is damaged.*packed anew"):
        told(packed)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mpt"}')
    assert "model: a published model of type mpt" in told(model)


@pytest.mark.parametrize("name", ["nowhere", "empty", "config.yaml"])
def test_other_things_are_refused_by_name(tmp_path, name, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SystemExit) as exit:
        main(["info", str(tmp_path / name)])
    assert exit.value.code == 1 and str(tmp_path / name) in capsys.readouterr().err.replace("\n", "")


def test_damage_is_a_message(tmp_path):
    run, evaluation = write_run(tmp_path / "run"), write_evaluation(tmp_path / "chains")
    for path in (run / "metrics.jsonl", evaluation / "settings.json", evaluation / "results.json",
                 evaluation / "chains.jsonl", run / "policy" / "sha256.json"):  # fmt: skip
        original = path.read_bytes()
        for content in damaged(original, 30):
            path.write_bytes(content)
            try:
                told(run if run in path.parents else evaluation)
            except UserError as error:
                assert str(path) in str(error) or str(run / "policy") in str(error)
        path.write_bytes(original)


def test_the_machine_is_told(capsys):
    main(["info"])
    said = capsys.readouterr().out
    assert "GFLOP/s" in said and "precision: auto" in said and "cores" in said
