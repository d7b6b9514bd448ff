"""RayEngineClient with a fake handle."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from minigpt4_serve.errors import (
    EngineFailed,
    InvalidImage,
    MiniGPT4Error,
    Overloaded,
    PayloadTooLarge,
    WeightsError,
)
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.ray.engine_client import RayEngineClient
from minigpt4_serve.settings import EngineSettings

PROMPT = Prompt((1, 2, 3), (EncodedImage("digest-1", b"x"), EncodedImage("digest-2", b"y")))
LOST = ActorUnavailableError("gone", None)


@dataclass
class Stream:
    """One attempt: its deltas; an exception among them is raised, an event is waited for."""

    pieces: list[Any]
    cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            if isinstance(piece, Exception) and not isinstance(piece, MiniGPT4Error):
                raise piece
            yield [piece]

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Handle:
    """A deployment's handle: each call takes the next stream."""

    tries: list[Stream]
    options_given: list[dict[str, Any]] = field(default_factory=list)

    def options(self, **options: Any) -> "Handle":
        self.options_given.append(options)
        return self

    @property
    def generate(self) -> "Handle":
        return self

    def remote(self, *_: Any) -> Stream:
        self.last = self.tries.pop(0)
        return self.last


def _engine(*tries: list[Any]) -> tuple[RayEngineClient, Handle, list[Stream]]:
    streams = [Stream(pieces) for pieces in tries]
    handle = Handle(list(streams))
    return RayEngineClient(handle, EngineSettings(max_running=2, max_waiting=1), context_length=100), handle, streams  # type: ignore[arg-type]


async def _texts(engine: RayEngineClient, prompt: Prompt = PROMPT, *, whole: bool = False) -> list[str]:
    return [delta.text async for delta in engine.generate(prompt, SamplingParams(), request_id="r", whole=whole)]


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_serve.server.ray.engine_client._RETRY_DELAYS_S", (0, 0, 0))


async def test_the_first_image_decides_the_replica() -> None:
    engine, handle, _ = _engine([Delta(text="a")], [Delta(text="b")])
    assert await _texts(engine) == ["a"]
    assert await _texts(engine, Prompt((1,))) == ["b"]
    assert [options["session_id"] for options in handle.options_given] == ["digest-1", ""]


@pytest.mark.parametrize(
    "lost",
    [
        LOST,
        AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()),
        RuntimeError("Unexpected error (StatusCode.INTERNAL): stream closed."),  # Serve's, before it has metadata
    ],
)
async def test_a_lost_replicas_request_goes_to_another_one(lost: Exception) -> None:
    engine, handle, _ = _engine([lost], [Delta(text="a")])
    assert await _texts(engine) == ["a"]
    assert handle.tries == []


async def test_a_request_without_deltas_is_sent_again() -> None:
    engine, handle, _ = _engine([LOST], [Delta(queue_position=3), LOST], [Delta(text="a"), Delta(text="b")])
    assert await _texts(engine) == ["", "a", "b"]
    assert handle.tries == []


async def test_a_stream_that_has_begun_ends_in_engine_failed() -> None:
    engine, handle, _ = _engine([Delta(text="a"), LOST], [Delta(text="b")])
    with pytest.raises(EngineFailed, match="ask again"):
        await _texts(engine)
    assert len(handle.tries) == 1


FAILED = EngineFailed("The engine stopped.")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([Delta(text="a"), LOST], ["b", "c"]),
        ([Delta(queue_position=1), Delta(text="a"), Delta(text="x"), LOST], ["b", "c"]),
        ([Delta(text="a"), AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata())], ["b", "c"]),
        ([Delta(text="a"), FAILED], ["b", "c"]),
        ([FAILED], ["b", "c"]),
    ],
)
async def test_a_whole_answer_begins_again_elsewhere(first: list[Any], expected: list[str]) -> None:
    engine, handle, (lost, _) = _engine(first, [Delta(text="b"), Delta(text="c")])
    assert await _texts(engine, whole=True) == expected
    assert handle.tries == []
    assert lost.cancelled


async def test_attempts_at_a_whole_answer_are_limited() -> None:
    engine, handle, _ = _engine(*[[Delta(text="a"), LOST]] * 9)
    with pytest.raises(EngineFailed):
        await _texts(engine, whole=True)
    assert len(handle.tries) == 5


async def test_a_failed_engine_before_the_first_word_is_left() -> None:
    engine, handle, _ = _engine([Delta(queue_position=0), FAILED], [Delta(text="a")])
    assert await _texts(engine) == ["", "a"]
    assert handle.tries == []
    engine, handle, _ = _engine([Delta(text="a"), FAILED], [Delta(text="b")])
    with pytest.raises(EngineFailed):
        await _texts(engine)
    assert len(handle.tries) == 1, "the client has seen the first word"


async def test_without_engines_a_full_folder_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    router = Router()
    monkeypatch.setattr("minigpt4_serve.server.ray.replica_stats._routers", [router])
    monkeypatch.setattr("minigpt4_serve.server.ray.engine_client.is_full", lambda folder: folder == tmp_path)
    _, handle, _ = _engine([Delta(text="a")], [LOST], [Delta(text="never")])
    engine = RayEngineClient(handle, EngineSettings(), context_length=100, folder=tmp_path)  # type: ignore[arg-type]
    router.stats = {"x": {}}
    assert await _texts(engine) == ["a"], "an engine that runs needs no room"
    router.stats = {}
    with pytest.raises(EngineFailed, match="temporary folder is full"):
        await _texts(engine)


async def test_attempts_are_limited() -> None:
    engine, handle, _ = _engine(*[[LOST]] * 9)
    with pytest.raises(EngineFailed):
        await _texts(engine)
    assert len(handle.tries) == 5


@pytest.mark.parametrize(
    "error", [Overloaded("busy", retry_after=2.5), InvalidImage("damaged", param="messages[0].content[0].image_url")]
)
async def test_a_refusal_keeps_its_attributes(error: MiniGPT4Error) -> None:
    engine, handle, _ = _engine([pickle.loads(pickle.dumps(error))], [Delta(text="never")])
    with pytest.raises(type(error)) as caught:
        await _texts(engine)
    assert caught.value.__dict__ == error.__dict__
    assert str(caught.value) == error.message
    assert len(handle.tries) == 1


@dataclass
class Router:
    """A router's replicas, and the requests that it sent."""

    stats: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)


async def test_capacity_is_exhausted_by_this_processs_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router()
    monkeypatch.setattr("minigpt4_serve.server.ray.replica_stats._routers", [router])
    over = asyncio.Event()
    engine, _, _ = _engine(*[[Delta(text="a"), over, Delta(text="b")]] * 6)
    asking = [asyncio.create_task(_texts(engine)) for _ in range(6)]
    await asyncio.sleep(0.01)
    await engine.check_capacity()  # as long as no engine is known there is nothing to be full
    router.stats = {"x": {}, "y": {"seconds_per_request": 4.0}}  # 2 answered, 1 waiting: three places each
    router.stats["x"] = {"seconds_per_request": 9.0}
    with pytest.raises(Overloaded) as refused:
        await engine.check_capacity()
    assert refused.value.retry_after == 4.0
    router.sent = {"x": 2, "gone": 2, "y": 2}
    await engine.check_capacity(1)
    with pytest.raises(Overloaded):
        await engine.check_capacity(2)
    router.sent = {}
    asking[0].cancel()
    await asyncio.wait(asking[:1])
    await engine.check_capacity()
    over.set()
    assert await asyncio.gather(*asking[1:]) == [["a", "b"]] * 5


@pytest.mark.parametrize("whole", [False, True])
async def test_answers_that_are_not_read_take_no_capacity(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr("minigpt4_serve.server.ray.replica_stats._routers", [Router({"x": {}})])
    engine, _, streams = _engine(*[[Delta(text="a"), Delta(text="b")]] * 6)
    unread = [engine.generate(PROMPT, SamplingParams(), request_id=str(i), whole=whole) for i in range(6)]
    for deltas in unread:
        assert (await anext(deltas)).text == "a"
        await engine.check_capacity()
    await engine.check_capacity(2)
    with pytest.raises(Overloaded):
        await engine.check_capacity(3)
    for deltas in unread:
        assert [delta.text async for delta in deltas] == ["b"]
    assert all(stream.cancelled for stream in streams)
    await engine.check_capacity(2)
    with pytest.raises(Overloaded):
        await engine.check_capacity(3)


async def test_a_full_engine_is_retried_once_on_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Overloaded("busy", retry_after=2.5)
    router = Router({"x": {}, "y": {}})
    monkeypatch.setattr("minigpt4_serve.server.ray.replica_stats._routers", [router])
    engine, handle, _ = _engine([full], [Delta(text="a")], [full], [full], [Delta(text="never")])
    assert await _texts(engine) == ["a"]
    with pytest.raises(Overloaded):
        await _texts(engine)
    assert len(handle.tries) == 1


async def _grpc_error(*, request: int, answer: int, limit: int = 1000) -> AioRpcError:
    """What gRPC raises for a call with messages of these sizes in bytes."""

    async def answer_call(_: bytes, context: Any) -> AsyncIterator[bytes]:
        yield bytes(answer)

    method = grpc.unary_stream_rpc_method_handler(answer_call)
    options = [("grpc.max_receive_message_length", limit)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("engine", {"generate": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            with pytest.raises(AioRpcError) as caught:
                async for _ in channel.unary_stream("/engine/generate")(bytes(request)):
                    pass
    finally:
        await server.stop(None)
    return caught.value


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("sizes", "words"), [((2000, 1), "The request is larger"), ((1, 2000), "The answer is larger")]
)
async def test_a_message_too_large_for_grpc_is_reported(sizes: tuple[int, int], words: str, wrapped: bool) -> None:
    error: Exception = await _grpc_error(request=sizes[0], answer=sizes[1])
    if wrapped:  # as Serve raises it when the call has ended before its metadata is read
        error = RuntimeError(f"Unexpected error ({error.code()}): {error.details()}.")  # type: ignore[attr-defined]
    engine, handle, _ = _engine([error], [Delta(text="never")])
    with pytest.raises(PayloadTooLarge, match=words):
        await _texts(engine)
    assert len(handle.tries) == 1, "the same message is too large for every engine"


async def test_a_bug_is_not_a_lost_replica() -> None:
    engine, handle, _ = _engine([RuntimeError("a mistake")], [Delta(text="never")])
    with pytest.raises(RuntimeError, match="a mistake"):
        await _texts(engine)
    assert len(handle.tries) == 1


async def test_rays_own_limit_is_engine_failed() -> None:
    engine, _, _ = _engine([BackPressureError(num_queued_requests=1, max_queued_requests=1)])
    with pytest.raises(EngineFailed):
        await _texts(engine)


async def test_closing_the_stream_cancels_it_at_the_replica() -> None:
    engine, _, (stream,) = _engine([Delta(text="a"), Delta(text="b")])
    deltas = engine.generate(PROMPT, SamplingParams(), request_id="r")
    assert (await anext(deltas)).text == "a"
    assert not stream.cancelled
    await deltas.aclose()  # type: ignore[attr-defined]
    assert stream.cancelled


def test_errors_can_be_pickled() -> None:
    error = WeightsError("no", missing=["a"], unexpected=["b"])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.missing) == (WeightsError, str(error), ["a"])
