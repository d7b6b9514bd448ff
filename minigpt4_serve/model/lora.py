"""Low-rank additions to an LLM's linear layers, as MiniGPT-v2 was trained with. Tensors only."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["LoRALinear", "add_lora", "merge_lora"]


class LoRALinear(nn.Linear):
    """``y = W x + b + scaling · B (A x)``.

    ``weight`` keeps the name it has in a plain layer; ``lora_A`` is ``[rank, in]``, ``lora_B`` ``[out, rank]``.
    """

    def __init__(self, like: nn.Linear, *, rank: int, alpha: float) -> None:
        kind = {"device": like.weight.device, "dtype": like.weight.dtype}
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, **kind)
        self.scaling = alpha / rank
        self.lora_A = nn.Linear(like.in_features, rank, bias=False, **kind)
        self.lora_B = nn.Linear(rank, like.out_features, bias=False, **kind)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.scaling * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with the addition in its weight."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        addition = self.lora_B.weight.float() @ self.lora_A.weight.float()  # [out, in]
        weight = (self.weight.float() + self.scaling * addition).to(self.weight.dtype)
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=self.weight.requires_grad), self.bias
        return plain


def add_lora(llm: nn.Module, lora: Mapping[str, Any]) -> None:
    """Replace the layers that ``lora["target_modules"]`` names (``q_proj``, …) by ``LoRALinear``, in place.

    ``lora`` also has ``r`` and ``lora_alpha``, as in peft's configurations.
    """
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora["target_modules"]:
            llm.set_submodule(name, LoRALinear(module, rank=lora["r"], alpha=lora["lora_alpha"]))


def merge_lora(llm: nn.Module) -> None:
    """Put every addition into its layer's weight, in place: faster, and plain layers for whoever reads them."""
    for name, module in list(llm.named_modules()):
        if isinstance(module, LoRALinear):
            llm.set_submodule(name, module.merged())
