"""Routes requests about the same image to the same replica, which then has it cached, unless that replica is busy.

The caller passes an image's digest as the handle's ``session_id``. Rendezvous hashing of the digest chooses the
replica: all callers agree without communicating, and adding or removing a replica reassigns only that replica's images.
"""

import hashlib
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from minigpt4_serve.server.ray.replica_stats import register_router

__all__ = ["ImageAffinityRouter", "preferred_replica"]


class ImageAffinityRouter(RequestRouter):
    """Prefers the replica that owns the image while it has a free running slot, otherwise the least busy replica."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Ray passes ``request_router_kwargs``: ``running_slots`` is how many requests a replica runs at once."""
        self._running_slots = int(kwargs["running_slots"])
        self.sent: Counter[str] = Counter()  # by replica: this process's requests that haven't ended
        register_router(self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, best first; Ray tries the next group if no replica in one accepts the request."""
        if not candidate_replicas:
            return []
        if pending_request is None:
            return [candidate_replicas]
        # The groups hold all replicas: if none accepts the request, Ray waits before it calls this again.
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        load = {name: self._load(replica.replica_id) for name, replica in by_name.items()}
        first = preferred_replica(pending_request.metadata.session_id, load, self._running_slots)
        others = [replica for name, replica in by_name.items() if name != first]
        return [[by_name[first]], others] if others else [[by_name[first]]]

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests at a replica: the queue length in Ray's cache, but at least this process's own requests."""
        return max(self.replica_queue_len_cache.get(replica_id) or 0, self.sent[str(replica_id.unique_id)])

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Ray calls this when a request is sent to a replica."""
        super().on_send_request(replica_id)
        self.sent[str(replica_id.unique_id)] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Ray calls this when a request has ended at a replica, even if it failed."""
        super().on_request_completed(replica_id, internal_request_id)
        name = str(replica_id.unique_id)
        self.sent[name] -= 1
        if self.sent[name] <= 0:
            del self.sent[name]

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """The current replicas' last ``record_routing_stats``, by replica."""
        return {
            str(replica_id.unique_id): dict(replica.routing_stats) for replica_id, replica in self.curr_replicas.items()
        }


def preferred_replica(key: str, load: dict[str, int], running_slots: int) -> str:
    """The owner of ``key`` among the replicas in ``load`` (name → requests).

    If the owner is full or ``key`` is empty, the least busy replica.
    """
    owner = max(load, key=lambda name: hashlib.blake2b(f"{name} {key}".encode(), digest_size=8).digest())
    if key and load[owner] < running_slots:
        return owner
    return min(load, key=lambda name: (load[name], name != owner))
