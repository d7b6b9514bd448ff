"""Names of tensors in the original's files → names in ours. Pure data; knows no tensors and no files.

Every entry is ``(pattern, replacement)``; ``None`` as replacement means known and dropped. A name that no pattern of
its table matches is a stray, and a stray stops a conversion.
"""

import re
from collections.abc import Sequence

__all__ = ["CHECKPOINT", "QFORMER", "VISION", "Table", "rename"]

Table = Sequence[tuple[str, str | None]]

VISION: Table = (
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

QFORMER: Table = (
    (r"query_tokens", r"query_tokens"),
    (r"ln_vision\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.layernorm.\1"),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)",
        r"qformer.encoder.layer.\1.attention.attention.\2.\3",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.self\.(query|key|value)\.(weight|bias)",
        r"qformer.encoder.layer.\1.crossattention.attention.\2.\3",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.output\.(dense|LayerNorm)\.(weight|bias)",
        r"qformer.encoder.layer.\1.\2.output.\3.\4",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.intermediate_query\.dense\.(weight|bias)",
        r"qformer.encoder.layer.\1.intermediate_query.dense.\2",
    ),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.(dense|LayerNorm)\.(weight|bias)",
        r"qformer.encoder.layer.\1.output_query.\2.\3",
    ),
    (r"Qformer\.bert\.embeddings\.position_ids", None),
    (r"t5_proj\.(weight|bias)", None),
)
"""``blip2_pretrained_flant5xxl.pth``."""

CHECKPOINT: Table = (
    (r"llama_proj\.(weight|bias)", r"language_projection.\1"),
    (r"ln_vision\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"Qformer\.bert\.embeddings\.position_ids", None),
    (r"llama_model\.(base_model\.model\.)?model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),
)
"""MiniGPT-4's own checkpoints, without LoRA."""


def rename(name: str, table: Table) -> tuple[bool, str | None]:
    """(known, new name or None for dropped)."""
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return True, None if replacement is None else match.expand(replacement)
    return False, None
