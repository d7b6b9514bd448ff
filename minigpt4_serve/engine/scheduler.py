"""Which positions of which sequences the next step computes. Imports no torch.

Sequences run in order of arrival. Each step computes one position of every decoding sequence and a bounded number of
prompt positions, so that long prompts don't delay running answers. When the cache is full, the youngest sequence is
preempted: it gives up its blocks and is computed again later, with the same answer.
"""

from collections import deque
from dataclasses import dataclass

from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.protocol import FinishReason

__all__ = ["ScheduledChunk", "Scheduler"]


@dataclass(frozen=True)
class ScheduledChunk:
    """Positions ``start`` (included) to ``end`` (excluded) of a sequence that a step computes."""

    sequence: Sequence
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.end - self.start

    @property
    def samples(self) -> bool:
        """True if the chunk reaches the sequence's end, so that a next token is sampled."""
        return self.end == len(self.sequence)


class Scheduler:
    """Waiting and running sequences and their blocks. For the engine thread only.

    Args:
        max_running: running slots.
        max_prefill_tokens: prompt positions that a step computes at most.

    Attributes:
        preemptions: sequences preempted, a beam search counted once.
        cached_tokens: prompt positions found in the cache.
        copies: (source, target) blocks to copy before the step, in this order.
    """

    def __init__(self, blocks: BlockManager, *, max_running: int, max_prefill_tokens: int) -> None:
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.cached_tokens = 0
        self.copies: list[tuple[int, int]] = []
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens

    @property
    def has_work(self) -> bool:
        """True if any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Append to the queue. The caller has checked that the sequence alone fits the cache."""
        self.waiting.append(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """The next step's chunks: single positions in order of admission, then longer chunks of prompts."""
        self.copies = []
        chunks = self._schedule_decodes() + self._schedule_prefills()
        return sorted(chunks, key=lambda chunk: chunk.size > 1)

    def advance(self, chunks: list[ScheduledChunk]) -> None:
        """Record that a step computed these chunks; blocks that are full now can be shared."""
        block_size = self.blocks.block_size
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            filled = range(chunk.start // block_size, chunk.end // block_size)
            if filled and chunk.end // block_size > len(sequence.block_hashes):
                sequence.block_hashes = self.blocks.hash_blocks(sequence.content_ids, sequence.block_hashes)
            for i in filled:
                self.blocks.register(sequence.block_table[i], sequence.block_hashes[i])

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Remove a sequence and free its running slots and blocks."""
        sequence.finish_reason = reason
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free_blocks(sequence)

    def fork(self, sequence: Sequence, token: int) -> Sequence:
        """A copy of a running sequence with one more token; shared blocks are copied before they are written to."""
        other = sequence.fork()
        self.blocks.incref(other.block_table)
        other.append(token)
        self.running.insert(self.running.index(sequence) + 1, other)
        return other

    def _schedule_decodes(self) -> list[ScheduledChunk]:
        """The last position of each sequence whose prompt is computed. Preempts the youngest if blocks run out."""
        decoding = [sequence for sequence in self.running if sequence.num_computed == len(sequence) - 1]
        for sequence in decoding:
            while sequence.block_table and not self._allocate_last_position(sequence):
                self._preempt(self.running[-1])
        # A preempted sequence has no blocks.
        return [
            ScheduledChunk(sequence, len(sequence) - 1, len(sequence)) for sequence in decoding if sequence.block_table
        ]

    def _allocate_last_position(self, sequence: Sequence) -> bool:
        """Make sure that the last position has a block that can be written to; a shared one is copied.

        Returns False if no block is free.
        """
        table = sequence.block_table
        last = (len(sequence) - 1) // self.blocks.block_size
        if last < len(table) and not self.blocks.is_shared(table[last]):
            return True
        if not self.blocks.num_free:
            return False
        block = self.blocks.allocate()
        if last < len(table):
            self.copies.append((table[last], block))
            self.blocks.free([table[last]])
            table[last] = block
        else:
            table.append(block)
        return True

    def _schedule_prefills(self) -> list[ScheduledChunk]:
        """Chunks of running sequences' prompts, then of waiting sequences as far as they can be admitted."""
        budget = self._max_prefill_tokens
        chunks: list[ScheduledChunk] = []
        for sequence in self.running:
            if budget and sequence.num_computed < len(sequence) - 1:
                chunks.append(self._prefill_chunk(sequence, budget))
                budget -= chunks[-1].size
        while budget and self.waiting and self._has_running_slots(self.waiting[0]) and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            chunks.append(self._prefill_chunk(sequence, budget))
            budget -= chunks[-1].size
        return chunks

    def _has_running_slots(self, sequence: Sequence) -> bool:
        return sum(other.running_slots for other in self.running) + sequence.running_slots <= self._max_running

    @staticmethod
    def _prefill_chunk(sequence: Sequence, budget: int) -> ScheduledChunk:
        return ScheduledChunk(sequence, sequence.num_computed, min(len(sequence), sequence.num_computed + budget))

    def _admit(self, sequence: Sequence) -> bool:
        """Give a sequence blocks for all its positions, shared ones for a cached prefix; False if too few are free."""
        block_size = self.blocks.block_size
        shareable = sequence.num_prompt // block_size * block_size
        if any(other.request_id == sequence.request_id and other.num_computed < shareable for other in self.running):
            return False  # another answer to the same prompt is computing the blocks that this one will share
        sequence.block_hashes = self.blocks.hash_blocks(sequence.content_ids, sequence.block_hashes)
        # The last position is computed in any case: the step needs its logits.
        cached = self.blocks.match_prefix(sequence.block_hashes[: (len(sequence) - 1) // block_size])
        self.blocks.incref(cached)
        num_new = self.blocks.blocks_for(len(sequence)) - len(cached)
        # One block for each running sequence stays free, so that an admission doesn't preempt another one at once.
        if num_new + len(self.running) > self.blocks.num_free:
            self.blocks.free(cached)
            return False
        sequence.block_table = cached + [self.blocks.allocate() for _ in range(num_new)]
        sequence.num_computed = len(cached) * block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
            self.cached_tokens += sequence.num_computed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Move a sequence back to the head of the queue, together with all hypotheses of its beam search."""
        group = [sequence]
        if sequence.sampling.beams > 1:  # hypotheses advance together
            group = [other for other in self.running if other.request_id == sequence.request_id]
        for other in reversed(group):
            self.running.remove(other)
            self._free_blocks(other)
            self.waiting.appendleft(other)
        self.preemptions += 1

    def _free_blocks(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0
