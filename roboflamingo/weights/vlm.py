"""Pre-trained backbones in a folder: `config.yaml`, `weights.safetensors`, `sha256.json` and a card, README.md.

`roboflamingo pretrain` writes them, and a policy's `backbone.checkpoint` names one. Weights are stored as fp16.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from safetensors.torch import load_file, save_file

import roboflamingo
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import naming, read_json, replace_folder, write_json, write_text
from calvin_eval.system.provenance import sha256
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.flamingo import Flamingo
from roboflamingo.weights.files import WeightsError

CONFIG, WEIGHTS, SUMS, CARD = "config.yaml", "weights.safetensors", "sha256.json", "README.md"
SHIPPED = Path(roboflamingo.__file__).parents[1]
"""What `checkpoints/...` is looked for in, where the working folder has none."""
SIZES = ("vision", "language", "resampler", "cross_attention")
"""Parts of a backbone's configuration that its weights decide."""


def vlm_folder(source: str | None) -> Path | None:
    """The folder of a pre-trained backbone that a `backbone.checkpoint` names, or None where it names none."""
    if source is None:
        return None
    for path in (Path(source).expanduser(), SHIPPED / source):
        if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
            return path
    if source.startswith("checkpoints/"):
        raise WeightsError(
            f"{source} is neither here nor in {SHIPPED}; it comes with the source code: take it from there, or give a "
            "folder that `roboflamingo pretrain` wrote"
        )
    return None


def save_vlm(backbone: Flamingo, folder: Path, card: str) -> None:
    """Writes a backbone into a folder, which at any moment is the old one or the new one.

    Args:
        backbone: with one token a word.
        folder: where to.
        card: the text of its README.md.

    Raises:
        OSError: the folder cannot be written to.
    """
    fresh = folder.with_name(f".{folder.name}.part")
    with naming(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in backbone.state_dict().items()}
        save_file(weights, fresh / WEIGHTS)
        config = asdict(backbone.config)
        config["language"]["words"] = list(config["language"]["words"])
        write_text(fresh / CONFIG, yaml.safe_dump(config, sort_keys=False))
        write_text(fresh / CARD, card)
        write_json(fresh / SUMS, {name: sha256(fresh / name) for name in (CONFIG, WEIGHTS)})
        replace_folder(fresh, folder)


def read_vlm_config(folder: Path) -> BackboneConfig:
    """The configuration of a pre-trained backbone.

    Raises:
        WeightsError: it is damaged. Names the file.
    """
    path = folder / CONFIG
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if strange := values.keys() - {field.name for field in fields(BackboneConfig)}:
            raise UserError(f"{min(strange)} is no key of a backbone")
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(BackboneConfig, "backbone")
        config: BackboneConfig = parser.instantiate_classes(parser.parse_object({"backbone": values})).backbone
    except (yaml.YAMLError, jsonargparse.ArgumentError, UserError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return config


def with_vlm(config: BackboneConfig, folder: Path) -> BackboneConfig:
    """The same with the vocabulary of a pre-trained backbone.

    Raises:
        WeightsError: their sizes differ. Names the key.
    """
    theirs = read_vlm_config(folder)
    for part in SIZES:
        ours, wanted = asdict(getattr(config, part)), asdict(getattr(theirs, part))
        for key in ours.keys() - {"words"}:
            if ours[key] != wanted[key]:
                raise WeightsError(
                    f"policy.backbone.{part}.{key} is {ours[key]!r}, and the weights in {folder} are of a model with "
                    f"{wanted[key]!r}; leave it out, or begin with random weights (policy.backbone.preset scratch)"
                )
    words = config.language.words or theirs.language.words
    if tuple(words) != tuple(theirs.language.words):
        raise WeightsError(f"policy.backbone.language.words are not those of {folder}; leave them out")
    return replace(config, language=replace(config.language, words=theirs.language.words))


def read_vlm(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights of a pre-trained backbone, by the names of a `Flamingo` of its configuration.

    Raises:
        WeightsError: they are not as they were written. Names the file.
    """
    sums = read_json(folder / SUMS, "the checksums of a pre-trained backbone") if (folder / SUMS).is_file() else {}
    for name, wanted in sums.items():
        if sha256(folder / name) != wanted:
            raise WeightsError(f"{folder / name} is not as it was saved: its checksum differs; bring it again")
    return load_file(folder / WEIGHTS)


def fill_vlm(backbone: Flamingo, folder: Path) -> None:
    """Takes the weights of a pre-trained backbone of the same sizes; what it has not keeps its own.

    A resampler of a further camera that it lacks begins as its first.

    Raises:
        WeightsError: a tensor is missing or of another shape. Names it.
    """
    weights, own = read_vlm(folder), backbone.state_dict()
    added = ("adapter", "lora_", "res_layer")
    for name, tensor in own.items():
        plain = name.replace(".base_layer.", ".")  # as low-rank updates name what they are laid around
        found = weights.get(plain)
        if found is None and plain.startswith("perceiver_further."):
            found = weights.get("perceiver." + plain.split(".", 2)[2])
        if found is None:
            if any(word in name for word in added):
                continue
            raise WeightsError(f"{folder / WEIGHTS} lacks {name}")
        if found.shape != tensor.shape:
            raise WeightsError(
                f"{folder / WEIGHTS}: {name} is {tuple(found.shape)}, and {tuple(tensor.shape)} is needed"
            )
        tensor.copy_(found)
