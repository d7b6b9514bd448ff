"""Who computes what in the next step. Pure Python: knows sequences and blocks, no tensors, no model, no clock.

First come, first served. Every step carries one position of each answering sequence and, beside them, a bounded
chunk of prompts, so that long prompts don't hold up running answers. When the cache is full, the youngest sequence
gives up its blocks and is computed again later; its answer stays the same.
"""

from collections import deque
from dataclasses import dataclass

from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.protocol import FinishReason

__all__ = ["ScheduledChunk", "Scheduler"]


@dataclass(frozen=True)
class ScheduledChunk:
    """Positions ``start`` to ``end`` of a sequence that a step computes."""

    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Does it reach the sequence's end, so that a next token is chosen?"""
        return self.end == len(self.sequence)


class Scheduler:
    """Waiting and running sequences, and the blocks they hold.

    Args:
        max_running: slots.
        max_prefill_tokens: prompt positions a step computes at most.
    """

    def __init__(self, blocks: BlockManager, *, max_running: int, max_prefill_tokens: int) -> None:
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.cached_tokens = 0  # prompt positions that were found in the cache instead of being computed
        self.copies: list[tuple[int, int]] = []  # (block, its copy): to be made in this order before the step
        self._max_running = max_running
        self._max_prefill = max_prefill_tokens

    @property
    def has_work(self) -> bool:
        """Is there any sequence to compute?"""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """To the end of the line. The caller has made sure that it fits the cache when it is alone."""
        self.waiting.append(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """The next step's work: single positions in the order of admission, then longer chunks of prompts."""
        self.copies = []
        chunks = self._decodes() + self._prefills(self._max_prefill)
        return sorted(chunks, key=lambda chunk: chunk.end - chunk.start > 1)

    def advance(self, chunks: list[ScheduledChunk]) -> None:
        """A step was computed: what is full can be shared from now on."""
        for chunk in chunks:
            sequence, size = chunk.sequence, self.blocks.block_size
            sequence.num_computed = chunk.end
            filled = range(chunk.start // size, chunk.end // size)
            if filled and chunk.end // size > len(sequence.block_hashes):
                sequence.block_hashes = self.blocks.hash_blocks(sequence.content_ids, sequence.block_hashes)
            for i in filled:
                self.blocks.register(sequence.block_table[i], sequence.block_hashes[i])

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """It has its answer, or nobody wants it any more: slot and blocks are free at once."""
        sequence.finish_reason = reason
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._let_go(sequence)

    def fork(self, sequence: Sequence, token: int) -> Sequence:
        """A running sequence's copy, one token longer, that shares its blocks until it writes to them."""
        other = sequence.fork()
        self.blocks.incref(other.block_table)
        other.append(token)
        self.running.insert(self.running.index(sequence) + 1, other)
        return other

    def _decodes(self) -> list[ScheduledChunk]:
        """One position of each sequence that has read its prompt; who finds no room takes it from the youngest."""
        ready = [sequence for sequence in self.running if sequence.num_computed == len(sequence) - 1]
        for sequence in ready:
            while sequence.block_table and not self._has_room(sequence):
                self._preempt(self.running[-1])
        # Without a block: preempted for the sake of an earlier one.
        return [
            ScheduledChunk(sequence, len(sequence) - 1, len(sequence)) for sequence in ready if sequence.block_table
        ]

    def _has_room(self, sequence: Sequence) -> bool:
        """Is there a block of its own for its last position? A shared one is copied."""
        table, last = sequence.block_table, (len(sequence) - 1) // self.blocks.block_size
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

    def _prefills(self, budget: int) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for sequence in self.running:
            if budget and sequence.num_computed < len(sequence) - 1:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].end - chunks[-1].start
        while budget and self.waiting and self._has_slots(self.waiting[0]) and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1].end - chunks[-1].start
        return chunks

    def _has_slots(self, sequence: Sequence) -> bool:
        return sum(other.slots for other in self.running) + sequence.slots <= self._max_running

    @staticmethod
    def _chunk(sequence: Sequence, budget: int) -> ScheduledChunk:
        return ScheduledChunk(sequence, sequence.num_computed, min(len(sequence), sequence.num_computed + budget))

    def _admit(self, sequence: Sequence) -> bool:
        """Give it blocks for all it has so far, shared ones where its beginning is known; False if too few are free."""
        size = self.blocks.block_size
        to_share = sequence.num_prompt // size * size
        if any(other.request_id == sequence.request_id and other.num_computed < to_share for other in self.running):
            return False  # another answer to the same prompt is about to compute the blocks that this one shares
        sequence.block_hashes = self.blocks.hash_blocks(sequence.content_ids, sequence.block_hashes)
        # The last position is computed anyway: its logits are what the step is for.
        known = self.blocks.match_prefix(sequence.block_hashes[: (len(sequence) - 1) // size])
        self.blocks.incref(known)
        fresh = self.blocks.blocks_for(len(sequence)) - len(known)
        # While others run, a block each stays free for them, so that admitting one doesn't preempt another at once.
        if fresh + len(self.running) > self.blocks.num_free:
            self.blocks.free(known)
            return False
        sequence.block_table = known + [self.blocks.allocate() for _ in range(fresh)]
        sequence.num_computed = len(known) * size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
            self.cached_tokens += sequence.num_computed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the line; with it all hypotheses of its beam search, which advance together or not."""
        group = [sequence]
        if sequence.sampling.beams > 1:
            group = [other for other in self.running if other.request_id == sequence.request_id]
        for other in reversed(group):
            self.running.remove(other)
            self._let_go(other)
            self.waiting.appendleft(other)
        self.preemptions += 1

    def _let_go(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0
