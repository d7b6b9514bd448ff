"""Scheduled chunks → logits, on the device. Owns the KV cache and the CUDA graphs."""

import itertools
from collections.abc import Callable, Sequence

import torch

from minigpt4_serve.engine.attention import SequenceAttention, store
from minigpt4_serve.engine.decoder import Attend, Decoder
from minigpt4_serve.engine.scheduler import ScheduledChunk
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.memory import gib
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.settings import EngineSettings

__all__ = ["ModelRunner"]

_MAX_IMAGES = 32  # per batch: more are no faster, and their intermediate results need more memory
_RESERVED_BYTES = 2**30  # of a GPU, for libraries, CUDA graphs and intermediate results allocated after the cache


class ModelRunner:
    """Runs one model on one device.

    Raises:
        InvalidRequest: the LLM's architecture isn't Llama's, or the device lacks memory for the cache.
    """

    def __init__(self, model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> None:
        decoder = Decoder(model.language_model)
        self._model = model
        self._decoder = decoder
        self._image_token_id = model.config.image_token_id
        self.device = decoder.device
        self.context_length = decoder.context_length
        self.vocab_size = decoder.vocab_size
        self.bind_thread()
        self.block_size = settings.block_size
        row_bytes = 2 * decoder.num_layers * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
        self.num_blocks = _num_blocks(settings, self.device, self.context_length, row_bytes * self.block_size)
        # One block more than the block manager allocates: padding rows of CUDA graphs write to it.
        shape = (2, self.num_blocks + 1, self.block_size, decoder.kv_heads, decoder.head_dim)
        layers = range(decoder.num_layers)
        # int8 products read their input's values on the host, which can't be captured.
        capturable = self.device.type == "cuda" and decoder.unquantized
        try:
            self._cache = [torch.empty(shape, device=self.device, dtype=decoder.dtype) for _ in layers]
            self._graphs = _DecodeGraphs(self, settings) if settings.cuda_graphs and capturable else None
        except torch.OutOfMemoryError as error:
            self._cache = []
            torch.cuda.empty_cache()
            raise InvalidRequest(
                f"The KV cache takes {gib(row_bytes * self.block_size * self.num_blocks)}, CUDA graphs some more; "
                f"{self.device} has {gib(torch.cuda.mem_get_info(self.device)[0])} free beside the weights. Lower "
                "engine.gpu_memory_share, or the cache's size where one is set, or use quantization int8 or int4."
            ) from error

    def bind_thread(self) -> None:
        """Make the device the calling thread's current GPU. Call it in the thread that calls ``step``."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def encode(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features ``[image tokens, hidden size]`` of each image ``[3, side, side]``, encoded in batches."""
        features: list[torch.Tensor] = []
        for start in range(0, len(pixels), _MAX_IMAGES):
            batch = torch.stack(list(pixels[start : start + _MAX_IMAGES])).to(self.device)
            rows = self._model.get_image_features(batch).to(self._decoder.dtype)
            features += [row.clone() for row in rows]  # a view would keep the whole batch in memory
        return features

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in all layers."""
        for cache in self._cache:
            cache[:, target] = cache[:, source]

    def step(
        self, chunks: Sequence[ScheduledChunk], features: Callable[[ScheduledChunk], Sequence[torch.Tensor]]
    ) -> torch.Tensor:
        """Compute the chunks. Returns logits ``[S, vocabulary]`` of those that sample, in their order.

        Args:
            chunks: in the order of ``Scheduler.schedule``, single positions first.
            features: returns the features of all images of a chunk's sequence; called for chunks with image tokens.
        """
        ids = [token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]]
        positions = [i for chunk in chunks for i in range(chunk.start, chunk.end)]
        kv_slots = [self._kv_slot(chunk, i) for chunk in chunks for i in range(chunk.start, chunk.end)]
        if self._graphs is not None and self._graphs.supports(chunks) and self._image_token_id not in ids:
            hidden = self._graphs.run([ids, positions, kv_slots], *self._block_tables(chunks))
        else:
            inputs = self._embed(chunks, ids, features)
            position_tensor, kv_slot_tensor = torch.tensor([positions, kv_slots], device=self.device)
            hidden = self._decoder.forward(inputs, position_tensor, self._attention(chunks, kv_slot_tensor))
        ends = itertools.accumulate(chunk.size for chunk in chunks)
        sampled = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.samples]
        logits: torch.Tensor = self._decoder.logits(hidden if len(sampled) == len(hidden) else hidden[sampled])
        return logits

    def _kv_slot(self, chunk: ScheduledChunk, position: int) -> int:
        return chunk.sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _block_tables(self, decodes: Sequence[ScheduledChunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables ``[B, most blocks]``, padded with block 0, and lengths ``[B]`` of single positions."""
        tables = [chunk.sequence.block_table for chunk in decodes]
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        lengths = [chunk.end for chunk in decodes]
        return torch.tensor(padded, device=self.device), torch.tensor(lengths, device=self.device)

    def _embed(
        self,
        chunks: Sequence[ScheduledChunk],
        ids: list[int],
        features: Callable[[ScheduledChunk], Sequence[torch.Tensor]],
    ) -> torch.Tensor:
        """Inputs of the first layer ``[T, hidden size]``: embeddings of text, features at image tokens."""
        image_token = self._image_token_id
        text_ids = [0 if token == image_token else token for token in ids]
        rows: torch.Tensor = self._decoder.embed(torch.tensor(text_ids, device=self.device))
        start = 0
        for chunk in chunks:
            image_rows = [i for i in range(start, start + chunk.size) if ids[i] == image_token]
            if image_rows:
                first = chunk.sequence.token_ids[: chunk.start].count(image_token)
                all_features = torch.cat(list(features(chunk)))  # [image tokens of all images, hidden size]
                rows[image_rows] = all_features[first : first + len(image_rows)]
            start += chunk.size
        return rows

    def _attention(self, chunks: Sequence[ScheduledChunk], kv_slots: torch.Tensor) -> Attend:
        """The ``attend`` function of a step. On GPUs one kernel computes all single positions."""
        count = sum(1 for chunk in chunks if chunk.size == 1) if self.device.type == "cuda" else 0
        tables = self._block_tables(chunks[:count]) if count else ()
        attentions: list[tuple[slice, SequenceAttention]] = []
        start = count
        for chunk in chunks[count:]:
            table = chunk.sequence.block_table[: -(-chunk.end // self.block_size)]
            attention = SequenceAttention(table, start=chunk.start, end=chunk.end, device=self.device)
            attentions.append((slice(start, start + chunk.size), attention))
            start += chunk.size

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            cache = self._cache[layer]
            store(cache, kv_slots, key, value)
            parts = [_paged_decode(query[:count], cache, *tables)] if count else []
            parts += [attention.attend(query[rows], cache) for rows, attention in attentions]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return attend


class _DecodeGraphs:
    """CUDA graphs of the decode step at several batch sizes: one launch instead of hundreds.

    Other batches are padded; a padding row has length 0 and writes to the cache's spare block.
    """

    def __init__(self, runner: ModelRunner, settings: EngineSettings) -> None:
        self._decoder = runner._decoder
        self._cache = runner._cache
        largest = settings.max_running
        self._sizes = [*sorted(size for size in settings.decode_buckets if size < largest), largest]
        self._spare_kv_slot = runner.num_blocks * runner.block_size

        def buffer(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.long, device=runner.device)

        self._columns = buffer(3, largest)  # ids, positions, KV slots
        self._columns[2] = self._spare_kv_slot
        self._lengths = buffer(largest)
        self._tables = buffer(largest, -(-runner.context_length // runner.block_size))
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = None
        for size in reversed(self._sizes):  # the largest first: the smaller ones reuse its memory
            self._compute(size)  # outside of a graph first, to compile kernels and initialize libraries
            torch.cuda.synchronize(runner.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                hidden = self._compute(size)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, hidden)

    def _compute(self, size: int) -> torch.Tensor:
        ids, positions, kv_slots = self._columns[:, :size]

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            store(self._cache[layer], kv_slots, key, value)
            return _paged_decode(query, self._cache[layer], self._tables[:size], self._lengths[:size])

        return self._decoder.forward(self._decoder.embed(ids), positions, attend)

    def supports(self, chunks: Sequence[ScheduledChunk]) -> bool:
        """True if all chunks are single positions and the largest graph has enough rows."""
        return len(chunks) <= self._sizes[-1] and all(chunk.size == 1 for chunk in chunks)

    def run(self, columns: list[list[int]], tables: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[B, hidden size]`` of one position of each sequence.

        Args:
            columns: ids, positions and KV slots, ``B`` each.
            tables, lengths: as ``_block_tables`` returns them.
        """
        count = len(lengths)
        size = next(size for size in self._sizes if size >= count)
        padding = [0, 0, self._spare_kv_slot]
        padded = [column + [value] * (size - count) for column, value in zip(columns, padding, strict=True)]
        self._columns[:, :size] = torch.tensor(padded, device=lengths.device)
        self._tables[:count, : tables.shape[1]] = tables
        self._lengths[:count] = lengths
        self._lengths[count:size] = 0
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden[:count]


def _paged_decode(
    query: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    from minigpt4_serve.engine.paged_kernel import paged_decode  # Triton is installed on Linux only

    return paged_decode(query, cache[0], cache[1], tables, lengths)


def _num_blocks(settings: EngineSettings, device: torch.device, context: int, block_bytes: int) -> int:
    """Blocks that fit the memory limit, but no more than all running slots together can use."""
    usable = settings.max_running * -(-context // settings.block_size)
    if settings.num_blocks is not None:
        return settings.num_blocks
    if settings.kv_cache_bytes is not None:
        available = settings.kv_cache_bytes
    elif device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # The share is of this process alone: another engine on the same GPU has its own.
        share = int(total * settings.gpu_memory_share) - torch.cuda.memory_reserved(device)
        available = min(share, free - _RESERVED_BYTES)
    else:
        available = 2**30
    blocks = min(usable, available // block_bytes)
    if blocks < 1:
        raise InvalidRequest(
            "There is no memory left for the KV cache. Use a smaller model, quantization int8 or int4, or more memory."
        )
    return int(blocks)
