"""Messages between HTTP processes and the engine, as plain dataclasses. Imports neither torch nor transformers."""

from dataclasses import asdict, dataclass
from typing import Literal

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.images import EncodedImage

__all__ = ["Delta", "FinishReason", "Prompt", "SamplingParams", "Timings", "TokenLogprob", "Usage"]

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the images whose features replace the image tokens among them, in order.

    Attributes:
        cache_salt: prompts with different salts share no blocks of the KV cache.
    """

    token_ids: tuple[int, ...]
    images: tuple[EncodedImage, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: of the prompt, image tokens included.
        cached_tokens: those of the prompt that were found in the KV cache.
        completion_tokens: generated, all answers together.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds of a request by phase, and two sums.

    Attributes:
        images_s: decoding images.
        queue_s: waiting for a running slot.
        encode_s: encoding images. GPUs encode asynchronously, so there most of this time is part of ``prefill_s``.
        prefill_s: from the running slot to the first token, without ``encode_s``.
        decode_s: from the first token to the last.
        ttft_s: time to first token: all phases but ``decode_s``.
        total_s: all phases.
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
    """A token with its log probability, and ``top``: the likeliest tokens at its position with theirs, best first.

    Tokens are the bytes that they add to the text: a character that isn't in the vocabulary takes several tokens.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A part of a streamed answer.

    Attributes:
        index: of the answer among the request's ``n``.
        text: may be empty, or cover more or fewer characters than ``token_ids`` if some were held back.
        logprobs: of the tokens that ``text`` completes; none of those that end the answer and aren't part of it.
        finish_reason: set on an answer's last delta.
        usage, timings: set on a request's last delta.
        queue_position, expected_wait_s: set on empty deltas while the request waits for a running slot.
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
    """How a request's answers are generated. The defaults are greedy decoding without filters and penalties.

    Attributes:
        max_tokens, min_tokens: bounds of the answer's length; neither an end-of-sequence token nor a stop string ends
            it before ``min_tokens``.
        temperature: at 0 and nearly 0 the likeliest token is chosen.
        top_p, top_k, min_p: filters, applied in the order k, p, min-p; 1, 0 and 0 switch them off. ``top_p`` 0 keeps
            the likeliest token only.
        repetition_penalty: divides positive and multiplies negative scores of tokens in the answer so far; as in the
            original code, tokens of the prompt aren't penalized.
        frequency_penalty, presence_penalty: subtracted from the scores of tokens in the answer so far, the first once
            per occurrence, as in OpenAI's API.
        seed: the same seed gives the same answer in any batch; None draws a random one.
        stop: strings that end the answer and aren't part of it.
        ignore_eos: never sample end-of-sequence tokens.
        logprobs, top_logprobs: report each token's log probability, and this many alternatives.
        n: independent answers to one prompt.
        beams: beam search with this many hypotheses instead of sampling; the best ``n`` are returned.
        length_penalty: for beam search; scores are divided by length to this power.
        json_schema: JSON text of a schema that the answer follows.
        json_stop: with ``json_schema``, strings that would end another answer: where the model would write one, the
            JSON string, number or array that is open is closed.

    Raises:
        InvalidRequest: a value is out of range, or two parameters exclude each other; ``param`` names it.
    """

    max_tokens: int = 300
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    json_schema: str | None = None
    json_stop: tuple[str, ...] = ()

    @property
    def num_sequences(self) -> int:
        """Running slots that a request takes: its answers or its beams."""
        return max(self.n, self.beams)

    def __post_init__(self) -> None:
        in_range = {
            "max_tokens": self.max_tokens >= 1,
            "min_tokens": 0 <= self.min_tokens <= self.max_tokens,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_p": 0 <= self.top_p <= 1,
            "top_k": 0 <= self.top_k <= 2**31,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < float("inf"),
            "frequency_penalty": -2 <= self.frequency_penalty <= 2,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
            "stop": all(self.stop),
            "top_logprobs": 0 <= self.top_logprobs <= 20,
            "n": 1 <= self.n <= 16,
            "beams": 1 <= self.beams <= 16 and (self.beams == 1 or self.n <= self.beams),
        }
        if self.beams > 1 and (self.temperature > 0 or self.logprobs):
            raise InvalidRequest(
                "Beam search supports neither temperature nor logprobs; leave them out.", param="beams"
            )
        if self.beams > 1 and self.json_schema is not None:
            raise InvalidRequest("Beam search doesn't support JSON schemas; leave out one of the two.", param="beams")
        for name, valid in in_range.items():
            if not valid:
                raise InvalidRequest(f"'{name}' is out of range.", param=name)
