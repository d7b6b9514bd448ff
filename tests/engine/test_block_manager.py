"""The block manager against a model of it: a plain list of who references which block."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from minigpt4_serve.engine.block_manager import BlockManager

SIZE = 2


class BlockManagerModel(RuleBasedStateMachine):
    """Random sequences are admitted and freed; the manager's counts always agree with the list of their tables."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(6, SIZE)
        self.held: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}  # block → everything up to its end

    @rule(target=tables, content=st.lists(st.integers(0, 1), min_size=SIZE, max_size=4 * SIZE))
    def admit(self, content: list[int]) -> list[int]:
        hashes = self.manager.hash_blocks(content, [])
        cached = self.manager.match_prefix(hashes)
        for i, block in enumerate(cached):
            assert self.content[block] == tuple(content[: (i + 1) * SIZE]), "the block holds other content"
        self.manager.incref(cached)
        table = list(cached)
        while len(table) < len(hashes) and self.manager.num_free:
            block = self.manager.allocate()
            assert all(block not in other for other in (*self.held, table)), "a held block was allocated again"
            i = len(table)
            self.content[block] = tuple(content[: (i + 1) * SIZE])
            table.append(block)
            self.manager.register(block, hashes[i])
        self.held.append(table)
        return table

    @rule(table=consumes(tables))
    def free(self, table: list[int]) -> None:
        self.held = [other for other in self.held if other is not table]
        self.manager.free(table)

    @invariant()
    def counts_agree(self) -> None:
        references = [block for table in self.held for block in table]
        assert self.manager.num_free == 6 - len(set(references))
        for block in set(references):
            assert self.manager.is_shared(block) == (references.count(block) > 1)


TestBlockManager = BlockManagerModel.TestCase
TestBlockManager.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_freeing_a_block_twice_is_an_assertion_error() -> None:
    manager = BlockManager(2, SIZE)
    block = manager.allocate()
    manager.free([block])
    with pytest.raises(AssertionError, match="freed twice"):
        manager.free([block])


def test_the_block_freed_first_is_evicted_first() -> None:
    manager = BlockManager(4, SIZE)
    prefixes = [manager.hash_blocks([token] * 4, []) for token in (0, 1)]
    for hashes in prefixes:
        table = [manager.allocate() for _ in hashes]
        for block, block_hash in zip(table, hashes, strict=True):
            manager.register(block, block_hash)
        manager.free(table)
    assert [len(manager.match_prefix(hashes)) for hashes in prefixes] == [2, 2]
    manager.allocate()
    assert [len(manager.match_prefix(hashes)) for hashes in prefixes] == [1, 2]
    manager.allocate()
    assert [len(manager.match_prefix(hashes)) for hashes in prefixes] == [0, 2]


def test_equal_blocks_after_different_prefixes_differ() -> None:
    manager = BlockManager(4, SIZE)
    assert manager.hash_blocks([1, 1, 5, 5], [])[1] != manager.hash_blocks([2, 2, 5, 5], [])[1]
    assert manager.hash_blocks([1, 1, 5], []) == manager.hash_blocks([1, 1, 6], [])  # only full blocks have a hash
