"""Files of unusual dimensions, compared with the original's arithmetic written out by hand: nothing is a constant."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.geometry import Untold
from minigpt4_serve.weights.load import load_model

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
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


SIZES = {
    "Q-Former, crossing every third layer": Sizes("vicuna", 60, 3, 2, 3, 7, 5, 35, (36, 3, 5, 3, 5), llm_heads=(6, 2)),
    "Q-Former, one layer and one query": Sizes("vicuna", 24, 1, 1, 0, 14, 3, 42, (16, 2, 1, 1, 1)),
    "Q-Former, crossing in the first layer only": Sizes("vicuna", 24, 2, 1, 1, 14, 3, 70, (16, 2, 3, 3, 9)),
    "patches joined": Sizes("llama2", 40, 5, 4, 1, 14, 6, 84),
    "positions shrunk": Sizes("llama2", 40, 4, 1, 1, 14, 7, 56, llm_heads=(4, 1)),
    "LoRA, positions stretched": Sizes("v2", 24, 2, 2, 1, 5, 4, 40, lora=(3, 6.0), llm_heads=(4, 2)),
}


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.3


def norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": 1 + numbers(width), f"{name}.bias": numbers(width)}


def dense(name: str, columns: int, rows: int) -> Tensors:
    return {f"{name}.weight": numbers(rows, columns), f"{name}.bias": numbers(rows)}


def vision_file(sizes: Sizes) -> Tensors:
    width, mlp = sizes.width, sizes.width * 2 + 1
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


def tower(sizes: Sizes, file: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """EVA's ViT without its last block, norm and head."""
    x = conv2d(pixels, file["patch_embed.proj.weight"], file["patch_embed.proj.bias"], stride=sizes.patch)
    side, positions = x.shape[-1], file["pos_embed"]
    if side != sizes.trained:
        grid = positions[:, 1:].unflatten(1, (sizes.trained, sizes.trained)).permute(0, 3, 1, 2)
        grid = interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:, :1], grid.flatten(2).mT], 1)
    x = torch.cat([file["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + positions
    for i in range(sizes.depth):
        b = f"blocks.{i}"
        bias = torch.cat([file[f"{b}.attn.q_bias"], torch.zeros(sizes.width), file[f"{b}.attn.v_bias"]])
        qkv = linear(normed(file, f"{b}.norm1", x, 1e-6), file[f"{b}.attn.qkv.weight"], bias).chunk(3, -1)
        x = x + apply(file, f"{b}.attn.proj", attention(*qkv, sizes.heads))
        inner = gelu(apply(file, f"{b}.mlp.fc1", normed(file, f"{b}.norm2", x, 1e-6)))
        x = x + apply(file, f"{b}.mlp.fc2", inner)
    return x


def queries(sizes: Sizes, file: Tensors, seen: torch.Tensor) -> torch.Tensor:
    """BLIP-2's Q-Former on queries alone."""
    assert sizes.qformer is not None
    _, heads, layers, every, _ = sizes.qformer
    x = normed(file, "Qformer.bert.embeddings.LayerNorm", file["query_tokens"].expand(len(seen), -1, -1), 1e-12)
    for i in range(layers):
        for kind, source in (("attention", None), ("crossattention", seen)):
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
    return x


@pytest.mark.parametrize("name", SIZES)
def test_the_numbers_are_the_originals(name: str, golden: Path, tmp_path: Path) -> None:
    sizes = SIZES[name]
    torch.manual_seed(7)
    heads, kv_heads = sizes.llm_heads
    text = LlamaConfig(
        vocab_size=521,
        hidden_size=heads * 8,
        intermediate_size=50,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-3,
        rope_theta=500.0,
        max_position_embeddings=600,
    )
    llm = LlamaForCausalLM(text).eval()
    llm.save_pretrained(tmp_path / "llm")
    shutil.copy(golden / "llm" / "vicuna-tiny" / "tokenizer.model", tmp_path / "llm")
    vision = vision_file(sizes)
    torch.save(vision, tmp_path / "vit.pth")
    blip: Tensors = {}
    columns = 4 * sizes.width
    if sizes.qformer is not None:
        blip, columns = qformer_file(sizes), sizes.qformer[0]
        torch.save({"model": blip}, tmp_path / "blip.pth")
    trained = dense("llama_proj", columns, text.hidden_size)
    if sizes.lora is not None:
        rank, alpha = sizes.lora
        for layer in range(text.num_hidden_layers):
            for target in ("q_proj", "v_proj"):
                weight = getattr(llm.model.layers[layer].self_attn, target).weight
                a, b = numbers(rank, text.hidden_size), numbers(weight.shape[0], rank)
                stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{target}.lora"
                trained |= {f"{stem}_A.weight": a, f"{stem}_B.weight": b}
                weight.data += alpha / rank * b @ a
    torch.save({"model": trained, "epoch": 4}, tmp_path / "checkpoint.pth")

    convert(
        variant=sizes.variant,  # type: ignore[arg-type]
        llm=tmp_path / "llm",
        vit=tmp_path / "vit.pth",
        qformer=tmp_path / "blip.pth" if sizes.qformer else None,
        checkpoint=tmp_path / "checkpoint.pth",
        out=tmp_path / "model",
        dtype="float32",
        untold=Untold(
            vit_heads=sizes.heads,
            vit_depth=sizes.depth,
            image_size=sizes.image if sizes.image != sizes.trained * sizes.patch else None,
            qformer_heads=sizes.qformer[1] if sizes.qformer else None,
            lora_alpha=sizes.lora[1] if sizes.lora else None,
        ),
    )
    model, processor = load_model(ModelSettings(path=tmp_path / "model", device="cpu"))

    pixels = torch.randn(2, 3, sizes.image, sizes.image)
    with torch.no_grad():
        seen = tower(sizes, vision, pixels)
        if sizes.qformer is None:
            seen = layer_norm(seen, seen.shape[-1:])[:, 1:]  # weight 1, bias 0; torch's epsilon
            rows = seen.reshape(2, -1, columns)
        else:
            rows = queries(sizes, blip, normed(blip, "ln_vision", seen, 1e-5))
        expected = apply(trained, "llama_proj", rows)
        features = model.get_image_features(pixels)
        assert features.shape[1] == processor.num_image_tokens
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        ids = torch.tensor([processor.encode_prompt("a <ImageHere> b <ImageHere> c")])
        rows = llm.get_input_embeddings()(ids.where(ids < text.vocab_size, 0))
        rows[ids == model.config.image_token_id] = expected.flatten(0, 1)
        torch.testing.assert_close(model(ids, pixels).logits, llm(inputs_embeds=rows).logits, rtol=1e-4, atol=1e-4)
    written = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert {part["dtype"] for part in (written, written["vision_config"], written["text_config"])} == {"float32"}
