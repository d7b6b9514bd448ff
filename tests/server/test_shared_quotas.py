"""Quotas in another process: while it doesn't answer, requests with a key get a 503."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from serving_app import local_engine, serving
from waiting import wait_until

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits, add_key, read_keys
from minigpt4_serve.server.keys.quotas import QuotaStore
from minigpt4_serve.server.ray import shared_quotas
from minigpt4_serve.server.ray.shared_quotas import SharedQuotas

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


class Actor:
    """Ray's handle of the store's actor, with the store itself.

    Attributes:
        trouble: what a call meets instead of a result: ``"silence"``, or Ray's exception.
        asked: names of the methods that were called, whatever they met.
    """

    def __init__(self) -> None:
        self.store = QuotaStore()
        self.trouble: str | Exception | None = None
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)


class _Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        self._actor.asked.append(self._name)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        trouble = self._actor.trouble
        if isinstance(trouble, Exception):
            answer.set_exception(trouble)
            answer.exception()  # a release is not awaited
        elif trouble is None:
            answer.set_result(getattr(self._actor.store, self._name)(*arguments))
        return answer


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    actor = Actor()

    class Options:
        def options(self, **_: Any) -> "Options":
            return self

        def remote(self) -> Actor:
            return actor

    monkeypatch.setattr(shared_quotas.ray, "remote", lambda _: Options())
    monkeypatch.setattr(shared_quotas, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(shared_quotas, "_RETRY_S", 0.01)
    return actor


@pytest.fixture
def key(tmp_path: Path) -> ApiKey:
    add_key(tmp_path / "keys.json", "alice", KeyLimits(concurrent_requests=1, images_per_day=5))
    return read_keys(tmp_path / "keys.json")[0]


TROUBLES = ["silence", ActorDiedError(), ActorUnavailableError("gone", None)]


@pytest.mark.parametrize("trouble", TROUBLES, ids=["silence", "died", "unavailable"])
async def test_counters_that_do_not_answer_are_a_503(actor: Actor, key: ApiKey, trouble: str | Exception) -> None:
    quotas = SharedQuotas()
    actor.trouble = trouble
    asking: list[Callable[[], Awaitable[Any]]] = [lambda: quotas.reserve(key, "a"), lambda: quotas.consume(key, "a", 1)]
    for ask in asking:
        with pytest.raises(EngineFailed, match="counters of the keys are being replaced") as failed:
            await ask()
        assert failed.value.status == 503
        quotas.release(key, "a", refund=True)
    actor.trouble = None
    assert (await quotas.reserve(key, "b")).refusal is None, "a failed request holds no reservation"
    quotas.release(key, "b", refund=False)


@pytest.mark.parametrize("trouble", TROUBLES[1:], ids=["died", "unavailable"])
async def test_calls_wait_for_the_restarted_counters(
    actor: Actor, key: ApiKey, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quotas, "_TIMEOUT_S", 60.0)
    quotas = SharedQuotas()
    actor.trouble = trouble
    asking = [asyncio.create_task(quotas.reserve(key, "a")), asyncio.create_task(quotas.consume(key, "a", 1))]
    await wait_until(lambda: actor.asked.count("reserve") >= 3 and actor.asked.count("consume") >= 3)
    actor.trouble = None  # it was restarted
    for status in await asyncio.gather(*asking):
        assert status.refusal is None
    quotas.release(key, "a", refund=True)


async def test_a_request_of_a_key_is_refused_while_counters_are_silent(
    actor: Actor, small_model: Any, tmp_path: Path
) -> None:
    secret = add_key(tmp_path / "keys.json", "alice", KeyLimits(concurrent_requests=1))
    headers = {"authorization": f"Bearer {secret}"}
    with serving(small_model, keys_file=tmp_path / "keys.json") as (_, service):
        transport = httpx.ASGITransport(app=create_app(service, SharedQuotas()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            assert (await client.post(CHAT, json=HELLO)).status_code == 200
            requests = local_engine(service).stats().generated_tokens
            actor.trouble = "silence"
            refused = await client.post(CHAT, json=HELLO)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_failed"
            assert local_engine(service).stats().generated_tokens == requests, "nothing was computed"
            assert (await client.get("/v1/models")).status_code == 200, "what isn't counted is answered"
            actor.trouble = None
            answers = [await client.post(CHAT, json=HELLO) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], "the one request at a time is free again"
    assert actor.asked.count("reserve") == actor.asked.count("release") == 4


async def test_a_holder_is_renewed_only_while_requests_run(
    actor: Actor, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quotas, "HOLDER_TIMEOUT_S", 0.02)
    quotas = SharedQuotas()
    await quotas.reserve(key, "a")
    actor.trouble = ActorDiedError()  # it is restarted: the holder renews again
    await wait_until(lambda: actor.asked.count("renew") >= 3)
    actor.trouble = None
    quotas.release(key, "a", refund=False)
    assert quotas._renewing is not None
    await quotas._renewing  # it ends with the last request
    renewed = actor.asked.count("renew")
    await quotas.reserve(key, "b")
    await wait_until(lambda: actor.asked.count("renew") > renewed)
    quotas.release(key, "b", refund=False)
    await quotas._renewing
