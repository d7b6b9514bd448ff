"""The gateway of the fake Discord: one websocket endpoint with sessions that can be resumed.

Handles opcodes, intents and close codes; callers provide the contents of events.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

Json = dict[str, Any]

GUILDS = 1 << 0
GUILD_MESSAGES = 1 << 9
DIRECT_MESSAGES = 1 << 12
MESSAGE_CONTENT = 1 << 15
PRIVILEGED = (1 << 1) | (1 << 8) | MESSAGE_CONTENT
_NEEDS = {"CHANNEL_CREATE": GUILDS, "THREAD_CREATE": GUILDS, "GUILD_CREATE": GUILDS}


@dataclass(eq=False)
class Session:
    """The state that survives a broken connection."""

    intents: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    sent: list[str] = field(default_factory=list)
    """Every dispatched frame; the n-th has sequence number n + 1."""
    socket: web.WebSocketResponse | None = None


class Gateway:
    """Handles connections; ``ready`` returns READY's contents and the events that follow it."""

    def __init__(self, token: str, ready: Callable[[int], list[tuple[str, Json]]]) -> None:
        self._token = token
        self._ready = ready
        self.granted = PRIVILEGED & ~MESSAGE_CONTENT
        """Privileged intents that the developer portal grants."""
        self.heartbeat_ms = 41250
        self.refusals = 0
        """The number of connections that are refused next with 503."""
        self.sessions: list[Session] = []
        self._reasons: dict[web.WebSocketResponse, int] = {}
        self.identified = 0
        self.resumed = 0
        self.heartbeats = 0
        self.closed: list[int | None] = []
        """The close codes of ended connections, from either side."""

    @property
    def session(self) -> Session | None:
        return self.sessions[-1] if self.sessions else None

    @property
    def connected(self) -> bool:
        return self.session is not None and self.session.socket is not None

    def has_intent(self, intent: int) -> bool:
        return self.session is not None and bool(self.session.intents & intent)

    async def dispatch(self, event: str, data: Json, *, needs: int = 0) -> None:
        """Send an event that the bot's intents cover; stored for RESUME while it is disconnected."""
        session = self.session
        needs = needs or _NEEDS.get(event, 0)
        if session is None or (needs and not session.intents & needs):
            return
        frame = json.dumps({"op": 0, "t": event, "s": len(session.sent) + 1, "d": data})
        session.sent.append(frame)
        if session.socket is not None:
            await self._send(session.socket, frame)

    async def drop(self, code: int | None = None) -> None:
        """Close the connection with ``code``, or abort it without a close frame."""
        session = self.session
        assert session is not None
        assert session.socket is not None
        socket = session.socket
        session.socket = None
        if code is None:
            assert socket._req is not None
            assert socket._req.transport is not None
            socket._req.transport.abort()
        else:
            await socket.close(code=code)

    async def _refuse(self, socket: web.WebSocketResponse, code: int) -> None:
        self._reasons[socket] = code
        await socket.close(code=code)

    async def ask_to_reconnect(self) -> None:
        assert self.session is not None
        assert self.session.socket is not None
        await self._send(self.session.socket, json.dumps({"op": 7, "d": None}))

    def forget_sessions(self) -> None:
        """The next RESUME is refused."""
        for session in self.sessions:
            session.id = secrets.token_hex(16)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=503)
        if request.query.get("v") != "10" or request.query.get("encoding") != "json":
            return web.Response(status=400)
        socket = web.WebSocketResponse(max_msg_size=4096)
        await socket.prepare(request)
        await self._send(socket, json.dumps({"op": 10, "d": {"heartbeat_interval": self.heartbeat_ms}}))
        session: Session | None = None
        try:
            async for message in socket:
                if message.type != WSMsgType.TEXT:
                    await self._refuse(socket, 4002)
                    break
                frame = json.loads(message.data)
                session = await self._receive(socket, session, frame["op"], frame.get("d"))
        finally:
            self.closed.append(self._reasons.pop(socket, socket.close_code))
            if session is not None and session.socket is socket:
                session.socket = None
        return socket

    async def _receive(
        self, socket: web.WebSocketResponse, session: Session | None, op: int, data: Any
    ) -> Session | None:
        if op == 1:
            self.heartbeats += 1
            await self._send(socket, json.dumps({"op": 11}))
        elif op == 2:
            return await self._identify(socket, session, data)
        elif op == 6:
            return await self._resume(socket, data)
        elif session is None:
            await self._refuse(socket, 4003)
        elif op not in (3, 4, 8):
            await self._refuse(socket, 4001)
        return session

    async def _identify(self, socket: web.WebSocketResponse, session: Session | None, data: Json) -> Session | None:
        if session is not None:
            await self._refuse(socket, 4005)
            return session
        if data["token"] != self._token:
            await self._refuse(socket, 4004)
            return None
        if data["intents"] & PRIVILEGED & ~self.granted:
            await self._refuse(socket, 4014)
            return None
        self.identified += 1
        session = Session(data["intents"], socket=socket)
        self.sessions.append(session)
        for event, body in self._ready(session.intents):
            await self.dispatch(event, body | ({"session_id": session.id} if event == "READY" else {}))
        return session

    async def _resume(self, socket: web.WebSocketResponse, data: Json) -> Session | None:
        session = next((known for known in self.sessions if known.id == data["session_id"]), None)
        if data["token"] != self._token:
            await self._refuse(socket, 4004)
            return None
        if session is None:
            await self._send(socket, json.dumps({"op": 9, "d": False}))
            return None
        if data["seq"] > len(session.sent):
            await self._refuse(socket, 4007)
            return None
        self.resumed += 1
        caught_up = data["seq"]
        while caught_up < len(session.sent):  # more may be added meanwhile
            await self._send(socket, session.sent[caught_up])
            caught_up += 1
        session.socket = socket
        await self.dispatch("RESUMED", {})
        return session

    @staticmethod
    async def _send(socket: web.WebSocketResponse, frame: str) -> None:
        try:
            await socket.send_str(frame)
        except (ConnectionError, RuntimeError):
            await asyncio.sleep(0)  # disconnected; the session keeps the frame
