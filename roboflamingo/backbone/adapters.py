"""Small trained parts beside frozen ones: bottleneck adapters and low-rank updates (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.system.errors import MissingExtraError, UserError
from calvin_eval.system.ranges import AMOUNT, BELOW_ONE, COUNT, check_ranges


@dataclass
class LoRAConfig:
    """Low-rank updates of frozen matrices (Hu et al. 2021, arXiv 2106.09685), by the peft library.

    Attributes:
        language: rank of the updates of the language model's linear layers; 0 for none.
        vision: the same of the vision encoder's perceptrons.
        scale: of an update, what LoRA calls alpha over rank.
        dropout: of its input.
    """

    language: int = 0
    vision: int = 0
    scale: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "policy.backbone.lora", language=AMOUNT, vision=AMOUNT, scale=COUNT, dropout=BELOW_ONE)


class Adapter(nn.Module):
    """A perceptron through a narrow layer, added to its input; it changes nothing at first."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return hidden + self.up(F.gelu(self.down(hidden)))


def add_lora(module: nn.Module, rank: int, config: LoRAConfig) -> None:
    """Gives the linear layers of a module low-rank updates, in place.

    Those inside `nn.MultiheadAttention`, which the vision encoder has, are left out: peft adds an update there to the
    frozen matrix and takes it away again at every step, after which it is no longer quite the same.

    Raises:
        MissingExtraError: the peft package is missing.
        UserError: the module has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("backbone.lora needs the peft package: pip install 'roboflamingo[lora]'") from error
    whole = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention))
    linear = [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear) and not name.startswith(whole)
    ]
    if not linear:
        raise UserError(f"policy.backbone.lora: {type(module).__name__} has no linear layers to update; set it to 0")
    targets = LoraConfig(r=rank, lora_alpha=config.scale * rank, lora_dropout=config.dropout, target_modules=linear)
    inject_adapter_in_model(targets, module)
