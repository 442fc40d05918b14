"""Language models in GGUF, written by the package of llama.cpp: what is read equals the model that was written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lite0 import a_lite0, write_lite0
from llama_files import SIZES, a_llama, a_tokenizer, write_gguf
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from calvin_eval.system.errors import MissingExtraError
from policies import SENTENCES, a_batch
from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import PolicyConfig, calvin_cameras
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.gguf_files import GGUF
from roboflamingo.weights.kind import ROBOFLAMINGO
from roboflamingo.weights.language_files import open_language
from roboflamingo.weights.making import make_policy

TEXTS = (*SENTENCES, "a  12  blocks, 345 drawers", "don't — naïve 日本 🙂\n\ttabs", "<|im_start|>push<|im_end|> 3", "")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama as GGUF in fp32 and quantised, and a small EfficientNet's file."""
    folder, tokenizer = tmp_path_factory.mktemp("published"), a_tokenizer()
    model = a_llama(tokenizer.get_vocab_size())
    for kind in ("F32", "Q4_1", "Q8_0", "F16"):
        write_gguf(folder / f"{kind}.gguf", model, tokenizer, kind)
    write_lite0(folder / "lite0.pth", a_lite0())
    return folder


def a_config(files: Path, kind: str = "F32", **changed: Any) -> PolicyConfig:
    """A policy that reads them."""
    backbone = BackboneConfig(
        weights="published",
        vision=VisionConfig(kind="efficientnet_lite0", source=str(files / "lite0.pth"), settings={"stride": 8}),
        language=LanguageConfig(source=str(files / f"{kind}.gguf")),
        resampler=ResamplerConfig(latents=4, depth=1, heads=2, head_width=8),
        cross_attention=CrossAttentionConfig(every=2, heads=2, head_width=8, gate=0.0),
    )
    cameras = calvin_cameras(32, 32, 0, 0)
    return PolicyConfig(backbone=backbone, head=HeadConfig(hidden=16), window=3, chunk=2, cameras=cameras, **changed)


@torch.no_grad()
def test_hidden_states_are_those_of_the_model_that_was_written(files: Path) -> None:
    policy = make_policy(a_config(files)).eval()
    model = a_llama(a_tokenizer().get_vocab_size())
    ids = torch.tensor([a_tokenizer().encode(text).ids[:4] for text in SENTENCES])
    wanted = model.model(ids).last_hidden_state
    media = torch.zeros(len(ids), 4, policy.config.backbone.vision.width)
    found = policy.backbone(media, policy.backbone.read(ids, torch.ones_like(ids, dtype=torch.bool)))
    assert torch.allclose(found, wanted, atol=1e-5)  # as closed gates let nothing of the image through
    assert policy.config.backbone.language.settings["num_key_value_heads"] == SIZES["num_key_value_heads"]


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_quantised_weights_are_read_as_transformers_reads_them(files: Path, kind: str) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(files, gguf_file=f"{kind}.gguf", dtype=torch.float32).state_dict()
    ours = GGUF(files / f"{kind}.gguf").tensors()
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert not torch.equal(ours["model.layers.0.mlp.up_proj.weight"],
                           GGUF(files / "F32.gguf").tensors()["model.layers.0.mlp.up_proj.weight"])  # fmt: skip


@pytest.mark.parametrize("split", ["smollm", "gpt-2"])
def test_texts_become_the_tokens_of_the_tokenizer_that_was_written(tmp_path: Path, split: str) -> None:
    wanted = a_tokenizer(split)
    write_gguf(tmp_path / "a.gguf", a_llama(wanted.get_vocab_size()), wanted, tokenizer__ggml__pre=split)
    ours = GGUF(tmp_path / "a.gguf").tokenizer()
    for text in TEXTS:
        assert ours(text)["input_ids"] == wanted.encode(text).ids, text
        assert ours.decode(ours(text)["input_ids"]) == text
    assert (ours.bos_token, ours.eos_token, ours.unk_token, ours.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"
    )  # fmt: skip
    assert len(ours("a 12")["input_ids"]) == (4 if split == "smollm" else 2)  # whose digits stand alone


def test_transformers_reads_the_same_tokens(files: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(files, gguf_file="F32.gguf"), GGUF(files / "F32.gguf").tokenizer()
    for text in SENTENCES:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_a_token_that_begins_every_text_does_so(tmp_path: Path) -> None:
    wanted = a_tokenizer()
    write_gguf(tmp_path / "a.gguf", a_llama(wanted.get_vocab_size()), wanted, tokenizer__ggml__add_bos_token=True)
    wanted.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert GGUF(tmp_path / "a.gguf").tokenizer()("push")["input_ids"] == wanted.encode("push").ids


def test_a_policy_is_made_trained_in_part_saved_and_acts(files: Path, tmp_path: Path) -> None:
    config = a_config(files, "Q4_1")
    outline, policy = ROBOFLAMINGO.outline(config), make_policy(config)
    assert outline.config == policy.config and outline.state_dict().keys() == policy.state_dict().keys()
    assert policy.config.backbone.vision.width == 40 + 16
    batch = a_batch(policy.config)
    policy.loss(batch)["loss"].backward()
    rows = policy.backbone.lang_encoder.embed_tokens.weight
    assert len(rows) == a_tokenizer().get_vocab_size() + 2 and rows[-2:].std() > 0
    save_policy(policy.eval(), tmp_path / "policy")
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path / "policy").predict(batch)["pose"], policy.predict(batch)["pose"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"llama__block_count": None}, r"a\.gguf has no llama\.block_count"),
        ({"llama__block_count": "four"}, r"llama\.block_count is 'four', not int"),
        ({"llama__block_count": 5}, r"a\.gguf does not fit\. missing: .*layers\.4"),
        ({"llama__attention__head_count_kv": 3}, r"a\.gguf"),
        ({"llama__rope__scaling__type": "yarn"}, r"llama\.rope\.scaling is not run here"),
        ({"llama__rope__dimension_count": 8}, r"llama\.rope\.dimension_count is not the 16 of a head"),
        ({"tokenizer__ggml__pre": "qwen2"}, r"tokenizer gpt2 that splits as qwen2.*gpt-2 or smollm"),
        ({"tokenizer__ggml__model": "llama"}, r"tokenizer llama that"),
        ({"tokenizer__ggml__merges": ["no such"]}, r"merges do not fit its tokens"),
        ({"tokenizer__ggml__tokens": ["a"], "tokenizer__ggml__merges": ["a b"]}, r"merges do not fit"),
    ],
)
def test_files_that_cannot_be_read_are_refused(files: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    tokenizer = a_tokenizer()
    write_gguf(tmp_path / "a.gguf", a_llama(tokenizer.get_vocab_size()), tokenizer, **changed)
    config = a_config(files)
    backbone = replace(config.backbone, language=LanguageConfig(source=str(tmp_path / "a.gguf")))
    with pytest.raises(WeightsError, match=said):
        make_policy(replace(config, backbone=backbone))


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.05, 0.5, 0.9, 0.999])
def test_damaged_files_are_refused(files: Path, tmp_path: Path, share: float) -> None:
    whole = (files / "Q4_1.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[: max(5, int(share * len(whole)))])
    with pytest.raises(WeightsError, match=r"a\.gguf is not a whole GGUF file"):
        open_language(str(tmp_path / "a.gguf"))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"a\.gguf holds a qwen2; of GGUF files only llama is read"):
        open_language(str(tmp_path / "a.gguf"))


def test_without_the_package_it_says_what_to_install(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"read with the gguf package: pip install 'roboflamingo\[smollm2\]'"):
        open_language(str(files / "F32.gguf"))
