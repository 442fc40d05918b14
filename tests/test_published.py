"""Published weights: our Flamingo, filled from files in the published formats, is open_flamingo's."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from policies import SENTENCES
from published import LANGUAGE_MODELS, as_mosaic, pixels, publish
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.converting import convert
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.making import make_policy


@pytest.fixture(scope="module", params=sorted(LANGUAGE_MODELS))
def published(request, tmp_path_factory):
    return publish(
        tmp_path_factory.mktemp(request.param), request.param, first="<s>" if request.param == "llama" else None
    )


@pytest.fixture(scope="module")
def mpt(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("mpt"), "mpt")


def images(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 28, 28, 3), dtype=torch.uint8, generator=random)


def their_hidden_states(published, static, sentences):
    """open_flamingo's last hidden states (N, L, D) for one image a sentence, and the mask."""
    tokenizer, model = published.tokenizer, published.model
    tokenizer.padding_side = "right"
    texts = [f"<image>{sentence}<|endofchunk|>{tokenizer.eos_token}" for sentence in sentences]
    tokens = tokenizer(texts, padding="longest", return_tensors="pt")
    model._encode_vision_x(pixels(static)[:, None, None])
    model._condition_media_locations(tokens["input_ids"])
    mask = tokens["attention_mask"].bool()
    output = model.lang_encoder(input_ids=tokens["input_ids"], attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[-1], mask


@torch.no_grad()
def test_hidden_states_are_open_flamingos(published):
    policy = make_policy(published.config())
    backbone = policy.backbone.eval()
    static = images(len(SENTENCES))
    expected, mask = their_hidden_states(published, static, SENTENCES)
    media = backbone.perceiver(backbone.vision_encoder(static))
    hidden = backbone(media, policy.read(SENTENCES))
    assert hidden.shape == expected.shape
    assert (hidden - expected)[mask].abs().max() <= 1e-5


@torch.no_grad()
def test_frames_of_one_instruction_share_what_needs_no_image(published):
    policy = make_policy(published.config()).eval()
    media = policy.see([images(6, seed).unflatten(0, (2, 3)) for seed in (1, 2)])
    together = policy.backbone(media.flatten(0, 1), policy.read(SENTENCES[:2]))
    each = [policy.backbone(media[i, t : t + 1], policy.read(SENTENCES[i : i + 1])) for i in range(2) for t in range(3)]
    for row, alone in zip(together, each, strict=True):
        torch.testing.assert_close(row[: alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


def test_a_saved_policy_needs_no_other_file(published, tmp_path):
    policy = make_policy(published.config()).eval()
    save_policy(policy, tmp_path / "policy")
    config = published.config()
    away = published.language.rename(published.language.with_name("away"))
    try:
        loaded = load_policy(tmp_path / "policy")
    finally:
        away.rename(published.language)
    assert config.backbone.language.source == loaded.config.backbone.language.source
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = {
        "rgb_static": images(3).unsqueeze(0), "rgb_gripper": images(3, 1).unsqueeze(0),
        "robot_obs": torch.zeros(1, 3, 15), "instruction": [SENTENCES[0]],
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(batch), policy.predict(batch))


def test_mpt_1b_is_read_from_its_own_folder_and_keeps_its_quirk(mpt, tmp_path):
    as_mosaic(mpt.language, tmp_path / "mosaic")
    config = mpt.config()
    language = replace(config.backbone.language, source=str(tmp_path / "mosaic"), output="penultimate")
    policy = make_policy(replace(config, backbone=replace(config.backbone, language=language))).eval()
    table = read_tensors(tmp_path / "mosaic")["transformer.blocks.1.attn.q_ln.weight"]
    assert torch.equal(policy.backbone.layers[1].decoder_layer.attn.q_ln.weight, table)
    last = policy.backbone.layers[-1]
    media = policy.see([images(1).unsqueeze(0), images(1, 1).unsqueeze(0)]).flatten(0, 1)
    with torch.no_grad():
        before = policy.backbone(media, policy.read(SENTENCES[:1]))
        for parameter in last.parameters():
            parameter.zero_()
        assert torch.equal(policy.backbone(media, policy.read(SENTENCES[:1])), before)


def test_a_second_resampler_begins_as_a_copy_of_the_first(mpt):
    config = mpt.config()
    separate = replace(config.backbone, resampler=replace(config.backbone.resampler, separate=True))
    backbone = make_policy(replace(config, backbone=separate)).backbone
    for first, second in zip(backbone.perceiver.parameters(), backbone.perceiver_further[0].parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_pre_trained_cross_attention_can_be_left_out(mpt):
    config = mpt.config()
    policy = make_policy(replace(config, backbone=replace(config.backbone, checkpoint=None)))
    theirs = read_tensors(mpt.checkpoint)["perceiver.latents"]
    assert not torch.equal(policy.backbone.perceiver.latents, theirs)
    assert policy.backbone.layers[1].gated_cross_attn_layer.attn_gate.item() == 0.0
    language = make_policy(config).backbone.layers[0].decoder_layer.state_dict()
    assert all(
        torch.equal(language[name], t) for name, t in policy.backbone.layers[0].decoder_layer.state_dict().items()
    )


def test_half_precision_is_stored_from_the_start(mpt):
    policy = make_policy(mpt.config(), half=True)
    layer = policy.backbone.layers[0]
    assert layer.decoder_layer.attn.Wqkv.weight.dtype == torch.bfloat16
    assert layer.decoder_layer.norm_1.weight.dtype == torch.float32
    assert policy.backbone.layers[1].gated_cross_attn_layer.attn.to_q.weight.dtype == torch.float32


def test_random_weights_of_a_published_model_need_no_file(published):
    config = published.config()
    nowhere = replace(config.backbone, weights="random", checkpoint="nowhere")
    language = replace(make_policy(config).config.backbone.language, source="nobody/no-model")
    config = replace(config, backbone=replace(nowhere, language=language)).with_words(SENTENCES)
    policy = make_policy(config, half=True)
    assert not any(tensor.is_meta for tensor in (*policy.parameters(), *policy.buffers()))
    frozen = [p for layer in policy.backbone.layers for p in layer.decoder_layer.parameters() if p.ndim > 1]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    batch = {
        "rgb_static": images(3).unsqueeze(0), "rgb_gripper": images(3, 1).unsqueeze(0),
        "robot_obs": torch.zeros(1, 3, 15), "instruction": [SENTENCES[0]],
    }  # fmt: skip
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert policy.predict(batch)["pose"].std() > 0


@pytest.mark.parametrize("problem", ["missing", "unexpected", "shape"])
def test_what_does_not_fit_is_listed_and_an_error_unless_allowed(mpt, tmp_path, problem):
    tensors = read_tensors(mpt.checkpoint)
    name = "perceiver.norm.weight"
    if problem == "missing":
        del tensors[name]
    elif problem == "unexpected":
        tensors["extra.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(7)
    torch.save(tensors, tmp_path / "changed.pt")
    config = mpt.config()
    config = replace(config, backbone=replace(config.backbone, checkpoint=str(tmp_path / "changed.pt")))
    named = "extra.weight" if problem == "unexpected" else "backbone.perceiver.norm.weight"
    with pytest.raises(WeightsError, match=rf"changed.pt does not fit. {problem}: {named}"):
        make_policy(config)
    assert make_policy(config, allow=[problem]) is not None


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_with_code_is_refused_and_its_code_not_run(tmp_path):
    torch.save({"perceiver.latents": Hostile(tmp_path / "made")}, tmp_path / "hostile.pt")
    with pytest.raises(WeightsError, match="more than tensors"):
        read_tensors(tmp_path / "hostile.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": Hostile(tmp_path / "made")}))
    with pytest.raises(WeightsError, match=r"old\.bin"):
        read_tensors(tmp_path / "old.bin")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_broken_files_are_named(tmp_path, content):
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            read_tensors(tmp_path / name)


def test_a_missing_source_says_what_to_do(mpt, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = mpt.config()
    language = replace(config.backbone.language, source="nobody/no-model")
    with pytest.raises(WeightsError, match=r"nobody/no-model is not in the cache.*hf download nobody/no-model"):
        make_policy(replace(config, backbone=replace(config.backbone, language=language)))


def theirs_with_a_head(published, chunk, separate):
    """A RoboFlamingo checkpoint's tensors, and what its head says to pooled features (B, T, D)."""
    torch.manual_seed(chunk)
    rnn = torch.nn.LSTM(32, 24, 2, batch_first=True)
    widths = [24, 20, 12]

    def perceptron(out):
        layers = [part for a, b in itertools.pairwise(widths) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], out))

    pose, gripper = perceptron(6 * chunk), perceptron(chunk)
    tensors = {f"module.{name}": tensor for name, tensor in read_tensors(published.checkpoint).items()}
    for name, part in {"rnn": rnn, "actions.mlp": pose, "gripper.mlp": gripper}.items():
        tensors |= {f"module.lm_head.{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    if separate:
        copies = {
            key.replace("perceiver", "perceiver_gripper"): t + 0.01
            for key, t in tensors.items()
            if ".perceiver." in key
        }
        tensors |= copies

    def head(features):
        hidden = rnn(features)[0]
        return pose(hidden).tanh().unflatten(-1, (chunk, 6)), gripper(hidden).sigmoid()

    return tensors, head


def bare(published):
    """What a user must say: where the frozen weights lie, and what no tensor tells."""
    vision = VisionConfig(source=str(published.vision), width=32, heads=2, final_norm=True)
    language = LanguageConfig(source=str(published.language))
    backbone = BackboneConfig(weights="published", vision=vision, language=language)
    return PolicyConfig(backbone=backbone, window=3)


def test_trained_tensors_alone_say_what_is_needed_besides(mpt, tmp_path):
    tensors, _ = theirs_with_a_head(mpt, 1, False)
    torch.save(tensors, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match=r"checkpoint.pth holds trained tensors only; name the model"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "policy", PolicyConfig())


@pytest.mark.parametrize(("chunk", "separate"), [(1, False), (5, True)])
@torch.no_grad()
def test_a_roboflamingo_checkpoint_becomes_the_policy_it_was(mpt, tmp_path, chunk, separate):
    tensors, head = theirs_with_a_head(mpt, chunk, separate)
    torch.save({"epoch": 3, "model_state_dict": tensors}, tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "policy", bare(mpt))
    policy = load_policy(tmp_path / "policy")
    assert (policy.config.chunk, policy.config.backbone.resampler.separate) == (chunk, separate)
    static, gripper = images(3, 1), images(3, 2)
    gripper_tensors = {
        key.removeprefix("module.").replace("_gripper", ""): tensor
        for key, tensor in tensors.items()
        if key.startswith("module.perceiver_gripper." if separate else "module.perceiver.")
    }
    model = mpt.model
    tokens = model.perceiver(model.vision_encoder(pixels(static))[1][:, None, None])
    other = copy.deepcopy(model)
    other.load_state_dict(gripper_tensors, strict=False)
    seen = torch.cat([tokens, other.perceiver(other.vision_encoder(pixels(gripper))[1][:, None, None])], dim=2)
    hidden = hidden_states_given(mpt, seen, SENTENCES[0])
    expected = head(hidden.max(dim=1).values.unsqueeze(0))
    prediction = policy.predict(
        {
            "rgb_static": static.unsqueeze(0), "rgb_gripper": gripper.unsqueeze(0),
            "robot_obs": torch.zeros(1, 3, 15), "instruction": [SENTENCES[0]],
        }
    )  # fmt: skip
    torch.testing.assert_close(prediction["pose"], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction["gripper"][..., 0].sigmoid(), expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [None, 12])
def test_a_converted_policy_acts_alike_alone_and_beside_longer_sentences(published, tmp_path, rows):
    """RoboFlamingo pooled padding in training; acting, it read one sentence at a time and had none."""
    config = replace(published.config(), pool_padding=True)
    save_policy(make_policy(config).eval(), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    controller, states = PolicyController(policy, rows=rows), [0.1 * np.arange(15), np.ones(15), np.zeros(15)]
    pictures = [(images(1, seed)[0].numpy(), images(1, seed + 9)[0].numpy()) for seed in range(3)]
    seen = [calvin_observation(*pair, state) for pair, state in zip(pictures, states, strict=True)]
    sentences = ("push", "push the red block", " ".join(["push the red block"] * 4))
    together, memories = controller.act(seen, [controller.start(sentence) for sentence in sentences])
    again, _ = controller.act(seen, memories)
    for row, (observation, sentence) in enumerate(zip(seen, sentences, strict=True)):
        alone, (memory,) = controller.act([observation], [controller.start(sentence)])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)
        np.testing.assert_allclose(again[row], controller.act([observation], [memory])[0][0], atol=1e-6)
    policy.train()
    short, padded = ({"instruction": [sentences[0], other]} for other in (sentences[0], sentences[2]))
    batch = {"rgb_static": images(2)[:, None], "rgb_gripper": images(2, 1)[:, None], "robot_obs": torch.zeros(2, 1, 15)}
    with torch.no_grad():  # and training still is what it was
        assert not torch.allclose(policy.features(batch | short)[0], policy.features(batch | padded)[0], atol=1e-4)


def hidden_states_given(published, media, sentence):
    """open_flamingo's last hidden states (N, L, D) for visual tokens (N, 1, R, Dv) and one sentence."""
    tokenizer, model = published.tokenizer, published.model
    ids = tokenizer([f"<image>{sentence}<|endofchunk|>{tokenizer.eos_token}"] * len(media), return_tensors="pt")
    for layer in model.lang_encoder._get_decoder_layers():
        layer.condition_vis_x(media)
    model._condition_media_locations(ids["input_ids"])
    mask = ids["attention_mask"].bool()
    output = model.lang_encoder(input_ids=ids["input_ids"], attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[-1]


def test_a_checkpoint_that_holds_everything_needs_no_sources(mpt, tmp_path):
    tensors, _ = theirs_with_a_head(mpt, 1, False)
    whole = {f"module.{name}": tensor for name, tensor in mpt.model.state_dict().items()}
    torch.save(whole | tensors, tmp_path / "whole.pth")
    source = make_policy(mpt.config())
    config = replace(source.config, backbone=replace(source.config.backbone, weights="random"))
    policy = convert(tmp_path / "whole.pth", tmp_path / "policy", config)
    for name, tensor in source.backbone.state_dict().items():
        assert torch.equal(policy.backbone.state_dict()[name], tensor), name


def test_an_openflamingo_checkpoint_becomes_a_policy_to_begin_from(mpt, tmp_path):
    policy = convert(mpt.checkpoint, tmp_path / "policy", mpt.config())
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(loaded.backbone.perceiver.latents, policy.backbone.perceiver.latents)
    assert torch.equal(loaded.backbone.perceiver.latents, read_tensors(mpt.checkpoint)["perceiver.latents"])


def test_a_policy_is_not_overwritten_unless_asked(mpt, tmp_path):
    out = tmp_path / "policy"
    convert(mpt.checkpoint, out, mpt.config())
    before = (out / "sha256.json").read_bytes()
    with pytest.raises(UserError, match="holds a policy already; choose another folder, or say --overwrite true"):
        convert(mpt.checkpoint, out, mpt.config())
    assert (out / "sha256.json").read_bytes() == before
    convert(mpt.checkpoint, out, mpt.config(), overwrite=True)
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match=r"holds mine\.txt, which is no part of a policy"):
        convert(mpt.checkpoint, out, mpt.config(), overwrite=True)


def test_a_checkpoint_that_lacks_a_tensor_or_has_another_shape_is_a_message(mpt, tmp_path):
    tensors, _ = theirs_with_a_head(mpt, 1, False)
    whole = {f"module.{name}": tensor for name, tensor in mpt.model.state_dict().items()} | tensors
    source = make_policy(mpt.config())
    config = replace(source.config, backbone=replace(source.config.backbone, weights="random"))
    saying = ("conv1.weight", "positional_embedding", "perceiver.latents", "layers.0.0.to_q.weight",
              "1.attn.to_q.weight", "weight_hh_l0", "gripper.mlp.4.weight", "wte.weight", "attn_gate")  # fmt: skip
    for name, shape in itertools.product([name for name in whole if name.endswith(saying)], (None, 3, (2, 2))):
        damaged = {key: tensor for key, tensor in whole.items() if key != name}
        if shape is not None:
            damaged[name] = torch.zeros(shape)
        torch.save(damaged, tmp_path / "damaged.pth")
        try:
            convert(tmp_path / "damaged.pth", tmp_path / "policy", config, overwrite=True)
        except UserError as error:
            assert "damaged.pth" in str(error) or "heads" in str(error), name
