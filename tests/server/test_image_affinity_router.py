"""Which replica is preferred: pure arithmetic, without Ray."""

from collections import Counter

import pytest

from minigpt4_serve.server.ray.image_affinity_router import preferred_replica

IDLE = {"a": 0, "b": 0, "c": 0}
KEYS = [f"picture-{i}" for i in range(600)]


def test_an_image_keeps_its_replica_while_a_slot_is_free() -> None:
    for key in KEYS:
        owner = preferred_replica(key, IDLE, 4)
        assert preferred_replica(key, {**IDLE, owner: 3}, 4) == owner
        # The order in which replicas are known must not matter: every process decides alike.
        assert preferred_replica(key, dict(reversed(IDLE.items())), 4) == owner


def test_images_are_spread_evenly() -> None:
    counts = Counter(preferred_replica(key, IDLE, 4) for key in KEYS)
    assert min(counts.values()) > 150


def test_the_least_busy_replica_helps_a_full_owner() -> None:
    for key in KEYS:
        owner = preferred_replica(key, IDLE, 4)
        busy, free = sorted(set(IDLE) - {owner})
        assert preferred_replica(key, {owner: 4, busy: 2, free: 1}, 4) == free
        # When all are full, waiting where the picture lies is as good as anywhere.
        assert preferred_replica(key, dict.fromkeys(IDLE, 4), 4) == owner


@pytest.mark.parametrize("gone", sorted(IDLE))
def test_a_lost_replica_moves_only_its_own_images(gone: str) -> None:
    left = {name: 0 for name in IDLE if name != gone}
    for key in KEYS:
        before = preferred_replica(key, IDLE, 4)
        if before != gone:
            assert preferred_replica(key, left, 4) == before


def test_without_a_picture_the_least_busy_answers() -> None:
    assert preferred_replica("", {"a": 2, "b": 1, "c": 2}, 4) == "b"
