"""Which replica answers a request: the one that has its image cached, unless that one is busy.

The caller passes an image's digest as the handle's ``session_id``. Replicas are ranked by rendezvous hashing: all
callers agree without communicating, and a replica that comes or goes moves only its own images.
"""

import hashlib
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from minigpt4_serve.server.ray.replica_stats import register_router

__all__ = ["ImageAffinityRouter", "preferred_replica"]


class ImageAffinityRouter(RequestRouter):
    """Prefers the image's own replica while it has a free running slot, then the least busy one."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Ray passes ``request_router_kwargs``: ``slots``, how many requests a replica runs at the same time."""
        self._slots = int(kwargs["slots"])
        self.sent: Counter[str] = Counter()  # requests of this process at each replica
        register_router(self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, best first; Ray takes the next one if a replica is gone or doesn't answer."""
        if not candidate_replicas:
            return []
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        load = {name: self._load(replica.replica_id) for name, replica in by_name.items()}
        first = preferred_replica(pending_request.metadata.session_id, load, self._slots)
        others = [replica for name, replica in by_name.items() if name != first]
        return [[by_name[first]], others] if others else [[by_name[first]]]

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests at a replica: what it last reported to Ray, and at least those of this process."""
        return max(self.replica_queue_len_cache.get(replica_id) or 0, self.sent[str(replica_id.unique_id)])

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Ray calls this when a request is sent to a replica."""
        super().on_send_request(replica_id)
        self.sent[str(replica_id.unique_id)] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Ray calls this when a request has ended there, in whatever way."""
        super().on_request_completed(replica_id, internal_request_id)
        name = str(replica_id.unique_id)
        self.sent[name] -= 1
        if self.sent[name] <= 0:
            del self.sent[name]

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """Replica → its last ``record_routing_stats``, of the replicas that run."""
        return {str(name.unique_id): dict(replica.routing_stats) for name, replica in self.curr_replicas.items()}


def preferred_replica(key: str, load: dict[str, int], slots: int) -> str:
    """The owner of ``key`` among the replicas in ``load`` (name → requests), or the least busy one if it is full."""
    owner = max(load, key=lambda name: hashlib.blake2b(f"{name} {key}".encode(), digest_size=8).digest())
    if key and load[owner] < slots:
        return owner
    return min(load, key=lambda name: (load[name], name != owner))
