"""Conversion of files with unusual dimensions, compared with a reimplementation of the original's arithmetic."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original_layout import Sizes, Tensors, apply, dense, normed, numbers, qformer_file, queries, tower, vision_file
from torch.nn.functional import layer_norm
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.infer_config import Hyperparameters
from minigpt4_serve.weights.load import load_model

SIZES = {
    "Q-Former, crossing every third layer": Sizes("vicuna", 60, 3, 2, 3, 7, 5, 35, (36, 3, 5, 3, 5), llm_heads=(6, 2)),
    "Q-Former, one layer and one query": Sizes("vicuna", 24, 1, 1, 0, 14, 3, 42, (16, 2, 1, 1, 1)),
    "Q-Former, crossing in the first layer only": Sizes("vicuna", 24, 2, 1, 1, 14, 3, 70, (16, 2, 3, 3, 9)),
    "patches joined": Sizes("llama2", 40, 5, 4, 1, 14, 6, 84),
    "positions shrunk": Sizes("llama2", 40, 4, 1, 1, 14, 7, 56, llm_heads=(4, 1)),
    "LoRA, positions stretched": Sizes("v2", 24, 2, 2, 1, 5, 4, 40, lora=(3, 6.0), llm_heads=(4, 2)),
}


@pytest.mark.parametrize("name", SIZES)
def test_outputs_equal_the_originals(name: str, golden: Path, tmp_path: Path) -> None:
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
        blip = qformer_file(sizes)
        columns = sizes.qformer[0]
        torch.save({"model": blip}, tmp_path / "blip.pth")
    trained = dense("llama_proj", columns, text.hidden_size)
    if sizes.lora is not None:
        rank, alpha = sizes.lora
        for layer in range(text.num_hidden_layers):
            for target in ("q_proj", "v_proj"):
                weight = getattr(llm.model.layers[layer].self_attn, target).weight
                a = numbers(rank, text.hidden_size)
                b = numbers(weight.shape[0], rank)
                stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{target}.lora"
                trained |= {f"{stem}_A.weight": a, f"{stem}_B.weight": b}
                weight.data += alpha / rank * b @ a
    torch.save({"model": trained, "epoch": 4}, tmp_path / "checkpoint.pth")

    convert(
        variant=sizes.variant,
        llm=tmp_path / "llm",
        vit=tmp_path / "vit.pth",
        qformer=tmp_path / "blip.pth" if sizes.qformer else None,
        checkpoint=tmp_path / "checkpoint.pth",
        out=tmp_path / "model",
        dtype="float32",
        hyperparameters=Hyperparameters(
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
