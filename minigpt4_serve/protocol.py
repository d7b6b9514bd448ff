"""What crosses process borders between the HTTP server and the engine, as plain dataclasses. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Literal

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.images import EncodedImage

__all__ = ["Delta", "FinishReason", "Prompt", "SamplingParams", "Timings", "TokenLogprob", "Usage"]

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """Token ids with image slots, and the images that fill them, in order."""

    token_ids: tuple[int, ...]
    images: tuple[EncodedImage, ...] = ()


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


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """One request's generation rules. The defaults are greedy and plain.

    Attributes:
        max_tokens, min_tokens: bounds of the answer's length; no end-of-sequence token before ``min_tokens``.
        temperature: 0 takes the likeliest token; so does what is nearly 0, where divided scores would overflow.
        top_p, top_k, min_p: filters, applied in the order k, p, min-p; 1, 0 and 0 switch them off.
        repetition_penalty: divides positive and multiplies negative scores of tokens that the answer already holds;
            never of the prompt's, as in the original.
        seed: same seed, same answer, whatever else is in the batch; None draws one.
        stop: strings that end the answer and don't appear in it.
        logprobs, top_logprobs: report each token's log probability, and this many alternatives.
        n: independent answers to one prompt.
        beams: beam search with this many hypotheses instead of sampling; the best ``n`` are given.
        length_penalty: beams only; scores are divided by length to this power.
        json_schema: the answer is JSON that follows this schema, given as JSON text.
    """

    max_tokens: int = 300
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    json_schema: str | None = None

    @property
    def num_sequences(self) -> int:
        """Running slots that a request takes: its answers or its beams."""
        return max(self.n, self.beams)

    def __post_init__(self) -> None:
        rules = {
            "max_tokens": self.max_tokens >= 1,
            "min_tokens": 0 <= self.min_tokens <= self.max_tokens,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_p": 0 < self.top_p <= 1,
            "top_k": 0 <= self.top_k <= 2**31,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < float("inf"),
            "stop": all(self.stop),
            "top_logprobs": 0 <= self.top_logprobs <= 20,
            "n": 1 <= self.n <= 16,
            "beams": 1 <= self.beams <= 16 and (self.beams == 1 or self.n <= self.beams),
        }
        if self.beams > 1 and (self.temperature > 0 or self.logprobs):
            raise InvalidRequest(
                "Beam search gives the likeliest answers as a whole: leave out temperature and logprobs.", param="beams"
            )
        if self.beams > 1 and self.json_schema is not None:
            raise InvalidRequest("Beam search can't follow a JSON schema; leave out one of the two.", param="beams")
        for name, holds in rules.items():
            if not holds:
                raise InvalidRequest(f"'{name}' is out of range.", param=name)
