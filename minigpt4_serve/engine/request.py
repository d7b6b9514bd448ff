"""A request in the engine: its answers, their text, and the deltas made of it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.engine.grammar import Grammar
from minigpt4_serve.engine.image_cache import ImageEntry
from minigpt4_serve.engine.outputs import OutputStream
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.protocol import Delta, FinishReason, Timings, TokenLogprob, Usage

__all__ = ["Answer", "Request"]


@dataclass(eq=False)
class Answer:
    """One of a request's answers.

    Attributes:
        grammar: restricts the next token, if the answer must follow a JSON schema.
        pending_text, pending_ids, pending_logprobs: generated and not yet part of a delta.
        held_logprobs: of tokens whose text may still turn out to be part of a stop string.
        emitted_at: ``time.monotonic`` of the latest delta.
    """

    sequence: Sequence
    detokenizer: Detokenizer
    grammar: Grammar | None = None
    pending_text: str = ""
    pending_ids: list[int] = field(default_factory=list)
    pending_logprobs: list[TokenLogprob] = field(default_factory=list)
    held_logprobs: list[TokenLogprob] = field(default_factory=list)
    emitted_at: float = 0.0

    def append(
        self, ids: Iterable[int], logprobs: Iterable[TokenLogprob], reason: FinishReason | None
    ) -> FinishReason | None:
        """Add generated tokens. Returns why the answer ends: ``reason``, or "stop" after a stop string."""
        new_ids = list(ids)
        num_shown = self.detokenizer.num_shown
        self.pending_ids += new_ids
        self.pending_text += self.detokenizer.push(new_ids, last=reason is not None)
        self.held_logprobs += logprobs
        if self.held_logprobs:
            completed = self.detokenizer.num_shown - num_shown
            self.pending_logprobs += self.held_logprobs[:completed]
            del self.held_logprobs[:completed]
        return "stop" if self.detokenizer.stopped else reason


@dataclass(eq=False)
class Request:
    """One caller's request. All times are ``time.monotonic``.

    Attributes:
        images: in the order of the prompt's image tokens.
        search: set for beam search; the answers receive their tokens when it ends.
        submitted: when the request was handed to the engine thread.
        images_s: seconds spent on decoding images before that.
        outputs: the way back to the caller.
        admitted: when its first sequence got a running slot.
        encode_s: seconds of image encoding in the request's steps.
        first_token: when its first token was sampled.
    """

    id: str
    answers: list[Answer]
    images: list[ImageEntry]
    search: BeamSearch | None
    submitted: float
    images_s: float
    outputs: OutputStream = field(default_factory=OutputStream)
    admitted: float | None = None
    encode_s: float = 0.0
    first_token: float | None = None

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences that the scheduler works on: one for each answer, or the live hypotheses of a beam search."""
        return self.search.live if self.search else [answer.sequence for answer in self.answers]

    @property
    def num_sequences(self) -> int:
        """Running slots that the request takes."""
        return self.answers[0].sequence.sampling.num_sequences

    @property
    def finished(self) -> bool:
        """True once all answers have a finish reason."""
        return all(answer.sequence.finish_reason for answer in self.answers)

    def take_delta(self, answer: Answer) -> Delta:
        """A delta of the answer's pending output, which becomes empty; the request's last one has usage and timings."""
        sequence = answer.sequence
        finished = self.finished
        delta = Delta(
            index=sequence.index,
            text=answer.pending_text,
            token_ids=tuple(answer.pending_ids),
            logprobs=tuple(answer.pending_logprobs),
            finish_reason=sequence.finish_reason,
            usage=self._usage() if finished else None,
            timings=self._timings() if finished else None,
        )
        answer.pending_text = ""
        answer.pending_ids = []
        answer.pending_logprobs = []
        answer.emitted_at = time.monotonic()
        return delta

    def _usage(self) -> Usage:
        first = self.answers[0].sequence
        return Usage(
            prompt_tokens=first.num_prompt,
            cached_tokens=first.cached_tokens or 0,
            completion_tokens=sum(answer.sequence.num_output for answer in self.answers),
        )

    def _timings(self) -> Timings:
        now = time.monotonic()
        admitted = self.admitted or now
        first_token = self.first_token or now
        return Timings(
            images_s=self.images_s,
            queue_s=admitted - self.submitted,
            encode_s=self.encode_s,
            prefill_s=max(0.0, first_token - admitted - self.encode_s),
            decode_s=now - first_token,
            ttft_s=self.images_s + first_token - self.submitted,
            total_s=self.images_s + now - self.submitted,
        )
