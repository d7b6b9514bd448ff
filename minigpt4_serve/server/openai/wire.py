"""What all responses share: models that keep their JSON, log probabilities, timings, server-sent events."""

import json
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, SkipValidation
from typing_extensions import TypedDict

from minigpt4_serve.errors import MiniGPT4Error
from minigpt4_serve.protocol import Delta, Timings

__all__ = [
    "AnswerTimings",
    "ErrorResponse",
    "EventTemplate",
    "ResponseFormatter",
    "ResponseModel",
    "TokenLogprob",
    "TokenLogprobs",
    "answer_hints",
    "answer_timings",
    "encode_json",
    "server_sent_event",
    "token_logprobs",
]


class ResponseModel(BaseModel):
    """A JSON object that the server sends. A field with a default is left out unless it is given."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> str:
        """The object as JSON, keys in the order of the fields."""
        return encode_json(self)

    def given_fields(self) -> dict[str, Any]:
        """The fields that were given, by their names in JSON."""
        fields = type(self).model_fields
        return {fields[name].alias or name: getattr(self, name) for name in fields if name in self.model_fields_set}


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=ResponseModel.given_fields
)


def encode_json(value: object) -> str:
    """Compact JSON, as Starlette's ``JSONResponse`` writes it; values may be or contain ``ResponseModel``.

    Faster than pydantic's own serialization to the same bytes.

    Raises:
        ValueError: a number is infinite or not a number.
    """
    return _ENCODER.encode(value)


class AnswerTimings(ResponseModel):
    """Where the seconds of a request went, see ``protocol.Timings``."""

    images_s: float
    queue_s: float
    encode_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float


class AlternativeToken(TypedDict):
    """One of the likeliest tokens in a token's place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TypedDict):
    """A token with its log probability. A dictionary: one per token would be slow as a model."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[AlternativeToken]


TokenLogprobs = SkipValidation[list[TokenLogprob]]


class ErrorDetails(ResponseModel):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(ResponseModel):
    """The body of every response with an error status."""

    error: ErrorDetails


class ResponseFormatter(Protocol):
    """One answer in the shape of one API: whole, or as server-sent events."""

    def opening(self) -> str:
        """Events before the first delta."""

    def delta_event(self, delta: Delta) -> str:
        """Events of one delta; empty if it shows nothing."""

    def closing(self, last: Delta) -> str:
        """Events after the last delta. Raises ``EngineFailed`` if it was aborted and the API has no status for that."""

    def failure(self, error: MiniGPT4Error) -> str:
        """Events that end a stream with an error."""

    def collect(self, delta: Delta) -> None:
        """Add a delta to the whole answer."""

    def whole(self, last: Delta) -> ResponseModel:
        """The answer that was collected. Raises ``EngineFailed`` if it was aborted."""


class EventTemplate:
    """A server-sent event that is sent often with a few different values: only these are encoded each time.

    Args:
        example: one such event.
        values: the values in ``example`` that differ, in the order of its JSON. The first occurrence of each, after the
            one before it, is replaced.
    """

    PLACEHOLDER = "\0text\0"
    """A string for ``values`` that occurs nowhere else."""

    def __init__(self, example: ResponseModel, *values: object, name: str | None = None) -> None:
        rest = server_sent_event(example, name=name)
        self._parts: list[str] = []
        for value in values:
            before, found, rest = rest.partition(encode_json(value))
            assert found, value
            self._parts.append(before)
        self._end = rest

    def fill(self, *values: str) -> str:
        """The event with other values, as JSON, in the same order."""
        parts = [before + value for before, value in zip(self._parts, values, strict=True)]
        return "".join(parts) + self._end


def answer_hints(service_tier: str | None, *, store: bool) -> dict[str, Any]:
    """What was done about a request's hints, as fields of its response: there is one tier, and nothing is stored."""
    tier = {} if service_tier is None else {"service_tier": "default"}
    return {**tier, "store": False} if store else tier


def answer_timings(timings: Timings) -> AnswerTimings:
    """The timings, rounded to 0.1 ms."""
    return AnswerTimings(**timings.as_dict())


def token_logprobs(delta: Delta) -> list[TokenLogprob]:
    """The delta's tokens with their log probabilities."""
    return [
        TokenLogprob(
            token=_token_text(entry.token),
            logprob=entry.logprob,
            bytes=list(entry.token),
            top_logprobs=[
                AlternativeToken(token=_token_text(token), logprob=value, bytes=list(token))
                for token, value in entry.top
            ],
        )
        for entry in delta.logprobs or ()
    ]


def _token_text(token: bytes) -> str:
    r"""The token as text; bytes that are no whole character are written ``\xf0``, as OpenAI does."""
    return token.decode(errors="backslashreplace")


def server_sent_event(data: ResponseModel, *, name: str | None = None) -> str:
    """A server-sent event with JSON data."""
    line = f"data: {data.to_json()}\n\n"
    return f"event: {name}\n{line}" if name else line
