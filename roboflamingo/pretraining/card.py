"""The card of a pre-trained model: what it was made of, how, and what it can do."""

from __future__ import annotations

from typing import Any

from roboflamingo.pretraining.config import PretrainConfig

TEXT = """# A small vision-language model

{parameters:.2f} million weights, stored as fp16: a vision encoder (patches of {vision.patch_size} pixels,
{vision.width} wide, {vision.layers} layers), a language model ({language.kind}, {language.width} wide,
{language.layers} layers, {words} words), and OpenFlamingo's resampler ({latents} latents a camera) and gated
cross-attention. Licence: that of the project. It was made of nothing but what the project draws and writes itself.

## How it was made

`roboflamingo pretrain`, {steps} steps of {batch} pictures out of {pictures}, {texts} texts of each: next-token loss
on captions, questions and answers written from the true state (words of questions weigh {question:g}), and {state:g}
times the loss of a linear layer that reads the state from the visual tokens. Seed {seed}, {precision}, {hours:.2f}
hours on {processor} ({gflops:.0f} GFLOP/s in fp32 matrix products), torch {torch}, revision {git}.

## What it answers

The share of answers that are right word for word, by kind of question, and the mean error of the states (of order one),
in pictures that were not learned from.

{table}"""


def card(results: dict[str, Any], config: PretrainConfig) -> str:
    """The README.md of a model's folder.

    Args:
        results: of the run, as in `results.json`.
        config: of the run.
    """
    backbone = config.backbone
    return TEXT.format(
        **results | {"parameters": results["parameters"] / 1e6},
        vision=backbone.vision,
        language=backbone.language,
        words=len(backbone.language.words),
        latents=backbone.resampler.latents,
        batch=config.batch_size,
        texts=config.texts,
        question=config.question_weight,
        state=config.state_weight,
        table=_table(results["accuracy"]),
    )


def _table(accuracy: dict[str, dict[str, float]]) -> str:
    """Kinds of questions down, held-out folders across."""
    kinds = sorted({kind for found in accuracy.values() for kind in found} - {"answers", "state"})
    lines = [["question", *accuracy], ["---"] * (1 + len(accuracy))]
    lines += [[kind, *(_said(found, kind, "{:.1%}") for found in accuracy.values())] for kind in [*kinds, "answers"]]
    lines.append(["state, mean error", *(_said(found, "state", "{:.3f}") for found in accuracy.values())])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _said(found: dict[str, float], kind: str, form: str) -> str:
    return form.format(found[kind]) if kind in found else ""
