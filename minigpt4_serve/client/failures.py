"""What the OpenAI client raises → one error of ours, with a sentence an agent can act on. Knows no pictures.

Nothing that a server wrote is repeated: it may quote the key, or the picture. Status and code go to the log.
"""

import logging
import math
import re
from email.utils import parsedate_to_datetime
from time import time

import openai

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
)

__all__ = ["describe_wait", "error_of_code", "retry_after", "to_minigpt4_error"]

_log = logging.getLogger(__name__)

_AWAY = "The vision server can't be reached; try again later or go on without looking."
_FAILED = "The vision server failed while answering; try again later."
_UNREADABLE = (
    "The vision server's answer can't be understood; its operator must check that it is an OpenAI-compatible one."
)

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
    502: ServerUnreachable(_AWAY),
    504: ServerUnreachable(_AWAY),
}


def to_minigpt4_error(error: Exception) -> MiniGPT4Error:
    """The error of our tree for what a call of the OpenAI client raised."""
    status = getattr(error, "status_code", None)
    code = getattr(error, "code", None)
    code = code if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,64}", code) else None
    _log.warning("vision server: %s, status %s, code %s", type(error).__name__, status, code)
    if isinstance(error, openai.APITimeoutError):
        return ServerUnreachable("The vision server did not answer in time; try again later.")
    if isinstance(error, openai.APIConnectionError):
        return ServerUnreachable(_AWAY)
    if status == 429 or code in (Overloaded.code, RateLimited.code):
        wait = retry_after(error) or 5.0
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
    return EngineFailed(_UNREADABLE)


def error_of_code(code: object) -> MiniGPT4Error:
    """The error of our tree for the ``code`` of an error that arrives inside a stream, after its status line."""
    known = _BY_CODE.get(code) if isinstance(code, str) else None
    return type(known)(known.message) if known else EngineFailed(_FAILED)


def describe_wait(wait_s: float) -> str:
    """A wait for people and agents: ``33 seconds``, ``12 hours``; rounded up, so that nobody comes back too early."""
    if wait_s <= 1:
        return "1 second"
    for limit, unit, name in ((90, 1, "seconds"), (90 * 60, 60, "minutes"), (48 * 3600, 3600, "hours")):
        if wait_s < limit:
            return f"{math.ceil(wait_s / unit)} {name}"
    return f"{math.ceil(wait_s / 86400)} days"


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
