"""Allocation of the KV cache's blocks, sharing of equal prefixes, and eviction. Imports no torch.

A block is held while sequences reference it. A freed block keeps its content, so that a later prompt with the same
prefix can use it, until its space is needed; the block freed longest ago is evicted first.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence

__all__ = ["BlockManager"]


class BlockManager:
    """Reference counts and content hashes of ``num_blocks`` blocks of ``block_size`` positions each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._empty = deque(range(num_blocks))  # free, without content
        self._evictable: OrderedDict[int, None] = OrderedDict()  # free, with content; oldest first
        self._block_hashes: dict[int, bytes] = {}
        self._cached_blocks: dict[bytes, int] = {}  # hash → block

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, evicting cached content where needed."""
        return len(self._empty) + len(self._evictable)

    def blocks_for(self, positions: int) -> int:
        """Blocks needed for this many positions."""
        return -(-positions // self.block_size)

    def allocate(self) -> int:
        """A block to write to, referenced once. The caller has checked ``num_free``."""
        if self._empty:
            block = self._empty.popleft()
        else:
            block, _ = self._evictable.popitem(last=False)
            del self._cached_blocks[self._block_hashes.pop(block)]
        assert self._references[block] == 0
        self._references[block] = 1
        return block

    def incref(self, blocks: Sequence[int]) -> None:
        """Add a reference to each block."""
        for block in blocks:
            if self._references[block] == 0:
                del self._evictable[block]
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop a reference to each block of a sequence.

        Blocks are freed from the last to the first, so that the end of a prefix is evicted before its beginning, which
        more prompts share.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, "a block was freed twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._block_hashes:
                    self._evictable[block] = None
                else:
                    self._empty.append(block)

    def is_shared(self, block: int) -> bool:
        """True if several sequences reference the block, which must then not be written to."""
        return self._references[block] > 1

    def hash_blocks(self, content_ids: Sequence[int], known: Sequence[bytes]) -> list[bytes]:
        """Hashes of all full blocks of ``content_ids``, of which ``known`` are the first.

        Each hash covers its block and all blocks before it.
        """
        hashes = list(known)
        for i in range(len(hashes), len(content_ids) // self.block_size):
            block = array("q", content_ids[i * self.block_size : (i + 1) * self.block_size]).tobytes()
            previous = hashes[-1] if hashes else b""
            hashes.append(hashlib.blake2b(previous + block, digest_size=16).digest())
        return hashes

    def match_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest cached prefix. Adds no reference."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._cached_blocks.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def register(self, block: int, block_hash: bytes) -> None:
        """Make a held, full and computed block available to ``match_prefix``. Of equal blocks the first is kept."""
        if block_hash not in self._cached_blocks and block not in self._block_hashes:
            self._cached_blocks[block_hash] = block
            self._block_hashes[block] = block_hash
