"""Spans of sequences → logits, on the device. Owns the KV cache and the CUDA graphs; knows no requests and no time."""

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch

from minigpt4_serve.engine.attention import SequenceAttention, store
from minigpt4_serve.engine.decoder import Attend, Decoder
from minigpt4_serve.engine.scheduler import ScheduledChunk
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration
from minigpt4_serve.settings import EngineSettings
from minigpt4_serve.weights.memory import gib

__all__ = ["ModelRunner"]

_MAX_PICTURES = 32  # in one batch: more gain nothing, and their intermediate results would need memory of their own
_ASIDE = 2**30  # bytes of a GPU that the cache never takes: libraries, CUDA graphs and intermediate results come later


class ModelRunner:
    """Runs one model on one device.

    Raises:
        InvalidRequest: the LLM isn't of Llama's layout, or the device has no room for the cache.
    """

    def __init__(self, model: MiniGPT4ForConditionalGeneration, settings: EngineSettings) -> None:
        self._model, self._image_token_id = model, model.config.image_token_id
        self._decoder = decoder = Decoder(model.language_model)
        self.device, self.context_length, self.vocab_size = decoder.device, decoder.context_length, decoder.vocab_size
        self.bind_thread()
        self.block_size = settings.block_size
        row_bytes = 2 * decoder.num_layers * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
        self.num_blocks = _num_blocks(settings, self.device, self.context_length, row_bytes * self.block_size)
        # One block more than is managed: padding rows of CUDA graphs write there.
        shape = (2, self.num_blocks + 1, self.block_size, decoder.kv_heads, decoder.head_dim)
        layers = range(decoder.num_layers)
        # int8 products look at their input's values on the host, which can't be captured.
        capturable = self.device.type == "cuda" and decoder.plain
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
        """To be called in the thread that calls ``step``: kernels are launched on a thread's current GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def encode(self, pixels: Rows[torch.Tensor]) -> list[torch.Tensor]:
        """Pictures ``[3, side, side]`` as rows for the LLM ``[slots, hidden size]``, as many at a time as is wise."""
        features: list[torch.Tensor] = []
        for at in range(0, len(pixels), _MAX_PICTURES):
            batch = torch.stack(list(pixels[at : at + _MAX_PICTURES])).to(self.device)
            rows = self._model.get_image_features(batch).to(self._decoder.dtype)
            features += [row.clone() for row in rows]  # a view would keep the whole batch alive as long as itself
        return features

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block in all layers: a sequence wants to write where others read, too."""
        for cache in self._cache:
            cache[:, target] = cache[:, source]

    def step(
        self, chunks: Rows[ScheduledChunk], features: Callable[[ScheduledChunk], Rows[torch.Tensor]]
    ) -> torch.Tensor:
        """Compute the chunks; logits ``[S, vocabulary]`` of those that sample, in their order.

        Args:
            chunks: as ``Scheduler.schedule`` orders them, single positions first.
            features: rows of a sequence's pictures; asked for only where a chunk holds image slots.
        """
        ids = [token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]]
        positions = [i for chunk in chunks for i in range(chunk.start, chunk.end)]
        slots = [self._slot(chunk, i) for chunk in chunks for i in range(chunk.start, chunk.end)]
        if self._graphs is not None and self._graphs.fit(chunks) and self._image_token_id not in ids:
            hidden = self._graphs.run([ids, positions, slots], *self._tables(chunks))
        else:
            at = torch.tensor([positions, slots], device=self.device)
            hidden = self._decoder.forward(self._rows(chunks, ids, features), at[0], self._attention(chunks, at[1]))
        ends = itertools.accumulate(chunk.end - chunk.start for chunk in chunks)
        sampled = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.samples]
        logits: torch.Tensor = self._decoder.logits(hidden if len(sampled) == len(hidden) else hidden[sampled])
        return logits

    def _slot(self, chunk: ScheduledChunk, position: int) -> int:
        return chunk.sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _tables(self, singles: Rows[ScheduledChunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables ``[B, most blocks]``, filled up with block 0, and lengths ``[B]``."""
        tables = [chunk.sequence.block_table for chunk in singles]
        width = max(map(len, tables))
        filled = [table + [0] * (width - len(table)) for table in tables]
        lengths = [chunk.end for chunk in singles]
        return torch.tensor(filled, device=self.device), torch.tensor(lengths, device=self.device)

    def _rows(
        self, chunks: Rows[ScheduledChunk], ids: list[int], features: Callable[[ScheduledChunk], Rows[torch.Tensor]]
    ) -> torch.Tensor:
        """What enters the first layer ``[T, hidden size]``: embeddings, and pictures in their slots."""
        slot = self._image_token_id
        words = [0 if token == slot else token for token in ids]
        rows: torch.Tensor = self._decoder.embed(torch.tensor(words, device=self.device))
        at = 0
        for chunk in chunks:
            places = [i for i in range(at, at + chunk.end - chunk.start) if ids[i] == slot]
            if places:
                before = chunk.sequence.token_ids[: chunk.start].count(slot)
                seen = torch.cat(list(features(chunk)))  # [slots of all pictures, hidden size]
                rows[places] = seen[before : before + len(places)]
            at += chunk.end - chunk.start
        return rows

    def _attention(self, chunks: Rows[ScheduledChunk], slots: torch.Tensor) -> Attend:
        """Store and attend: on GPUs all single positions in one kernel, the others sequence by sequence."""
        count = sum(chunk.end - chunk.start == 1 for chunk in chunks) if self.device.type == "cuda" else 0
        tables = self._tables(chunks[:count]) if count else ()
        attentions: list[tuple[slice, SequenceAttention]] = []
        at = count
        for chunk in chunks[count:]:
            table = chunk.sequence.block_table[: -(-chunk.end // self.block_size)]
            attention = SequenceAttention(table, start=chunk.start, end=chunk.end, device=self.device)
            attentions.append((slice(at, at + chunk.end - chunk.start), attention))
            at += chunk.end - chunk.start

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            cache = self._cache[layer]
            store(cache, slots, key, value)
            parts = [_paged_decode(query[:count], cache, *tables)] if count else []
            parts += [attention.attend(query[rows], cache) for rows, attention in attentions]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return attend


class _DecodeGraphs:
    """CUDA graphs of the decode step at a few batch sizes: one launch instead of hundreds.

    Smaller batches are padded; a padding row has length 0 and writes to the cache's spare block.
    """

    def __init__(self, runner: ModelRunner, settings: EngineSettings) -> None:
        self._decoder, self._cache = runner._decoder, runner._cache
        largest = settings.max_running
        self._sizes = [*sorted(size for size in settings.decode_buckets if size < largest), largest]
        self._spare = runner.num_blocks * runner.block_size

        def buffer(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.long, device=runner.device)

        self._columns = buffer(3, largest)  # ids, positions, slots
        self._columns[2] = self._spare
        self._lengths = buffer(largest)
        self._tables = buffer(largest, -(-runner.context_length // runner.block_size))
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
        ids, positions, slots = self._columns[:, :size]

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            store(self._cache[layer], slots, key, value)
            return _paged_decode(query, self._cache[layer], self._tables[:size], self._lengths[:size])

        return self._decoder.forward(self._decoder.embed(ids), positions, attend)

    def fit(self, chunks: Rows[ScheduledChunk]) -> bool:
        """Is there a graph for these: single positions, and not too many?"""
        return len(chunks) <= self._sizes[-1] and all(chunk.end - chunk.start == 1 for chunk in chunks)

    def run(self, columns: list[list[int]], tables: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[B, hidden size]`` of one position of each sequence: ids, positions, slots."""
        count = len(lengths)
        size = next(size for size in self._sizes if size >= count)
        padding = [0, 0, self._spare]
        filled = [column + [blank] * (size - count) for column, blank in zip(columns, padding, strict=True)]
        self._columns[:, :size] = torch.tensor(filled, device=lengths.device)
        self._tables[:count, : tables.shape[1]] = tables
        self._lengths[:count] = lengths
        self._lengths[count:size] = 0
        graph, hidden = self._graphs[size]
        graph.replay()
        return hidden[:count]


def _paged_decode(
    query: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    from minigpt4_serve.engine.paged_kernel import paged_decode  # Triton is there only where GPUs are

    return paged_decode(query, cache[0], cache[1], tables, lengths)


def _num_blocks(settings: EngineSettings, device: torch.device, context: int, block_bytes: int) -> int:
    """Blocks that fit the memory given, but no more than all slots can ever use."""
    useful = settings.max_running * -(-context // settings.block_size)
    if settings.num_blocks is not None:
        return settings.num_blocks
    if settings.kv_cache_bytes is not None:
        room = settings.kv_cache_bytes
    elif device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # The share is of this process alone: another engine on the same GPU has its own. Both only have to fit.
        share = int(total * settings.gpu_memory_share) - torch.cuda.memory_reserved(device)
        room = min(share, free - _ASIDE)
    else:
        room = 2**30
    blocks = min(useful, room // block_bytes)
    if blocks < 1:
        raise InvalidRequest("There is no memory left for the KV cache. Use a smaller model, int8 or more memory.")
    return int(blocks)
