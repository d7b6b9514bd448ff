"""Derives tensors of a converted model from the original's: joined biases, interpolated positions, merged LoRA.

Each function changes a mapping of key → ``LazyTensor`` in place; the arithmetic runs when the result is written.
"""

import torch

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.weights.reader import LazyTensor

__all__ = ["add_identity_layernorm", "interpolate_pos_embed", "join_attention_bias", "merge_lora"]


def join_attention_bias(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """Concatenate the biases of query, key and value of each vision layer; EVA's key has none, so it is zero."""
    for layer in range(config.vision_config.num_hidden_layers):
        key = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        query = tensors.pop(f"{key}.q", None)
        value = tensors.pop(f"{key}.v", None)
        if query is not None and value is not None:

            def join(query: LazyTensor = query, value: LazyTensor = value) -> torch.Tensor:
                q = query.read()
                return torch.cat([q, torch.zeros_like(q), value.read()])

            tensors[key] = LazyTensor((query.shape[0] * 3,), join)


def interpolate_pos_embed(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """Resize the position embeddings to the variant's patch grid: ``interpolate_pos_embed`` of the original."""
    key = "vision_model.embeddings.position_embedding"
    vision = config.vision_config
    pos_embed = tensors[key]
    new_side = vision.image_size // vision.patch_size
    old_side = round((pos_embed.shape[1] - 1) ** 0.5)
    if old_side == new_side:
        return

    def interpolate() -> torch.Tensor:
        positions = pos_embed.read().float()  # [1, 1 + old_side², width]; the first is the class token's
        grid = positions[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    tensors[key] = LazyTensor((1, 1 + new_side * new_side, pos_embed.shape[2]), interpolate)


def add_identity_layernorm(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """Set ln_vision to weight 1 and bias 0 unless the checkpoint has it: without a Q-Former the original loads none."""
    width = config.vision_config.hidden_size
    key = "vision_model.post_layernorm"
    tensors.setdefault(f"{key}.weight", LazyTensor((width,), lambda: torch.ones(width)))
    tensors.setdefault(f"{key}.bias", LazyTensor((width,), lambda: torch.zeros(width)))


def merge_lora(tensors: dict[str, LazyTensor], *, scaling: float) -> None:
    """Replace W by W + scaling · B A in every layer that has both A and B.

    An A without its B, or the reverse, remains and becomes an unexpected key.

    Raises:
        WeightsError: their shapes don't fit.
    """
    for a_key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        layer = a_key.removesuffix(".lora_A.weight")
        b_key = f"{layer}.lora_B.weight"
        weight_key = f"{layer}.weight"
        if b_key not in tensors or weight_key not in tensors:
            continue
        a = tensors.pop(a_key)
        b = tensors.pop(b_key)
        weight = tensors[weight_key]
        if a.shape[:1] != b.shape[1:] or (*b.shape[:1], *a.shape[1:]) != weight.shape:
            raise WeightsError(f"The LoRA weights of {layer} have shapes that don't fit the LLM's.")

        def merge(weight: LazyTensor = weight, a: LazyTensor = a, b: LazyTensor = b) -> torch.Tensor:
            return weight.read().float() + scaling * (b.read().float() @ a.read().float())

        tensors[weight_key] = LazyTensor(weight.shape, merge)
