"""What this process's routers know of the engine replicas. Imports neither Ray nor FastAPI.

A module of its own: Ray pickles a request router by value, with copies of its own module's globals; only imported
modules exist once per process.
"""

from typing import Any, Protocol

__all__ = ["count_draining_requests", "count_replicas", "has_routers", "read_replica_stats", "register_router"]


class _Router(Protocol):
    @property
    def stats(self) -> dict[str, dict[str, Any]]: ...
    @property
    def sent(self) -> dict[str, int]: ...


_routers: list[_Router] = []


def register_router(router: _Router) -> None:
    """Include the router in what this module's other functions return."""
    _routers.append(router)


def read_replica_stats() -> list[tuple[str, dict[str, Any]]]:
    """(replica, ``record_routing_stats``) of every replica that has reported."""
    return [(name, stats) for router in _routers for name, stats in sorted(router.stats.items()) if stats]


def has_routers() -> bool:
    """Whether this process has routed requests."""
    return bool(_routers)


def count_replicas() -> int:
    """Replicas that accept requests."""
    return sum(len(router.stats) for router in _routers)


def count_draining_requests() -> int:
    """Requests of this process at replicas that accept no more: they finish or are lost."""
    return sum(number for router in _routers for name, number in router.sent.items() if name not in router.stats)
