"""The one exception tree of minigpt4-serve. Knows nothing of HTTP frameworks, torch or Ray.

    MiniGPT4Error                      500  internal_error
    ├─ InvalidRequest                  400  invalid_request_error
    │  ├─ InvalidImage                 400  invalid_image
    │  ├─ ContextLengthExceeded        400  context_length_exceeded
    │  └─ ModelNotFound                404  model_not_found
    ├─ AuthenticationFailed            401  invalid_api_key
    ├─ PayloadTooLarge                 413  payload_too_large
    ├─ DeadlineExceeded                408  deadline_exceeded
    ├─ Overloaded                      429  overloaded            (retry_after, seconds)
    │  └─ RateLimited                  429  rate_limit_exceeded
    ├─ EngineFailed                    503  engine_failed
    ├─ ServerUnreachable               503  server_unreachable    (clients only)
    │  └─ StreamInterrupted                     503  cut_short
    └─ WeightsError                    500  weights_error         (missing, unexpected tensor names)

Every message is one or two sentences for the person who meets it and says what to do. Text of third-party exceptions
never becomes a message; it stays in ``__cause__`` for the log of whoever runs the program.
"""

from collections.abc import Iterable
from typing import Any

__all__ = [
    "AuthenticationFailed",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "EngineFailed",
    "InvalidImage",
    "InvalidRequest",
    "MiniGPT4Error",
    "ModelNotFound",
    "Overloaded",
    "PayloadTooLarge",
    "RateLimited",
    "ServerUnreachable",
    "StreamInterrupted",
    "WeightsError",
]


class MiniGPT4Error(Exception):
    """Base of all errors that users may see.

    Attributes:
        message: one clear sentence; safe to show to anybody.
        code: stable, machine-readable name of the kind of error.
        status: the HTTP status that belongs to it.
        type: OpenAI's coarse error type.
        param: the request field at fault, such as ``"messages[0].content"``, or None.
    """

    code: str = "internal_error"
    status: int = 500
    type: str = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whole, whatever their constructors ask for."""
        return _again, (type(self), self.args, self.__dict__)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _again(kind: type[MiniGPT4Error], args: tuple[Any, ...], state: dict[str, Any]) -> MiniGPT4Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InvalidRequest(MiniGPT4Error):
    """The request can't be understood or asks for something that this server does not do."""

    code = "invalid_request_error"
    status = 400
    type = "invalid_request_error"


class InvalidImage(InvalidRequest):
    """The picture can't be used: unknown format, damaged, or beyond a limit of shape."""

    code = "invalid_image"


class ContextLengthExceeded(InvalidRequest):
    """The prompt doesn't fit the model's context, even after the oldest text was dropped."""

    code = "context_length_exceeded"


class ModelNotFound(InvalidRequest):
    """The request names a model that this server doesn't serve."""

    code = "model_not_found"
    status = 404


class AuthenticationFailed(MiniGPT4Error):
    """No key, or a key that isn't known."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class PayloadTooLarge(MiniGPT4Error):
    """The body or a picture has more bytes than the server accepts."""

    code = "payload_too_large"
    status = 413
    type = "invalid_request_error"


class DeadlineExceeded(MiniGPT4Error):
    """The request took longer than it may, or than it asked for: its body didn't come, or its answer wasn't ready."""

    code = "deadline_exceeded"
    status = 408
    type = "invalid_request_error"


class Overloaded(MiniGPT4Error):
    """The waiting line is full. ``retry_after`` is the expected wait in seconds."""

    code = "overloaded"
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after

    @classmethod
    def queue_full(cls, wait: float) -> "Overloaded":
        """No more may wait; after ``wait`` seconds, as expected, one more may."""
        return cls(f"The server is busy; try again in {max(1, round(wait))} s.", retry_after=wait)


class RateLimited(Overloaded):
    """The caller's key may not ask for more now. ``retry_after``: until it may."""

    code = "rate_limit_exceeded"


class EngineFailed(MiniGPT4Error):
    """The engine died or is shutting down; requests can't be answered until it is replaced."""

    code = "engine_failed"
    status = 503


class ServerUnreachable(MiniGPT4Error):
    """A client couldn't reach the server."""

    code = "server_unreachable"
    status = 503


class StreamInterrupted(ServerUnreachable):
    """A client lost the server in the middle of an answer."""

    code = "cut_short"


class WeightsError(MiniGPT4Error):
    """A model folder or checkpoint can't be loaded as what it should be.

    Attributes:
        missing: tensors that the model needs and the files don't have.
        unexpected: tensors that the files have and no table knows.
    """

    code = "weights_error"

    def __init__(self, message: str, *, missing: Iterable[str] = (), unexpected: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  missing: {name}" for name in self.missing]
        lines += [f"  unexpected: {name}" for name in self.unexpected]
        return "\n".join(lines)
