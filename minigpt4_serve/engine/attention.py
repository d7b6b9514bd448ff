"""Attention over the paged KV cache with PyTorch operators: a sequence's new rows attend to its blocks.

One layer's cache is ``[2, blocks, block_size, kv_heads, head_dim]``: keys, values. On CPUs one sequence at a time is
faster than a batch padded to its longest sequence, which took twice as long (measured: 32 sequences of 130 positions,
24 heads of 16). On GPUs single rows use ``paged_kernel`` instead, which reads the blocks in place.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["SequenceAttention", "store"]


def store(cache: torch.Tensor, kv_slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write rows ``[T, kv_heads, head_dim]`` to ``kv_slots`` ``[T]`` (block × block_size + offset)."""
    keys, values = cache.flatten(1, 2)
    keys.index_copy_(0, kv_slots, key)
    values.index_copy_(0, kv_slots, value)


class SequenceAttention:
    """Causal attention of a sequence's rows ``start`` to ``end`` to themselves and all rows before them.

    Args:
        table: the sequence's blocks in order, up to the one that holds row ``end - 1``.
    """

    def __init__(self, table: Sequence[int], *, start: int, end: int, device: torch.device) -> None:
        self._table = torch.tensor(table, device=device)
        self._end = end
        self._causal = start == 0 and end > 1
        self._mask: torch.Tensor | None = None  # [T, end]
        if start > 0 and end - start > 1:
            self._mask = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)

    def attend(self, query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """Attention output ``[T, heads, head_dim]``; the rows' own keys and values are already stored.

        Args:
            query: ``[T, heads, head_dim]``.
            cache: one layer's.
        """
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
