"""A published language model's files: a folder as of transformers, or a GGUF file, given or in a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.language import with_special_tokens
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.gguf_files import GGUF, is_gguf
from roboflamingo.weights.hub import language_folder
from roboflamingo.weights.tokenizer import open_tokenizer
from roboflamingo.weights.wheels import check_wheels, is_wheel, wheel_file, wheels


class LanguageFiles(Protocol):
    """Where a language model is read from; every method raises WeightsError where it cannot be.

    Attributes:
        path: of folder or file, for messages.
        config: the file with the settings, for messages.
    """

    path: Path
    config: Path

    def settings(self) -> dict[str, Any]:
        """What transformers' `config.json` says; it has a `model_type`."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, as it is."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by transformers' names."""


class LanguageFolder:
    """A folder in transformers' layout."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, path / "config.json"

    def settings(self) -> dict[str, Any]:
        """What is in its config.json.

        Raises:
            WeightsError: there is none, or it is damaged.
        """
        if not self.config.is_file():
            raise WeightsError(f"{self.config} does not exist; {self.path} is no language model's folder")
        try:
            settings = read_json(self.config, "the configuration of a language model")
        except UserError as error:
            raise WeightsError(str(error)) from error
        if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
            raise WeightsError(
                f"{self.config} names no model_type; it should hold the configuration of a language model"
            )
        return settings

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `open_tokenizer`."""
        return open_tokenizer(self.path)

    def tensors(self) -> dict[str, Tensor]:
        """See `read_tensors`."""
        return read_tensors(self.path)


def open_language(source: str) -> LanguageFiles:
    """The files of `language.source`.

    Raises:
        WeightsError: they are not here and cannot be had. Says what to do.
    """
    path = wheel_file(source) if is_wheel(source) else Path(source).expanduser()
    return GGUF(path) if is_gguf(path) else LanguageFolder(language_folder(str(path) if is_wheel(source) else source))


def find_language(config: BackboneConfig) -> LanguageFiles:
    """The files of a backbone's language model.

    Raises:
        WeightsError: see `open_language`; or `source` is not set, or a package is missing, of either part, so that one
            command brings all of them.
    """
    if config.language.source is None:
        raise WeightsError(
            "backbone.weights is published, but language.source is not set; set it, choose a preset that has one, or "
            "set weights to random"
        )
    check_wheels(wheels(config).values())
    return open_language(config.language.source)


def read_tokenizer(files: LanguageFiles) -> tuple[PreTrainedTokenizerBase, int]:
    """A language model's tokenizer with OpenFlamingo's tokens, and how many of these it lacked.

    Raises:
        WeightsError: it has none that can be read.
    """
    tokenizer = files.tokenizer()
    before = len(tokenizer)
    return with_special_tokens(tokenizer), len(tokenizer) - before
