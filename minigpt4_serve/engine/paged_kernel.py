"""Decode attention as a Triton kernel that reads the paged KV cache in place. Importing this module requires Triton.

One program handles one sequence and one key/value head with all query heads that share it. It iterates over tiles of
the sequence with the running maximum of online softmax (Milakov, Gimelshein 2018), so scores are never stored.
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
    """Shapes as in ``paged_decode``; each iteration reads ``tile`` positions, from one or more blocks."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths + row)
    g = tl.arange(0, group_pad)
    d = tl.arange(0, dim_pad)
    in_range = (g[:, None] < group) & (d[None, :] < head_dim)
    out_offsets = ((row * kv_heads + head) * group + g[:, None]) * head_dim + d[None, :]
    q = tl.load(query + out_offsets, mask=in_range, other=0.0).to(tl.float32) * scale
    maximum = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    weighted = tl.zeros([group_pad, dim_pad], tl.float32)
    for first in range(0, length, tile):
        p = first + tl.arange(0, tile)
        valid = p < length
        block = tl.load(tables + row * max_blocks + p // block_size, mask=valid, other=0).to(tl.int64)
        offsets = ((block * block_size + p % block_size)[:, None] * kv_heads + head) * head_dim + d[None, :]
        readable = valid[:, None] & (d[None, :] < head_dim)
        k = tl.load(keys + offsets, mask=readable, other=0.0).to(tl.float32)
        v = tl.load(values + offsets, mask=readable, other=0.0).to(tl.float32)
        score = tl.sum(q[:, None, :] * k[None, :, :], axis=2)  # [group, tile]
        score = tl.where(valid[None, :], score, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(score, axis=1))
        weight = tl.exp(score - new_maximum[:, None])
        rescale = tl.exp(maximum - new_maximum)
        total = total * rescale + tl.sum(weight, axis=1)
        weighted = weighted * rescale[:, None] + tl.sum(weight[:, :, None] * v[None, :, :], axis=1)
        maximum = new_maximum
    result = weighted / tl.maximum(total, 1e-20)[:, None]  # a padding row of a CUDA graph has length 0
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=in_range)


def tile_size(group: int) -> int:
    """Positions per tile: as many as the registers hold, so that their loads overlap."""
    return max(16, 64 // triton.next_power_of_2(group))


def paged_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One query per sequence attends to its blocks.

    Args:
        query: ``[B, heads, head_dim]``.
        keys, values: one layer's cache, ``[blocks, block_size, kv_heads, head_dim]``, contiguous.
        tables: ``[B, most blocks]``, each sequence's blocks in order, padded with any block; int32 or int64.
        lengths: ``[B]``, positions to attend to; a row of length 0 becomes zeros.

    Returns:
        ``[B, heads, head_dim]``
    """
    batch, heads, head_dim = query.shape
    block_size = keys.shape[1]
    kv_heads = keys.shape[2]
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
