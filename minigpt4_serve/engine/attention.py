"""Attention over the paged KV cache with PyTorch's own means: one sequence's new rows read its blocks. Tensors only.

One layer's cache is ``[2, blocks, block_size, kv_heads, head_dim]``: keys, values. One sequence at a time is no loss on
CPUs: gathering a whole batch, padded to its longest sequence, took twice as long (measured: 32 sequences of 130
positions, 24 heads of 16). On GPUs single rows go through ``paged_kernel`` instead, which reads blocks where they lie.
"""

from collections.abc import Sequence as Ids

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["SequenceAttention", "store"]


def store(cache: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write rows ``[T, kv_heads, head_dim]`` to positions ``slots`` ``[T]`` (block × block_size + offset)."""
    keys, values = cache.flatten(1, 2)
    keys.index_copy_(0, slots, key)
    values.index_copy_(0, slots, value)


class SequenceAttention:
    """Rows ``start`` to ``end`` of a sequence attend to all before them and, causally, to each other.

    Args:
        table: the sequence's blocks in order, up to the one that holds row ``end - 1``.
    """

    def __init__(self, table: Ids[int], *, start: int, end: int, device: torch.device) -> None:
        self._table, self._end = torch.tensor(table, device=device), end
        self._causal = start == 0 and end > 1
        self._mask: torch.Tensor | None = None  # [T, end]
        if start > 0 and end - start > 1:
            self._mask = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)

    def attend(self, query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """``query`` ``[T, heads, head_dim]``, the rows' own keys and values already stored → the same shape."""
        # [2, kv_heads, end, head_dim]
        keys, values = cache.index_select(1, self._table).flatten(1, 2)[:, : self._end].transpose(1, 2)
        out = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=self._mask,
            is_causal=self._causal,
            enable_gqa=query.shape[1] != keys.shape[0],
        )
        return out[0].transpose(0, 1)
