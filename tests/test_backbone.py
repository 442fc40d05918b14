"""The backbone: OpenFlamingo's mathematics and names, images seen, instructions read."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import VisionTransformer
from open_flamingo.src import helpers

from policies import SENTENCES, small_config, small_policy
from roboflamingo.backbone.attention import GatedCrossAttentionBlock, PerceiverResampler
from roboflamingo.backbone.language import END, IMAGE, UNKNOWN, Instructions, word_tokenizer, words_of
from roboflamingo.backbone.vision import VisionConfig, VisionEncoder
from roboflamingo.policy.config import CameraConfig


def copied(ours, theirs):
    """Both modules with the same random weights; fails where names or shapes differ."""
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_the_resampler_is_open_flamingos():
    ours, theirs = copied(
        PerceiverResampler(32, depth=2, head_width=8, heads=4, latents=5),
        helpers.PerceiverResampler(dim=32, depth=2, dim_head=8, heads=4, num_latents=5),
    )
    tokens = torch.randn(3, 11, 32)
    torch.testing.assert_close(ours(tokens), theirs(tokens[:, None, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_gated_cross_attention_is_open_flamingos():
    ours, theirs = copied(
        GatedCrossAttentionBlock(24, 32, head_width=8, heads=4),
        helpers.GatedCrossAttentionBlock(dim=24, dim_visual=32, dim_head=8, heads=4),
    )
    text, media = torch.randn(3, 7, 24), torch.randn(3, 5, 32)
    locations = torch.zeros(3, 7, dtype=torch.bool)
    locations[:, 2] = True  # two tokens before the image see nothing
    expected = theirs(text, media[:, None], media_locations=locations)
    torch.testing.assert_close(ours(text, media, locations.cumsum(1) > 0), expected, atol=1e-5, rtol=1e-5)


def test_the_vision_encoder_is_open_clips_without_its_last_norm():
    torch.manual_seed(0)
    ours = VisionEncoder(VisionConfig(image_size=32, patch_size=8, width=16, layers=2, heads=2, stem=False)).eval()
    theirs = VisionTransformer(32, 8, 16, 2, 2, 4.0, output_dim=16, output_tokens=True).eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"ln_post.weight", "ln_post.bias", "proj"} and not missing.unexpected_keys
    theirs.ln_post = torch.nn.Identity()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    pixels = (images.permute(0, 3, 1, 2) - ours.mean) / ours.std
    torch.testing.assert_close(ours(images), theirs(pixels)[1], atol=1e-5, rtol=1e-5)


def test_images_of_other_sizes_get_interpolated_positions():
    encoder = VisionEncoder(VisionConfig(image_size=64, patch_size=16, width=16, layers=1, heads=2))
    assert encoder(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 16, 16)
    assert encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 4, 16)


def test_both_cameras_in_one_pass_see_what_they_see_alone():
    backbone = small_policy().backbone
    static, gripper = (torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8) for _ in range(2))
    alone = torch.cat(
        [
            backbone.perceiver(backbone.vision_encoder(static)),
            backbone.perceiver_further[0](backbone.vision_encoder(gripper)),
        ],
        dim=1,
    )
    torch.testing.assert_close(backbone.see([static, gripper]), alone, atol=1e-5, rtol=1e-5)


def test_padding_an_instruction_changes_nothing():
    policy = small_policy(window=1)
    backbone = policy.backbone
    ids, is_text, sees = backbone.instructions.batch([SENTENCES[0]], torch.device("cpu"))
    media = torch.randn(1, 8, 16)
    short = backbone(media, backbone.read(ids, is_text, sees))
    longer = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    padded = backbone(media, backbone.read(longer, torch.cat([is_text, torch.zeros(1, 3, dtype=torch.bool)], dim=1)))
    torch.testing.assert_close(padded[:, : ids.shape[1]], short, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_knows_its_words_and_marks_others():
    tokenizer = word_tokenizer(words_of(SENTENCES))
    instructions = Instructions(tokenizer, max_tokens=6)
    tokens = tokenizer.convert_ids_to_tokens(instructions.ids("Open the fridge"))
    assert tokens == [IMAGE, "open", "the", UNKNOWN, END]
    assert len(instructions.ids("push the red block push the red block")) == 6


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"image_size 50 is no multiple of policy\.backbone\.vision\.patch_size 8"):
        VisionConfig(image_size=50)
    with pytest.raises(ValueError, match=r"policy\.cameras\.front\.size 43 is no multiple"):
        small_config(cameras={"front": CameraConfig(40 + 3)})
