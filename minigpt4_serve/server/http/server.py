"""uvicorn on a listening socket that several processes share, and its two ways to stop."""

import asyncio
import functools
import math
from contextlib import suppress
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp

from minigpt4_serve.server.http.limited_protocol import (
    ConnectionTable,
    LimitedProtocol,
    TransportLimits,
    find_connection_limit,
)
from minigpt4_serve.server.http.shared_socket import receive_socket, report_answers

__all__ = ["HttpServer"]

_BACKLOG = 2048
_IDLE_S = 5.0  # that idle connections of a retiring process stay open at most
_POLL_S = 0.05
_ACCEPT_TURNS = 10  # of the event loop, from an accepted connection to its protocol; asyncio takes three


class HttpServer:
    """Serves an application in the running event loop until the owner of the socket stops, or ``retire`` is called.

    Args:
        application: the ASGI application.
        socket_path: of a ``SharedSocket``.
        drain_s: seconds that answers in progress get when the owner stops; then they are cut off.
        keep_alive_s: seconds after which idle connections are closed.
        limits: of each connection; the number of connections is lower where this process may open fewer files.

    Raises:
        OSError: no socket is shared there.
    """

    def __init__(
        self,
        application: ASGIApp,
        socket_path: str,
        *,
        drain_s: float,
        keep_alive_s: float,
        limits: TransportLimits | None = None,
    ) -> None:
        limits = limits or TransportLimits()
        connections = min(limits.connections, find_connection_limit())
        self._listening, self._owner = receive_socket(socket_path)
        self._idle_s = min(keep_alive_s, _IDLE_S)
        table = ConnectionTable(replace(limits, connections=connections))
        config = uvicorn.Config(
            application,
            http=functools.partial(LimitedProtocol, table),  # type: ignore[arg-type]  # a factory will do
            ws="none",  # there are no websockets, and their connections would be outside of the table
            backlog=min(_BACKLOG, connections),  # all that wait there are accepted at once, before any can be closed
            timeout_keep_alive=math.ceil(keep_alive_s),
            timeout_graceful_shutdown=math.ceil(drain_s),
            server_header=False,
            lifespan="off",
            access_log=False,
            log_config=None,
        )
        self._server = uvicorn.Server(config)

    def start(self) -> None:
        """Start to accept connections."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listening]))
        self._stopping = asyncio.create_task(self._stop_with_owner())

    async def _stop_with_owner(self) -> None:
        """Finish the answers in progress when the owner stops, and close idle connections at once.

        No server follows: a late request on an idle connection could only be refused.
        """
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._owner, 1)  # returns at end of file
        await self._close_listeners()
        report_answers(self._owner, len(self._server.server_state.tasks))
        self._server.should_exit = True
        try:
            await self._serving
        finally:
            self._owner.close()

    async def retire(self) -> None:
        """Stop while another process takes over: no request is lost.

        Idle connections stay open for some seconds, since a request may be on its way. Its response has
        ``Connection: close``. Returns as soon as no connection is open.
        """
        if not self._server.should_exit:
            await self._close_listeners()
            close = (b"connection", b"close")
            self._server.config.encoded_headers.append(close)  # uvicorn copies these to the others once a second
            self._server.server_state.default_headers.append(close)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._idle_s + 1):
                    while self._server.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
                        await asyncio.sleep(_POLL_S)
            self._server.should_exit = True
        await self._serving

    async def _close_listeners(self) -> None:
        """Accept no more connections. Those that were just accepted are in ``server_state.connections`` afterwards."""
        for listening in getattr(self._server, "servers", ()):  # there are none until it has started
            listening.close()
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
