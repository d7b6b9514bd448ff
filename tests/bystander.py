"""Asks a server every 0.2 s until its input ends: words, a new image, a schema, each on a new connection.

A process of its own: what attackers do in the test's process must not count as the server's time.

    python bystander.py URL KEY

Prints a line once it asks, and at its end a JSON list of requests: when it was sent (CLOCK_MONOTONIC), its seconds, and
what is wrong with the response, or null.
"""

import asyncio
import base64
import json
import sys
import threading
import time

import httpx
from drawing import draw, encode

EVERY_S = 0.2
CHAT = "/v1/chat/completions"


def _body(number: int) -> dict[str, object]:
    fields: dict[str, object] = {"max_tokens": 4}
    content: object = "Hello"
    if number % 3 == 1:
        image = base64.b64encode(encode(draw("red", (64 + number, 48)))).decode()
        content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]
    elif number % 3 == 2:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    return {"messages": [{"role": "user", "content": content}], **fields}


async def _ask(url: str, key: str, number: int, results: list[tuple[float, float, str | None]]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as client:
        for method, path, body in (("POST", CHAT, _body(number)), ("GET", "/health", None)):
            began = time.monotonic()
            try:
                answer = await client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
                wrong = None if answer.status_code == 200 else f"{path}: {answer.status_code} {answer.text[:200]}"
            except httpx.HTTPError as error:
                wrong = f"{path}: {error!r}"
            results.append((began, time.monotonic() - began, wrong))


async def _ask_until(over: threading.Event, url: str, key: str) -> list[tuple[float, float, str | None]]:
    results: list[tuple[float, float, str | None]] = []
    number = 0
    async with asyncio.TaskGroup() as group:
        while not over.is_set():
            group.create_task(_ask(url, key, number, results))
            number += 1
            await asyncio.sleep(EVERY_S)
    return results


def _read_input(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    over = threading.Event()
    threading.Thread(target=_read_input, args=(over,), daemon=True).start()
    print("asking", flush=True)
    print(json.dumps(asyncio.run(_ask_until(over, *sys.argv[1:3]))))
