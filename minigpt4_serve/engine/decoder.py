"""The LLM's own weights in a forward pass of our own over packed rows, so that sequences of any length share one step.

Any decoder of Llama's layout works: grouped-query attention, biases, tied embeddings, norms of queries and keys.
Tensors only; where keys and values are kept, and who attends to what, is the caller's business.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model.lora import merge_lora

__all__ = ["Attend", "Decoder"]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, query ``[T, heads, head_dim]``, key and value ``[T, kv_heads, head_dim]``) → ``[T, heads, head_dim]``"""

_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class Decoder:
    """Embedding, layers, norm and head of a causal LM.

    Attributes:
        plain: no layer is quantised.

    Raises:
        InvalidRequest: the LLM isn't of Llama's layout.
    """

    def __init__(self, llm: Any) -> None:
        merge_lora(llm)
        _require_llama_layout(llm)
        self.embed, self.logits = llm.get_input_embeddings(), llm.get_output_embeddings()
        self._layers = [_Layer(layer, llm.config) for layer in llm.model.layers]
        self._norm = llm.model.norm
        weight = self.embed.weight
        self.device, self.dtype, self.vocab_size = weight.device, weight.dtype, len(weight)
        self.num_layers, self.context_length = len(self._layers), int(llm.config.max_position_embeddings)
        self.kv_heads, self.head_dim = self._layers[0].kv_heads, self._layers[0].head_dim
        self.plain = all(layer.plain for layer in self._layers)
        cos, sin = llm.model.rotary_emb(weight[:1, None], torch.arange(self.context_length, device=self.device)[None])
        # The halves trade places and the first changes its sign: the sign is kept with the sine.
        signed = torch.cat((-sin[0, :, : self.head_dim // 2], sin[0, :, self.head_dim // 2 :]), dim=-1)
        self._cos, self._sin = cos[0].unsqueeze(1), signed.unsqueeze(1)  # [context, 1, head_dim]

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Rows ``[T, hidden size]`` at ``positions`` ``[T]`` through all layers and the final norm."""
        cos, sin = self._cos[positions], self._sin[positions]  # [T, 1, head_dim]
        for i, layer in enumerate(self._layers):
            query, key, value = layer.qkv(x, cos, sin)
            x = x + layer.out(attend(i, query, key, value).flatten(1))
            x = x + layer.mlp(x)
        return _normalise(self._norm, x)


class _Layer:
    """One decoder layer, with the query, key and value projections fused into one, gate and up likewise."""

    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._before, self._after = layer.input_layernorm, layer.post_attention_layernorm
        self._query_norm, self._key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._qkv = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up = _fuse([mlp.gate_proj, mlp.up_proj])
        self._activation, self._down, self.out = mlp.act_fn, mlp.down_proj, attention.o_proj
        self.plain = all(map(_is_plain, (attention.q_proj, mlp.gate_proj, mlp.down_proj, attention.o_proj)))

    def qkv(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries ``[T, heads, head_dim]`` and keys, rotated, and values, both ``[T, kv_heads, head_dim]``."""
        rows = self._qkv(_normalise(self._before, x)).unflatten(1, (-1, self.head_dim))
        turning, value = rows.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self._query_norm is not None:
            query, key = turning.split([self.heads, self.kv_heads], dim=1)
            turning = torch.cat((_normalise(self._query_norm, query), _normalise(self._key_norm, key)), dim=1)
        # Rotary embedding, halves convention: x · cos + (-right, left) · sin.
        turned = torch.addcmul(turning * cos, turning.roll(self.head_dim // 2, -1), sin)
        query, key = turned.split([self.heads, self.kv_heads], dim=1)
        return query, key, value

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, hidden size]``, norm included."""
        gate, up = self._gate_up(_normalise(self._after, x)).chunk(2, dim=1)
        mixed: torch.Tensor = self._down(self._activation(gate) * up)
        return mixed


def _normalise(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in one kernel instead of transformers' six."""
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor


def _fuse(layers: list[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Several linear layers of one input as one product. Their weights become views of the fused one: no copy stays."""
    if not all(map(_is_plain, layers)):  # quantised weights bring their own kernels
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    return lambda x: linear(x, weight, bias)


def _require_llama_layout(llm: Any) -> None:
    """Refuse what would be computed wrongly rather than not at all."""
    config = llm.config
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(getattr(llm, "model", None), "layers", None) or [None]
    names = {name for name, _ in layers[0].named_children()} if layers[0] is not None else set()
    fits = (
        names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and all(hasattr(layers[0].self_attn, f"{name}_proj") for name in "qkvo")
        and all(hasattr(layers[0].mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        and hasattr(layers[0].input_layernorm, "variance_epsilon")
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and not getattr(config, "use_sliding_window", getattr(config, "sliding_window", None))
        and not getattr(config, "attn_logit_softcapping", None)
    )
    if not fits:
        raise InvalidRequest(f"The engine runs LLMs of Llama's layout; {config.model_type!r} differs. Use generate().")
