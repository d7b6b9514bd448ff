"""What this process's routers know of the engines: their last words, and what was sent. Knows neither Ray nor HTTP.

A module of its own: Ray pickles a request router by value, with copies of its own module's globals; only what it
imports is the process's one and only.
"""

from typing import Any, Protocol

__all__ = ["announce", "live_replicas", "replica_stats", "sent_to_leavers"]


class _Router(Protocol):
    @property
    def stats(self) -> dict[str, dict[str, Any]]: ...
    @property
    def sent(self) -> dict[str, int]: ...


_routers: list[_Router] = []


def announce(router: _Router) -> None:
    """From now on the router is asked."""
    _routers.append(router)


def replica_stats() -> list[tuple[str, dict[str, Any]]]:
    """(replica, ``record_routing_stats``) of every replica that has said something."""
    return [(name, stats) for router in _routers for name, stats in sorted(router.stats.items()) if stats]


def live_replicas() -> int:
    """Replicas that take requests."""
    return sum(len(router.stats) for router in _routers)


def sent_to_leavers() -> int:
    """Requests from here that are still at replicas which take no more: they finish, or are lost."""
    return sum(number for router in _routers for name, number in router.sent.items() if name not in router.stats)
