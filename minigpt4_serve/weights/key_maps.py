"""Key maps: from keys of tensors in the original's files to keys of ``MiniGPT4ForConditionalGeneration``.

Every entry is ``(pattern, replacement)``; without a replacement, the tensor is dropped. A key that matches no pattern
of its map is an unexpected key, which aborts a conversion.
"""

import re
from collections.abc import Sequence

__all__ = ["CHECKPOINT", "LLM", "QFORMER", "VISION", "KeyMap", "map_key"]

KeyMap = Sequence[tuple[str, str | None]]

VISION: KeyMap = (
    (r"cls_token", r"vision_model.embeddings.class_embedding"),
    (r"pos_embed", r"vision_model.embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"vision_model.embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"vision_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", r"vision_model.encoder.layers.\1.self_attn.qkv.weight"),
    # Keys have no bias: assemble.join_attention_bias joins q_bias, zeros and v_bias.
    (r"blocks\.(\d+)\.attn\.([qv])_bias", r"vision_model.encoder.layers.\1.self_attn.qkv.bias.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"vision_model.encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"vision_model.encoder.layers.\1.mlp.\2.\3"),
    (r"(norm|fc_norm|head)\..*", None),
)
"""``eva_vit_g.pth``. The caller drops blocks beyond the tower's depth."""

QFORMER: KeyMap = (
    (r"query_tokens", r"query_tokens"),
    (r"ln_vision\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.layernorm.\1"),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)",
        r"qformer.encoder.layer.\1.\2.attention.\3.\4",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.output\.(dense|LayerNorm)\.(weight|bias)",
        r"qformer.encoder.layer.\1.\2.output.\3.\4",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(intermediate_query\.dense|output_query\.(?:dense|LayerNorm))"
        r"\.(weight|bias)",
        r"qformer.encoder.layer.\1.\2.\3",
    ),
    # The text half of BLIP-2's Q-Former, which MiniGPT-4 doesn't use.
    (r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)", None),
    (r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*", None),
    (r"Qformer\.cls\..*", None),
    # Heads of BLIP-2.
    (r"(t5_proj|opt_proj|vision_proj|text_proj|itm_head)\.(weight|bias)|temp", None),
)
"""``blip2_pretrained_flant5xxl.pth``."""

LLM: KeyMap = (
    (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),
    (r"(model\..*|lm_head\.weight)", r"language_model.\1"),
)
"""A LLaMA in Hugging Face layout."""

CHECKPOINT: KeyMap = (
    (r"llama_proj\.(weight|bias)", r"language_projection.\1"),
    (
        # peft adds ``base_model.model`` and, since 0.3, the adapter's name after lora_A and lora_B.
        r"llama_model\.(?:base_model\.model\.)?(model\.layers\.\d+\.\w+\.\w+)\.lora_([AB])(?:\.\w+)?\.weight",
        r"language_model.\1.lora_\2.weight",
    ),
    # Buffers, all of which the original's trainer saves.
    (r"llama_model\.(base_model\.model\.)?model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", None),
    *QFORMER,
)
"""MiniGPT-4's checkpoints: trained weights. Trained Q-Former and ln_vision weights override the base ones."""


def map_key(key: str, key_map: KeyMap) -> tuple[bool, str | None]:
    """(whether the key is in the map, its new key or None if it is dropped)."""
    for pattern, replacement in key_map:
        match = re.fullmatch(pattern, key)
        if match:
            return True, None if replacement is None else match.expand(replacement)
    return False, None
