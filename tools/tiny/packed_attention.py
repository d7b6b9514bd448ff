"""Attention for rows that hold an image once and many dialogues after it, in ``BINS`` bins of ``BIN_TOKENS`` tokens.

A dialogue attends to the prompt up to and including the image, and to itself. Reusing the image for all dialogues about
it, and computing bins instead of one square, saves most of the work.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from tools.tiny.attention_supervision import Role
from tools.tiny.network import QUERIES

__all__ = ["BINS", "BIN_TOKENS", "PACKED_ATTENTION", "AttentionMaps", "bin_mask"]

BINS = 3
BIN_TOKENS = 80
PACKED_ATTENTION = "packed_bins"
"""Name of the implementation, for ``set_attn_implementation``. The language model must then be called with the keyword
arguments ``mask`` (as of ``bin_mask``) and ``maps`` (an empty dictionary, which is filled)."""
AttentionMaps = dict[Role, torch.Tensor]
"""Attention weights of the supervised heads, ``[N, heads, BINS · BIN_TOKENS, keys]``: keys are image tokens or, for
roles over the branch, the tokens of the same bin."""


def bin_mask(dialogue: torch.Tensor) -> torch.Tensor:
    """The additive mask of the scores between tokens of a bin, ``[N, 1, BINS, BIN_TOKENS, BIN_TOKENS]``.

    Args:
        dialogue: ``[N, BINS · BIN_TOKENS]``, number of the dialogue that each token belongs to.
    """
    bins = dialogue.view(len(dialogue), 1, BINS, BIN_TOKENS)
    same = bins.unsqueeze(-1) == bins.unsqueeze(-2)
    visible = same & torch.ones(BIN_TOKENS, BIN_TOKENS, dtype=torch.bool).tril()
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    mask: torch.Tensor,
    maps: AttentionMaps,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``query``, ``key``, ``value``: ``[N, heads, prefix + BINS · BIN_TOKENS, width]``; the image ends the prefix."""
    binned = (*query.shape[:2], BINS, BIN_TOKENS, query.shape[-1])
    prefix = query.shape[2] - BINS * BIN_TOKENS
    query = query * scaling
    prefix_keys = key[:, :, :prefix]
    prefix_values = value[:, :, :prefix]
    future = torch.ones(prefix, prefix, dtype=torch.bool).triu(1)
    prefix_scores = (query[:, :, :prefix] @ prefix_keys.mT).masked_fill(future, torch.finfo(torch.float32).min)
    prefix_output = prefix_scores.softmax(-1) @ prefix_values

    bins = query[:, :, prefix:]
    scores_prefix = (bins @ prefix_keys.mT).view(*binned[:4], prefix)
    scores_bin = bins.reshape(binned) @ key[:, :, prefix:].reshape(binned).mT + mask
    weights = torch.cat([scores_prefix, scores_bin], -1).softmax(
        -1
    )  # [N, heads, BINS, BIN_TOKENS, prefix + BIN_TOKENS]
    _record(module.layer_idx, weights, prefix, maps)
    output = weights[..., :prefix].reshape(*binned[:2], BINS * BIN_TOKENS, prefix) @ prefix_values
    output = output + (weights[..., prefix:] @ value[:, :, prefix:].reshape(binned)).reshape(output.shape)
    return torch.cat([prefix_output, output], 2).transpose(1, 2), None


def _record(layer: object, weights: torch.Tensor, prefix: int, maps: AttentionMaps) -> None:
    """Keep the weights that attention supervision needs."""
    for role in Role:
        if role.layer == layer:
            keys = slice(prefix - QUERIES, prefix) if role.over_image else slice(prefix, None)
            maps[role] = weights[:, role.heads, ..., keys].flatten(2, 3)


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
