"""When a failed request is sent again: the one retry policy of all clients."""

import openai

from minigpt4_serve.client.failures import is_read_timeout, retry_after
from minigpt4_serve.errors import ServerUnreachable

__all__ = ["RetryBudget"]

_BUSY = 429
_FAILING = (502, 503, 504)
_MAX_FAILURES = 2
_MAX_TRIES = 32
_FIRST_DELAY_S = 0.5
_SHORTEST_DELAY_S = 0.1


class RetryBudget:
    """The waits of one answer: as long as the server asks (``Retry-After``), and never longer than the total.

    A busy server (429), or one that asks for a wait, is retried until the total is spent. One that can't be reached or
    fails behind its proxy (502, 503, 504), or whose connection breaks before the answer's first word, is retried twice.
    Without ``Retry-After`` the wait is 0.5 s and doubles with each try. Other errors, timeouts included, are final.

    Args:
        total_s: all waits together, in seconds.
    """

    def __init__(self, total_s: float) -> None:
        self._left_s = total_s
        self._tries = 0
        self._failures = 0

    def next_delay(self, error: openai.OpenAIError | ServerUnreachable) -> float | None:
        """Seconds until the next try; None if there is none.

        Args:
            error: of the OpenAI client, or the connection's before any word of the answer.
        """
        status = getattr(error, "status_code", None)
        unreachable = isinstance(error, (openai.APIConnectionError, ServerUnreachable)) and not _is_timeout(error)
        if not unreachable and status != _BUSY and status not in _FAILING:
            return None
        asked_s = retry_after(error)
        self._tries += 1
        if asked_s is None and status != _BUSY:
            self._failures += 1
        delay_s = _FIRST_DELAY_S * 2.0 ** (self._tries - 1) if asked_s is None else asked_s
        if delay_s > self._left_s or self._failures > _MAX_FAILURES or self._tries > _MAX_TRIES:
            return None
        delay_s = max(delay_s, _SHORTEST_DELAY_S)
        self._left_s -= delay_s
        return delay_s


def _is_timeout(error: Exception) -> bool:
    """Whether the server was silent for too long."""
    return isinstance(error, openai.APITimeoutError) or is_read_timeout(error.__cause__)
