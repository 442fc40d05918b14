"""The causal language model and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import MptConfig, MptModel, PreTrainedTokenizerFast

IMAGE, END, PAD, UNKNOWN = "<image>", "<|endofchunk|>", "<PAD>", "<unk>"
SPECIAL = (PAD, UNKNOWN, IMAGE, END)


@dataclass
class LanguageConfig:
    """Sizes of the language model.

    Attributes:
        width: of the transformer.
        layers: of the transformer.
        heads: of the transformer.
        words: the vocabulary of the word-level tokenizer. Training fills it in from its instructions.
        max_tokens: longest instruction, image and end tokens included; longer ones are cut.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    words: tuple[str, ...] = ()
    max_tokens: int = 32

    def __post_init__(self) -> None:
        self.words = tuple(self.words)
        if self.width % self.heads:
            raise ValueError(f"language.width {self.width} is no multiple of heads {self.heads}")


def words_of(sentences: Iterable[str]) -> tuple[str, ...]:
    """The sorted words of sentences, as the word-level tokenizer splits them."""
    return tuple(sorted({word for sentence in sentences for word in re.findall(r"\w+", sentence.lower())}))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word; words it does not know become `<unk>`."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, additional_special_tokens=[IMAGE, END]
    )


class Instructions:
    """Turns instructions into token ids, each sentence once.

    Args:
        tokenizer: of the language model. max_tokens: longest row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._known: dict[str, list[int]] = {}

    def ids(self, sentence: str) -> list[int]:
        """`<image>`, the words, `<|endofchunk|>`."""
        if sentence not in self._known:
            words = self.tokenizer(sentence.lower(), add_special_tokens=False)["input_ids"]
            image, end = self.tokenizer.convert_tokens_to_ids([IMAGE, END])
            self._known[sentence] = [image, *words[: self.max_tokens - 2], end]
        return self._known[sentence]

    def batch(self, sentences: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids (B, L) padded on the right, and which are text (B, L) bool."""
        rows = [self.ids(sentence) for sentence in sentences]
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device)
        return ids, ids != pad


def tiny_language_model(config: LanguageConfig, vocabulary: int) -> MptModel:
    """A small MPT without weights from anywhere, and without its output layer."""
    sizes = MptConfig(
        d_model=config.width,
        n_heads=config.heads,
        n_layers=config.layers,
        expansion_ratio=4,
        max_seq_len=config.max_tokens,
        vocab_size=vocabulary,
        resid_pdrop=0.0,
        emb_pdrop=0.0,
        use_cache=False,
    )
    return MptModel(sizes)
