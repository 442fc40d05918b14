"""Finds published weights: in a folder or file that is named, in the Hugging Face cache, or on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from open_clip import get_pretrained_cfg

from roboflamingo.backbone.flamingo import BackboneConfig
from roboflamingo.weights import WeightsError

LANGUAGE_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "README.md", "LICENSE*")
"""What of a language model's repository is needed: configuration, tokenizer, weights. Never its code."""
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
    """Every repository that a backbone's weights come from; folders and files are not among them."""
    language, vision, checkpoint = config.language.source, config.vision.source, config.checkpoint
    parts = []
    if language is not None and not Path(language).exists():
        parts.append(Published("language model", language, LANGUAGE_FILES))
    if vision is not None and not Path(vision).exists():
        parts.append(Published("vision encoder", clip_repository(vision), CLIP_FILES))
    if checkpoint is not None and not Path(checkpoint).exists():
        parts.append(Published("cross-attention and resampler", checkpoint, CHECKPOINT_FILES))
    return parts


def language_folder(source: str) -> Path:
    """The folder of a language model: itself, or a copy of its repository on the hub.

    Raises:
        WeightsError: it is not here and cannot be had. Says which files to put where.
    """
    return Path(source) if Path(source).is_dir() else snapshot(source, LANGUAGE_FILES)


def checkpoint_file(source: str) -> Path:
    """The file of OpenFlamingo's weights: itself, in its folder, or in its repository on the hub.

    Raises:
        WeightsError: see `language_folder`.
    """
    path = Path(source)
    if path.is_file():
        return path
    return (path if path.is_dir() else snapshot(source, CHECKPOINT_FILES)) / CHECKPOINT


def clip_file(source: str) -> Path:
    """The file of CLIP's weights: itself, or in the repository that open_clip names for `MODEL/WEIGHTS`.

    Raises:
        WeightsError: see `language_folder`; or open_clip knows no such model.
    """
    if Path(source).is_file():
        return Path(source)
    return snapshot(clip_repository(source), CLIP_FILES) / CLIP


def clip_repository(source: str) -> str:
    """The hub's name for `MODEL/WEIGHTS` of open_clip.

    Raises:
        WeightsError: there is none.
    """
    model, _, weights = source.partition("/")
    name = get_pretrained_cfg(model, weights).get("hf_hub", "") if weights else ""
    if not name:
        raise WeightsError(
            f"vision.source {source!r} is neither a file nor a model and weights that open_clip knows, "
            "as ViT-L-14/openai"
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
        return Path(snapshot_download(name, allow_patterns=list(files), cache_dir=cache))
    except RepositoryNotFoundError as error:
        raise WeightsError(f"the hub has no {name}, or not for you: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{name} is not in the cache and the hub cannot be reached ({type(error).__name__}). On a machine that "
            f"can, run `hf download {name} --local-dir FOLDER`, bring the folder here and give its path as source; "
            f"needed are {', '.join(files)}"
        ) from error


def licence(folder: Path) -> str:
    """What the model card in a repository's folder names as licence."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8").split("---") if card.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return "not named; see its page"
    return str((yaml.safe_load(parts[1]) or {}).get("license", "not named; see its page"))


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
