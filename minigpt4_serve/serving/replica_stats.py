"""What the engines last said of themselves, as this process's routers heard it. Knows neither Ray nor HTTP.

A module of its own: Ray pickles a request router by value, with copies of its own module's globals; only what it
imports is the process's one and only.
"""

from typing import Any, Protocol

__all__ = ["announce", "replica_stats"]


class _Router(Protocol):
    @property
    def stats(self) -> dict[str, dict[str, Any]]: ...


_routers: list[_Router] = []


def announce(router: _Router) -> None:
    """From now on the router is asked."""
    _routers.append(router)


def replica_stats() -> list[tuple[str, dict[str, Any]]]:
    """(replica, ``record_routing_stats``) of every replica that has said something."""
    return [(name, stats) for router in _routers for name, stats in sorted(router.stats.items()) if stats]
