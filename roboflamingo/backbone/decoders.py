"""The parts of causal language models that a Flamingo runs one by one.

A transformers model runs all its layers in one call. Flamingo needs to be between them: layers before the first
cross-attention read an instruction once, however many frames share it, masks are built once, and there are no
logits. Shapes: B texts, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AttentionInterface, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.mpt import MPTModel, check_settings, has_positions, score_bias

ATTENTION = "sdpa_fp32_on_cpu"
"""What transformers knows `attend` by."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """The attention of transformers' sdpa; on a CPU in fp32 whatever the precision, as `attention.attend` is."""
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    with torch.autocast("cpu", enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **given)
    return out.to(value.dtype), None


AttentionInterface.register(ATTENTION, attend)


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

    def check(self, config: Any, tokens: int) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuses a configuration that asks for what is not run here.

        Args:
            config: of the model.
            tokens: of the longest text.

        Raises:
            UserError: it does. Names key and value.
        """

    def model(self, config: PretrainedConfig) -> PreTrainedModel:
        """A model without output layer. Code that a configuration names is never run."""
        return AutoModel.from_config(config, attn_implementation=ATTENTION, trust_remote_code=False)

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

    def check(self, config: Any, tokens: int) -> None:
        """Of MPT's many settings some are not here; learned positions end somewhere."""
        check_settings(config.to_dict())
        if has_positions(config) and config.max_seq_len < tokens:
            raise UserError(f"max_seq_len {config.max_seq_len} is below language.max_tokens {tokens}; lower the latter")

    def model(self, config: Any) -> PreTrainedModel:
        """Ours; transformers' computes attention step by step."""
        return MPTModel(config)

    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The bias holds causality and padding; positions, too, unless they are learned."""
        hidden = model.wte(ids)
        if model.wpe is not None:
            hidden = hidden + model.wpe.weight[: ids.shape[1]]
        return hidden, {"attention_mask": score_bias(model.config, is_text, hidden.dtype)}

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
        if (dropout := getattr(model, "emb_dropout", None)) is not None:
            hidden = dropout(hidden)
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

    def check(self, config: Any, tokens: int) -> None:
        """Every layer runs, and the last hidden states are as wide as the others."""
        if config.layerdrop:
            raise UserError(f"layerdrop {config.layerdrop} does not exist here; set it to 0: it acts in training only")
        if config.word_embed_proj_dim != config.hidden_size:
            raise UserError(
                f"word_embed_proj_dim {config.word_embed_proj_dim} beside hidden_size {config.hidden_size} does not "
                "exist here; of OPT only facebook/opt-350m has it: choose another size"
            )
        if config.max_position_embeddings < tokens:
            raise UserError(
                f"max_position_embeddings {config.max_position_embeddings} is below language.max_tokens {tokens}; "
                "lower the latter"
            )

    def begin(self, model: Any, ids: Tensor, is_text: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Positions count text tokens only."""
        decoder = model.decoder
        hidden = decoder.embed_tokens(ids)
        counted = is_text.long()
        positions = counted.cumsum(1) * counted - 1
        hidden = hidden + decoder.embed_positions(counted, 0, position_ids=positions)
        return hidden, {"attention_mask": causal_mask(is_text)}

    def end(self, model: Any, hidden: Tensor) -> Tensor:
        """The norm, where it has one."""
        norm = model.decoder.final_layer_norm
        return hidden if norm is None else norm(hidden)


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
    """The configuration in transformers' terms, for so many tokens unless `vocabulary` says otherwise.

    Raises:
        UserError: `settings` have a value that cannot be, or that is not run here. Names it.
    """
    decoder = DECODERS[config.kind]
    sizes = dict(zip(decoder.names, (config.width, config.layers, config.heads), strict=True))
    if config.kind == "opt":  # which names two sizes apart that are one elsewhere
        sizes |= {"word_embed_proj_dim": config.width, "ffn_dim": 4 * config.width}
    elif config.kind in ("gpt_neox", "llama"):
        sizes |= {"intermediate_size": 4 * config.width}
    settings = {key: value for key, value in config.settings.items() if key not in NOT_READ}
    if settings.get("quantization_config"):
        raise UserError("quantization_config: quantised language models cannot be read; take the one in fp16 or bf16")
    made = sizes | {"vocab_size": config.vocabulary or tokens, "use_cache": False} | settings
    try:
        made = _as_declared(made, CONFIG_MAPPING[config.kind])
        built = AutoConfig.for_model(config.kind, **made)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"language.settings are not those of {config.kind}: {message}") from error
    decoder.check(built, config.max_tokens)
    return built


def _as_declared(settings: Mapping[str, Any], config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """The same with 6 as 6.0, and 6.0 as 6, where transformers takes but the other: published files have both."""
    hints = {field.name: field.type for field in fields(config_class)}
    made = dict(settings)
    for key, value in settings.items():
        part, types = config_class.sub_configs.get(key), get_args(hints.get(key)) or (hints.get(key),)
        if part is not None and isinstance(value, Mapping):
            made[key] = _as_declared(value, part)
        elif type(value) is int and float in types and int not in types:
            made[key] = float(value)
        elif type(value) is float and value.is_integer() and int in types and float not in types:
            made[key] = int(value)
    return made


NOT_READ = (
    "model_type",
    "architectures",
    "auto_map",
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
)
"""Keys of a config.json that say nothing about the architecture, or what code to run: never followed."""


def language_model(config: LanguageConfig, tokens: int) -> PreTrainedModel:
    """A language model without weights from anywhere, and without its output layer.

    Raises:
        UserError: see `transformers_config`.
    """
    return DECODERS[config.kind].model(transformers_config(config, tokens))
