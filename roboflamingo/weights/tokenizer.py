"""Reads tokenizers from folders. No code that a folder brings is ever run."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from roboflamingo.weights.files import WeightsError


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, as it is.

    Raises:
        WeightsError: the folder has none that can be read, or one that needs code of its own.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises bare exceptions for damaged files
        message = " ".join(str(error).split())
        if "trust_remote_code" in message:
            raise WeightsError(
                f"{folder / 'tokenizer_config.json'} names code of its own for the tokenizer (auto_map), and such "
                "code is never run; save the tokenizer as tokenizer.json, without auto_map"
            ) from error
        raise WeightsError(
            f"{folder} has no tokenizer that can be read (tokenizer.json and its configs): {message[:300]}"
        ) from error
