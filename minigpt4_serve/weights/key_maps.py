"""Names of tensors in the original's files → names in ours. Pure data; knows no tensors and no files.

Every entry is ``(pattern, replacement)``; ``None`` as replacement means known and dropped. A name that no pattern of
its table matches is a stray, and a stray stops a conversion.
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
    # The key has no bias of its own: q_bias and v_bias are joined around zeros into one qkv bias.
    (r"blocks\.(\d+)\.attn\.([qv])_bias", r"vision_model.encoder.layers.\1.self_attn.qkv.bias.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"vision_model.encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"vision_model.encoder.layers.\1.mlp.\2.\3"),
    (r"(norm|fc_norm|head)\..*", None),
)
"""``eva_vit_g.pth``. Blocks past the tower's depth are dropped by the caller, who knows the depth."""

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
    # The text half of BLIP-2's Q-Former: MiniGPT-4 throws it away.
    (r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)", None),
    (r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*", None),
    (r"Qformer\.cls\..*", None),
    # What BLIP-2 puts behind or beside the queries.
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
        # ``base_model.model`` is peft's; from 0.3 on it also writes the adapter's name behind lora_A and lora_B.
        r"llama_model\.(?:base_model\.model\.)?(model\.layers\.\d+\.\w+\.\w+)\.lora_([AB])(?:\.\w+)?\.weight",
        r"language_model.\1.lora_\2.weight",
    ),
    # Buffers: the original's trainer saves every one.
    (r"llama_model\.(base_model\.model\.)?model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", None),
    *QFORMER,
)
"""MiniGPT-4's own checkpoints: what was trained. What of the Q-Former or ln_vision was trained too lies over theirs."""


def map_key(name: str, table: KeyMap) -> tuple[bool, str | None]:
    """(known, new name or None for dropped)."""
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return True, None if replacement is None else match.expand(replacement)
    return False, None
