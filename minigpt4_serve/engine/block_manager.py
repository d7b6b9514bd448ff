"""Which block of the KV cache holds what: allocation, sharing of equal prefixes, eviction. Touches no tensor.

A block is *held* while sequences refer to it; released, it keeps its content for whoever asks the same again, until its
space is needed. Evicted first is what was released longest ago.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence as Ids

__all__ = ["BlockManager"]

_ROOT = b""


class BlockManager:
    """Bookkeeping of ``num_blocks`` blocks of ``block_size`` positions each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._blank = deque(range(num_blocks))  # free, without content
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, content kept; oldest first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now, evicting cached content where needed."""
        return len(self._blank) + len(self._idle)

    def blocks_for(self, positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-positions // self.block_size)

    def allocate(self) -> int:
        """A block to write to, held once. The caller has checked ``num_free``."""
        if self._blank:
            block = self._blank.popleft()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        assert self._references[block] == 0
        self._references[block] = 1
        return block

    def incref(self, blocks: Ids[int]) -> None:
        """One more sequence refers to these blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
            self._references[block] += 1

    def free(self, blocks: Ids[int]) -> None:
        """A sequence lets go. Of a prefix, the end is evicted before the beginning: others may share the latter."""
        for block in reversed(blocks):
            assert self._references[block] > 0, "a block was released twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def is_shared(self, block: int) -> bool:
        """More than one sequence refers to it, so nobody may write to it."""
        return self._references[block] > 1

    def hash_blocks(self, content: Ids[int], known: Ids[bytes]) -> list[bytes]:
        """Hashes of all full blocks of ``content``; ``known`` are its first. Each stands for all before it, too."""
        hashes = list(known)
        for i in range(len(hashes), len(content) // self.block_size):
            part = array("q", content[i * self.block_size : (i + 1) * self.block_size]).tobytes()
            hashes.append(hashlib.blake2b((hashes[-1] if hashes else _ROOT) + part, digest_size=16).digest())
        return hashes

    def match_prefix(self, hashes: Ids[bytes]) -> list[int]:
        """Blocks of the longest known prefix, not yet held."""
        found: list[int] = []
        for value in hashes:
            block = self._block_of.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def register(self, block: int, value: bytes) -> None:
        """A held block is full and computed: from now on it can be found. The first of equal blocks is kept."""
        if value not in self._block_of and block not in self._hash_of:
            self._block_of[value] = block
            self._hash_of[block] = value
