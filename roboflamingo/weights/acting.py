"""E and leash of a saved policy: how they are changed, and what a policy is apart from them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import naming, replace_folder, write_json, write_text
from calvin_eval.system.provenance import sha256
from roboflamingo.policy.base_config import ActingConfig
from roboflamingo.weights.checkpoint import CONFIG, SUMS, check_policy, files_of, read_config

KEY = "acting"


def read_acting(folder: Path) -> ActingConfig:
    """E and leash of the policy in a folder.

    Raises:
        UserError: its config is missing or damaged.
    """
    acting: ActingConfig = read_config(folder / CONFIG).acting
    return acting


def save_acting(folder: Path, acting: ActingConfig) -> None:
    """Changes E and leash of the policy in a folder, which at any moment is the old one or the new one.

    Raises:
        UserError: the folder holds no policy, or a damaged one; or its chunks are shorter than E.
        OSError: the disk is full, or cannot be written to. Names the file.
    """
    check_policy(folder)
    replace(read_config(folder / CONFIG), acting=acting)  # which says whether that can be
    values = {**yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")), KEY: asdict(acting)}
    fresh = folder.with_name(f".{folder.name}.part")
    with naming(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            shutil.copytree(folder, fresh, copy_function=_linked)  # weights may be large, and stay as they are
            for name in (CONFIG, SUMS):
                (fresh / name).unlink(missing_ok=True)
            write_text(fresh / CONFIG, yaml.safe_dump(values, sort_keys=False))
            write_json(fresh / SUMS, {name: sha256(fresh / name) for name in files_of(fresh)})
            replace_folder(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def _linked(source: str, target: str) -> None:
    """A second name of a file, or a copy where the disk has no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def identity(folder: Path) -> str:
    """SHA-256 of what makes a policy the one that it is: all files of its folder, without E and leash in its config.

    Results name these two beside it, so a policy stays the same one when they are chosen.

    Raises:
        UserError: the config is no mapping.
        OSError: a file cannot be read.
    """
    values = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG} should hold the keys of a policy; it holds {str(values)[:80]!r}")
    values.pop(KEY, None)
    parts = {name: sha256(folder / name) for name in files_of(folder) if name != CONFIG}
    return hashlib.sha256(json.dumps({**parts, CONFIG: values}, sort_keys=True).encode()).hexdigest()
