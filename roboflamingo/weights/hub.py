"""Finds published weights: in a folder or file that is named, in the Hugging Face cache, or on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this version of the hub's client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from open_clip import get_pretrained_cfg

from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.wheels import is_wheel

_TEXTS = ("*.json", "*.model", "*.txt", "README.md", "LICENSE*")
_SAFETENSORS, _PYTORCH = "model*.safetensors", "pytorch_model*.bin"
LANGUAGE_FILES = (*_TEXTS, _SAFETENSORS, _PYTORCH)
"""What of a language model's repository is needed: configuration, tokenizer, weights in one of two formats. Never its
code."""
CHECKPOINT, CLIP = "checkpoint.pt", "open_clip_model.safetensors"
CHECKPOINT_FILES, CLIP_FILES = (CHECKPOINT, "README.md"), (CLIP, "README.md")


@dataclass(frozen=True)
class Published:
    """A repository that a preset needs.

    Attributes:
        part: what of the model it is.
        name: on the hub.
        files: patterns of what is needed of it.
    """

    part: str
    name: str
    files: tuple[str, ...]


def published(config: BackboneConfig) -> list[Published]:
    """Every repository that a backbone's weights come from; folders, files and packages are not among them."""
    language, vision, checkpoint = config.language.source, config.vision.source, config.checkpoint
    parts = []
    if language is not None and not is_wheel(language) and not _here(language).exists():
        parts.append(Published("language model", language, LANGUAGE_FILES))
    if vision is not None and not is_wheel(vision) and not _here(vision).exists():
        parts.append(Published("vision encoder", clip_repository(vision), CLIP_FILES))
    if checkpoint is not None and not _here(checkpoint).exists():
        parts.append(Published("cross-attention and resampler", checkpoint, CHECKPOINT_FILES))
    return parts


def _here(source: str) -> Path:
    return Path(source).expanduser()


def language_folder(source: str) -> Path:
    """The folder of a language model: itself, or a copy of its repository on the hub.

    Raises:
        WeightsError: it is not here and cannot be had. Says which files to put where.
    """
    path = _here(source)
    if path.is_file():
        raise WeightsError(
            f"language.source {source} is a file; give a GGUF file, or the folder with config.json, tokenizer, weights"
        )
    return path if path.is_dir() else snapshot(source, LANGUAGE_FILES)


def checkpoint_file(source: str) -> Path:
    """The file of OpenFlamingo's weights: itself, in its folder, or in its repository on the hub.

    Raises:
        WeightsError: see `language_folder`.
    """
    return _file(source, CHECKPOINT, lambda: snapshot(source, CHECKPOINT_FILES))


def clip_file(source: str) -> Path:
    """The file of CLIP's weights: itself, in its folder, or in the repository that open_clip names for `MODEL/WEIGHTS`.

    Raises:
        WeightsError: see `language_folder`; or open_clip knows no such model.
    """
    return _file(source, CLIP, lambda: snapshot(clip_repository(source), CLIP_FILES))


def _file(source: str, name: str, fetch: Callable[[], Path]) -> Path:
    """The file that a source is, or that its folder holds under a name.

    Raises:
        WeightsError: the folder has no such file.
    """
    path = _here(source)
    if path.is_file():
        return path
    folder = path if path.is_dir() else fetch()
    if not (folder / name).is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise WeightsError(f"{folder} has no {name}; it holds {held}. Give the file itself if it has another name")
    return folder / name


def clip_repository(source: str) -> str:
    """The hub's name for `MODEL/WEIGHTS` of open_clip.

    Raises:
        WeightsError: there is none.
    """
    model, _, weights = source.partition("/")
    name = get_pretrained_cfg(model, weights).get("hf_hub", "") if weights else ""
    if not name:
        raise WeightsError(
            f"vision.source {source!r} is neither a file nor a folder here, nor a model and weights that open_clip "
            "knows, as ViT-L-14/openai"
        )
    return name.rstrip("/")


def snapshot(name: str, files: tuple[str, ...], cache: Path | None = None) -> Path:
    """A repository's files, downloaded where they are not in the cache yet; interrupted downloads are continued.

    Args:
        name: of the repository.
        files: patterns of what is needed.
        cache: a folder in the layout of the Hugging Face cache; None for the user's.

    Raises:
        WeightsError: they cannot be had. Says which files to put where.
    """
    try:
        if files == LANGUAGE_FILES:
            return _one_format(name, cache)
        return Path(snapshot_download(name, allow_patterns=list(files), cache_dir=cache))
    except HFValidationError as error:
        raise WeightsError(f"{name} is neither a file or folder here nor a name on the hub (owner/model)") from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{name} is on the hub for those who accepted its licence; do so on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no {name}, or not for you (`hf auth login`); it is no file or folder here, either"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}"
        raise WeightsError(
            f"{name} is not in the cache {cache or constants.HF_HUB_CACHE}, and the hub cannot be reached ({reason}). "
            f"On a machine that can, run `hf download {name} --local-dir FOLDER`, bring FOLDER here and give its path "
            f"as source; needed are {', '.join(files)}. If `roboflamingo weights get --cache FOLDER` brought it, set "
            "HF_HUB_CACHE=FOLDER"
        ) from error


def _one_format(name: str, cache: Path | None) -> Path:
    """A language model's repository with its weights in one format: as safetensors where the whole model is in them.

    Raises:
        LocalEntryNotFoundError: neither is in the cache, and the hub cannot be reached.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_TEXTS, _SAFETENSORS], cache_dir=cache))
        if any((folder / whole).is_file() for whole in ("model.safetensors", "model.safetensors.index.json")):
            return folder
    except LocalEntryNotFoundError:
        pass  # not that format, perhaps the other
    return Path(snapshot_download(name, allow_patterns=[*_TEXTS, _PYTORCH], cache_dir=cache))


def licence(folder: Path) -> str:
    """What the model card in a repository's folder names as licence."""
    unnamed, card = "not named; see its page", folder / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---") if card.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return unnamed
    try:
        facts = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return unnamed
    return str(facts.get("license", unnamed)) if isinstance(facts, dict) else unnamed


def check_hashes(folder: Path, advance: Callable[[int], object] = lambda count: None) -> int:
    """Compares every file of a snapshot with the hash by which the cache keeps it; a broken one is removed.

    Args:
        folder: that `snapshot` gave.
        advance: is told of bytes that have been read.

    Returns:
        Bytes of all files.

    Raises:
        WeightsError: a file is not what the hub has; the next download brings it anew.
    """
    size = 0
    for path in files_of(folder):
        blob, wanted = path.resolve(), path.resolve().name
        length = blob.stat().st_size
        if len(wanted) in (40, 64) and _hash(blob, length, wanted, advance) != wanted:
            path.unlink()
            blob.unlink()
            raise WeightsError(f"{path} is not what the hub has, and was removed; the same command brings it anew")
        size += length
    return size


def files_of(folder: Path) -> list[Path]:
    """All files of a snapshot."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(path: Path, length: int, wanted: str, advance: Callable[[int], object]) -> str:
    """Of large files their SHA-256, of small ones git's, as the hub names them."""
    digest = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(f"blob {length}\0".encode())
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
