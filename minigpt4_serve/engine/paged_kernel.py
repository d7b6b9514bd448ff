"""Decode attention as a Triton kernel that reads the paged cache in place. Imported only where Triton is.

One program handles one sequence and one key/value head with all query heads that share it; it walks the sequence tile
by tile with the running maximum of online softmax (Milakov, Gimelshein 2018), so scores are never stored.
"""

import torch
import triton
import triton.language as tl

__all__ = ["paged_decode", "paged_decode_kernel", "tile_size"]


@triton.jit(do_not_specialize=["max_blocks"])  # type: ignore[untyped-decorator]
def paged_decode_kernel(  # type: ignore[no-untyped-def]
    out,
    query,
    keys,
    values,
    tables,
    lengths,
    scale,
    max_blocks,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    group_pad: tl.constexpr,
    head_dim: tl.constexpr,
    dim_pad: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Shapes as in ``paged_decode``; ``tile`` positions are read at a time, from as many blocks as they lie in."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths + row)
    g = tl.arange(0, group_pad)
    d = tl.arange(0, dim_pad)
    own = (g[:, None] < group) & (d[None, :] < head_dim)
    at = ((row * kv_heads + head) * group + g[:, None]) * head_dim + d[None, :]
    q = tl.load(query + at, mask=own, other=0.0).to(tl.float32) * scale
    best = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    mixed = tl.zeros([group_pad, dim_pad], tl.float32)
    for first in range(0, length, tile):
        p = first + tl.arange(0, tile)
        there = p < length
        block = tl.load(tables + row * max_blocks + p // block_size, mask=there, other=0).to(tl.int64)
        where = ((block * block_size + p % block_size)[:, None] * kv_heads + head) * head_dim + d[None, :]
        inside = there[:, None] & (d[None, :] < head_dim)
        k = tl.load(keys + where, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values + where, mask=inside, other=0.0).to(tl.float32)
        score = tl.sum(q[:, None, :] * k[None, :, :], axis=2)  # [group, tile]
        score = tl.where(there[None, :], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, axis=1))
        weight = tl.exp(score - new_best[:, None])
        fade = tl.exp(best - new_best)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = mixed * fade[:, None] + tl.sum(weight[:, :, None] * v[None, :, :], axis=1)
        best = new_best
    result = mixed / tl.maximum(total, 1e-20)[:, None]  # a padding row of a CUDA graph has length 0
    tl.store(out + at, result.to(out.dtype.element_ty), mask=own)


def tile_size(group: int) -> int:
    """Positions per tile: many, so that their loads are in flight together, as long as the registers hold them."""
    return max(16, 64 // triton.next_power_of_2(group))


def paged_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One query per sequence attends to its blocks.

    Args:
        query: ``[B, heads, head_dim]``.
        keys, values: one layer's cache, ``[blocks, block_size, kv_heads, head_dim]``, contiguous.
        tables: ``[B, most blocks]``, each sequence's blocks in order, filled up with any block; int32 or int64.
        lengths: ``[B]``, positions to attend to; a row of length 0 becomes zeros.

    Returns:
        ``[B, heads, head_dim]``
    """
    batch, heads, head_dim = query.shape
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    query = query.contiguous()
    out = torch.empty_like(query)
    paged_decode_kernel[(batch, kv_heads)](
        out,
        query,
        keys,
        values,
        tables,
        lengths,
        head_dim**-0.5,
        tables.stride(0),
        kv_heads=kv_heads,
        group=group,
        group_pad=triton.next_power_of_2(group),
        head_dim=head_dim,
        dim_pad=triton.next_power_of_2(head_dim),
        block_size=block_size,
        tile=tile_size(group),
    )
    return out
