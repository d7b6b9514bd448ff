"""Deltas of an engine → the response to one request, whole or as server-sent events.

``stream_events`` is the only generator between an ``EngineClient`` and Starlette: each one costs every delta.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error
from minigpt4_serve.protocol import Delta
from minigpt4_serve.server.http.deadline import deadline_exceeded
from minigpt4_serve.server.http.error_handlers import INTERNAL
from minigpt4_serve.server.http.request_context import note_answer
from minigpt4_serve.server.openai.wire import ResponseFormatter, ResponseModel

__all__ = ["collect_answer", "next_delta", "stream_events", "unless_disconnected"]

_log = logging.getLogger(__name__)


async def next_delta(deltas: AsyncGenerator[Delta], deadline: float) -> Delta | None:
    """The next delta, None at the end; the last one's usage and timings go to the request's context.

    Raises:
        DeadlineExceeded: it didn't come before ``deadline``, in seconds of the event loop's clock.
        MiniGPT4Error: as ``EngineClient.generate``.
    """
    try:
        async with asyncio.timeout_at(deadline):
            delta = await anext(deltas, None)
    except TimeoutError:
        raise deadline_exceeded() from None
    if delta is not None and delta.usage is not None and delta.timings is not None:
        note_answer(delta.usage, delta.timings)
    return delta


async def collect_answer(formatter: ResponseFormatter, deltas: AsyncGenerator[Delta], deadline: float) -> ResponseModel:
    """The whole answer.

    Raises:
        DeadlineExceeded: it isn't complete before ``deadline``.
        EngineFailed: it was aborted.
    """
    last: Delta | None = None
    try:
        while (delta := await next_delta(deltas, deadline)) is not None:
            formatter.collect(delta)
            last = delta
    finally:
        await deltas.aclose()
    if last is None:
        raise EngineFailed("The answer was cut short; ask again.")
    return formatter.whole(last)


async def stream_events(
    formatter: ResponseFormatter, first: Delta, deltas: AsyncGenerator[Delta], deadline: float, answer_id: str
) -> AsyncGenerator[str]:
    """The answer as server-sent events, errors too. Closing this generator closes ``deltas``.

    Args:
        first: the first delta, already taken from ``deltas``.
        deadline: in seconds of the event loop's clock.
        answer_id: names the answer in the log.
    """
    try:
        if opening := formatter.opening():
            yield opening
        delta: Delta | None = first
        last = first
        while delta is not None:
            last = delta
            if delta.queue_position is not None:
                # A comment: clients skip it, and proxies see that the connection is alive.
                yield f": waiting, {delta.queue_position} ahead\n\n"
            elif event := formatter.delta_event(delta):
                yield event
            delta = await next_delta(deltas, deadline)
        if closing := formatter.closing(last):
            yield closing
    except MiniGPT4Error as error:
        yield formatter.failure(error)
    except Exception:
        _log.exception("stream %s failed", answer_id)
        yield formatter.failure(MiniGPT4Error(INTERNAL))
    finally:
        await deltas.aclose()


async def unless_disconnected(request: Request, answering: Coroutine[Any, Any, ResponseModel]) -> ResponseModel:
    """The result of ``answering``, which is canceled if the client disconnects. (Starlette does it for streams.)

    Raises:
        ClientDisconnect: the client disconnected first.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer = asyncio.create_task(answering)
    disconnect = asyncio.create_task(disconnected())
    try:
        await asyncio.wait((answer, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        disconnect.cancel()
        answer.cancel()
