"""Reads files of weights: safetensors and what torch.save writes. Nothing is unpickled but tensors and plain values.

What a file is, is told by its first bytes, not by its name: pages, pointers and archives that were saved in place of
weights are called what they are.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of weights; others belong to quantised ones, which mean nothing without their scales."""
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Files of a transformers folder's weights, the first that is there being read; each may come as an index and parts."""
HEAD = 256
"""Bytes by which a file is known."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the weights themselves; run `git lfs pull` in its "
    "repository, or download it anew with `hf download`",
    b"GGUF": "is a GGUF file, quantised for llama.cpp, which is read as language.source only; take safetensors",
    b"\x1f\x8b": "is compressed (gzip); unpack it first",
    b"\x89HDF": "is an HDF5 file, for Keras; take the model's safetensors or PyTorch file",
}
"""How files begin that stand where weights should, and what to do about them."""


class WeightsError(UserError):
    """A file of weights cannot be read, or does not fit. The message names file and tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file (safetensors, or what torch.save writes) or of a transformers folder, by name.

    What stands around the state dict in a training checkpoint is left out. The checksums that torch.save writes are
    compared; safetensors has none.

    Raises:
        WeightsError: the file is missing, broken, something else, or holds more than tensors and plain values.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a file of weights, or a folder in transformers' layout")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if what := strange(head):
        raise WeightsError(f"{path} {what}")
    if head.startswith(_ZIP):
        _check_archive(path)
        return _state_dict(_load(path, mmap=True), path)
    if head.startswith(_PICKLE) and not _is_safetensors(head, path.stat().st_size):
        return _state_dict(_load(path, mmap=False), path)
    return _read_safetensors(path)


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON mapping, which may look as a pickle begins."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def strange(head: bytes) -> str | None:
    """What a file that begins so is, and what to do, where it certainly holds no weights; else None."""
    if not head.strip(b"\0"):
        return "is empty, or holds zeros only; download it again"
    for start, what in _STARTS.items():
        if head.startswith(start):
            return what
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "is a web page and not the weights; the page was saved instead of the file: use its download link, or "
            "`hf download`"
        )
    if text.startswith((b"{", b"[")):
        return "is JSON text (often a server's error message) and not the weights; download the file itself"
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return _checked(load_file(path), path)
    except (SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path} is not a whole safetensors file, nor one that torch.save wrote: {error}; download it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses zip archives that torch.save did not write, and damaged ones.

    Raises:
        WeightsError: the archive is either.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
            if any(name.name == "constants.pkl" or "code" in name.parts for name in names):
                raise WeightsError(
                    f"{path} is a TorchScript archive, which holds code and is not read. If you trust it, save its "
                    "tensors: python -c \"import torch; torch.save(torch.jit.load('THIS').state_dict(), 'NEW.pt')\"; "
                    "OpenAI's CLIP is on the hub without code (vision.source ViT-L-14/openai)"
                )
            if not any(name.name == "data.pkl" for name in names):
                raise WeightsError(f"{path} is a zip archive and no weights; unpack it, and give the file inside")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, OSError, EOFError, struct.error) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is not a whole PyTorch file: {error}; download it again") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged} inside is wrong; download it again")


def _load(path: Path, *, mmap: bool) -> Any:
    """What torch.save wrote, by torch's reader that makes nothing but tensors and plain values."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what it cannot read is an error
            if mmap and path.suffix != ".safetensors":  # which torch.load would take for one
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].split("WeightsUnpickler error: ")[-1]
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not read: {reason[:300].strip()}"
        ) from error
    except Exception as error:  # a damaged stream of instructions can end in any
        reason = f"{type(error).__name__}: {error}"[:300]
        raise WeightsError(f"{path} is not a whole PyTorch file: {reason}; download it again") from error


def _state_dict(held: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held: bare, or under the key that training scripts give it."""
    for key in ("model_state_dict", "state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not held:
        raise WeightsError(f"{path} holds no state dict, neither bare nor under model_state_dict")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path} holds no state dict, neither bare nor under model_state_dict: {str(name)[:80]!r} is no tensor"
            )
    return _checked(dict(held), path)


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"{path}: {name} is no plain tensor (quantised, sparse or without memory)")
    return tensors


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a transformers folder, in one file or in several."""
    for single in SINGLE:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return read_tensors(folder / single)
        if index.is_file():
            return {name: tensor for part in _parts(index) for name, tensor in read_tensors(part).items()}
    held = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    raise WeightsError(f"{folder} has neither {' nor '.join(SINGLE)}, nor an index of their parts; it holds {held}")


def _parts(index: Path) -> Iterator[Path]:
    """The files that an index names.

    Raises:
        WeightsError: the index is damaged, names files elsewhere, or files that are not there.
    """
    try:
        named = read_json(index, "an index of weights")["weight_map"]
        parts = sorted(set(named.values()))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{index} has no weight_map of names to files"
        raise WeightsError(f"{reason}; download it again") from error
    for part in parts:
        if not isinstance(part, str) or not part or Path(part).name != part:
            raise WeightsError(f"{index} names {part!r}, which is no file beside it")
    if missing := [part for part in parts if not (index.parent / part).is_file()]:
        raise WeightsError(f"{index} names {', '.join(missing)}, which {index.parent} lacks; download what is missing")
    yield from (index.parent / part for part in parts)
