"""Attention over the paged KV cache: one query per sequence (decode) or a chunk of one prompt (prefill). Tensors only.

The cache of one layer is ``[num_blocks, block_size, kv_heads, head_dim]`` each for keys and values. On GPUs decode runs
in a kernel of our own that reads the blocks where they lie; elsewhere blocks are gathered and PyTorch's SDPA does the
rest.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["decode_attention", "decode_attention_gathered", "prefill_attention", "store"]


def store(cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Write ``rows`` ``[T, kv_heads, head_dim]`` to positions ``slots`` ``[T]`` (block × block_size + offset)."""
    cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, rows)


def prefill_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, start: int
) -> torch.Tensor:
    """A chunk that begins at position ``start`` attends to all before it and, causally, to itself.

    Args:
        query: ``[T, heads, head_dim]``.
        keys, values: one layer's cache, the chunk's own rows already stored.
        table: ``[blocks]``, the sequence's blocks in order.

    Returns:
        ``[T, heads, head_dim]``
    """
    length = start + len(query)
    k = keys[table].flatten(0, 1)[:length].transpose(0, 1)  # [kv_heads, length, head_dim]
    v = values[table].flatten(0, 1)[:length].transpose(0, 1)
    q = query.transpose(0, 1)  # [heads, T, head_dim]
    if start == 0:
        out = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
    else:
        mask = torch.ones(len(query), length, dtype=torch.bool, device=query.device).tril(start)
        out = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def decode_attention_gathered(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One query per sequence, by gathering its blocks.

    Args:
        query: ``[B, heads, head_dim]``.
        tables: ``[B, blocks]``, filled up with any block.
        lengths: ``[B]``, positions to attend to.

    Returns:
        ``[B, heads, head_dim]``
    """
    k = keys[tables].flatten(1, 2).transpose(1, 2)  # [B, kv_heads, blocks × block_size, head_dim]
    v = values[tables].flatten(1, 2).transpose(1, 2)
    mask = torch.arange(k.shape[2], device=query.device) < lengths[:, None]  # [B, positions]
    out = scaled_dot_product_attention(
        query.unsqueeze(2), k, v, attn_mask=mask[:, None, None], enable_gqa=query.shape[1] != k.shape[1]
    )
    return out.squeeze(2)


def decode_attention(*tensors: Any) -> torch.Tensor:
    """``decode_attention_gathered`` with the best means of the device."""
    if tensors[0].is_cuda:
        from minigpt4_serve.engine.paged_kernel import paged_decode

        return paged_decode(*tensors)
    return decode_attention_gathered(*tensors)
