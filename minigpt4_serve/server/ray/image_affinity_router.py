"""Which replica answers a request: the one that holds its picture, unless that one is busy. Knows Ray's routers only.

The caller names a picture (or a chat's beginning) as the handle's ``session_id``; replicas are ranked by rendezvous
hashing, so that all callers agree without talking, and a replica that comes or goes moves only its own pictures.
"""

import hashlib
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from minigpt4_serve.server.ray.replica_stats import announce

__all__ = ["ImageAffinityRouter", "preferred_replica"]


class ImageAffinityRouter(RequestRouter):
    """The picture's own replica while it has a free slot; then whoever has least to do."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Ray hands on ``request_router_kwargs``: ``slots``, how many answers a replica computes at the same time."""
        self._slots = int(kwargs["slots"])
        self.sent: Counter[str] = Counter()  # requests of this process at each replica
        announce(self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Best first; Ray takes the next if one is gone or doesn't answer."""
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
        """Requests at a replica: what it last told Ray, and at least those that this process has there."""
        return max(self.replica_queue_len_cache.get(replica_id) or 0, self.sent[str(replica_id.unique_id)])

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Ray says so when a request leaves for a replica."""
        super().on_send_request(replica_id)
        self.sent[str(replica_id.unique_id)] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """And when it is over there, however it ended."""
        super().on_request_completed(replica_id, internal_request_id)
        name = str(replica_id.unique_id)
        self.sent[name] -= 1
        if self.sent[name] <= 0:
            del self.sent[name]

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """(replica → what it last said of itself), of those that run."""
        return {str(name.unique_id): dict(replica.routing_stats) for name, replica in self.curr_replicas.items()}


def preferred_replica(key: str, load: dict[str, int], slots: int) -> str:
    """The owner of ``key`` among the replicas in ``load`` (name → requests), or the least busy one if it is full."""
    owner = max(load, key=lambda name: hashlib.blake2b(f"{name} {key}".encode(), digest_size=8).digest())
    if key and load[owner] < slots:
        return owner
    return min(load, key=lambda name: (load[name], name != owner))
