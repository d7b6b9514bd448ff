"""The retry policy, without a clock or a server."""

from typing import Any

import httpx
import openai
import pytest

from minigpt4_serve.client.retries import RetryBudget

REQUEST: Any = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")
UNREACHABLE = openai.APIConnectionError(request=REQUEST)
TIMED_OUT = openai.APITimeoutError(request=REQUEST)


def status(code: int, retry_after: str | None = None) -> openai.APIStatusError:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    response: Any = httpx.Response(code, request=REQUEST, headers=headers)
    return openai.APIStatusError("refused", response=response, body=None)


def delays(total_s: float, error: openai.OpenAIError, tries: int = 100) -> list[float]:
    budget = RetryBudget(total_s)
    found = []
    while len(found) < tries and (delay_s := budget.next_delay(error)) is not None:
        found.append(delay_s)
    return found


@pytest.mark.parametrize(
    ("total_s", "error", "expected"),
    [
        (10, status(429), [0.5, 1, 2, 4]),
        (10, status(429, "3"), [3, 3, 3]),
        (10, status(429, "11"), []),
        (0.25, status(429, "0.1"), [0.1, 0.1]),
        (10, status(503), [0.5, 1]),
        (10, status(502), [0.5, 1]),
        (10, status(504), [0.5, 1]),
        (10, status(503, "4"), [4, 4]),
        (10, UNREACHABLE, [0.5, 1]),
        (10, TIMED_OUT, []),
        (10, status(500), []),
        (10, status(400), []),
        (10, status(404), []),
        (0, status(429), []),
    ],
)
def test_delays_follow_the_server_and_the_budget(
    total_s: float, error: openai.OpenAIError, expected: list[float]
) -> None:
    assert delays(total_s, error) == pytest.approx(expected)


def test_a_server_that_asks_for_no_wait_is_not_flooded() -> None:
    assert delays(1000, status(429, "0")) == [0.1] * 32
