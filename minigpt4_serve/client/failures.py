"""Failures of the OpenAI client → errors of ``errors.py``, each with a sentence that an agent can act on.

No message repeats what a server wrote: it may quote the key, or the image. Status and code are logged.
"""

import logging
import math
import re
from email.utils import parsedate_to_datetime
from time import time

import openai

from minigpt4_serve.durations import describe_wait
from minigpt4_serve.errors import (
    AuthenticationFailed,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidImage,
    InvalidRequest,
    MiniGPT4Error,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    ServerUnreachable,
    StreamInterrupted,
)

__all__ = [
    "connection_lost",
    "error_of_code",
    "retry_after",
    "server_message",
    "to_minigpt4_error",
    "unreadable_response",
]

_log = logging.getLogger(__name__)

_UNREACHABLE = "The vision server can't be reached; try again later or go on without looking."
_TIMED_OUT = "The vision server did not answer in time; try again later."
_INTERRUPTED = "The connection to the vision server was lost in the middle of the answer; try again."
_FAILED = "The vision server failed while answering; try again later."
_UNREADABLE = (
    "The vision server's answer can't be understood; its operator must check that it is an OpenAI-compatible one."
)

_DEFAULT_WAIT_S = 5.0

_BY_CODE: dict[str, MiniGPT4Error] = {
    "invalid_image": InvalidImage("The vision server can't read one of the pictures; use another file or format."),
    "context_length_exceeded": ContextLengthExceeded(
        "Question and pictures are too long for the vision model; shorten the question or use fewer pictures."
    ),
    "model_not_found": ModelNotFound(
        "The vision server has no such model; its operator must correct the model's name."
    ),
    "payload_too_large": PayloadTooLarge(
        "The pictures are too large for the vision server; use fewer or smaller ones."
    ),
    "deadline_exceeded": DeadlineExceeded(
        "The vision server's time for this request ran out; ask for a shorter answer or about fewer pictures."
    ),
}
_BY_STATUS: dict[int, MiniGPT4Error] = {
    400: InvalidRequest("The vision server refused this request; ask a plain question about fewer pictures."),
    401: AuthenticationFailed("The vision server refused the key: its operator must set the right one. Don't retry."),
    403: AuthenticationFailed("The vision server refuses this user: its operator must allow it. Don't retry."),
    404: ModelNotFound("The vision server has no such model or address; its operator must correct the settings."),
    408: _BY_CODE["deadline_exceeded"],
    413: _BY_CODE["payload_too_large"],
    422: InvalidRequest("The vision server refused this request; ask a plain question about fewer pictures."),
    502: ServerUnreachable(_UNREACHABLE),
    504: ServerUnreachable(_UNREACHABLE),
}


def to_minigpt4_error(error: Exception) -> MiniGPT4Error:
    """The error for what a call of the OpenAI client raised."""
    status = getattr(error, "status_code", None)
    code = getattr(error, "code", None)
    code = code if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,64}", code) else None
    _log.warning("vision server: %s, status %s, code %s", type(error).__name__, status, code)
    if isinstance(error, openai.APITimeoutError):
        return ServerUnreachable(_TIMED_OUT)
    if isinstance(error, openai.APIConnectionError):
        return ServerUnreachable(_UNREACHABLE)
    if status == 429 or code in (Overloaded.code, RateLimited.code):
        wait = retry_after(error) or _DEFAULT_WAIT_S
        if code == RateLimited.code:
            used_up = f"The key's share of the vision server is used up; try again in {describe_wait(wait)}."
            return RateLimited(used_up, retry_after=wait)
        return Overloaded(f"The vision server is busy; try again in {describe_wait(wait)}.", retry_after=wait)
    known = _BY_CODE.get(code or "") or _BY_STATUS.get(status or 0)
    if known is not None:
        return type(known)(known.message)
    if isinstance(status, int) and 400 <= status < 500:
        return InvalidRequest(_BY_STATUS[400].message)
    if isinstance(error, openai.APIError):
        return EngineFailed(_FAILED)
    return unreadable_response()


def error_of_code(code: object) -> MiniGPT4Error:
    """The error for the ``code`` of an error inside a stream, whose status line was sent before."""
    known = _BY_CODE.get(code) if isinstance(code, str) else None
    return type(known)(known.message) if known else EngineFailed(_FAILED)


def unreadable_response() -> MiniGPT4Error:
    """The error for a response that isn't of OpenAI's shape."""
    return EngineFailed(_UNREADABLE)


def connection_lost(*, in_answer: bool, timed_out: bool) -> MiniGPT4Error:
    """The error for a response that breaks; ``in_answer``: part of its text was received."""
    if in_answer:
        return StreamInterrupted(_TIMED_OUT if timed_out else _INTERRUPTED)
    return ServerUnreachable(_TIMED_OUT if timed_out else _UNREACHABLE)


def is_read_timeout(error: BaseException | None) -> bool:
    """Whether an error is the ``ReadTimeout`` of one of the HTTP libraries, httpx or httpcore."""
    return type(error).__name__.endswith("Timeout")


def server_message(error: BaseException | None) -> str | None:
    """The sentence of the server's own error, for people who run the server; None if it sent none.

    Args:
        error: what the OpenAI client raised: the ``__cause__`` of an error of this package.
    """
    body = error.body if isinstance(error, openai.APIError) else None
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else None


def retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait: ``Retry-After`` in seconds or as a date, Azure's milliseconds, or None."""
    response = getattr(error, "response", None)
    headers = response.headers if response is not None else {}
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            seconds = float(milliseconds) / 1000
        else:
            seconds = _seconds(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return parsedate_to_datetime(value).timestamp() - time()
