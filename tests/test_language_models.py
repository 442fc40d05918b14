"""Settings of published language models are followed, or refused by name; code that a folder brings is never run."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, LlamaConfig

from calvin_eval.system.errors import UserError
from policies import SENTENCES
from published import as_mosaic, publish, randomise
from roboflamingo.backbone.decoders import DECODERS, language_model
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.language_files import LanguageFolder, read_tokenizer
from roboflamingo.weights.making import make_policy, read_language

WIDTH, HEADS, LAYERS, TOKENS = 32, 4, 2, 50
IDS = torch.arange(3, 11).unsqueeze(0)


def ours(kind, settings, **changes):
    """A random model of ours, as a policy would make it."""
    torch.manual_seed(0)
    config = LanguageConfig(kind=kind, width=WIDTH, layers=LAYERS, heads=HEADS, settings=settings, **changes)
    model = language_model(config, TOKENS).eval()
    randomise(model, 0.1)
    return model


@torch.no_grad()
def run(kind, model, ids=IDS):
    """The last hidden states (1, L, D), layer by layer as Flamingo runs them."""
    decoder = DECODERS[kind]
    hidden, shared = decoder.begin(model, ids, torch.ones_like(ids, dtype=torch.bool))
    for layer in decoder.layers(model):
        out = layer(hidden, **shared)
        hidden = out[0] if isinstance(out, tuple) else out
    return decoder.end(model, hidden)


@torch.no_grad()
def theirs(kind, model, settings):
    """Transformers' own forward pass with the same weights."""
    sizes = dict(zip(DECODERS[kind].names, (WIDTH, LAYERS, HEADS), strict=True))
    config = AutoConfig.for_model(kind, **(sizes | {"vocab_size": TOKENS} | settings))
    other = AutoModel.from_config(config, attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    return other(IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mpt", {"attn_config": {"clip_qkv": 0.5}}),
        ("mpt", {"attn_config": {"softmax_scale": 0.9}}),
        ("mpt", {"attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.05}}),
        ("mpt", {"layer_norm_epsilon": 0.5}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "intermediate_size": 48}),
        ("llama", {"rope_theta": 100.0, "intermediate_size": 48}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2, "intermediate_size": 48}),
        ("llama", {"head_dim": 16, "rms_norm_eps": 0.1, "intermediate_size": 48, "hidden_act": "relu"}),
        ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": True, "intermediate_size": 48}),
        ("gpt_neox", {"attention_bias": False, "hidden_act": "relu", "rotary_emb_base": 50, "intermediate_size": 48}),
        ("opt", {"do_layer_norm_before": False, "ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
        ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False, "word_embed_proj_dim": WIDTH,
                 "activation_function": "gelu", "ffn_dim": 48}),
        ("opt", {"_remove_final_layer_norm": True, "word_embed_proj_dim": WIDTH, "ffn_dim": 48}),
    ],
)  # fmt: skip
def test_settings_mean_what_they_mean_in_transformers(kind, settings):
    model = ours(kind, settings)
    expected = theirs(kind, model, settings)
    torch.testing.assert_close(run(kind, model), expected, atol=2e-5, rtol=1e-5)
    bare = {key: value for key, value in settings.items() if key in ("intermediate_size", "ffn_dim")}
    plain = ours(kind, bare)
    assert not torch.allclose(run(kind, plain), expected, atol=1e-3)


def mpt_by_hand(model, ids, ratio):
    """MosaicML's class (llm-foundry) with learned positions and biases, written out."""
    weights = model.state_dict()

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    length = ids.shape[1]
    hidden = weights["wte.weight"][ids] + weights["wpe.weight"][torch.arange(length)]
    for i in range(LAYERS):
        block = f"blocks.{i}"
        projected = linear(norm(hidden, f"{block}.norm_1"), f"{block}.attn.Wqkv")
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in projected.chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        hidden = hidden + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        wide = linear(norm(hidden, f"{block}.norm_2"), f"{block}.ffn.up_proj")
        assert wide.shape[-1] == ratio * WIDTH
        hidden = hidden + linear(F.gelu(wide), f"{block}.ffn.down_proj")
    return norm(hidden, "norm_f")


@torch.no_grad()
def test_mpt_with_biases_and_learned_positions_is_mosaicmls():
    model = ours("mpt", {"attn_config": {"alibi": False}, "no_bias": False, "max_seq_len": 40, "expansion_ratio": 2})
    assert model.wpe.weight.shape == (40, WIDTH)
    torch.testing.assert_close(run("mpt", model), mpt_by_hand(model, IDS, 2), atol=2e-5, rtol=1e-5)


def test_whole_numbers_are_read_as_published_files_write_them():
    written = ours("mpt", {"attn_config": {"clip_qkv": 1, "attn_pdrop": 0.0, "alibi_bias_max": 8.0}})
    assert torch.equal(run("mpt", written), run("mpt", ours("mpt", {"attn_config": {"clip_qkv": 1.0}})))


def test_largest_slope_of_alibi_is_followed():
    assert not torch.allclose(
        run("mpt", ours("mpt", {})), run("mpt", ours("mpt", {"attn_config": {"alibi_bias_max": 16}}))
    )


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("mpt", {"attn_config": {"attn_pdrop": 0.1}}, "attn_pdrop"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm True"),
        ("mpt", {"attn_config": {"attn_uses_sequence_id": True}}, "attn_config.attn_uses_sequence_id True"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_config.attn_type"),
        ("mpt", {"attn_config": {"attn_type": "grouped_query_attention"}}, "attn_type"),
        ("mpt", {"attn_config": {"rope": True}}, "attn_config.rope True"),
        ("mpt", {"attn_config": {"kv_n_heads": 2}}, "attn_config.kv_n_heads 2"),
        ("mpt", {"attn_config": {"clip_qvk": 6}}, "attn_config.clip_qvk is not known"),
        ("mpt", {"attn_config": {"alibi": False}, "max_seq_len": 16}, "max_seq_len 16 is below language.max_tokens 32"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type 'rmsnorm'"),
        ("mpt", {"embedding_fraction": 0.1}, "embedding_fraction 0.1"),
        ("mpt", {"resid_pdrop": 0.1}, "resid_pdrop 0.1"),
        ("mpt", {"emb_pdrop": 0.1}, "emb_pdrop 0.1"),
        ("mpt", {"attn_config": 3}, "attn_config"),
        ("mpt", {"no_bias": "perhaps"}, "no_bias"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim 16 beside hidden_size 32"),
        ("opt", {"layerdrop": 0.1}, "layerdrop 0.1"),
        ("opt", {"max_position_embeddings": 8}, "max_position_embeddings 8"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
        ("llama", {"num_attention_heads": "many"}, "num_attention_heads"),
    ],
)  # fmt: skip
def test_settings_that_are_not_here_are_refused_by_name(kind, settings, named):
    with pytest.raises(UserError, match=named):
        ours(kind, settings)


@pytest.fixture(scope="module")
def mpt(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("mpt"), "mpt")


def changed(folder, target, **settings):
    """The same folder with other values in config.json."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    held = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(held | settings))
    return target


def test_the_file_is_named_with_the_key(mpt, tmp_path):
    folder = changed(mpt.language, tmp_path / "folder", attn_config={"prefix_lm": True})
    with pytest.raises(WeightsError, match=r"folder/config\.json: attn_config.prefix_lm True does not exist here"):
        read_language(LanguageFolder(folder), LanguageConfig(), 10)
    (folder / "config.json").write_text('{"model_type": "mpt", "d_model": "wide"}')
    with pytest.raises(WeightsError, match=r"config\.json: d_model is 'wide'"):
        read_language(LanguageFolder(folder), LanguageConfig(), 10)


def test_mpt_1bs_names_of_settings_are_translated(mpt, tmp_path):
    as_mosaic(mpt.language, tmp_path / "mosaic")
    folder = changed(tmp_path / "mosaic", tmp_path / "folder", attn_clip_qkv=6.0, softmax_scale=0.25, attn_impl="torch")
    settings = read_language(LanguageFolder(folder), LanguageConfig(), 10).settings
    attention = {"qk_ln": True, "alibi": True, "clip_qkv": 6.0, "softmax_scale": 0.25}
    assert settings["attn_config"] == attention and settings["expansion_ratio"] == 4
    refused = changed(tmp_path / "mosaic", tmp_path / "refused", prefix_lm=True)
    with pytest.raises(WeightsError, match=r"refused/config\.json: attn_config.prefix_lm True"):
        read_language(LanguageFolder(refused), LanguageConfig(), 10)


def with_code(folder, made, tokenizer):
    """Makes a folder bring code that would leave a file, for the model, or for the tokenizer, too."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.MyConfig", "AutoModel": "code.MyModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(made)!r}, 'w').close()\n")
    if tokenizer:
        names = json.loads((folder / "tokenizer_config.json").read_text())
        names |= {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["code.MyTokenizer", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))


def a_policy_from(mpt, folder, **changes):
    config = mpt.config()
    language = replace(config.backbone.language, source=str(folder), **changes)
    return make_policy(replace(config, backbone=replace(config.backbone, language=language)))


def test_code_in_a_folder_is_not_run_and_nobody_is_asked(mpt, tmp_path, capfd):
    as_mosaic(mpt.language, tmp_path / "mosaic")
    with_code(tmp_path / "mosaic", tmp_path / "made", tokenizer=False)
    start = time.monotonic()
    policy = a_policy_from(mpt, tmp_path / "mosaic", output="penultimate")  # its tokenizer needs none of the code
    assert policy.read(SENTENCES[:1]).hidden.shape[-1] == 32
    with_code(tmp_path / "mosaic", tmp_path / "made", tokenizer=True)
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json names code of its own .* never run"):
        a_policy_from(mpt, tmp_path / "mosaic")
    assert time.monotonic() - start < 10  # transformers waits 15 s for an answer
    assert not (tmp_path / "made").exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


def test_code_that_a_policys_config_names_is_not_run(tmp_path):
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w').close()\n")
    named = {"auto_map": {"AutoModel": "code.MyModel"}, "_name_or_path": str(tmp_path), "intermediate_size": 48}
    assert isinstance(ours("llama", named).config, LlamaConfig)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("lacking", [0, 1])
def test_only_added_tokens_may_lack_a_row(mpt, tmp_path, lacking):
    tokenizer, added = read_tokenizer(LanguageFolder(mpt.language))
    folder = changed(mpt.language, tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.wte.weight"
    rows = len(tokenizer) - added - lacking
    tensors[name] = tensors[name][:rows].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = mpt.config()
    language = replace(config.backbone.language, source=str(folder))
    config = replace(config, backbone=replace(config.backbone, language=language, checkpoint=None))
    if lacking:
        message = rf"has rows for {rows} tokens, but the tokenizer knows {rows + 1 + added}, of which only {added} were"
        with pytest.raises(WeightsError, match=message):
            make_policy(config)
    else:
        table = make_policy(config).backbone.lang_encoder.wte.weight
        assert torch.equal(table[:rows], tensors[name]) and table.shape[0] == rows + added
