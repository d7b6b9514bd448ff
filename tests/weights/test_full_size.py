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
from tools.rehearsal import Sizes, llm_shapes, qformer_shapes, vision_shapes

Shapes = dict[str, tuple[int, ...]]


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
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "vocab_size": rows,
            "num_attention_heads": hidden // 128,
            "max_position_embeddings": context,
        }
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(golden / "llm" / "vicuna-tiny" / "tokenizer.model", folder)
        sizes = Sizes(llm_layers=layers, llm_width=hidden, llm_mlp=mlp, llm_heads=hidden // 128, rows=rows)
        shapes = llm_shapes(sizes)
        norm = torch.ones(shapes.pop("model.norm.weight"))  # read to detect delta weights
        save(folder / "pytorch_model.bin", shapes, **{"model.norm.weight": norm})
        trained: Shapes = {"llama_proj.weight": (hidden, image), "llama_proj.bias": (hidden,)}
        if VARIANTS[variant].has_lora:
            trained |= lora(layers)
        files = Files(
            llm=folder,
            vit=save(tmp_path / "vit.pth", vision_shapes(sizes)),
            qformer=save(tmp_path / "qformer.pth", qformer_shapes(sizes)) if VARIANTS[variant].has_qformer else None,
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
