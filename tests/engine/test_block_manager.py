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
        hashes = self.manager.chain(words, [])
        known = self.manager.find(hashes)
        for i, block in enumerate(known):
            assert self.content[block] == tuple(words[: (i + 1) * SIZE]), "another content's block was given out"
        self.manager.hold(known)
        table = list(known)
        while len(table) < len(hashes) and self.manager.num_free:
            block = self.manager.take()
            assert all(block not in other for other in (*self.held, table)), "a held block was given out again"
            i = len(table)
            self.content[block] = tuple(words[: (i + 1) * SIZE])
            table.append(block)
            self.manager.remember(block, hashes[i])
        self.held.append(table)
        return table

    @rule(table=consumes(holders))
    def release(self, table: list[int]) -> None:
        self.held = [other for other in self.held if other is not table]
        self.manager.release(table)

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
    block = manager.take()
    manager.release([block])
    with pytest.raises(AssertionError, match="released twice"):
        manager.release([block])


def test_the_oldest_free_block_is_evicted_first_suffix_first() -> None:
    manager = BlockManager(4, SIZE)
    chains = [manager.chain([word] * 4, []) for word in (0, 1)]
    for hashes in chains:
        table = [manager.take() for _ in hashes]
        for block, value in zip(table, hashes, strict=True):
            manager.remember(block, value)
        manager.release(table)
    assert [len(manager.find(hashes)) for hashes in chains] == [2, 2]
    manager.take()
    assert [len(manager.find(hashes)) for hashes in chains] == [1, 2]
    manager.take()
    assert [len(manager.find(hashes)) for hashes in chains] == [0, 2]


def test_equal_blocks_after_different_prefixes_differ() -> None:
    manager = BlockManager(4, SIZE)
    assert manager.chain([1, 1, 5, 5], [])[1] != manager.chain([2, 2, 5, 5], [])[1]
    assert manager.chain([1, 1, 5], []) == manager.chain([1, 1, 6], [])  # only full blocks have a name
