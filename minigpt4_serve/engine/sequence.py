"""Sequences in progress and the names of what their positions hold. Touches no tensor."""

import copy
import hashlib
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from minigpt4_serve.images import EncodedImage
from minigpt4_serve.protocol import FinishReason, SamplingParams

__all__ = ["Sequence", "content_ids"]


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


def content_ids(token_ids: Ids[int], images: Ids[EncodedImage], *, image_token_id: int, slots: int) -> list[int]:
    """Name what every position holds: equal names mean equal keys and values after an equal prefix.

    A slot's id alone says nothing of its picture: caching by it would answer a question about one picture with
    another's. Slots get a 63-bit name from picture and place, above every text id.
    """
    names = list(token_ids)
    slot = 0
    for i, token in enumerate(token_ids):
        if token == image_token_id:
            digest = images[slot // slots].digest
            place = hashlib.blake2b(f"{digest}:{slot % slots}".encode(), digest_size=8).digest()
            names[i] = int.from_bytes(place, "big") >> 1 | 1 << 62
            slot += 1
    return names
