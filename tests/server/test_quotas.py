"""The ledger: exact counts, refusals that count nothing, and what time or a lost replica gives back."""

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
def ledger(clock: Clock) -> QuotaStore:
    return QuotaStore(clock)


def test_never_more_than_allowed_in_any_minute(ledger: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=3)
    accepted: list[float] = []
    for step in range(400):
        standing = ledger.begin("alice", limits, "a", f"lease {step}")
        if standing.refusal is None:
            accepted.append(clock.now)
            ledger.end("alice", f"lease {step}", False)
        else:
            _, wait = standing.refusal
            assert 0 < wait <= 60
            before = clock.now
            clock.now = before + wait - 0.01
            assert ledger.begin("alice", limits, "a", "early").refusal
            clock.now = before + wait + 0.01
            assert ledger.begin("alice", limits, "a", "just in time").refusal is None
            accepted.append(clock.now)
            ledger.end("alice", "just in time", False)
        clock.now += 7
    assert len(accepted) > 50
    for at in accepted:
        assert sum(at - 60 < other <= at for other in accepted) <= 3


def test_headers_in_openais_spelling(ledger: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=60, concurrent_requests=2, images_per_day=10)
    clock.now += 3600
    headers = ledger.begin("alice", limits, "a", "one").headers
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
    headers = ledger.charge("alice", limits, "a", "one", 4).headers
    assert headers["x-ratelimit-remaining-images"] == "6"
    assert headers["x-ratelimit-reset-images"] == "23h0m0s"
    assert QuotaStore(clock).begin("bob", KeyLimits(), "a", "two").headers == {}


def test_keys_do_not_share(ledger: QuotaStore) -> None:
    limits = KeyLimits(requests_per_minute=1)
    assert ledger.begin("alice", limits, "a", "one").refusal is None
    assert ledger.begin("alice", limits, "b", "two").refusal, "another replica, the same ledger"
    assert ledger.begin("bob", limits, "a", "three").refusal is None


def test_requests_in_progress(ledger: QuotaStore) -> None:
    limits = KeyLimits(concurrent_requests=2)
    assert ledger.begin("alice", limits, "a", "one").refusal is None
    assert ledger.begin("alice", limits, "a", "two").refusal is None
    assert ledger.begin("alice", limits, "a", "three").refusal
    ledger.end("alice", "three", False)  # whoever was refused says so, too
    assert ledger.begin("alice", limits, "a", "four").refusal
    ledger.end("alice", "one", False)
    assert ledger.begin("alice", limits, "a", "five").refusal is None


def test_only_lost_replicas_reservations_are_released(ledger: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(concurrent_requests=2)
    ledger.begin("alice", limits, "lost", "one")
    ledger.begin("alice", limits, "living", "two")
    for _ in range(4):
        clock.now += HOLDER_TIMEOUT_S / 3
        ledger.renew("living")
    assert ledger.begin("alice", limits, "living", "three").refusal is None
    assert ledger.begin("alice", limits, "living", "four").refusal


def test_pictures_of_a_day(ledger: QuotaStore, clock: Clock) -> None:
    limits = KeyLimits(images_per_day=5)
    ledger.begin("alice", limits, "a", "one")
    assert ledger.charge("alice", limits, "a", "one", 3).refusal is None
    refused = ledger.charge("alice", limits, "a", "two", 3)
    assert refused.refusal is not None
    assert "2 are left" in refused.refusal[0]
    assert refused.refusal[1] == 86400
    assert ledger.charge("alice", limits, "a", "two", 2).refusal is None
    ledger.end("alice", "one", True)  # turned away by the engine: not looked at
    assert ledger.charge("alice", limits, "a", "three", 3).refusal is None
    clock.now += 86400
    assert ledger.charge("alice", limits, "a", "four", 5).refusal is None


def test_no_limit_keeps_no_record(ledger: QuotaStore) -> None:
    for i in range(1000):
        ledger.begin("alice", KeyLimits(), "a", str(i))
        ledger.end("alice", str(i), False)
    account = ledger._accounts["alice"]
    assert not account.requests
    assert not account.leases
