"""Spans of sequences → logits, on the device. Owns the KV cache and the CUDA graphs; knows nothing of requests or time.

The LLM's own weights are used through a forward pass of our own over packed tokens, so that sequences of any length
share one step. Any decoder of Llama's layout works: grouped-query attention, biases, tied embeddings, norms of queries
and keys.
"""

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm

from minigpt4_serve.engine.attention import decode_attention, prefill_attention, store
from minigpt4_serve.engine.scheduler import Span
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.model.lora import merge_lora
from minigpt4_serve.settings import EngineSettings

__all__ = ["ModelRunner"]

Attend = Callable[[int, torch.Tensor], torch.Tensor]
_MAX_PICTURES = 32  # in one batch: more gain nothing, and their intermediate results would need memory of their own
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class ModelRunner:
    """Runs one model on one device.

    Raises:
        InvalidRequest: the LLM isn't of Llama's layout, or the device has no room for a single block.
    """

    def __init__(self, model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> None:
        llm = model.language_model
        merge_lora(llm)
        _require_llama_layout(llm)
        self._model = model
        self._image_token_id = model.config.image_token_id
        self._head = llm.get_output_embeddings()
        self._embed = llm.get_input_embeddings()
        self._norm = llm.model.norm
        self._layers = [_Layer(layer, llm.config) for layer in llm.model.layers]
        self.device, self.dtype = self._embed.weight.device, self._embed.weight.dtype
        self.context_length, self.vocab_size = int(llm.config.max_position_embeddings), len(self._embed.weight)
        positions = torch.arange(self.context_length, device=self.device)[None]
        cos, sin = llm.model.rotary_emb(self._embed.weight[:1, None], positions)
        self._cos, self._sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)  # [context, 1, head_dim]
        first = self._layers[0]
        self.block_size = settings.block_size
        block_bytes = 2 * len(self._layers) * self.block_size * first.kv_heads * first.head_dim * self.dtype.itemsize
        self.num_blocks = _num_blocks(settings, self.device, self.context_length, block_bytes)
        # One block more than is managed: padding rows of CUDA graphs write there. Zeros, because masked positions are
        # multiplied by 0, and 0 times whatever uninitialised memory holds may not be 0.
        shape = (2, self.num_blocks + 1, self.block_size, first.kv_heads, first.head_dim)
        self._cache = [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in self._layers]
        # int8 products look at their input's values on the host, which can't be captured.
        capturable = self.device.type == "cuda" and all(layer.plain for layer in self._layers)
        self._graphs = _DecodeGraphs(self, settings) if settings.cuda_graphs and capturable else None

    def encode(self, pixels: Rows[torch.Tensor]) -> list[torch.Tensor]:
        """Pictures ``[3, side, side]`` as rows for the LLM ``[slots, hidden size]``, as many at a time as is wise."""
        features: list[torch.Tensor] = []
        for at in range(0, len(pixels), _MAX_PICTURES):
            batch = torch.stack(list(pixels[at : at + _MAX_PICTURES])).to(self.device)
            features += self._model.get_image_features(batch).to(self.dtype).unbind()
        return features

    def step(self, spans: Rows[Span], features: Callable[[Span], Rows[torch.Tensor]]) -> torch.Tensor:
        """Compute the spans; logits ``[S, vocabulary]`` of those that sample, in their order.

        Args:
            spans: as ``Scheduler.schedule`` orders them, single positions first.
            features: rows of a sequence's pictures; asked for only where a span holds image slots.
        """
        count = sum(span.end - span.start == 1 for span in spans)
        singles, chunks = spans[:count], spans[count:]
        hidden = self._replay(singles) if not chunks else None
        if hidden is not None:
            return self._logits(hidden, [i for i, span in enumerate(singles) if span.samples])
        tensors = self._tensors(singles)
        tables = [torch.tensor(span.sequence.block_table, device=self.device) for span in chunks]
        bounds = list(itertools.accumulate((span.end - span.start for span in chunks), initial=count))

        def attend(layer: int, query: torch.Tensor) -> torch.Tensor:
            keys, values = self._cache[layer]
            parts = [decode_attention(query[:count], keys, values, *tensors)] if singles else []
            for span, table, first, end in zip(chunks, tables, bounds, bounds[1:], strict=False):
                parts.append(prefill_attention(query[first:end], keys, values, table, span.start))
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        positions = [i for span in spans for i in range(span.start, span.end)]
        slots = [self._slot(span, i) for span in spans for i in range(span.start, span.end)]
        rows = self._rows(spans, features)
        packed = torch.tensor([positions, slots], device=self.device)
        hidden = self._forward(rows, packed[0], packed[1], attend)
        ends = [*range(1, count + 1), *bounds[1:]]
        return self._logits(hidden, [end - 1 for end, span in zip(ends, spans, strict=True) if span.samples])

    def _replay(self, singles: Rows[Span]) -> torch.Tensor | None:
        """Hidden states by a CUDA graph, where there is one for this step: words only, and not too many."""
        if self._graphs is None or len(singles) > self._graphs.largest:
            return None
        if any(span.sequence.token_ids[span.start] == self._image_token_id for span in singles):
            return None
        return self._graphs.run(singles)

    def _logits(self, hidden: torch.Tensor, rows: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden if rows == list(range(len(hidden))) else hidden[rows])
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block in all layers: a sequence wants to write where others read, too."""
        for cache in self._cache:
            cache[:, target] = cache[:, source]

    def _slot(self, span: Span, position: int) -> int:
        return span.sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _tensors(self, singles: Rows[Span]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables ``[B, most blocks]``, filled up with block 0, and lengths ``[B]``."""
        tables = [span.sequence.block_table for span in singles]
        width = max(map(len, tables), default=0)
        filled = [table + [0] * (width - len(table)) for table in tables]
        lengths = [span.end for span in singles]
        return torch.tensor(filled, device=self.device), torch.tensor(lengths, device=self.device)

    def _rows(self, spans: Rows[Span], features: Callable[[Span], Rows[torch.Tensor]]) -> torch.Tensor:
        """What enters the first layer ``[T, hidden size]``: embeddings, and pictures in their slots."""
        ids = [token for span in spans for token in span.sequence.token_ids[span.start : span.end]]
        is_slot = [token == self._image_token_id for token in ids]
        words = [0 if slot else token for token, slot in zip(ids, is_slot, strict=True)]
        rows: torch.Tensor = self._embed(torch.tensor(words, device=self.device))
        if not any(is_slot):
            return rows
        at = 0
        for span in spans:
            length = span.end - span.start
            places = [at + i for i in range(length) if is_slot[at + i]]
            if places:
                before = span.sequence.token_ids[: span.start].count(self._image_token_id)
                seen = torch.cat(list(features(span)))  # [slots of all pictures, hidden size]
                rows[places] = seen[before : before + len(places)]
            at += length
        return rows

    def _forward(self, x: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Packed rows ``[T, hidden size]`` through all layers and the final norm."""
        cos, sin = self._cos[positions], self._sin[positions]  # [T, 1, head_dim]
        for i, layer in enumerate(self._layers):
            query, key, value = layer.qkv(layer.norm_before(x))
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            store(self._cache[i][0], slots, key)
            store(self._cache[i][1], slots, value)
            x = x + layer.out(attend(i, query).flatten(1))
            x = x + layer.mlp(layer.norm_after(x))
        return _normalise(self._norm, x)

    @property
    def cache(self) -> list[torch.Tensor]:
        """Keys and values of each layer, ``[2, blocks + 1, block_size, kv_heads, head_dim]``."""
        return self._cache


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
        self.plain = all(_is_plain(part) for part in (attention.q_proj, mlp.gate_proj, mlp.down_proj, attention.o_proj))

    def norm_before(self, x: torch.Tensor) -> torch.Tensor:
        return _normalise(self._before, x)

    def norm_after(self, x: torch.Tensor) -> torch.Tensor:
        return _normalise(self._after, x)

    def qkv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``[T, heads, head_dim]``, and twice ``[T, kv_heads, head_dim]``."""
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        query, key, value = self._qkv(x).unflatten(1, (-1, self.head_dim)).split(sizes, dim=1)
        if self._query_norm is not None and self._key_norm is not None:
            query, key = _normalise(self._query_norm, query), _normalise(self._key_norm, key)
        return query, key, value

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=1)
        mixed: torch.Tensor = self._down(self._activation(gate) * up)
        return mixed


class _DecodeGraphs:
    """CUDA graphs of the decode step at a few batch sizes: one launch instead of hundreds.

    Smaller batches are padded; a padding row has length 0 and writes to the cache's spare block.
    """

    def __init__(self, runner: ModelRunner, settings: EngineSettings) -> None:
        self._runner = runner
        self._sizes = [size for size in settings.decode_buckets if size <= settings.max_running]
        if not self._sizes or self._sizes[-1] < settings.max_running:
            self._sizes.append(settings.max_running)
        self.largest = self._sizes[-1]
        width = -(-runner.context_length // runner.block_size)

        def buffer(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.long, device=runner.device)

        self._ids, self._positions, self._slots = buffer(self.largest), buffer(self.largest), buffer(self.largest)
        self._lengths, self._tables = buffer(self.largest), buffer(self.largest, width)
        self._slots.fill_(runner.num_blocks * runner.block_size)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = None
        for size in reversed(self._sizes):  # the largest first: the smaller ones fit into its memory
            self._compute(size)  # outside a graph first, so that kernels are compiled and libraries initialised
            torch.cuda.synchronize(runner.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                hidden = self._compute(size)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, hidden)

    def _compute(self, size: int) -> torch.Tensor:
        runner = self._runner

        def attend(layer: int, query: torch.Tensor) -> torch.Tensor:
            return decode_attention(query, *runner.cache[layer], self._tables[:size], self._lengths[:size])

        rows = runner._embed(self._ids[:size])
        return runner._forward(rows, self._positions[:size], self._slots[:size], attend)

    def run(self, singles: Rows[Span]) -> torch.Tensor:
        """Hidden states ``[B, hidden size]`` of one position of each sequence."""
        runner, count = self._runner, len(singles)
        size = next(size for size in self._sizes if size >= count)
        tables, lengths = runner._tensors(singles)
        spare = runner.num_blocks * runner.block_size
        columns = [
            [span.sequence.token_ids[span.start] for span in singles] + [0] * (size - count),
            [span.start for span in singles] + [0] * (size - count),
            [runner._slot(span, span.start) for span in singles] + [spare] * (size - count),
        ]
        packed = torch.tensor(columns, device=runner.device)
        self._ids[:size], self._positions[:size], self._slots[:size] = packed.unbind()
        self._tables[:count, : tables.shape[1]] = tables
        self._lengths[:count] = lengths
        self._lengths[count:size] = 0
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden[:count]


def _normalise(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm in one kernel instead of transformers' six."""
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves convention. ``x`` ``[T, heads, head_dim]``."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


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


def _num_blocks(settings: EngineSettings, device: torch.device, context: int, block_bytes: int) -> int:
    """Blocks that fit the memory given, but no more than all slots can ever use."""
    useful = settings.max_running * -(-context // settings.block_size)
    if settings.num_blocks is not None:
        return settings.num_blocks
    if settings.kv_cache_bytes is not None:
        room = settings.kv_cache_bytes
    elif device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = int(free - total * (1 - settings.gpu_memory_share))
    else:
        room = 2**30
    blocks = min(useful, room // block_bytes)
    if blocks < 1:
        raise InvalidRequest("There is no memory left for the KV cache. Use a smaller model, int8 or more memory.")
    return int(blocks)


def _require_llama_layout(llm: Any) -> None:
    """Refuse what would be computed wrongly rather than not at all."""
    config = llm.config
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(getattr(llm, "model", None), "layers", None) or [None]
    norms = {name for name, _ in layers[0].named_children()} if layers[0] is not None else set()
    fits = (
        norms == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and all(hasattr(layers[0].self_attn, f"{name}_proj") for name in "qkvo")
        and all(hasattr(layers[0].mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        and hasattr(layers[0].input_layernorm, "variance_epsilon")
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and not getattr(config, "use_sliding_window", getattr(config, "sliding_window", None))
        and not getattr(config, "attn_logit_softcapping", None)
    )
    if not fits:
        raise InvalidRequest(f"The engine runs LLMs of Llama's layout; {config.model_type!r} differs. Use generate().")
