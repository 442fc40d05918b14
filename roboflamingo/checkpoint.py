"""Saves and loads policies: a folder with weights (safetensors) and the resolved config. Nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import jsonargparse
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from roboflamingo.backbone.filling import allocate
from roboflamingo.policy import PolicyConfig, RoboFlamingo

WEIGHTS, CONFIG, TOKENIZER = "weights.safetensors", "config.yaml", "tokenizer"


def save_policy(policy: RoboFlamingo, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes a policy into a folder, each file atomically; the config last, so that a folder with one is whole.

    The folder needs nothing besides: all weights are in it, and the language model's tokenizer.

    The auxiliary layer stays with it, so that training can go on from here; running the policy ignores it.

    Args:
        policy: what to write.
        folder: where to.
        weights: its state, where the policy itself holds but a share of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = policy.state_dict() if weights is None else weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / f".{WEIGHTS}")
    os.replace(folder / f".{WEIGHTS}", folder / WEIGHTS)
    if not policy.config.backbone.language.words:
        policy.backbone.instructions.tokenizer.save_pretrained(folder / TOKENIZER)
    temporary = folder / f".{CONFIG}"
    temporary.write_text(yaml.safe_dump(_plain(asdict(policy.config)), sort_keys=False), encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> RoboFlamingo:
    """The policy that `save_policy` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no policy.
        ValueError: its config or its weights do not fit; names the key.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no policy: {name} is missing")
    tokenizer = None
    if (folder / TOKENIZER).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
    policy = RoboFlamingo(read_config(folder / CONFIG), tokenizer, empty=True)
    allocate(policy.backbone)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is not a whole safetensors file: {error}") from error
    expected = policy.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        what = "lacks" if name in expected else "has the unexpected"
        raise ValueError(f"{folder / WEIGHTS} {what} tensor {name}")
    for name, tensor in weights.items():
        wanted = expected[name].shape
        if tensor.shape != wanted:
            raise ValueError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensor.shape)}, but {CONFIG} asks for {tuple(wanted)}"
            )
    policy.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in weights.items()}, assign=True)
    return policy.to(device).eval()


def read_config(path: Path) -> PolicyConfig:
    """A policy's config from its YAML file.

    Raises:
        ValueError: an unknown key or a value of the wrong type; names file and key.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolicyConfig, "policy")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        parsed = parser.parse_object({"policy": values})
        return parser.instantiate_classes(parsed).policy
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
