"""Instructions in any language become the tokens that training gave them, and what is lost on the way is said."""

from __future__ import annotations

import re
import unicodedata
import warnings

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calvin_eval.benchmark.instructions import SPLITS, sentences
from calvin_eval.benchmark.tasks import TASKS
from roboflamingo.backbone.language import (
    END,
    IMAGE,
    SPECIAL,
    UNKNOWN,
    Instructions,
    with_special_tokens,
    word_tokenizer,
    words_of,
)

OPEN_HINDI, CLOSE_HINDI = "दराज खोलो", "दराज बंद करो"
OPEN_THAI, CLOSE_THAI = "เปิดลิ้นชัก", "ปิดลิ้นชัก"
CAFE = "put the block into the café"


def reader(*trained: str, max_tokens: int = 32) -> Instructions:
    return Instructions(word_tokenizer(words_of(trained)), max_tokens)


def tokens(instructions: Instructions, sentence: str) -> list[str]:
    return instructions.tokenizer.convert_ids_to_tokens(instructions.ids(sentence))


def test_english_vocabularies_and_their_ids_are_what_they_always_were() -> None:
    ours = [sentence for task in TASKS for split in SPLITS for sentence in sentences(task, split)]
    words = words_of(ours)
    assert list(words) == sorted({word for sentence in ours for word in re.findall(r"\w+", sentence.lower())})
    instructions = reader(*ours)
    for sentence in ours:
        expected = [2, *(len(SPECIAL) + words.index(word) for word in re.findall(r"\w+", sentence)), 3]
        assert instructions.ids(sentence) == expected


@pytest.mark.parametrize(("one", "other"), [(OPEN_HINDI, CLOSE_HINDI), (OPEN_THAI, CLOSE_THAI)])
def test_words_of_every_script_are_known_where_they_were_trained_on(one: str, other: str) -> None:
    instructions = reader(one, other)
    for sentence in (one, other):
        assert tokens(instructions, sentence) == [IMAGE, *sentence.split(), END]
    assert instructions.ids(one) != instructions.ids(other)


@pytest.mark.parametrize("sentence", [OPEN_HINDI, OPEN_THAI, CAFE, "ouvre le tiroir à gauche", "서랍을 열어"])
def test_composed_and_decomposed_letters_are_the_same_words(sentence: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, sentence) for form in ("NFC", "NFD"))
    assert words_of([composed]) == words_of([decomposed])
    for trained in (composed, decomposed):
        assert reader(trained).ids(composed) == reader(trained).ids(decomposed)
        assert UNKNOWN not in tokens(reader(trained), decomposed)


@pytest.mark.parametrize(
    "variant",
    ["open the drawer.", "Open the drawer!", "  open\tthe  drawer \n", "“open” the … drawer", "OPEN, the: (drawer)"],
)
def test_punctuation_case_and_space_change_nothing(variant: str) -> None:
    instructions = reader("open the drawer")
    assert tokens(instructions, variant) == [IMAGE, "open", "the", "drawer", END]


def test_digits_and_apostrophes_part_words_alike_in_training_and_acting() -> None:
    sentence = "don't move block_2, it's 30 cm high"
    assert words_of([sentence]) == ("30", "block_2", "cm", "don", "high", "it", "move", "s", "t")
    assert tokens(reader(sentence), sentence)[1:-1] == ["don", "t", "move", "block_2", "it", "s", "30", "cm", "high"]


def test_a_word_that_is_not_known_is_named_once() -> None:
    instructions = reader("open the drawer")
    with pytest.warns(UserWarning, match=r"does not know the words 'fridge', 'now' of 'open the fridge now'"):
        assert tokens(instructions, "open the fridge now") == [IMAGE, "open", "the", UNKNOWN, UNKNOWN, END]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instructions.ids("open the fridge now")
        instructions.ids("now open the drawer")


def test_a_long_sentence_is_cut_before_its_end_and_named_once() -> None:
    instructions = reader("pick up the red block", max_tokens=5)
    with pytest.warns(UserWarning, match=r"'pick up the red block' has 7 tokens; only the first 4 and its end"):
        assert tokens(instructions, "pick up the red block") == [IMAGE, "pick", "up", "the", END]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instructions.ids("pick up the red block")


def test_a_cut_sentence_keeps_the_language_models_end_of_text_too() -> None:
    vocabulary = {word: number for number, word in enumerate(["</s>", "[UNK]", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = with_special_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="[UNK]"))
    with pytest.warns(UserWarning, match="has 7 tokens; only the first 3"):
        assert tokens(Instructions(own, 5), "a b c d") == [IMAGE, "a", "b", END, "</s>"]
