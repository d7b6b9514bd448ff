"""Properties of scheduler and block manager, with a pretended model: no tensors, thousands of small worlds."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.scheduler import Scheduler
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.protocol import SamplingParams


@dataclass(frozen=True)
class Job:
    """A request of the pretended world: when it comes, what it says, how long it talks, when its caller leaves."""

    arrives: int
    prompt: tuple[int, ...]
    tokens: int
    leaves: int | None


def next_token(content: list[int]) -> int:
    """A model whose answer depends on all it has read."""
    return hash(tuple(content)) % 3


def alone(job: Job) -> list[int]:
    content = list(job.prompt)
    for _ in range(job.tokens):
        content.append(next_token(content))
    return content[len(job.prompt) :]


@dataclass
class World:
    """Drives the scheduler as the engine does; remembers in ``memory`` which prefix each cached position stands for."""

    num_blocks: int
    block_size: int
    max_running: int
    max_prefill: int
    memory: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, self.block_size)
        self.scheduler = Scheduler(self.blocks, max_running=self.max_running, max_prefill_tokens=self.max_prefill)

    def step(self) -> list[Sequence]:
        """Sequences that got a next token."""
        chunks = self.scheduler.schedule()
        assert chunks, "work, but nothing to compute"
        assert len(self.scheduler.running) <= self.max_running
        decoded = sum(chunk.end - chunk.start for chunk in chunks if chunk.end - chunk.start == 1)
        computed = sum(chunk.end - chunk.start for chunk in chunks)
        assert computed - decoded <= self.max_prefill
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            assert chunk.start == sequence.num_computed < chunk.end <= len(sequence)
            for position in range(chunk.start, chunk.end):
                block = sequence.block_table[position // self.block_size]
                assert not self.blocks.is_shared(block), "somebody else reads this block"
                prefix = tuple(sequence.content_ids[: position + 1])
                self.memory[block, position % self.block_size] = prefix
        for chunk in chunks:  # attention reads everything up to its position
            for position in range(chunk.end):
                block = chunk.sequence.block_table[position // self.block_size]
                expected = tuple(chunk.sequence.content_ids[: position + 1])
                assert self.memory[block, position % self.block_size] == expected
        for sequence in self.scheduler.running:
            if sequence.index not in self.admitted:
                self.admitted.append(sequence.index)
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        self.scheduler.advance(chunks)
        for sequence in sampling:
            sequence.append(next_token(sequence.content_ids))
        return sampling

    def check_books(self) -> None:
        """Every block is free or held by exactly those whose tables name it."""
        held: dict[int, int] = {}
        for sequence in self.scheduler.running:
            for block in sequence.block_table:
                held[block] = held.get(block, 0) + 1
        assert all(not sequence.block_table for sequence in self.scheduler.waiting)
        assert self.blocks.num_free == self.num_blocks - len(held)
        assert all(self.blocks.is_shared(block) == (count > 1) for block, count in held.items())


jobs = st.builds(
    Job,
    arrives=st.integers(0, 12),
    # Few words and long common beginnings: prefixes are shared all the time.
    prompt=st.tuples(st.integers(0, 14), st.lists(st.integers(0, 1), min_size=1, max_size=4)).map(
        lambda parts: (7,) * parts[0] + tuple(parts[1])
    ),
    tokens=st.integers(1, 12),
    leaves=st.none() | st.integers(1, 25),
)


@settings(max_examples=400, deadline=None)
@given(
    todo=st.lists(jobs, min_size=1, max_size=8),
    block_size=st.integers(1, 5),
    spare=st.integers(0, 12),
    max_running=st.integers(1, 5),
    max_prefill=st.integers(1, 9),
)
def test_every_answer_is_the_one_it_would_be_alone(
    todo: list[Job], block_size: int, spare: int, max_running: int, max_prefill: int
) -> None:
    todo = sorted(todo, key=lambda job: job.arrives)
    largest = max(-(-(len(job.prompt) + job.tokens) // block_size) for job in todo)
    world = World(largest + spare, block_size, max_running, max_prefill)
    rules = SamplingParams()
    sequences = [Sequence(f"r{i}", i, list(job.prompt), list(job.prompt), rules, 0) for i, job in enumerate(todo)]
    coming = list(zip(todo, sequences, strict=True))
    work = sum(len(job.prompt) + job.tokens for job in todo)
    for now in range(20 * work + 20):
        while coming and coming[0][0].arrives <= now:
            world.scheduler.add(coming.pop(0)[1])
        for job, sequence in zip(todo, sequences, strict=True):
            if job.leaves == now and sequence.finish_reason is None and sequence not in [s for _, s in coming]:
                world.scheduler.finish(sequence, "abort")
        world.check_books()
        if not world.scheduler.has_work:
            if not coming:
                break
            continue
        for sequence in world.step():
            if sequence.num_output == todo[sequence.index].tokens:
                world.scheduler.finish(sequence, "length")
        world.check_books()
    else:
        raise AssertionError("somebody starves")
    assert world.blocks.num_free == world.num_blocks
    for job, sequence in zip(todo, sequences, strict=True):
        assert sequence.finish_reason is not None or job.leaves is not None
        if sequence.finish_reason == "length":
            assert sequence.output_ids == alone(job)
    # First come, first served: nobody is overtaken at the door.
    assert world.admitted == sorted(world.admitted)


def test_the_cache_is_full_and_the_youngest_gives_way() -> None:
    world = World(num_blocks=5, block_size=2, max_running=3, max_prefill=8)
    rules = SamplingParams()
    old, young = (Sequence(f"r{i}", i, [i, 7, 8], [i, 7, 8], rules, 0) for i in range(2))
    world.scheduler.add(old)
    world.step()
    world.scheduler.add(young)
    while len(old) < 8:
        world.step()
    assert world.scheduler.preemptions >= 1
    assert young in world.scheduler.waiting
    assert old.output_ids == alone(Job(0, (0, 7, 8), 5, None))


def test_long_prompts_do_not_hold_up_running_answers() -> None:
    world = World(num_blocks=100, block_size=4, max_running=3, max_prefill=8)
    rules = SamplingParams()
    talking, reading = Sequence("t", 0, [1], [1], rules, 0), Sequence("r", 1, [2] * 80, [2] * 80, rules, 0)
    world.scheduler.add(talking)
    world.step()
    world.scheduler.add(reading)
    for _ in range(10):
        assert talking in world.step()
    assert talking.num_output == 11
    assert reading.num_output == 1


def test_several_answers_read_their_prompt_once() -> None:
    world = World(num_blocks=100, block_size=4, max_running=8, max_prefill=6)
    prompt = list(range(13))
    leader = Sequence("r", 0, list(prompt), list(prompt), SamplingParams(), 0)
    others = [Sequence("r", i, list(prompt), list(prompt), SamplingParams(), 0) for i in (1, 2)]
    for sequence in (leader, *others):
        world.scheduler.add(sequence)
    while not all(sequence.num_output for sequence in others):
        world.step()
    assert leader.cached_tokens == 0
    assert [sequence.cached_tokens for sequence in others] == [12, 12]
    assert world.blocks.is_shared(leader.block_table[0])


def test_an_answer_whose_sibling_left_reads_for_itself() -> None:
    world = World(num_blocks=100, block_size=4, max_running=8, max_prefill=6)
    leader = Sequence("r", 0, [1] * 9, [1] * 9, SamplingParams(), 0)
    other = Sequence("r", 1, [1] * 9, [1] * 9, SamplingParams(), 0)
    world.scheduler.add(leader)
    world.scheduler.add(other)
    world.step()
    world.scheduler.finish(leader, "abort")
    while not other.num_output:
        world.step()
    world.scheduler.finish(other, "stop")
    assert world.blocks.num_free == 100
