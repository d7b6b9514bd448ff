"""The one exception tree of minigpt4-serve.

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
    │  └─ StreamInterrupted            503  cut_short
    └─ WeightsError                    500  weights_error         (missing, unexpected tensor names)

Every message is one or two sentences for users and, where possible, says what to do. Text of third-party exceptions
never becomes a message; it stays in ``__cause__`` for the operator's log.
"""

from collections.abc import Iterable
from typing import Any

from minigpt4_serve.durations import describe_wait

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
        message: one or two clear sentences without secrets.
        code: stable, machine-readable name of the kind of error.
        status: HTTP status of a response with this error.
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
        """Pickle the attributes: constructors of subclasses take more than ``args``."""
        return _restore, (type(self), self.args, self.__dict__)

    def reword(self, message: str) -> None:
        """Replace the message, for another reader or with more context."""
        self.message = message
        self.args = (message,)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _restore(kind: type[MiniGPT4Error], args: tuple[Any, ...], state: dict[str, Any]) -> MiniGPT4Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InvalidRequest(MiniGPT4Error):
    """The request can't be parsed, or asks for something that isn't supported; also a wrong setting or option."""

    code = "invalid_request_error"
    status = 400
    type = "invalid_request_error"


class InvalidImage(InvalidRequest):
    """The image can't be used: unknown format, damaged, or too many pixels or frames."""

    code = "invalid_image"


class ContextLengthExceeded(InvalidRequest):
    """The prompt doesn't fit the model's context, even after its oldest text is dropped."""

    code = "context_length_exceeded"


class ModelNotFound(InvalidRequest):
    """The server doesn't serve the requested model; in clients also: it serves several and none is chosen."""

    code = "model_not_found"
    status = 404


class AuthenticationFailed(MiniGPT4Error):
    """No key, or an unknown one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class PayloadTooLarge(MiniGPT4Error):
    """The body, an image or the answer has more bytes than the server can handle."""

    code = "payload_too_large"
    status = 413
    type = "invalid_request_error"


class DeadlineExceeded(MiniGPT4Error):
    """The request exceeded the server's time limit or its own ``timeout``, while receiving its body or answering."""

    code = "deadline_exceeded"
    status = 408
    type = "invalid_request_error"


class Overloaded(MiniGPT4Error):
    """The queue is full. ``retry_after`` is the expected wait in seconds."""

    code = "overloaded"
    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after

    @classmethod
    def queue_full(cls, wait: float) -> "Overloaded":
        """The error for a full queue that is expected to have room in ``wait`` seconds."""
        return cls(f"The server is busy; try again in {describe_wait(wait)}.", retry_after=wait)


class RateLimited(Overloaded):
    """The key's quota is used up for ``retry_after`` seconds."""

    code = "rate_limit_exceeded"


class EngineFailed(MiniGPT4Error):
    """The engine stopped unexpectedly or is shutting down; requests fail until it is replaced."""

    code = "engine_failed"
    status = 503


class ServerUnreachable(MiniGPT4Error):
    """A client can't reach the server, or what answers there isn't one."""

    code = "server_unreachable"
    status = 503


class StreamInterrupted(ServerUnreachable):
    """The connection to the server broke in the middle of an answer."""

    code = "cut_short"


class WeightsError(MiniGPT4Error):
    """A model folder or checkpoint can't be loaded, converted or written.

    Attributes:
        missing: names of tensors that the model has and the files don't.
        unexpected: names of tensors that the files have and the model doesn't.
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
