"""The LLM's forward pass over packed rows, so that sequences of any length share one step. Uses the LLM's own weights.

Supports decoders with Llama's architecture, including grouped-query attention, biases, tied embeddings, and norms of
queries and keys. The caller's ``attend`` function stores keys and values and computes attention.
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
"""Maps layer, query ``[T, heads, head_dim]``, key and value ``[T, kv_heads, head_dim]`` to ``[T, heads, head_dim]``."""

_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class Decoder:
    """Embedding, layers, norm and head of a causal LM.

    Attributes:
        unquantized: True if no linear layer is quantized.

    Raises:
        InvalidRequest: the LLM's architecture isn't Llama's.
    """

    def __init__(self, llm: Any) -> None:
        merge_lora(llm)
        _require_llama_architecture(llm)
        self.embed = llm.get_input_embeddings()
        self.logits = llm.get_output_embeddings()
        self._layers = [_Layer(layer, llm.config) for layer in llm.model.layers]
        self._norm = llm.model.norm
        weight = self.embed.weight
        self.device = weight.device
        self.dtype = weight.dtype
        self.vocab_size = len(weight)
        self.num_layers = len(self._layers)
        self.context_length = int(llm.config.max_position_embeddings)
        self.kv_heads = self._layers[0].kv_heads
        self.head_dim = self._layers[0].head_dim
        self.unquantized = all(layer.unquantized for layer in self._layers)
        cos, sin = llm.model.rotary_emb(weight[:1, None], torch.arange(self.context_length, device=self.device)[None])
        # Rotation swaps the halves and negates the first: the sign is folded into the sine.
        signed_sin = torch.cat((-sin[0, :, : self.head_dim // 2], sin[0, :, self.head_dim // 2 :]), dim=-1)
        self._cos = cos[0].unsqueeze(1)  # [context, 1, head_dim]
        self._sin = signed_sin.unsqueeze(1)  # [context, 1, head_dim]

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Normalized hidden states of rows ``x``, both ``[T, hidden size]``, at ``positions`` ``[T]``."""
        cos = self._cos[positions]  # [T, 1, head_dim]
        sin = self._sin[positions]  # [T, 1, head_dim]
        for i, layer in enumerate(self._layers):
            query, key, value = layer.qkv(x, cos, sin)
            x = x + layer.out(attend(i, query, key, value).flatten(1))
            x = x + layer.mlp(x)
        return _normalize(self._norm, x)


class _Layer:
    """One decoder layer with fused query, key and value projections, and fused gate and up projections."""

    def __init__(self, layer: Any, config: Any) -> None:
        attention = layer.self_attn
        mlp = layer.mlp
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self._attention_norm = layer.input_layernorm
        self._mlp_norm = layer.post_attention_layernorm
        self._query_norm = getattr(attention, "q_norm", None)
        self._key_norm = getattr(attention, "k_norm", None)
        self._qkv = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up = _fuse([mlp.gate_proj, mlp.up_proj])
        self._activation = mlp.act_fn
        self._down = mlp.down_proj
        self.out = attention.o_proj
        linears = (attention.q_proj, mlp.gate_proj, mlp.down_proj, attention.o_proj)
        self.unquantized = all(map(_is_unquantized, linears))

    def qkv(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries ``[T, heads, head_dim]``, rotated keys and values ``[T, kv_heads, head_dim]``.

        Includes the norm before attention.
        """
        rows = self._qkv(_normalize(self._attention_norm, x)).unflatten(1, (-1, self.head_dim))
        rotary, value = rows.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self._query_norm is not None:
            query, key = rotary.split([self.heads, self.kv_heads], dim=1)
            rotary = torch.cat((_normalize(self._query_norm, query), _normalize(self._key_norm, key)), dim=1)
        # Rotary embedding, halves convention: x · cos + (-right, left) · sin.
        rotated = torch.addcmul(rotary * cos, rotary.roll(self.head_dim // 2, -1), sin)
        query, key = rotated.split([self.heads, self.kv_heads], dim=1)
        return query, key, value

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP's output ``[T, hidden size]``. Includes the norm."""
        gate, up = self._gate_up(_normalize(self._mlp_norm, x)).chunk(2, dim=1)
        output: torch.Tensor = self._down(self._activation(gate) * up)
        return output


def _normalize(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm as one kernel; transformers' modules launch six."""
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _is_unquantized(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor


def _fuse(layers: list[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear layers with the same input as one product. Their weights become views of the fused one."""
    if not all(map(_is_unquantized, layers)):  # quantized weights need their own kernels
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    return lambda x: linear(x, weight, bias)


def _require_llama_architecture(llm: Any) -> None:
    """Reject LLMs that ``Decoder`` would compute incorrectly."""
    config = llm.config
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(getattr(llm, "model", None), "layers", None) or [None]
    names = {name for name, _ in layers[0].named_children()} if layers[0] is not None else set()
    supported = (
        names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and all(hasattr(layers[0].self_attn, f"{name}_proj") for name in "qkvo")
        and all(hasattr(layers[0].mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        and hasattr(layers[0].input_layernorm, "variance_epsilon")
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and not getattr(config, "use_sliding_window", getattr(config, "sliding_window", None))
        and not getattr(config, "attn_logit_softcapping", None)
    )
    if not supported:
        raise InvalidRequest(
            f"The engine runs LLMs with Llama's architecture, but this one is {config.model_type!r}. Use generate()."
        )
