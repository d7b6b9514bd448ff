"""The rate limiter with simulated time: rates hold, all writes go, higher priorities first."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.core.send_queue import PendingSend, Priority, Rate, RateLimiter


def served(limiter: RateLimiter, until: float) -> list[tuple[float, str, int]]:
    """Run the limiter: (time, chat, number) of each grant; writes complete at once."""
    now = 0.0
    done: list[tuple[float, str, int]] = []
    while now <= until:
        for pending in limiter.grant(now):
            done.append((now, pending.chat, pending.number))
            limiter.done(pending, now)
        at = limiter.next_at()
        if at is None:
            break
        now = max(now, at)
    return done


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(Priority))), max_size=60),
    st.integers(1, 8),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_overall_and_per_chat_and_all_are_served(
    writes: list[tuple[int, Priority]], overall: int, per_chat: int
) -> None:
    limiter = RateLimiter([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, priority in writes:
        limiter.enqueue(str(chat), priority)
    done = served(limiter, 1e6)
    assert len(done) == len(writes)
    times = [at for at, _, _ in done]
    assert all(len([other for other in times if at - 1.0 < other <= at]) <= overall for at in times)
    for chat in {chat for _, chat, _ in done}:
        own = [at for at, where, _ in done if where == chat]
        assert all(len([other for other in own if at - 2.0 < other <= at]) <= per_chat for at in own)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(Priority))), max_size=60),
    st.integers(1, 6),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_at_the_platform_however_late_writes_arrive(
    writes: list[tuple[int, Priority]], overall: int, per_chat: int, chance: random.Random
) -> None:
    limiter = RateLimiter([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, priority in writes:
        limiter.enqueue(str(chat), priority)
    now = 0.0
    counted: list[tuple[float, str]] = []
    replies: list[tuple[float, PendingSend]] = []
    while len(counted) < len(writes) or replies:
        for pending in limiter.grant(now):
            replied = now + chance.uniform(0, 4)
            counted.append((chance.uniform(now, replied), pending.chat))
            replies.append((replied, pending))
        at = limiter.next_at()
        now = min(reply for reply, _ in replies) if replies else now
        now = now if at is None or replies else at
        for reply in [one for one in replies if one[0] <= now]:
            limiter.done(reply[1], now)
            replies.remove(reply)
    for rate, period, where in ((overall, 0.999, None), *((per_chat, 1.999, str(chat)) for chat in range(4))):
        times = [at for at, chat in counted if where in (None, chat)]
        assert all(len([other for other in times if at - period < other <= at]) <= rate for at in times)


def test_a_hanging_write_delays_others_only_briefly() -> None:
    limiter = RateLimiter([Rate(2, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in ("hangs", "hangs too", "fine"):
        limiter.enqueue(chat, Priority.ANSWER)
    assert [pending.chat for pending in limiter.grant(0.0)] == ["hangs", "hangs too"]
    at = limiter.next_at()
    assert at is not None
    assert at <= 5.0
    assert [pending.chat for pending in limiter.grant(at)] == ["fine"]


def test_chats_do_not_wait_for_each_other() -> None:
    limiter = RateLimiter([Rate(30, 1.0)], lambda _: [Rate(1, 3.0)])
    for _ in range(10):
        limiter.enqueue("busy", Priority.PROGRESS)
    limiter.enqueue("quiet", Priority.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(limiter, 0.0)] == [(0.0, "busy"), (0.0, "quiet")]


def test_a_paused_chat_does_not_delay_others() -> None:
    limiter = RateLimiter([Rate(30, 1.0)], lambda _: [Rate(1, 1.0)])
    limiter.pause("flooded", 40.0)
    limiter.enqueue("flooded", Priority.ANSWER)
    limiter.enqueue("other", Priority.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(limiter, 100.0)] == [(0.0, "other"), (40.0, "flooded")]


def test_texts_that_stay_overtake_progress() -> None:
    limiter = RateLimiter([Rate(1, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in "abc":
        limiter.enqueue(chat, Priority.PROGRESS)
    limiter.enqueue("d", Priority.ANSWER)
    assert next(chat for _, chat, _ in served(limiter, 100.0)) == "d"


def test_progress_leaves_a_third_of_the_allowance() -> None:
    limiter = RateLimiter([], lambda _: [Rate(18, 60.0)])
    for _ in range(30):
        limiter.enqueue("group", Priority.PROGRESS)
    assert len([at for at, _, _ in served(limiter, 59.9) if at < 60]) == 12


def test_a_canceled_write_is_not_granted() -> None:
    limiter = RateLimiter([], lambda _: [Rate(1, 5.0)])
    canceled = limiter.enqueue("a", Priority.ANSWER)
    stays = limiter.enqueue("a", Priority.ANSWER)
    limiter.cancel(canceled)
    limiter.cancel(canceled)
    assert [number for _, _, number in served(limiter, 0.0)] == [stays.number]
