"""Saves and loads policies of every kind: a folder with weights (safetensors), the resolved config, and checksums.

What a kind needs besides, as a language model's tokenizer, lies there as well.

Nothing is unpickled, and no code that a folder brings is run. `sha256.json` is written last and lists the SHA-256 of
every other file, as `sha256sum` prints it, so that nothing changed is taken for what was saved. Folders without one,
from before it was written, are read with what checks can be made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import naming, read_json, replace_folder, write_json, write_text
from calvin_eval.system.provenance import sha256
from roboflamingo.policy.base import DEFAULT, LearnedPolicy, policy_kind
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.weights.files import strange

WEIGHTS, CONFIG, SUMS = "weights.safetensors", "config.yaml", "sha256.json"
RUN = ("policy", "policy_best", "train/policy")
"""Where a run keeps its policies."""


def save_policy(policy: LearnedPolicy, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes a policy into a folder, which at any moment is the old one or the new one, or for an instant missing.

    The folder needs nothing besides: all weights are in it, also those that only training needs, so that it can go on
    from here.

    Args:
        policy: what to write.
        folder: where to; another policy there is replaced.
        weights: its state, where the policy itself holds but a share of it.

    Raises:
        UserError: the folder holds something else than a policy.
        OSError: the disk is full, or cannot be written to. Names the file.
    """
    check_replaceable(folder)
    fresh = folder.with_name(f".{folder.name}.part")
    with naming(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            _save_weights(policy.state_dict() if weights is None else weights, fresh / WEIGHTS)
            policy.save_beside(fresh)
            write_text(fresh / CONFIG, yaml.safe_dump(_plain(asdict(policy.config)), sort_keys=False))
            write_json(fresh / SUMS, {name: sha256(fresh / name) for name in files_of(fresh)})
            replace_folder(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def _save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes them until they are on the disk, in the mode of other files, which safetensors does not keep to."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
    except SafetensorError as error:  # which is how it says that the disk is full
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_replaceable(folder: Path) -> None:
    """Refuses to write a policy over what is none.

    Raises:
        UserError: the folder holds other files, or is a file.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; a policy is a folder: choose another name")
    if folder.is_dir():
        known = {WEIGHTS, CONFIG, SUMS, f".{WEIGHTS}", f".{CONFIG}", *_beside(folder)}
        for entry in sorted(folder.iterdir()):
            if entry.name not in known:
                raise UserError(f"{folder} holds {entry.name}, which is no part of a policy; choose another folder")


def _beside(folder: Path) -> Iterator[str]:
    """What a policy's folder holds besides weights and config, by its list of checksums, if that can be read."""
    yield "tokenizer"
    with suppress(UserError, OSError):
        sums = read_json(folder / SUMS, "the checksums of a policy's files")
        yield from (name.split("/")[0] for name in sums) if isinstance(sums, dict) else ()


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> LearnedPolicy:
    """The policy that `save_policy` wrote, in evaluation mode.

    Raises:
        UserError: the folder holds no policy, or a damaged or changed one. Names file and key.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    check_policy(folder)
    weights = _read_weights(folder / WEIGHTS)
    policy = _build(folder)
    expected = policy.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        what = "lacks" if name in expected else "has the unexpected"
        raise UserError(f"{folder / WEIGHTS} {what} tensor {name}; weights and {CONFIG} are not of one policy")
    for name, tensor in weights.items():
        wanted = expected[name].shape
        if tensor.shape != wanted:
            raise UserError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensor.shape)}, but {CONFIG} asks for {tuple(wanted)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{folder / WEIGHTS}: {name} holds {tensor.dtype}, but {expected[name].dtype} is needed")
    policy.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in weights.items()}, assign=True)
    return policy.to(device).eval()


def check_policy(folder: Path) -> None:
    """Finds out whether a folder holds a policy as it was saved: all files, and, where it lists them, their checksums.

    Raises:
        UserError: it does not. Names the file, and where a policy is instead.
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        what = "is a file, and a policy is a folder" if folder.is_file() else "does not exist"
        raise UserError(f"{folder} {what}; give a folder with {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            inside = [str(folder / part) for part in RUN if (folder / part / CONFIG).is_file()]
            hint = f"; it is a run, and its policy is {' or '.join(inside)}" if inside else ""
            raise UserError(f"{folder} holds no policy: {name} is missing{hint}")
    if (folder / SUMS).is_file():
        _check_sums(folder)


def _check_sums(folder: Path) -> None:
    sums = read_json(folder / SUMS, "the checksums of a policy's files")
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise UserError(f"{folder / SUMS} should hold the checksums of a policy's files and is damaged")
    for name in sorted(sums.keys() ^ set(files_of(folder))):
        what = f"is missing, and {SUMS} lists it" if name in sums else f"is not in {SUMS}"
        raise UserError(f"{folder / name} {what}; bring the whole folder again")
    for name, wanted in sums.items():
        if sha256(folder / name) != wanted:
            raise UserError(
                f"{folder / name} is not as it was saved: its checksum differs. Bring it again; or, if you changed it "
                f"on purpose, delete {folder / SUMS}"
            )


def files_of(folder: Path) -> list[str]:
    """The files of a policy that checksums are for; the large one last."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [CONFIG, *(name for name in files if name not in (CONFIG, WEIGHTS, SUMS)), WEIGHTS]


def _build(folder: Path) -> LearnedPolicy:
    """The policy that a folder's config describes, with memory but without weights.

    Raises:
        UserError: there can be no such policy, or it needs a package that is not installed.
    """
    config = read_config(folder / CONFIG)
    try:
        policy = policy_kind(config.kind).opened(config, folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except ImportError as error:
        raise UserError(f"{folder}: {error}") from error
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f"{folder / CONFIG} describes no policy that can be: {error}") from error
    return policy


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        if what := strange(file.read(256)):
            raise UserError(f"{path} {what}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}; bring it again") from error


def read_config(path: Path) -> Any:
    """A policy's config from its YAML file: the dataclass of its kind.

    Raises:
        UserError: it is missing, damaged, of a kind that is not installed, has an unknown key or a value of the wrong
            type; names file and key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it should hold the configuration of a policy") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold the keys of a policy; it holds {str(values)[:80]!r}")
    try:
        kind = policy_kind(str(values.get("kind", DEFAULT)))
        if strange := values.keys() - {field.name for field in fields(kind.config)}:
            raise UserError(
                f"{min(map(str, strange))} is no key of such a policy; another version wrote it: make the policy anew"
            )
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind.config, "policy")
        parsed = parser.parse_object({"policy": values})
        config: BasePolicyConfig = parser.instantiate_classes(parsed).policy
    except (jsonargparse.ArgumentError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
