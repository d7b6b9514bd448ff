"""Properties of scheduler and block manager with a simulated model, on thousands of small workloads."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.scheduler import Scheduler
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.protocol import SamplingParams


@dataclass(frozen=True)
class Job:
    """A simulated request. Times are in steps.

    Attributes:
        arrives: when it is added.
        tokens: length of its answer.
        aborts: when it is aborted, if it is.
    """

    arrives: int
    prompt: tuple[int, ...]
    tokens: int
    aborts: int | None


def next_token(content: list[int]) -> int:
    """A model whose next token depends on the whole sequence."""
    return hash(tuple(content)) % 3


def answer_alone(job: Job) -> list[int]:
    content = list(job.prompt)
    for _ in range(job.tokens):
        content.append(next_token(content))
    return content[len(job.prompt) :]


@dataclass
class Simulation:
    """Drives the scheduler as the engine does.

    Attributes:
        cache: (block, offset) → the prefix whose last position is stored there.
        admitted: indices of sequences in the order of their first step.
    """

    num_blocks: int
    block_size: int
    max_running: int
    max_prefill: int
    cache: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, self.block_size)
        self.scheduler = Scheduler(self.blocks, max_running=self.max_running, max_prefill_tokens=self.max_prefill)

    def step(self) -> list[Sequence]:
        """Compute a step. Returns the sequences that got a token."""
        chunks = self.scheduler.schedule()
        assert chunks, "the scheduler has work but scheduled nothing"
        assert len(self.scheduler.running) <= self.max_running
        decoded = sum(chunk.size for chunk in chunks if chunk.size == 1)
        computed = sum(chunk.size for chunk in chunks)
        assert computed - decoded <= self.max_prefill
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            assert chunk.start == sequence.num_computed < chunk.end <= len(sequence)
            for position in range(chunk.start, chunk.end):
                block = sequence.block_table[position // self.block_size]
                assert not self.blocks.is_shared(block), "a shared block is written to"
                prefix = tuple(sequence.content_ids[: position + 1])
                self.cache[block, position % self.block_size] = prefix
        for chunk in chunks:  # attention reads everything up to its position
            for position in range(chunk.end):
                block = chunk.sequence.block_table[position // self.block_size]
                expected = tuple(chunk.sequence.content_ids[: position + 1])
                assert self.cache[block, position % self.block_size] == expected
        for sequence in self.scheduler.running:
            if sequence.index not in self.admitted:
                self.admitted.append(sequence.index)
        sampled = [chunk.sequence for chunk in chunks if chunk.samples]
        self.scheduler.advance(chunks)
        for sequence in sampled:
            sequence.append(next_token(sequence.content_ids))
        return sampled

    def check_blocks(self) -> None:
        """Every block is free or referenced by exactly the sequences whose tables contain it."""
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
    # Few token ids and long common prefixes, so that most prompts share blocks.
    prompt=st.tuples(st.integers(0, 14), st.lists(st.integers(0, 1), min_size=1, max_size=4)).map(
        lambda parts: (7,) * parts[0] + tuple(parts[1])
    ),
    tokens=st.integers(1, 12),
    aborts=st.none() | st.integers(1, 25),
)


@settings(max_examples=400, deadline=None)
@given(
    job_list=st.lists(jobs, min_size=1, max_size=8),
    block_size=st.integers(1, 5),
    spare=st.integers(0, 12),
    max_running=st.integers(1, 5),
    max_prefill=st.integers(1, 9),
)
def test_answers_do_not_depend_on_other_requests(
    job_list: list[Job], block_size: int, spare: int, max_running: int, max_prefill: int
) -> None:
    job_list = sorted(job_list, key=lambda job: job.arrives)
    largest = max(-(-(len(job.prompt) + job.tokens) // block_size) for job in job_list)
    simulation = Simulation(largest + spare, block_size, max_running, max_prefill)
    rules = SamplingParams()
    sequences = [Sequence(f"r{i}", i, list(job.prompt), list(job.prompt), rules, 0) for i, job in enumerate(job_list)]
    arriving = list(zip(job_list, sequences, strict=True))
    work = sum(len(job.prompt) + job.tokens for job in job_list)
    for now in range(20 * work + 20):
        while arriving and arriving[0][0].arrives <= now:
            simulation.scheduler.add(arriving.pop(0)[1])
        for job, sequence in zip(job_list, sequences, strict=True):
            if job.aborts == now and sequence.finish_reason is None and sequence not in [s for _, s in arriving]:
                simulation.scheduler.finish(sequence, "abort")
        simulation.check_blocks()
        if not simulation.scheduler.has_work:
            if not arriving:
                break
            continue
        for sequence in simulation.step():
            if sequence.num_output == job_list[sequence.index].tokens:
                simulation.scheduler.finish(sequence, "length")
        simulation.check_blocks()
    else:
        raise AssertionError("a request never finishes")
    assert simulation.blocks.num_free == simulation.num_blocks
    for job, sequence in zip(job_list, sequences, strict=True):
        assert sequence.finish_reason is not None or job.aborts is not None
        if sequence.finish_reason == "length":
            assert sequence.output_ids == answer_alone(job)
    # Requests are admitted in order of arrival.
    assert simulation.admitted == sorted(simulation.admitted)


def test_a_full_cache_preempts_the_youngest() -> None:
    simulation = Simulation(num_blocks=5, block_size=2, max_running=3, max_prefill=8)
    rules = SamplingParams()
    old, young = (Sequence(f"r{i}", i, [i, 7, 8], [i, 7, 8], rules, 0) for i in range(2))
    simulation.scheduler.add(old)
    simulation.step()
    simulation.scheduler.add(young)
    while len(old) < 8:
        simulation.step()
    assert simulation.scheduler.preemptions >= 1
    assert young in simulation.scheduler.waiting
    assert old.output_ids == answer_alone(Job(0, (0, 7, 8), 5, None))


def test_long_prompts_do_not_delay_running_answers() -> None:
    simulation = Simulation(num_blocks=100, block_size=4, max_running=3, max_prefill=8)
    rules = SamplingParams()
    decoding = Sequence("t", 0, [1], [1], rules, 0)
    prefilling = Sequence("r", 1, [2] * 80, [2] * 80, rules, 0)
    simulation.scheduler.add(decoding)
    simulation.step()
    simulation.scheduler.add(prefilling)
    for _ in range(10):
        assert decoding in simulation.step()
    assert decoding.num_output == 11
    assert prefilling.num_output == 1


def test_answers_of_one_request_compute_their_prompt_once() -> None:
    simulation = Simulation(num_blocks=100, block_size=4, max_running=8, max_prefill=6)
    prompt = list(range(13))
    leader = Sequence("r", 0, list(prompt), list(prompt), SamplingParams(), 0)
    others = [Sequence("r", i, list(prompt), list(prompt), SamplingParams(), 0) for i in (1, 2)]
    for sequence in (leader, *others):
        simulation.scheduler.add(sequence)
    while not all(sequence.num_output for sequence in others):
        simulation.step()
    assert leader.cached_tokens == 0
    assert [sequence.cached_tokens for sequence in others] == [12, 12]
    assert simulation.blocks.is_shared(leader.block_table[0])


def test_an_answer_survives_the_abort_of_its_leader() -> None:
    simulation = Simulation(num_blocks=100, block_size=4, max_running=8, max_prefill=6)
    leader = Sequence("r", 0, [1] * 9, [1] * 9, SamplingParams(), 0)
    other = Sequence("r", 1, [1] * 9, [1] * 9, SamplingParams(), 0)
    simulation.scheduler.add(leader)
    simulation.scheduler.add(other)
    simulation.step()
    simulation.scheduler.finish(leader, "abort")
    while not other.num_output:
        simulation.step()
    simulation.scheduler.finish(other, "stop")
    assert simulation.blocks.num_free == 100
