"""The deployment of a Serve config file: requests arrive through Ray's proxy, and Ray adds engines.

It is ``configs/ray-serve.yaml`` except for addresses, folders, GPUs and sizes.
"""

import asyncio
import base64
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import Server, free_port

from minigpt4_serve.server.keys.key_ring import KeyLimits, add_key
from minigpt4_serve.settings import ModelSettings

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
SLOTS = 4


def _environment() -> dict[str, str]:
    """The environment of a cluster's node, from ``configs/ray-cluster.env``, without the token that joins nodes."""
    lines = (ROOT / "configs" / "ray-cluster.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {**os.environ, **{name: value for name, value in given.items() if not name.startswith("RAY_AUTH_")}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, httpx.Client]]:
    """``serve run`` on its own cluster, and a client with a key."""
    folder = tmp_path_factory.mktemp("deployed")
    key = add_key(folder / "keys.json", "alice", KeyLimits())
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "ray-serve.yaml").read_text())
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    args = config["applications"][0]["args"]
    args |= {"keys_file": str(folder / "keys.json"), "model_name": "tiny"}
    args["model"] = {"path": str(ModelSettings().path), "device": "cpu"}
    args["engine"] |= {"max_running": SLOTS, "max_waiting": 8, "cpu_threads": 1}
    args["scale"] |= {"engines": 1, "max_engines": 2, "gpus_per_engine": 0, "cpus_per_engine": 0.2, "drain_s": 5}
    args["scale"] |= {"target_requests": 1, "upscale_delay_s": 0, "http": 1}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    words = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(folder / "serve.yaml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, text=True, env=_environment(), start_new_session=True)
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=120
            ) as client:
                _wait_until_ready(client, process, folder / "log")
                yield Server(str(client.base_url), process, queue.Queue()), client
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def deployed(running: tuple[Server, httpx.Client]) -> httpx.Client:
    return running[1]


def _wait_until_ready(client: httpx.Client, process: "subprocess.Popen[str]", log: Path) -> None:
    for _ in range(4000):
        assert process.poll() is None, f"it ended: {log.read_text()[-3000:]}"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"it isn't ready: {log.read_text()[-3000:]}")


def _question(**more: Any) -> dict[str, Any]:
    picture = base64.b64encode((ROOT / "minigpt4_serve/weights/tiny/example.png").read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    content = [image, {"type": "text", "text": "What is in this picture?"}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def test_requests_and_answers_pass_through_rays_proxy(deployed: httpx.Client) -> None:
    assert deployed.get("/v1/models").json()["data"][0]["id"] == "tiny"
    answer = deployed.post(CHAT, json=_question(), headers={"x-request-id": "mine-1"})
    assert answer.status_code == 200
    assert "red star" in answer.json()["choices"][0]["message"]["content"]
    assert answer.headers.get_list("x-request-id") == ["mine-1"], "once, although the proxy sets the header, too"
    named = deployed.get("/v1/models").headers.get_list("x-request-id")
    assert len(named) == 1
    refused = deployed.post(CHAT, json={"messages": []})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages"
    without = deployed.post(CHAT, json=_question(), headers={"authorization": ""})
    assert without.status_code == 401
    assert without.headers["www-authenticate"] == "Bearer"


def test_chunks_pass_through_the_proxy_one_by_one(deployed: httpx.Client) -> None:
    whole = deployed.post(CHAT, json=_question()).json()["choices"][0]["message"]["content"]
    with deployed.stream("POST", CHAT, json=_question(stream=True)) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        chunks = list(answer.iter_raw())
    assert len(chunks) > 3, "the proxy held the chunks back"
    lines = b"".join(chunks).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"]) == whole


def test_while_the_quota_store_hangs_requests_get_503(running: tuple[Server, httpx.Client]) -> None:
    server, client = running
    assert client.post(CHAT, json=_question()).status_code == 200
    (counters,) = server.workers("QuotaStore")
    os.kill(counters, signal.SIGSTOP)
    try:
        refused = client.post(CHAT, json=_question())
        assert client.get("/v1/models").status_code == 200, "requests without a quota are answered"
    finally:
        os.kill(counters, signal.SIGCONT)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_failed"
    assert "counters of the keys" in refused.json()["error"]["message"]
    assert client.post(CHAT, json=_question()).status_code == 200


@pytest.mark.timeout(600)
async def test_ray_adds_an_engine_under_load(deployed: httpx.Client) -> None:
    async with httpx.AsyncClient(base_url=deployed.base_url, headers=deployed.headers, timeout=300) as client:
        await _until_engines(client, 1)  # /status lists engines once they have reported
        over = asyncio.Event()

        async def keep_asking() -> list[int]:
            statuses = []
            while not over.is_set():
                statuses.append((await client.post(CHAT, json=_question(max_tokens=200))).status_code)
            return statuses

        asking = [asyncio.create_task(keep_asking()) for _ in range(SLOTS)]
        try:
            await _until_engines(client, 2)
        finally:
            over.set()
            answered = [status for statuses in await asyncio.gather(*asking) for status in statuses]
        assert set(answered) == {200}


async def _until_engines(client: httpx.AsyncClient, number: int) -> None:
    async with asyncio.timeout(240):
        while len((await client.get("/status")).json()["engines"]) != number:
            await asyncio.sleep(0.5)
