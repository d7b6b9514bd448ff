"""Arithmetic that makes tensors of ours out of the original's: joined, stretched, merged. Reads nothing by itself.

Each function changes a table of name → ``LazyTensor`` in place; the work itself is done when the result is written.
"""

import torch

from minigpt4_serve.model import MiniGPT4Config
from minigpt4_serve.weights.reader import LazyTensor

__all__ = ["interpolate_pos_embed", "join_attention_bias", "merge_lora", "neutral_layernorm"]


def join_attention_bias(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """One bias for query, key and value; the key's is zero."""
    for layer in range(config.vision_config.num_hidden_layers):
        name = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        query, value = tensors.pop(f"{name}.q", None), tensors.pop(f"{name}.v", None)
        if query is not None and value is not None:

            def joined(query: LazyTensor = query, value: LazyTensor = value) -> torch.Tensor:
                q, v = query.read(), value.read()
                return torch.cat([q, torch.zeros_like(q), v])

            tensors[name] = LazyTensor((query.shape[0] * 3,), joined)


def interpolate_pos_embed(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """Stretch the learned positions to the grid that the variant looks at, as the original does when it loads them."""
    name = "vision_model.embeddings.position_embedding"
    vision = config.vision_config
    old, side = tensors[name], vision.image_size // vision.patch_size
    before = round((old.shape[1] - 1) ** 0.5)
    if before == side:
        return

    def resized() -> torch.Tensor:
        positions = old.read().float()  # [1, 1 + before², width]; the first is the class token's
        grid = positions[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    tensors[name] = LazyTensor((1, 1 + side * side, old.shape[2]), resized)


def neutral_layernorm(tensors: dict[str, LazyTensor], config: MiniGPT4Config) -> None:
    """Without a Q-Former the original never loads ln_vision: weight 1, bias 0, unless the checkpoint has trained it."""
    width = config.vision_config.hidden_size
    name = "vision_model.post_layernorm"
    tensors.setdefault(f"{name}.weight", LazyTensor((width,), lambda: torch.ones(width)))
    tensors.setdefault(f"{name}.bias", LazyTensor((width,), lambda: torch.zeros(width)))


def merge_lora(tensors: dict[str, LazyTensor], *, scaling: float) -> None:
    """W + scaling · B A for every layer that has both; halves without the other stay and are named as left over."""
    for a_name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        stem = a_name.removesuffix(".lora_A.weight")
        b_name, w_name = f"{stem}.lora_B.weight", f"{stem}.weight"
        if b_name not in tensors or w_name not in tensors:
            continue
        a, b, weight = tensors.pop(a_name), tensors.pop(b_name), tensors[w_name]

        def merged(weight: LazyTensor = weight, a: LazyTensor = a, b: LazyTensor = b) -> torch.Tensor:
            return weight.read().float() + scaling * (b.read().float() @ a.read().float())

        tensors[w_name] = LazyTensor(weight.shape, merged)
