"""LoRA layers of the LLM, as MiniGPT-v2 was trained with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["LoRALinear", "add_lora", "merge_lora"]


class LoRALinear(nn.Linear):
    """``y = W x + b + (alpha / rank) · B (A x)``.

    ``weight`` has the same name as in a plain layer; ``lora_A`` is ``[rank, in]``, ``lora_B`` ``[out, rank]``.
    """

    def __init__(self, like: nn.Linear, *, rank: int, alpha: float) -> None:
        kind = {"device": like.weight.device, "dtype": like.weight.dtype}
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, **kind)
        self.scaling = alpha / rank
        self.lora_A = nn.Linear(like.in_features, rank, bias=False, **kind)
        self.lora_B = nn.Linear(rank, like.out_features, bias=False, **kind)
        self.weight = like.weight
        self.bias = like.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.scaling * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer with ``B A`` added to its weight."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        delta = self.lora_B.weight.float() @ self.lora_A.weight.float()  # [out, in]
        weight = (self.weight.float() + self.scaling * delta).to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        plain.bias = self.bias
        return plain


def add_lora(llm: nn.Module, lora: Mapping[str, Any]) -> None:
    """Replace the layers named in ``lora["target_modules"]`` (``q_proj``, …) by ``LoRALinear``, in place.

    ``lora`` has the keys of peft's configurations: ``r``, ``lora_alpha``, ``target_modules``.
    """
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora["target_modules"]:
            llm.set_submodule(name, LoRALinear(module, rank=lora["r"], alpha=lora["lora_alpha"]))


def merge_lora(llm: nn.Module) -> None:
    """Replace every ``LoRALinear`` by a plain layer with merged weights, in place."""
    for name, module in list(llm.named_modules()):
        if isinstance(module, LoRALinear):
            llm.set_submodule(name, module.merged())
