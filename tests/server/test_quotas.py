"""The quota store: exact counts, refusals that count nothing, and what expires or is released."""

import pytest

from minigpt4_serve.server.keys.key_ring import KeyLimits
from minigpt4_serve.server.keys.quotas import HOLDER_TIMEOUT_S, QuotaStore


class Clock:
    """Time that a test moves; begins at a midnight."""

    now = 86400.0 * 20_000

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> QuotaStore:
    return QuotaStore(clock)


def test_never_more_than_allowed_in_any_minute(store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=3)
    accepted: list[float] = []
    for step in range(400):
        status = store.reserve("alice", limits, "a", f"reservation {step}")
        if status.refusal is None:
            accepted.append(clock.now)
            store.release("alice", f"reservation {step}", False)
        else:
            _, wait = status.refusal
            assert 0 < wait <= 60
            before = clock.now
            clock.now = before + wait - 0.01
            assert store.reserve("alice", limits, "a", "early").refusal
            clock.now = before + wait + 0.01
            assert store.reserve("alice", limits, "a", "just in time").refusal is None
            accepted.append(clock.now)
            store.release("alice", "just in time", False)
        clock.now += 7
    assert len(accepted) > 50
    for at in accepted:
        assert sum(at - 60 < other <= at for other in accepted) <= 3


def test_headers_have_openais_names(store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=60, concurrent_requests=2, images_per_day=10)
    clock.now += 3600
    headers = store.reserve("alice", limits, "a", "one").headers
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-images": "10",
        "x-ratelimit-remaining-images": "10",
        "x-ratelimit-reset-images": "0s",
        "x-ratelimit-limit-concurrent-requests": "2",
        "x-ratelimit-remaining-concurrent-requests": "1",
    }
    headers = store.consume("alice", limits, "a", "one", 4).headers
    assert headers["x-ratelimit-remaining-images"] == "6"
    assert headers["x-ratelimit-reset-images"] == "23h0m0s"
    assert QuotaStore(clock).reserve("bob", KeyLimits(), "a", "two").headers == {}


@pytest.mark.parametrize(("left_s", "shown"), [(59.0, "59s"), (0.9996, "1s"), (0.25, "250ms"), (0.0001, "0s")])
def test_times_until_a_reset_are_rounded(left_s: float, shown: str, store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=60)
    store.reserve("alice", limits, "a", "one")
    clock.now += 60 - left_s
    store.renew("a")
    assert store.reserve("alice", limits, "a", "one").headers["x-ratelimit-reset-requests"] == shown


def test_keys_do_not_share(store: QuotaStore) -> None:
    limits = KeyLimits(requests_per_minute=1)
    assert store.reserve("alice", limits, "a", "one").refusal is None
    assert store.reserve("alice", limits, "b", "two").refusal, "another replica uses the same store"
    assert store.reserve("bob", limits, "a", "three").refusal is None


def test_requests_in_progress_are_limited(store: QuotaStore) -> None:
    limits = KeyLimits(concurrent_requests=2)
    assert store.reserve("alice", limits, "a", "one").refusal is None
    assert store.reserve("alice", limits, "a", "two").refusal is None
    assert store.reserve("alice", limits, "a", "three").refusal
    store.release("alice", "three", False)  # a refused request is released, too
    assert store.reserve("alice", limits, "a", "four").refusal
    store.release("alice", "one", False)
    assert store.reserve("alice", limits, "a", "five").refusal is None


def test_only_lost_replicas_reservations_are_released(store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(concurrent_requests=2)
    store.reserve("alice", limits, "lost", "one")
    store.reserve("alice", limits, "living", "two")
    for _ in range(4):
        clock.now += HOLDER_TIMEOUT_S / 3
        store.renew("living")
    assert store.reserve("alice", limits, "living", "three").refusal is None
    assert store.reserve("alice", limits, "living", "four").refusal


def test_images_per_day_are_limited(store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(images_per_day=5)
    store.reserve("alice", limits, "a", "one")
    assert store.consume("alice", limits, "a", "one", 3).refusal is None
    refused = store.consume("alice", limits, "a", "two", 3)
    assert refused.refusal is not None
    assert "2 are left" in refused.refusal[0]
    assert refused.refusal[1] == 86400
    assert store.consume("alice", limits, "a", "two", 2).refusal is None
    store.release("alice", "one", True)  # refused by the engine
    assert store.consume("alice", limits, "a", "three", 3).refusal is None
    clock.now += 86400
    assert store.consume("alice", limits, "a", "four", 5).refusal is None


def test_a_refund_after_midnight_is_not_of_the_new_day(store: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(images_per_day=5)
    store.reserve("alice", limits, "a", "yesterday's")
    store.consume("alice", limits, "a", "yesterday's", 4)
    clock.now += 86400
    store.renew("a")
    store.reserve("alice", limits, "a", "today's")
    store.consume("alice", limits, "a", "today's", 4)
    store.release("alice", "yesterday's", True)
    assert store.consume("alice", limits, "a", "another", 2).refusal is not None
    store.release("alice", "today's", True)
    assert store.consume("alice", limits, "a", "another", 5).refusal is None


def test_no_limit_keeps_no_record(store: QuotaStore) -> None:
    for i in range(1000):
        store.reserve("alice", KeyLimits(), "a", str(i))
        store.release("alice", str(i), False)
    account = store._accounts["alice"]
    assert not account.requests
    assert not account.reservations


def test_a_repeated_call_counts_once(store: QuotaStore) -> None:
    """As after the loss of its reply."""
    limits = KeyLimits(requests_per_minute=2, concurrent_requests=1, images_per_day=3)
    for _ in range(3):
        assert store.reserve("alice", limits, "a", "one").refusal is None
        assert store.consume("alice", limits, "a", "one", 2).refusal is None
    headers = store.reserve("alice", limits, "a", "one").headers
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-remaining-images"] == "1"
    store.release("alice", "one", True)
    assert store.consume("alice", limits, "a", "two", 3).refusal is None, "the images are refunded once"
