"""Files in the original's layout with any dimensions, and a reimplementation of the original's arithmetic."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a variant's files."""

    variant: str
    width: int
    heads: int
    depth: int
    spare_blocks: int
    patch: int
    trained: int  # patches on a side that the positions were learned for
    image: int
    qformer: tuple[int, int, int, int, int] | None = None  # hidden, heads, layers, cross-attention every, queries
    lora: tuple[int, float] | None = None  # rank, alpha
    llm_heads: tuple[int, int] = (4, 4)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.3


def norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": 1 + numbers(width), f"{name}.bias": numbers(width)}


def dense(name: str, columns: int, rows: int) -> Tensors:
    return {f"{name}.weight": numbers(rows, columns), f"{name}.bias": numbers(rows)}


def vision_file(sizes: Sizes) -> Tensors:
    width = sizes.width
    mlp = sizes.width * 2 + 1
    file = {"cls_token": numbers(1, 1, width), "pos_embed": numbers(1, 1 + sizes.trained**2, width)}
    file |= {"patch_embed.proj.weight": numbers(width, 3, sizes.patch, sizes.patch)}
    file |= {"patch_embed.proj.bias": numbers(width)} | norm("norm", width) | dense("head", width, 7)
    for i in range(sizes.depth + sizes.spare_blocks):
        b = f"blocks.{i}"
        file |= norm(f"{b}.norm1", width) | norm(f"{b}.norm2", width)
        file |= {f"{b}.attn.qkv.weight": numbers(3 * width, width)}
        file |= {f"{b}.attn.{part}_bias": numbers(width) for part in "qv"}
        file |= dense(f"{b}.attn.proj", width, width)
        file |= dense(f"{b}.mlp.fc1", width, mlp) | dense(f"{b}.mlp.fc2", mlp, width)
    return file


def qformer_file(sizes: Sizes) -> Tensors:
    assert sizes.qformer is not None
    hidden, _, layers, every, queries = sizes.qformer
    file = {"query_tokens": numbers(1, queries, hidden)} | norm("ln_vision", sizes.width)
    file |= norm("Qformer.bert.embeddings.LayerNorm", hidden)
    for i in range(layers):
        for kind, seen in (("attention", hidden), ("crossattention", sizes.width)):
            if kind == "crossattention" and i % every:
                continue
            a = f"Qformer.bert.encoder.layer.{i}.{kind}"
            file |= dense(f"{a}.self.query", hidden, hidden)
            file |= dense(f"{a}.self.key", seen, hidden) | dense(f"{a}.self.value", seen, hidden)
            file |= dense(f"{a}.output.dense", hidden, hidden) | norm(f"{a}.output.LayerNorm", hidden)
        f = f"Qformer.bert.encoder.layer.{i}"
        file |= dense(f"{f}.intermediate_query.dense", hidden, 3 * hidden)
        file |= dense(f"{f}.output_query.dense", 3 * hidden, hidden) | norm(f"{f}.output_query.LayerNorm", hidden)
    return file | dense("t5_proj", hidden, 11)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, T, width per head]
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def apply(file: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, file[f"{name}.weight"], file[f"{name}.bias"])


def normed(file: Tensors, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], file[f"{name}.weight"], file[f"{name}.bias"], eps)


def positions(sizes: Sizes, file: Tensors, side: int) -> torch.Tensor:
    """The learned positions on a grid of ``side`` patches."""
    learned = file["pos_embed"]
    if side == sizes.trained:
        return learned
    grid = learned[:, 1:].unflatten(1, (sizes.trained, sizes.trained)).permute(0, 3, 1, 2)
    grid = interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([learned[:, :1], grid.flatten(2).mT], 1)


def tower(sizes: Sizes, file: Tensors, pixels: torch.Tensor, seen: Tensors | None = None) -> torch.Tensor:
    """EVA's ViT without its last block, norm and head; stages are stored in ``seen`` by their recorded names."""
    seen = {} if seen is None else seen
    x = conv2d(pixels, file["patch_embed.proj.weight"], file["patch_embed.proj.bias"], stride=sizes.patch)
    grid = positions(sizes, file, x.shape[-1])
    x = torch.cat([file["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + grid
    seen["vit_embeddings"] = x
    for i in range(sizes.depth):
        b = f"blocks.{i}"
        bias = torch.cat([file[f"{b}.attn.q_bias"], torch.zeros(sizes.width), file[f"{b}.attn.v_bias"]])
        qkv = linear(normed(file, f"{b}.norm1", x, 1e-6), file[f"{b}.attn.qkv.weight"], bias).chunk(3, -1)
        x = x + apply(file, f"{b}.attn.proj", attention(*qkv, sizes.heads))
        inner = gelu(apply(file, f"{b}.mlp.fc1", normed(file, f"{b}.norm2", x, 1e-6)))
        x = x + apply(file, f"{b}.mlp.fc2", inner)
        seen[f"vit_block_{i}"] = x
    return x


def queries(sizes: Sizes, file: Tensors, image: torch.Tensor, seen: Tensors | None = None) -> torch.Tensor:
    """BLIP-2's Q-Former on queries only; ``seen`` as in ``tower``."""
    seen = {} if seen is None else seen
    assert sizes.qformer is not None
    _, heads, layers, every, _ = sizes.qformer
    x = normed(file, "Qformer.bert.embeddings.LayerNorm", file["query_tokens"].expand(len(image), -1, -1), 1e-12)
    seen["qformer_hidden_0"] = x
    for i in range(layers):
        for kind, source in (("attention", None), ("crossattention", image)):
            if source is not None and i % every:
                continue
            a = f"Qformer.bert.encoder.layer.{i}.{kind}"
            kv = x if source is None else source
            q, k, v = (apply(file, f"{a}.self.{n}", y) for n, y in (("query", x), ("key", kv), ("value", kv)))
            y = apply(file, f"{a}.output.dense", attention(q, k, v, heads))
            x = normed(file, f"{a}.output.LayerNorm", x + y, 1e-12)
        f = f"Qformer.bert.encoder.layer.{i}"
        y = apply(file, f"{f}.output_query.dense", gelu(apply(file, f"{f}.intermediate_query.dense", x)))
        x = normed(file, f"{f}.output_query.LayerNorm", x + y, 1e-12)
        seen[f"qformer_hidden_{i + 1}"] = x
    return x
