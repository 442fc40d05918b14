"""Our sentences: enough of them, none ambiguous, and no word in the benchmark that training lacks."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from calvin_eval.benchmark.instructions import NUMBERS, SPLITS, sentences, task_of
from calvin_eval.benchmark.tasks import TASKS

ALL = [(task, split, sentence) for task in TASKS for split in SPLITS for sentence in sentences(task, split)]


def words(sentence: str) -> set[str]:
    return set(re.findall(r"\w+", sentence))


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_ten_for_training_one_for_validation_and_twenty_enriched(task: str) -> None:
    assert len(sentences(task, "training")) >= 10
    assert len(sentences(task, "validation")) == 1
    assert len(sentences(task, "enriched")) == 20


def test_every_sentence_belongs_to_one_task_and_one_split() -> None:
    counts = Counter(sentence for _, _, sentence in ALL)
    assert [sentence for sentence, count in counts.items() if count > 1] == []
    assert all(task_of(sentence) == task for task, _, sentence in ALL)


def test_numbers_say_which_task_it_is_and_nothing_else() -> None:
    said = [sentences(task, NUMBERS) for task in TASKS]
    assert said == [(f"task {number}",) for number in range(34)]
    assert [task_of(sentence) for (sentence,) in said] == list(TASKS)


def test_the_benchmark_uses_only_words_of_training() -> None:
    known = set().union(*(words(sentence) for _, split, sentence in ALL if split == "training"))
    strange = {sentence: words(sentence) - known for _, split, sentence in ALL if split != "training"}
    assert {sentence: unknown for sentence, unknown in strange.items() if unknown} == {}


def test_sentences_are_plain_lower_case_english() -> None:
    assert [s for _, _, s in ALL if not re.fullmatch(r"[a-z]+(,? [a-z]+)+", s)] == []


def test_colours_and_sides_are_those_of_the_task() -> None:
    for task, _, sentence in ALL:
        said = words(sentence)
        for colour in ("red", "blue", "pink"):
            assert (colour in said) == (colour in task.split("_")), sentence
        if task.endswith(("_left", "_right")):
            assert said & {"left", "right"} == {task.rsplit("_", 1)[1]}, sentence


def test_unknown_tasks_splits_and_sentences_are_named() -> None:
    with pytest.raises(KeyError, match="task 'juggle' does not exist"):
        sentences("juggle", "training")
    with pytest.raises(KeyError, match="split 'test' does not exist; the splits are training"):
        sentences("open_drawer", "test")
    with pytest.raises(KeyError, match="no task has the sentence 'sing'"):
        task_of("sing")


def test_no_sentence_is_somebody_else_s(reference: Path) -> None:
    theirs = json.loads((reference / "enrich_lang_annotations.json").read_text()).values()
    drawn = json.loads((reference / "lang_annotation_cache.json").read_text())
    others = {sentence.lower().strip(" .") for some in (*theirs, *drawn) for sentence in some}
    assert [sentence for _, _, sentence in ALL if sentence in others] == []


@pytest.mark.parametrize("task", list(TASKS))
def test_the_benchmark_s_sentence_uses_words_that_its_own_task_was_trained_with(task: str) -> None:
    own = {word for sentence in sentences(task, "training") for word in re.findall(r"\w+", sentence)}
    assert set(re.findall(r"\w+", sentences(task, "validation")[0])) <= own
