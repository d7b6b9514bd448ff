"""From a prompt to a request that the engine thread can compute without further checks."""

import random
import time
from dataclasses import dataclass, replace

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.engine.grammar import Grammar
from minigpt4_serve.engine.image_cache import ImageEntry
from minigpt4_serve.engine.request import Answer, Request
from minigpt4_serve.engine.sequence import Sequence, make_content_ids
from minigpt4_serve.errors import ContextLengthExceeded, InvalidRequest
from minigpt4_serve.model import MiniGPT4Tokenizer
from minigpt4_serve.protocol import Prompt, SamplingParams

__all__ = ["RequestBuilder"]

_SEED_STRIDE = 0x5851F42D4C957F2D  # between the seeds of a request's answers


@dataclass(frozen=True)
class RequestBuilder:
    """Validates prompts and builds requests for one model and one KV cache.

    Attributes:
        eos_ids: tokens that end an answer.
        vocab_size: ids that the model's embedding holds.
        num_image_tokens: of each image.
        context_length: prompt and answer together.
        block_size, num_blocks: of the KV cache.
    """

    tokenizer: MiniGPT4Tokenizer
    eos_ids: list[int]
    vocab_size: int
    image_token_id: int
    num_image_tokens: int
    context_length: int
    block_size: int
    num_blocks: int
    max_running: int

    def validate(self, prompt: Prompt, sampling: SamplingParams) -> None:
        """Reject what would stop the engine thread or never finish.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for an answer.
            InvalidRequest: an id is outside the vocabulary, images and image tokens don't match, or the beams don't
                fit the running slots or the KV cache.
        """
        ids = prompt.token_ids
        image_tokens = ids.count(self.image_token_id)
        if len(ids) >= self.context_length:
            raise ContextLengthExceeded(
                f"The chat has {len(ids)} tokens; this server reads at most {self.context_length - 1}.",
                param="messages",
            )
        if not ids or not all(0 <= token < self.vocab_size or token == self.image_token_id for token in ids):
            raise InvalidRequest(
                "The prompt must hold at least one token id, all from the model's vocabulary.", param="messages"
            )
        if image_tokens != len(prompt.images) * self.num_image_tokens:
            raise InvalidRequest(
                f"The prompt has {image_tokens} image tokens, but {len(prompt.images)} images take "
                f"{self.num_image_tokens} each.",
                param="messages",
            )
        if sampling.beams > 1 and not self._beams_fit(len(ids), sampling):
            raise InvalidRequest(
                f"{sampling.beams} beams don't fit this server; use fewer beams or a smaller max_tokens.", param="beams"
            )

    def build(
        self,
        prompt: Prompt,
        images: list[ImageEntry],
        sampling: SamplingParams,
        *,
        request_id: str,
        grammar: Grammar | None,
        received: float,
    ) -> Request:
        """A request for the engine thread. Must run in the caller's event loop.

        Args:
            images: the prompt's, decoded.
            grammar: each answer gets a copy.
            received: ``time.monotonic`` before images were decoded.
        """
        content_ids = make_content_ids(
            prompt.token_ids,
            prompt.images,
            image_token_id=self.image_token_id,
            num_image_tokens=self.num_image_tokens,
            cache_salt=prompt.cache_salt,
        )
        room = self.context_length - len(prompt.token_ids)
        limited = replace(
            sampling, max_tokens=min(sampling.max_tokens, room), min_tokens=min(sampling.min_tokens, room)
        )
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        answers: list[Answer] = []
        for index in range(sampling.n):
            sequence = Sequence(
                request_id=request_id,
                index=index,
                token_ids=list(prompt.token_ids),
                content_ids=list(content_ids),
                sampling=limited,
                seed=seed + index * _SEED_STRIDE,
            )
            detokenizer = Detokenizer(self.tokenizer.decode_ids, limited.stop, min_tokens=limited.min_tokens)
            answers.append(Answer(sequence, detokenizer, grammar.fork() if grammar is not None else None))
        now = time.monotonic()
        return Request(
            id=request_id,
            answers=answers,
            images=images,
            search=self._start_search(answers[0].sequence) if limited.beams > 1 else None,
            submitted=now,
            images_s=now - received,
        )

    def _start_search(self, first: Sequence) -> BeamSearch:
        leader = first.fork()
        leader.running_slots = first.sampling.beams
        return BeamSearch(leader, self.eos_ids, self.tokenizer.decode_ids)

    def _beams_fit(self, num_prompt: int, sampling: SamplingParams) -> bool:
        """All hypotheses advance together, so they must fit the running slots and the cache at the same time."""
        longest = min(num_prompt + sampling.max_tokens, self.context_length)
        shared = num_prompt // self.block_size
        own = -(-longest // self.block_size) - shared + 1
        return sampling.beams <= self.max_running and shared + sampling.beams * own <= self.num_blocks
