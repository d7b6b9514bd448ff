"""Sequences in progress, and content ids, which identify what their positions hold. Imports no torch."""

import copy
import hashlib
from dataclasses import dataclass, field

from minigpt4_serve.images import EncodedImage
from minigpt4_serve.protocol import FinishReason, SamplingParams

__all__ = ["Sequence", "make_content_ids"]


@dataclass(eq=False)
class Sequence:
    """One answer in progress: its token ids, how many of them are computed, and the blocks that hold them.

    Attributes:
        index: of the answer among the request's ``n``.
        content_ids: what each position holds, for the prefix cache; see ``make_content_ids``.
        running_slots: running slots that it takes; more than one if it is about to fork.
        num_prompt: leading positions that are the prompt.
        num_computed: leading positions whose keys and values are in the cache.
        block_table: block ids, ``block_size`` positions each.
        block_hashes: of its full blocks, from the first on.
        cached_tokens: prompt positions that were in the cache when the sequence was first admitted.
    """

    request_id: str
    index: int
    token_ids: list[int]
    content_ids: list[int]
    sampling: SamplingParams
    seed: int
    running_slots: int = 1
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
        """Token ids of the answer."""
        return self.token_ids[self.num_prompt :]

    @property
    def num_output(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids) - self.num_prompt

    def fork(self) -> "Sequence":
        """A copy that shares the blocks computed so far and takes one running slot."""
        other = copy.copy(self)
        other.token_ids = list(self.token_ids)
        other.content_ids = list(self.content_ids)
        other.block_table = list(self.block_table)
        other.block_hashes = list(self.block_hashes)
        other.running_slots = 1
        return other

    def append(self, token: int) -> None:
        """Append a generated token."""
        self.token_ids.append(token)
        self.content_ids.append(token)


def make_content_ids(
    token_ids: tuple[int, ...],
    images: tuple[EncodedImage, ...],
    *,
    image_token_id: int,
    num_image_tokens: int,
    cache_salt: str = "",
) -> list[int]:
    """Identify what each position holds: two prompts share a block only if these ids are equal up to its end.

    Text ids stay as they are. All image tokens have the same token id, so each is replaced by a 63-bit hash of its
    image's digest and its index in the image, larger than any text id. Otherwise one image's cached features would be
    used for another. ``cache_salt`` is part of the first id, and thereby of each block's hash.
    """
    content_ids = list(token_ids)
    image_tokens = 0
    for position, token in enumerate(token_ids):
        if token == image_token_id:
            digest = images[image_tokens // num_image_tokens].digest
            key = f"{digest}:{image_tokens % num_image_tokens}".encode()
            content_ids[position] = _hash_id(key)
            image_tokens += 1
    if cache_salt and content_ids:
        content_ids[0] = _hash_id(f"{cache_salt}:{content_ids[0]}".encode())
    return content_ids


def _hash_id(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1 | 1 << 62
