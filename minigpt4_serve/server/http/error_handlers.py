"""Errors as HTTP responses in OpenAI's shape."""

from math import ceil

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from minigpt4_serve.errors import DeadlineExceeded, InvalidRequest, MiniGPT4Error, Overloaded

__all__ = ["ERROR_HEADER", "INTERNAL", "add_error_handlers", "error_response"]

_MAX_RETRY_AFTER_S = 60.0  # the longest Retry-After that OpenAI's clients respect
INTERNAL = "Something went wrong in the server; its log has the details."
"""The message of an unexpected error: its own text is only logged."""

ERROR_HEADER = b"x-minigpt4-error"
"""The response header with the error's code, for logs, metrics and proxies."""


def add_error_handlers(app: FastAPI) -> None:
    """Turn the errors of this project and of the framework into responses in OpenAI's shape."""
    app.add_exception_handler(MiniGPT4Error, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)


def error_response(error: MiniGPT4Error) -> JSONResponse:
    """The error as a response; an ``Overloaded`` one has ``Retry-After``."""
    headers = {ERROR_HEADER.decode(): error.code}
    wait = 0.0
    if isinstance(error, Overloaded):
        wait = max(1.0, error.retry_after)
        headers["retry-after"] = str(ceil(wait))
    if isinstance(error, DeadlineExceeded) or wait > _MAX_RETRY_AFTER_S:
        headers["x-should-retry"] = "false"  # OpenAI's clients would retry at once
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MiniGPT4Error)
    return error_response(error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {}
    if allowed := (error.headers or {}).get("Allow"):
        methods = {*allowed.replace(",", " ").split(), "OPTIONS"}
        if "GET" in methods:
            methods.add("HEAD")  # see AnswerHeadRequests
        headers["allow"] = ", ".join(sorted(methods))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    messages = {404: "There is nothing at this address.", 405: f"{request.method} is not possible at this address."}
    wrapped = InvalidRequest(messages.get(error.status_code, "The request can't be answered."))
    wrapped.status = error.status_code
    response = error_response(wrapped)
    response.headers.update(headers)
    return response
