"""What the engine is asked and what it tells: prompts, sequences in progress, deltas. Touches no tensor."""

import copy
import hashlib
from collections.abc import Sequence as Ids
from dataclasses import asdict, dataclass, field
from typing import Literal

from minigpt4_serve.engine.sampling import SamplingParams
from minigpt4_serve.pictures import Picture

__all__ = ["Delta", "FinishReason", "Prompt", "Sequence", "Timings", "TokenLogprob", "Usage", "content_ids"]

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """Ids with image slots, and the pictures that fill them, in order."""

    token_ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: read, of those found in the cache, and written."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the seconds of a request went, one after the other, and two sums.

    Attributes:
        images_s: decoding pictures.
        queue_s: waiting for a slot.
        encode_s: encoding pictures. A GPU is only told to: there the work itself shows in ``prefill_s``.
        prefill_s: from the slot to the first token, without ``encode_s``.
        decode_s: from the first token to the last.
        ttft_s: until the first token: all but ``decode_s``.
        total_s: in all.
    """

    images_s: float
    queue_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float

    def as_dict(self) -> dict[str, float]:
        """Seconds by name, rounded to 0.1 ms."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer with its log probability, and the likeliest tokens in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer.

    Attributes:
        index: which of the ``n`` answers.
        finish_reason: set on an answer's last piece.
        usage, timings: set on a request's very last piece.
        queue_position, expected_wait_s: set on empty pieces while the request has to wait for a slot.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    queue_position: int | None = None
    expected_wait_s: float | None = None


@dataclass(eq=False)
class Sequence:
    """One answer in progress: its ids so far, how many of them are computed, and the blocks that hold them.

    Attributes:
        content_ids: what each position holds, for the prefix cache: text ids as they are, image slots named after
            picture and place. Two prompts share a block only if these are equal.
        num_computed: leading positions whose keys and values are in the cache.
        block_table: block ids, ``block_size`` positions each.
        slots: places it takes among the running; more than one if it is about to fork.
        cached_tokens: prompt positions that were found in the cache when the sequence was first admitted.
    """

    request_id: str
    index: int
    token_ids: list[int]
    content_ids: list[int]
    sampling: SamplingParams
    seed: int
    slots: int = 1
    num_prompt: int = field(init=False)
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def output_ids(self) -> list[int]:
        """Ids of the answer so far."""
        return self.token_ids[self.num_prompt :]

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt

    def fork(self) -> "Sequence":
        """A second one that has computed the same in the same blocks and goes on for itself."""
        other = copy.copy(self)
        other.token_ids, other.content_ids = list(self.token_ids), list(self.content_ids)
        other.block_table, other.block_hashes = list(self.block_table), list(self.block_hashes)
        other.slots = 1
        return other

    def append(self, token: int) -> None:
        """The answer grows by one token."""
        self.token_ids.append(token)
        self.content_ids.append(token)


def content_ids(token_ids: Ids[int], pictures: Ids[Picture], *, image_token_id: int, slots: int) -> list[int]:
    """Name what every position holds: equal names mean equal keys and values after an equal prefix.

    A slot's id alone says nothing of its picture: caching by it would answer a question about one picture with
    another's. Slots get a 63-bit name from picture and place, above every text id.
    """
    names = list(token_ids)
    slot = 0
    for i, token in enumerate(token_ids):
        if token == image_token_id:
            digest = pictures[slot // slots].digest
            place = hashlib.blake2b(f"{digest}:{slot % slots}".encode(), digest_size=8).digest()
            names[i] = int.from_bytes(place, "big") >> 1 | 1 << 62
            slot += 1
    return names
