"""Twenty people at once, over the same HTTP that browsers use: all are answered together, no chats mix."""

import asyncio
import json
import secrets
from typing import Any

import httpx
from drawing import draw, encode
from fakes.openai_replies import Gate
from fakes.openai_server import OpenAIServer
from waiting import wait_until

PEOPLE = 20


class _Person:
    """One browser's part of the conversation with the page."""

    def __init__(self, client: httpx.AsyncClient, submit: int) -> None:
        self._client = client
        self._submit = submit
        self._session = secrets.token_hex(6)

    async def show(self, color: str) -> str:
        headers = {"content-type": "application/octet-stream"}
        sent = await self._client.post("/pictures", content=encode(draw(color)), headers=headers)
        return str(sent.json()["key"])

    async def ask(self, text: str, *pictures: str) -> list[dict[str, Any]]:
        """All exchanges of the chat after the answer."""
        event = {"text": text, "pictures": pictures, "instead": False, "options": {}}
        joining = {
            "data": [None],
            "event_data": event,
            "fn_index": self._submit,
            "session_hash": self._session,
            "trigger_id": None,
        }
        joined = await self._client.post("/gradio_api/queue/join", json=joining)
        joined.raise_for_status()
        view: Any = None
        follow = self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._session})
        async with follow as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))
                assert message.get("success", True), message
                if message["msg"] == "process_generating":
                    view = _changed(view, message["output"]["data"][0])
                if message["msg"] == "process_completed":
                    break
        exchanges: list[dict[str, Any]] = view["exchanges"]
        return exchanges


def _changed(view: Any, news: Any) -> Any:
    """Gradio sends the first view whole, then what changed: lists of (action, path, value)."""
    if not isinstance(news, list):
        return news
    for action, path, value in news:
        if not path:
            view = value if action == "replace" else view + value
            continue
        parent = view
        for step in path[:-1]:
            parent = parent[step]
        match action:
            case "replace":
                parent[path[-1]] = value
            case "append":
                parent[path[-1]] += value
            case "add":
                parent.insert(path[-1], value) if isinstance(parent, list) else parent.update({path[-1]: value})
            case "delete":
                del parent[path[-1]]
    return view


async def test_twenty_people_are_served_concurrently(page_url: str, scripted: OpenAIServer, gate: Gate) -> None:
    colors = ("red", "green", "blue", "yellow")
    async with httpx.AsyncClient(base_url=page_url, timeout=120, limits=httpx.Limits(max_connections=60)) as client:
        config = (await client.get("/config")).json()
        (submit,) = [one["id"] for one in config["dependencies"] if any(t[1] == "submit" for t in one["targets"])]

        async def talk(number: int) -> list[str]:
            person, color = _Person(client, submit), colors[number % 4]
            await person.ask(f"please wait for {number}", await person.show(color))
            exchanges = await person.ask(f"and again {number}")
            return ["".join(piece["text"] for piece in exchange["pieces"]) for exchange in exchanges]

        talks = [asyncio.create_task(talk(number)) for number in range(PEOPLE)]
        # Nobody is answered before all are being served: all twenty stream at the same time.
        await wait_until(lambda: scripted.active == len(scripted.requests) == PEOPLE)
        gate.open()
        answers = await asyncio.gather(*talks)
    for number, (first, second) in enumerate(answers):
        seen = f"I see {colors[number % 4]}. You asked: please wait for {number}"
        assert first == seen
        assert second == f"{seen} | and again {number}"
