"""How RoboFlamingo policies come to be: made anew, outlined to see what is wrong, opened from a folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.filling import allocate
from roboflamingo.policy.base import PolicyKind
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.roboflamingo import TOKENIZER, RoboFlamingo
from roboflamingo.weights.hub import checkpoint_file
from roboflamingo.weights.language_files import find_language, read_tokenizer
from roboflamingo.weights.making import make_policy, read_language
from roboflamingo.weights.tokenizer import open_tokenizer
from roboflamingo.weights.vision_files import find_vision
from roboflamingo.weights.vlm import vlm_folder, with_vlm


class RoboFlamingoKind(PolicyKind):
    """See `PolicyKind`; weights may be published ones."""

    def make(self, config: PolicyConfig, *, half: bool = False, trained: Collection[str] = ()) -> RoboFlamingo:
        """See `make_policy`."""
        return make_policy(config, half=half, trained=trained)

    def outline(self, config: PolicyConfig, *, fresh: bool = True) -> RoboFlamingo:
        """Without memory for its large parts. Published weights that are not here yet are downloaded.

        Raises:
            WeightsError: published weights are missing. Says what to put where.
        """
        backbone, tokenizer = config.backbone, None
        own = vlm_folder(backbone.checkpoint) if fresh and backbone.weights == "published" else None
        if own is not None:
            config = replace(config, backbone=with_vlm(backbone, own))
        elif fresh and backbone.weights == "published":
            files = find_language(backbone)
            vision, _ = find_vision(backbone.vision)
            if backbone.checkpoint is not None:
                checkpoint_file(backbone.checkpoint)
            tokenizer, _ = read_tokenizer(files)
            language = read_language(files, backbone.language, len(tokenizer))
            config = replace(config, backbone=replace(backbone, language=language, vision=vision))
        policy = RoboFlamingo(config, tokenizer, empty=True)
        policy.backbone.add_low_rank_updates()
        return policy

    def opened(self, config: PolicyConfig, folder: Path) -> RoboFlamingo:
        """With the tokenizer that was saved beside.

        Raises:
            UserError: it is missing, and the config names no words.
        """
        tokenizer = open_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_dir() else None
        if tokenizer is None and not config.backbone.language.words:
            raise UserError(f"{folder / TOKENIZER} is missing, and the policy's config names no words")
        policy = RoboFlamingo(config, tokenizer, empty=True)
        allocate(policy.backbone)
        return policy


ROBOFLAMINGO = RoboFlamingoKind(PolicyConfig, RoboFlamingo)
