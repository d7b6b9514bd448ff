"""Keys and shapes of the published models, planned from files with shapes but no data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4_serve.prompt.variants import VARIANTS
from minigpt4_serve.weights.plan import Files, Plan, make_plan
from minigpt4_serve.weights.shapes import model_shapes

Shapes = dict[str, tuple[int, ...]]


def vision() -> Shapes:
    """``eva_vit_g.pth``: 40 blocks, of which 39 are used."""
    shapes: Shapes = {"cls_token": (1, 1, 1408), "pos_embed": (1, 257, 1408)}
    shapes |= {"patch_embed.proj.weight": (1408, 3, 14, 14), "patch_embed.proj.bias": (1408,)}
    for i in range(40):
        b = f"blocks.{i}"
        shapes |= {f"{b}.{norm}.{part}": (1408,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{b}.attn.q_bias": (1408,), f"{b}.attn.v_bias": (1408,), f"{b}.attn.qkv.weight": (4224, 1408)}
        shapes |= {f"{b}.attn.proj.weight": (1408, 1408), f"{b}.attn.proj.bias": (1408,)}
        shapes |= {f"{b}.mlp.fc1.weight": (6144, 1408), f"{b}.mlp.fc1.bias": (6144,)}
        shapes |= {f"{b}.mlp.fc2.weight": (1408, 6144), f"{b}.mlp.fc2.bias": (1408,)}
    return shapes | {"norm.weight": (1408,), "norm.bias": (1408,), "head.weight": (1024, 1408), "head.bias": (1024,)}


def qformer() -> Shapes:
    """``blip2_pretrained_flant5xxl.pth``."""
    shapes: Shapes = {"query_tokens": (1, 32, 768), "ln_vision.weight": (1408,), "ln_vision.bias": (1408,)}
    bert = "Qformer.bert."
    norm = ("LayerNorm.weight", "LayerNorm.bias")
    shapes |= {f"{bert}embeddings.{part}": (768,) for part in norm} | {f"{bert}embeddings.position_ids": (1, 512)}
    for i in range(12):
        for attention in ("attention", "crossattention")[: 2 - i % 2]:
            width = 1408 if attention == "crossattention" else 768
            a = f"{bert}encoder.layer.{i}.{attention}"
            for name in ("query", "key", "value"):
                inner = 768 if name == "query" else width
                shapes |= {f"{a}.self.{name}.weight": (768, inner), f"{a}.self.{name}.bias": (768,)}
            shapes |= {f"{a}.output.dense.weight": (768, 768), f"{a}.output.dense.bias": (768,)}
            shapes |= {f"{a}.output.{part}": (768,) for part in norm}
        f = f"{bert}encoder.layer.{i}"
        shapes |= {f"{f}.intermediate_query.dense.weight": (3072, 768), f"{f}.intermediate_query.dense.bias": (3072,)}
        shapes |= {f"{f}.output_query.dense.weight": (768, 3072), f"{f}.output_query.dense.bias": (768,)}
        shapes |= {f"{f}.output_query.{part}": (768,) for part in norm}
    return shapes | {"t5_proj.weight": (4096, 768), "t5_proj.bias": (4096,)}


def llm(layers: int, hidden: int, mlp: int, rows: int) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}"
        shapes |= {f"{p}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{p}.mlp.gate_proj.weight": (mlp, hidden), f"{p}.mlp.up_proj.weight": (mlp, hidden)}
        shapes |= {f"{p}.mlp.down_proj.weight": (hidden, mlp), f"{p}.self_attn.rotary_emb.inv_freq": (64,)}
        shapes |= {f"{p}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def lora(layers: int) -> Shapes:
    stem = "llama_model.base_model.model.model.layers"
    return {
        f"{stem}.{i}.self_attn.{target}.lora_{half}.weight": (64, 4096) if half == "A" else (4096, 64)
        for i in range(layers)
        for target in ("q_proj", "v_proj")
        for half in "AB"
    }


def save(path: Path, shapes: Shapes, **more: Any) -> Path:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    torch.save({"model": {**tensors, **more}}, path)
    return path


@pytest.fixture
def plan(golden: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(variant: str, *, layers: int, hidden: int, mlp: int, rows: int, context: int, image: int) -> Plan:
        folder = tmp_path / "llm"
        folder.mkdir()
        sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": rows}
        config = {
            "model_type": "llama",
            **sizes,
            "num_attention_heads": hidden // 128,
            "max_position_embeddings": context,
        }
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(golden / "llm" / "vicuna-tiny" / "tokenizer.model", folder)
        norm = torch.ones(hidden)  # read to detect delta weights
        save(folder / "pytorch_model.bin", llm(layers, hidden, mlp, rows), **{"model.norm.weight": norm})
        trained: Shapes = {"llama_proj.weight": (hidden, image), "llama_proj.bias": (hidden,)}
        if VARIANTS[variant].has_lora:
            trained |= lora(layers)
        files = Files(
            llm=folder,
            vit=save(tmp_path / "vit.pth", vision()),
            qformer=save(tmp_path / "qformer.pth", qformer()) if VARIANTS[variant].has_qformer else None,
            checkpoint=save(tmp_path / "checkpoint.pth", trained),
        )
        return make_plan(files, VARIANTS[variant])

    return make


SEVEN = {"layers": 32, "hidden": 4096, "mlp": 11008}


@pytest.mark.parametrize(
    ("variant", "dimensions", "image_tokens", "billions"),
    [
        ("vicuna", {**SEVEN, "rows": 32001, "context": 2048, "image": 768}, 32, 7.83),
        (
            "vicuna",
            {"layers": 40, "hidden": 5120, "mlp": 13824, "rows": 32000, "context": 2048, "image": 768},
            32,
            14.11,
        ),
        ("llama2", {**SEVEN, "rows": 32000, "context": 4096, "image": 5632}, 64, 7.75),
        ("v2", {**SEVEN, "rows": 32000, "context": 4096, "image": 5632}, 256, 7.75),
    ],
)
def test_every_name_and_shape_of_the_published_models(
    plan: Callable[..., Plan], variant: str, dimensions: dict[str, int], image_tokens: int, billions: float
) -> None:
    made = plan(variant, **dimensions)
    assert {name: tensor.shape for name, tensor in made.tensors.items()} == model_shapes(made.config)
    assert made.config.num_image_tokens == image_tokens
    vision_config = made.config.vision_config
    assert (vision_config.num_attention_heads, vision_config.num_hidden_layers) == (16, 39)
    assert vision_config.image_size == (448 if variant == "v2" else 224)
    assert made.config.image_token_id == dimensions["rows"]
    numbers = sum(torch.Size(tensor.shape).numel() for tensor in made.tensors.values())
    assert numbers / 1e9 == pytest.approx(billions, abs=0.01)
    assert made.notes == []
