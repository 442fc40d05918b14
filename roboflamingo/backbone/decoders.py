"""The parts of causal language models that a Flamingo runs one by one.

A transformers model runs all its layers in one call. Flamingo needs to be between them: layers before the first
cross-attention read an instruction once, however many frames share it, masks are built once, and there are no
logits. Shapes: B texts, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.mpt import MPTModel, alibi_bias


class Decoder(ABC):
    """How to run a language model of one architecture.

    Attributes:
        names: what its configuration calls width, layers and heads.
        prefix: of its parameters' names inside the model with logits, as in published checkpoints.
        layers_name: of its list of layers.
    """

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    prefix = "model."
    layers_name = "layers"

    @abstractmethod
    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Token ids and mask (B, L) -> hidden states (B, L, D) and what every layer is given besides.

        Of the latter only `attention_mask` differs from text to text.
        """

    @abstractmethod
    def end(self, model: Any, hidden: Tensor) -> Tensor:
        """What follows the last layer."""

    def model(self, config: PretrainedConfig) -> PreTrainedModel:
        """A model without output layer."""
        return AutoModel.from_config(config, attn_implementation="sdpa")

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Its layers."""
        layers = model.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers


class MPT(Decoder):
    """MPT-1B and MPT-7B."""

    names = ("d_model", "n_layers", "n_heads")
    prefix = "transformer."
    layers_name = "blocks"

    def model(self, config: Any) -> PreTrainedModel:
        """Ours; transformers' computes attention step by step."""
        return MPTModel(config)

    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The bias holds positions, causality and padding."""
        hidden = model.wte(ids)
        return hidden, {"attention_mask": alibi_bias(model.config, is_text, hidden.dtype)}

    def end(self, model: Any, hidden: Tensor) -> Tensor:
        """The norm."""
        return model.norm_f(hidden)


class Rotary(Decoder):
    """Models whose positions turn queries and keys."""

    def __init__(self, prefix: str, embedding: str, norm: str) -> None:
        self.prefix, self._embedding, self._norm = prefix, embedding, norm

    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Positions count from the first token."""
        hidden = model.get_submodule(self._embedding)(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        shared = {"position_ids": positions, "position_embeddings": model.rotary_emb(hidden, position_ids=positions)}
        return hidden, shared | {"attention_mask": causal_mask(is_text)}

    def end(self, model: Any, hidden: Tensor) -> Tensor:
        """The norm."""
        return model.get_submodule(self._norm)(hidden)


class OPT(Decoder):
    """OPT, with learned positions."""

    prefix = "model."
    layers_name = "decoder.layers"

    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Positions count text tokens only."""
        decoder = model.decoder
        hidden = decoder.embed_tokens(ids)
        if decoder.project_in is not None:
            hidden = decoder.project_in(hidden)
        counted = is_text.long()
        positions = counted.cumsum(1) * counted - 1
        hidden = hidden + decoder.embed_positions(counted, 0, position_ids=positions)
        return hidden, {"attention_mask": causal_mask(is_text)}

    def end(self, model: Any, hidden: Tensor) -> Tensor:
        """The norm and the projection, where it has them."""
        for part in (model.decoder.final_layer_norm, model.decoder.project_out):
            hidden = hidden if part is None else part(hidden)
        return hidden


DECODERS: dict[str, Decoder] = {
    "mpt": MPT(),
    "gpt_neox": Rotary("gpt_neox.", "embed_in", "final_layer_norm"),
    "llama": Rotary("model.", "embed_tokens", "norm"),
    "opt": OPT(),
}
"""Every architecture by its model type."""


def causal_mask(is_text: Tensor) -> Tensor:
    """Which key each query attends to, (B, 1, L, L): text tokens up to itself."""
    length = is_text.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=is_text.device).tril()
    return past & is_text[:, None, None]


def transformers_config(config: LanguageConfig, tokens: int) -> Any:
    """The configuration in transformers' terms, for so many tokens unless `vocabulary` says otherwise."""
    sizes = dict(zip(DECODERS[config.kind].names, (config.width, config.layers, config.heads), strict=True))
    if config.kind == "opt":  # which names two sizes apart that are one elsewhere
        sizes |= {"word_embed_proj_dim": config.width, "ffn_dim": 4 * config.width}
    elif config.kind in ("gpt_neox", "llama"):
        sizes |= {"intermediate_size": 4 * config.width}
    return AutoConfig.for_model(
        config.kind, **(sizes | {"vocab_size": config.vocabulary or tokens, "use_cache": False} | config.settings)
    )


def language_model(config: LanguageConfig, tokens: int) -> PreTrainedModel:
    """A language model without weights from anywhere, and without its output layer."""
    return DECODERS[config.kind].model(transformers_config(config, tokens))
