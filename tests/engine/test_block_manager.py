import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from minigpt4_serve.engine.block_manager import BlockManager

SIZE = 2


class Books(RuleBasedStateMachine):
    """Random holders of random contents; the manager's books always agree with a plain list of who holds what."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(6, SIZE)
        self.held: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}  # block → everything up to its end

    @rule(target=holders, words=st.lists(st.integers(0, 1), min_size=SIZE, max_size=4 * SIZE))
    def admit(self, words: list[int]) -> list[int]:
        hashes = self.manager.hash_blocks(words, [])
        known = self.manager.match_prefix(hashes)
        for i, block in enumerate(known):
            assert self.content[block] == tuple(words[: (i + 1) * SIZE]), "another content's block was given out"
        self.manager.incref(known)
        table = list(known)
        while len(table) < len(hashes) and self.manager.num_free:
            block = self.manager.allocate()
            assert all(block not in other for other in (*self.held, table)), "a held block was given out again"
            i = len(table)
            self.content[block] = tuple(words[: (i + 1) * SIZE])
            table.append(block)
            self.manager.register(block, hashes[i])
        self.held.append(table)
        return table

    @rule(table=consumes(holders))
    def release(self, table: list[int]) -> None:
        self.held = [other for other in self.held if other is not table]
        self.manager.free(table)

    @invariant()
    def the_books_agree(self) -> None:
        named = [block for table in self.held for block in table]
        assert self.manager.num_free == 6 - len(set(named))
        for block in set(named):
            assert self.manager.is_shared(block) == (named.count(block) > 1)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_block_released_twice_is_a_programmers_error() -> None:
    manager = BlockManager(2, SIZE)
    block = manager.allocate()
    manager.free([block])
    with pytest.raises(AssertionError, match="freed twice"):
        manager.free([block])


def test_the_oldest_free_block_is_evicted_first_suffix_first() -> None:
    manager = BlockManager(4, SIZE)
    chains = [manager.hash_blocks([word] * 4, []) for word in (0, 1)]
    for hashes in chains:
        table = [manager.allocate() for _ in hashes]
        for block, value in zip(table, hashes, strict=True):
            manager.register(block, value)
        manager.free(table)
    assert [len(manager.match_prefix(hashes)) for hashes in chains] == [2, 2]
    manager.allocate()
    assert [len(manager.match_prefix(hashes)) for hashes in chains] == [1, 2]
    manager.allocate()
    assert [len(manager.match_prefix(hashes)) for hashes in chains] == [0, 2]


def test_equal_blocks_after_different_prefixes_differ() -> None:
    manager = BlockManager(4, SIZE)
    assert manager.hash_blocks([1, 1, 5, 5], [])[1] != manager.hash_blocks([2, 2, 5, 5], [])[1]
    assert manager.hash_blocks([1, 1, 5], []) == manager.hash_blocks([1, 1, 6], [])  # only full blocks have a name
