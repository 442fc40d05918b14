"""What is typed and what stands in files: every key, what wins, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from policies import small_policy
from roboflamingo.cli.arguments import Given, parse_given
from roboflamingo.cli.collect import CollectConfig
from roboflamingo.cli.convert import ConvertConfig
from roboflamingo.cli.demo_parts import DemoConfig
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.cli.fields import keys_of, leaves, members
from roboflamingo.cli.kinds import of_kind
from roboflamingo.cli.main import VERBS, main
from roboflamingo.heads.config import BUILT_IN
from roboflamingo.training.config import TrainConfig
from roboflamingo.weights.checkpoint import save_policy
from roboflamingo.weights.presets import preset

VERB_OF: dict[type, str] = {
    TrainConfig: "train", EvaluateConfig: "evaluate", CollectConfig: "collect", ConvertConfig: "convert",
    DemoConfig: "demo",
}  # fmt: skip
REQUIRED: dict[type, dict[str, str]] = {
    TrainConfig: {"run": "r", "data.folders": "{a: 1.0}", "max_steps": "1"},
    EvaluateConfig: {"policy": "p", "out": "o"},
    CollectConfig: {},
    ConvertConfig: {"checkpoint": "c", "out": "o"},
    DemoConfig: {},
}


def given(config_class: type, *words: str) -> Given[Any]:
    """What a verb makes of its words."""
    return parse_given(config_class, VERB_OF[config_class], words, summary="", examples="roboflamingo x")


def train(*words: str) -> TrainConfig:
    return given(TrainConfig, *words).config


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Calls the command line, expects an exit status and one line, and returns it."""
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    assert exit.value.code == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    assert message.startswith(f"roboflamingo {words[0]}: error: ")
    return message


# --- first contact -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "keys", "example"),
    [
        ("train", "--run and --data.folders must be given", "--config configs/train_tiny.yaml --run runs/tiny"),
        ("evaluate", "--policy and --out must be given", "--policy runs/demo/train1/policy --out"),
        ("convert", "--checkpoint and --out must be given", "--policy.backbone.preset mpt-1b-dolly"),
        ("report", "folders", ""),
        ("defaults", "folder", ""),
        ("watch", "policy", ""),
        ("weights", "action", ""),
        ("data", "action", ""),
    ],
)
def test_a_verb_without_arguments_says_what_it_needs(
    verb: str, keys: str, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, verb)
    assert keys in message and example in message


@pytest.mark.parametrize("verb", VERBS)
def test_one_wrong_argument_is_named(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "weights": ("get", "mpt-1b"),
        "report": ("runs/a",),
        "data": ("inspect", "a"),
        "defaults": ("a",),
        "watch": ("--policy", "a"),
    }.get(verb, ())
    assert "--colour" in refused(capsys, verb, *words, "--colour", "red")


def sensible(key: str, kind: Any) -> str:
    """A value that a key of this type can have, as it is typed."""
    special = {
        "settings.scenes": "ABC", "settings.validation_scene": "A", "scenes": "AB", "policy.backbone.preset": "scratch",
        "settings.sentences": "enriched", "policy.head.kind": "gpt",
        "policy.action_parts": "[{name: move, kind: categorical, choices: 7}]", "rounds": "[{episodes: 2, steps: 3}]",
        "policy.statistics": "{force: {centre: [0.0], scale: [1.0]}}", "settings.episode.noise.burst_steps": "[2, 5]",
        "policy.kind": "roboflamingo", "policy.backbone.vision.kind": "vit", "policy.backbone.vision.settings": "{}",
        "policy.cameras": "{front: {size: 48, shift: 0}}", "policy.backbone.vision.image_size": "48",
        "policy.backbone.vision.patch_size": "16", "policy.backbone.language.max_tokens": "20",
        "policy.backbone.vision.width": "64", "policy.backbone.language.width": "64", "policy.head.bins": "8",
        "policy.backbone.cross_attention.every": "2", "policy.backbone.language.settings": "{a: 1}",
        "policy.word_dropout": "0.5", "execute": "1", "data.folders": "{a: 2.0}", "data.subset": "{a: b.txt}",
        "data.columns.actions": "{grip: {columns: [6], kind: binary}}", "data.columns.states": "{tool: ['0', '1']}",
        "loggers": "[jsonl, wandb]",
        "optimizer.scale_with": "none", "settings.episode.max_steps": "20", "max_steps": "20",
    }  # fmt: skip
    if key in special:
        return "[1, 2]" if key == "execute" and kind == list[int] else special[key]
    member = next(each for each in members(kind) if each is not type(None))
    origin, arguments = typing.get_origin(member), typing.get_args(member)
    if origin is Literal:
        return str(arguments[-1])
    if origin in (list, tuple):
        return f"[{sensible('', arguments[0])}]"
    return {bool: "true", int: "2", float: "0.5", str: "text"}[member]


BESIDE = {
    "max_epochs": {"max_steps": "null"}, "max_minutes": {"max_steps": "null"},
    "min_delta": {"patience": "2", "validate_every_steps": "5"},
    "patience": {"validate_every_steps": "5"}, "optimizer.reference_batch": {"optimizer.scale_with": "batch"},
    "optimizer.cycles": {"optimizer.schedule": "cosine_restarts"}, "wandb.project": {"loggers": "[wandb]"},
    "wandb.mode": {"loggers": "[wandb]"}, "frozen_precision": {"precision": "bf16"},
    "policy.head.attention_heads": {"policy.head.kind": "gpt"}, "policy.head.dropout": {"policy.head.layers": "2"},
    "policy.head.denoiser_layers": {"policy.head.kind": "flow"}, "policy.head.bins": {"policy.head.kind": "bins"},
    "policy.head.train_steps": {"policy.head.kind": "diffusion", "policy.head.sample_steps": "1"},
    "policy.head.sample_steps": {"policy.head.kind": "flow"},
    "policy.backbone.lora.scale": {"policy.backbone.lora.language": "2"},
    "policy.backbone.lora.dropout": {"policy.backbone.lora.language": "2"},
    "policy.backbone.vision.patch_size": {"policy.backbone.vision.image_size": "32"},
    "policy.action_parts": {"policy.actions": "recorded"}, "policy.statistics": {"policy.vectors": "[force]"},
    "policy.backbone.vision.heads": {"policy.backbone.vision.layers": "1"},
    "policy.backbone.vision.activation": {"policy.backbone.vision.layers": "1"},
    "policy.backbone.vision.source": {"policy.backbone.weights": "published"},
    "policy.backbone.checkpoint": {"policy.backbone.weights": "published"},
    **{f"trainable.{key}": {"trainable.everything": "false"}
       for key in ("resampler", "cross_attention", "token_embedding", "vision", "language")},
    "data.shortest_window": {"policy.window": "4"}, "data.only_wordings": {"data.wordings": "a.yaml"},
    "settings.scenes": {"settings.episodes": "9"}, "settings.videos": {"settings.chains": "5"},
}  # fmt: skip
"""What else has to be given for a key to mean anything."""


@pytest.mark.parametrize("config_class", VERB_OF, ids=VERB_OF.get)
def test_every_key_takes_a_sensible_value(config_class: type) -> None:
    shared = ("policy.", "optimizer.") if config_class in (ConvertConfig, DemoConfig) else ("policy.stride",)
    keys = {key: kind for key, kind in keys_of(of_kind(config_class, [])).items() if not key.startswith(shared)}
    for key, kind in keys.items():
        words = REQUIRED[config_class] | BESIDE.get(key, {}) | {key: sensible(key, kind)}
        config = given(config_class, *[f"--{name}={value}" for name, value in words.items()]).config
        wanted = yaml.safe_load(sensible(key, kind))
        value = dict(leaves(config))[key]
        if dataclasses.is_dataclass(next(iter(value.values()), None) if isinstance(value, dict) else None):
            continue  # statistics
        if key not in ("rounds", "policy.action_parts"):
            assert (list(value) if isinstance(value, tuple) else value) == wanted, key


# --- what wins ---------------------------------------------------------------------------------


def file(folder: Path, text: str, name: str = "a.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


BASE = "run: a\nmax_minutes: 5\ndata: {folders: {x: 1.0}}\n"


def test_what_is_typed_wins_wherever_it_stands(tmp_path: Path) -> None:
    config = file(tmp_path, BASE)
    assert train("--run", "b", "--config", config).run == "b"
    assert train("--config", config, "--run", "b").run == "b"
    assert train("--run=b", f"--config={config}").run == "b"
    other = file(tmp_path, "run: c\nseed: 4", "b.yaml")
    assert train("--config", config, "--config", other).run == "c"
    assert train("--config", other, "--seed", "9", "--config", config).seed == 9


def test_a_typed_limit_replaces_a_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = file(tmp_path, BASE + "validate_every_steps: 7\n")
    replaced = train("--config", config, "--max_steps", "3", "--validate_every_minutes", "1")
    assert (replaced.max_steps, replaced.max_minutes) == (3, None)
    assert (replaced.validate_every_steps, replaced.validate_every_minutes) == (None, 1.0)
    assert train("--config", config).max_minutes == 5
    two = refused(capsys, "train", "--config", config, "--max_steps", "3", "--max_epochs", "2")
    assert "max_steps is 3 and max_epochs is 2.0" in two and "--max_steps 3 --max_epochs null" in two


@pytest.mark.parametrize(
    ("switch", "key"),
    [
        ("--compile", "compile"),
        ("--data.balance_tasks", "data.balance_tasks"),
        ("--policy.pool_padding", "policy.pool_padding"),
        ("--trainable.everything", "trainable.everything"),
        ("--policy.backbone.vision.final_norm", "policy.backbone.vision.final_norm"),
    ],
)
def test_a_bare_switch_is_true_wherever_it_stands(switch: str, key: str, tmp_path: Path) -> None:
    config = file(tmp_path, BASE)
    for words in ([switch, "--config", config], ["--config", config, switch], [switch, "true", "--config", config]):
        assert dict(leaves(train(*words)))[key] is True
    assert dict(leaves(train("--config", config, switch, "false")))[key] is False


# --- text and paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["20240115", "2024-01-15", "1e3", "on", "0x10", "007"])
def test_text_stays_text(name: str, tmp_path: Path) -> None:
    config = file(tmp_path, f"run: {name}\nmax_steps: 1\ndata: {{folders: {{{name}: 2}}, cache: {name}}}\n")
    read = train("--config", config)
    assert (read.run, read.data.folders, read.data.cache) == (name, {name: 2.0}, name)
    typed = train(f"--run={name}", "--max_steps=1", "--data.folders", f"{{{name}: 2}}")
    assert (typed.run, typed.data.folders) == (name, {name: 2.0})


def test_null_is_no_text(tmp_path: Path) -> None:
    assert train("--config", file(tmp_path, BASE + "start_from: null\n")).start_from is None


def test_the_home_folder_is_meant_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file(tmp_path, "run: ~/x\nmax_steps: 1\ndata: {folders: {~/a: 1.0}, cache: ~/c}\nstart_from: ~/p\n")
    config = train("--config=~/a.yaml", "--policy.backbone.weights=published", "--policy.backbone.checkpoint=~/w.pt")
    assert (config.run, config.start_from) == (f"{tmp_path}/x", f"{tmp_path}/p")
    assert (config.data.folders, config.data.cache) == ({f"{tmp_path}/a": 1.0}, f"{tmp_path}/c")
    assert config.policy.backbone.checkpoint == f"{tmp_path}/w.pt"
    typed = train("--run=~/y", "--max_steps=1", "--data.folders", "{~/b: 1.0}")
    assert (typed.run, typed.data.folders) == (f"{tmp_path}/y", {f"{tmp_path}/b": 1.0})
    assert given(CollectConfig, "--out=~/d").config.out == f"{tmp_path}/d"


# --- damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"run: a\nseed: 1\nrun: b\n", "line 3: the key run stands there twice"),
        (b"data:\n  stride: 1\n  stride: 2\n", "line 3: the key stride stands there twice"),
        (b"- run\n", "no mapping of keys to values"),
        (b"text", "no mapping of keys to values"),
        (b"\x80\x81\xff", "no text in UTF-8"),
        (b"run: [", "no YAML"),
        (b"run: a\x00", "no YAML"),
        (b"a: &a [*a]\n", ""),
        (b"data: {folders: {[1]: 2}}", "a key is one word"),
        (b"data: 3", "line 1: 3 stands where keys belong"),
        (b"policy:\n  head: 4", "line 2: 4 stands where keys belong"),
        (b"seed: many", "seed is many; it takes a whole number"),
        (b"precision: fp8", "precision is fp8; it takes one of fp32, bf16, auto"),
        (b"trainable: {cross_attention: x}", "trainable.cross_attention is x; it takes a whole number or null"),
        (b"data: {folders: {a: often}}", "data.folders"),
        (b"data: {folder: {a: 1.0}}", "folder"),
    ],
)
def test_a_damaged_file_is_a_message_that_names_it(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    said = refused(capsys, "train", "--config", str(path), "--run", "r", "--data.folders", "{a: 1}", "--max_steps", "1")
    assert message in said and str(path) in said


def test_files_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} is a folder" in refused(capsys, "train", "--config", str(tmp_path))
    assert "absent.yaml does not exist" in refused(capsys, "train", "--config", "absent.yaml")
    assert "takes the name of a YAML file" in refused(capsys, "train", "--config")


def test_dotted_keys_and_merged_mappings_are_read(tmp_path: Path) -> None:
    text = BASE + "optimizer.ema: 0.9\npolicy.head: {kind: mlp}\npolicy: {window: 3}\n"
    config = train("--config", file(tmp_path, text))
    assert (config.optimizer.ema, config.policy.head.kind, config.policy.window) == (0.9, "mlp", 3)
    text = "run: a\nmax_steps: 1\ndata:\n  <<: &d {stride: 2, workers: 1}\n  workers: 3\n  folders: {x: 1.0}\n"
    config = train("--config", file(tmp_path, text))
    assert (config.data.stride, config.data.workers) == (2, 3)


# --- keys that would do nothing ----------------------------------------------------------------

TRAIN = ("train", "--run=r", "--max_steps=1", "--data.folders={a: 1.0}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--policy.head.kind=mlp", "--policy.head.layers=3"), "it is of lstm, gpt, bins, diffusion, flow"),
        ((*TRAIN, "--policy.head.bins=8"), "policy.head.bins does nothing with policy.head.kind lstm; it is of bins"),
        ((*TRAIN, "--policy.head.dropout=0.1"), "needs policy.head.layers above 1"),
        ((*TRAIN, "--optimizer.cycles=3"), "does nothing without optimizer.schedule cosine_restarts"),
        ((*TRAIN, "--wandb.project=x"), "wandb in loggers"),
        ((*TRAIN, "--policy.stride=2"), "data.stride"),
        ((*TRAIN, "--policy.backbone.vision.activation=quick_gelu"), "without policy.backbone.vision.layers above 0"),
        ((*TRAIN, "--policy.backbone.vision.source=ViT-L-14/openai"), "without policy.backbone.weights published"),
        ((*TRAIN, "--policy.backbone.checkpoint=a.pt"), "without policy.backbone.weights published"),
        ((*TRAIN, "--policy.backbone.preset=mpt-1b", "--policy.backbone.language.width=64"), "weights random"),
        ((*TRAIN, "--policy.backbone.preset=mpt-1b", "--policy.backbone.vision.layers=2"), "weights random"),
        ((*TRAIN, "--policy.backbone.fusion=pre", "--policy.backbone.resampler.separate=true"), "resampled one by one"),
        ((*TRAIN, "--policy.cameras={front: {}}", "--policy.backbone.resampler.separate=true"), "several cameras"),
        ((*TRAIN, "--policy.statistics={force: {centre: [0], scale: [1]}}"), "policy.vectors that name all of them"),
        ((*TRAIN, "--trainable.vision"), "without trainable.everything false: everything trains"),
        ((*TRAIN, "--trainable.everything", "--trainable.cross_attention=2"), "everything trains"),
        ((*TRAIN, "--run="), "run is empty"),
        (("evaluate", "--policy=p", "--out="), "out is empty"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("collect", "--scenes", "ABC"), "--settings.scenes"),
        (("collect", "--scenes", "ABCD"), "--settings.scenes"),
        (("collect", "--starts", "3"), "--settings.episodes"),
        (("collect", "--execute", "2"), "--policy"),
        (("collect", "--check", "--out", "x"), "--out does nothing beside --check"),
        (("collect", "--check", "--settings.seed", "3"), "--settings.seed does nothing beside --check"),
        (("collect", "--policy", "expert"), "leave it out"),
        (("evaluate", "--policy=expert", "--out=o", "--execute=4"), "--execute does nothing with expert"),
        (("evaluate", "--policy=expert", "--out=o", "--device=cpu"), "--device does nothing with expert"),
    ],
)
def test_keys_of_another_use_are_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)


def test_head_keys_in_a_file_count_where_they_differ_from_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = file(tmp_path, BASE + "policy: {head: {kind: mlp, layers: 1, hidden: 32}}\n")
    assert train("--config", config).policy.head.hidden == 32
    config = file(tmp_path, BASE + "policy: {head: {kind: mlp, layers: 2}}\n")
    assert "policy.head.layers does nothing" in refused(capsys, "train", "--config", config)


def test_of_a_presets_head_another_kind_takes_what_it_uses() -> None:
    words = ("--policy.backbone.preset=mpt-1b", "--policy.head.kind=flow")
    config = train(*TRAIN[1:], *words)
    assert config.policy.head == preset("mpt-1b").head.as_kind("flow")
    assert (config.policy.head.hidden, config.policy.head.layers, config.policy.head.perceptrons) == (1024, 4, ())


def test_which_head_uses_what_is_known_of_every_head() -> None:
    from roboflamingo.heads import HEADS

    assert set(HEADS) == BUILT_IN


def test_a_policy_key_beside_start_from_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "policy"
    save_policy(small_policy(), start)
    words = (*TRAIN, f"--start_from={start}")
    said = refused(capsys, *words, "--policy.window=5")
    assert "policy.window is 5, but training starts from" in said and "where it is 3" in said
    assert "holds no policy" in refused(capsys, *TRAIN, f"--start_from={tmp_path}", code=1)
    assert "a does not exist" in refused(capsys, *words, "--policy.window=3", code=1)  # passes, and misses the data
