"""Discord's rate limits: fixed windows per route and channel, one global window, headers on all responses.

A refusal carries ``Via``: without it clients take a 429 for a ban by Cloudflare.
"""

import math
import time
from dataclasses import dataclass, field

from aiohttp import web
from fakes.standstill import Standstill


@dataclass
class Window:
    limit: int
    seconds: float
    used: int = 0
    ends: float = 0.0


@dataclass
class Limits:
    """``refused`` lists the requests refused with 429: (time, route, channel)."""

    windows: dict[tuple[str, str], Window] = field(default_factory=dict)
    whole: Window = field(default_factory=lambda: Window(50, 1.0))
    refused: list[tuple[float, str, str]] = field(default_factory=list)
    flooded: dict[str, float] = field(default_factory=dict)
    """Channels where nothing may be sent, with the seconds until it may."""
    sizes: dict[str, tuple[int, float]] = field(
        default_factory=lambda: {
            "send": (5, 5.0),
            "edit": (5, 5.0),
            "delete": (5, 1.0),
            "read": (10, 1.0),
            "typing": (5, 5.0),
            "react": (1, 0.25),
            "webhook": (5, 2.0),
            "commands": (2, 10.0),
        }
    )

    standstill: Standstill = field(default_factory=Standstill)

    def enter(self, route: str, place: str) -> tuple[dict[str, str], web.Response | None]:
        """Headers for the response, and the error if the limit is exceeded."""
        now = time.time()
        # Responses to interactions are exempt from the global limit.
        if route != "webhook" and (wait := self._use(self.whole, now)) is not None:
            self.refused.append((now, "global", ""))
            return {}, _refusal(wait, "global", {"X-RateLimit-Global": "true"})
        limit, seconds = self.sizes[route]
        window = self.windows.setdefault((route, place), Window(limit, seconds))
        window.limit = limit
        window.seconds = seconds
        wait = self._use(window, now)
        headers = {
            "X-RateLimit-Limit": str(window.limit),
            "X-RateLimit-Remaining": str(max(0, window.limit - window.used)),
            "X-RateLimit-Reset": f"{window.ends:.3f}",
            "X-RateLimit-Reset-After": f"{max(0.0, window.ends - now):.3f}",
            "X-RateLimit-Bucket": f"{abs(hash(route)):x}",
        }
        if route == "send" and place in self.flooded:
            wait = self.flooded[place]
        if wait is None:
            return headers, None
        self.refused.append((now, route, place))
        return headers, _refusal(wait, "user", headers)

    def _use(self, window: Window, now: float) -> float | None:
        if now >= window.ends:
            window.used = 0
            window.ends = now + window.seconds
        if window.used >= window.limit and not self.standstill.just_over():
            return window.ends - now
        window.used += 1
        return None


def _refusal(wait: float, scope: str, headers: dict[str, str]) -> web.Response:
    return web.json_response(
        {"message": "You are being rate limited.", "retry_after": round(wait + 0.001, 3), "global": scope == "global"},
        status=429,
        headers=headers | {"Retry-After": str(math.ceil(wait)), "X-RateLimit-Scope": scope, "Via": "1.1 google"},
    )
