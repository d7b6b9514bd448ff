"""One caller's request on its way through the engine: its answers, and what the caller hears. Touches no tensor."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.engine.grammar import Grammar
from minigpt4_serve.engine.image_cache import ImageEntry
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.protocol import Delta, FinishReason, Timings, TokenLogprob, Usage

__all__ = ["Answer", "Request"]


@dataclass(eq=False)
class Answer:
    """One of a request's answers: its sequence, its text, and what is not told yet: text and its tokens."""

    sequence: Sequence
    text: Detokenizer
    held: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    told: float = 0.0
    grammar: Grammar | None = None

    def take(
        self, ids: Iterable[int], logprobs: Iterable[TokenLogprob], reason: FinishReason | None
    ) -> FinishReason | None:
        """These tokens join; why the answer ends, if it does: for this ``reason``, or because of a stop string."""
        new = list(ids)
        self.ids += new
        self.logprobs += logprobs
        self.held += self.text.push(new, last=reason is not None)
        return "stop" if self.text.stopped else reason


@dataclass(eq=False)
class Request:
    """What one caller wants, and the way back to the caller. ``time.monotonic`` tells its times.

    Attributes:
        pictures: in the order of the prompt's slots.
        search: for beam search; the answers then get their tokens when it is over.
        submitted: when it was handed to the engine's thread, ``images_s`` after it came.
    """

    id: str
    answers: list[Answer]
    pictures: list[ImageEntry]
    search: BeamSearch | None
    submitted: float
    images_s: float
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    outbox: "asyncio.Queue[Delta | MiniGPT4Error]" = field(default_factory=asyncio.Queue)
    admitted: float | None = None
    encode_s: float = 0.0
    first_token: float | None = None

    @property
    def growing(self) -> list[Sequence]:
        """What the scheduler works on: the answers, or a search's hypotheses."""
        return self.search.live if self.search else [answer.sequence for answer in self.answers]

    @property
    def width(self) -> int:
        """Slots that it takes."""
        rules = self.answers[0].sequence.sampling
        return max(rules.n, rules.beams)

    @property
    def done(self) -> bool:
        """Do all its answers have their end?"""
        return all(answer.sequence.finish_reason for answer in self.answers)

    def piece(self, answer: Answer) -> Delta:
        """What is held, with the tokens that it took; the request's last piece with the balance."""
        sequence = answer.sequence
        delta = Delta(sequence.index, answer.held, tuple(answer.ids), tuple(answer.logprobs), sequence.finish_reason)
        answer.held, answer.ids, answer.logprobs, answer.told = "", [], [], time.monotonic()
        return replace(delta, usage=self._usage(), timings=self._timings()) if self.done else delta

    def _usage(self) -> Usage:
        first = self.answers[0].sequence
        written = sum(answer.sequence.num_output for answer in self.answers)
        return Usage(first.num_prompt, first.cached_tokens or 0, written)

    def _timings(self) -> Timings:
        now = time.monotonic()
        admitted, first_token = self.admitted or now, self.first_token or now
        return Timings(
            images_s=self.images_s,
            queue_s=admitted - self.submitted,
            encode_s=self.encode_s,
            prefill_s=max(0.0, first_token - admitted - self.encode_s),
            decode_s=now - first_token,
            ttft_s=self.images_s + first_token - self.submitted,
            total_s=self.images_s + now - self.submitted,
        )
