"""The waiting line with a clock of its own: rates hold, everybody is served, important writes go first."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.core.send_queue import Rate, Ticket, Urgency, WaitingLine


def served(line: WaitingLine, until: float) -> list[tuple[float, str, int]]:
    """Run the line: (time, chat, number) of each grant; what is granted arrives at once."""
    now, done = 0.0, list[tuple[float, str, int]]()
    while now <= until:
        for ticket in line.grant(now):
            done.append((now, ticket.chat, ticket.number))
            line.arrived(ticket, now)
        at = line.next_at()
        if at is None:
            break
        now = max(now, at)
    return done


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(Urgency))), max_size=60),
    st.integers(1, 8),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_overall_and_per_chat_and_everybody_is_served(
    wishes: list[tuple[int, Urgency]], overall: int, per_chat: int
) -> None:
    line = WaitingLine([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, urgency in wishes:
        line.join(str(chat), urgency)
    done = served(line, 1e6)
    assert len(done) == len(wishes)
    times = [at for at, _, _ in done]
    assert all(sum(at - 1.0 < other <= at for other in times) <= overall for at in times)
    for chat in {chat for _, chat, _ in done}:
        own = [at for at, where, _ in done if where == chat]
        assert all(sum(at - 2.0 < other <= at for other in own) <= per_chat for at in own)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(Urgency))), max_size=60),
    st.integers(1, 6),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_at_the_platform_however_late_writes_arrive(
    wishes: list[tuple[int, Urgency]], overall: int, per_chat: int, chance: random.Random
) -> None:
    line = WaitingLine([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, urgency in wishes:
        line.join(str(chat), urgency)
    now, counted, replies = 0.0, list[tuple[float, str]](), list[tuple[float, Ticket]]()
    while len(counted) < len(wishes) or replies:
        for ticket in line.grant(now):
            replied = now + chance.uniform(0, 4)
            counted.append((chance.uniform(now, replied), ticket.chat))
            replies.append((replied, ticket))
        at = line.next_at()
        now = min(reply for reply, _ in replies) if replies else now
        now = now if at is None or replies else at
        for reply in [one for one in replies if one[0] <= now]:
            line.arrived(reply[1], now)
            replies.remove(reply)
    for rate, period, where in ((overall, 0.999, None), *((per_chat, 1.999, str(chat)) for chat in range(4))):
        times = [at for at, chat in counted if where in (None, chat)]
        assert all(sum(at - period < other <= at for other in times) <= rate for at in times)


def test_a_hanging_write_delays_others_only_briefly() -> None:
    line = WaitingLine([Rate(2, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in ("hangs", "hangs too", "fine"):
        line.join(chat, Urgency.ANSWER)
    assert [ticket.chat for ticket in line.grant(0.0)] == ["hangs", "hangs too"]
    at = line.next_at()
    assert at is not None
    assert at <= 5.0
    assert [ticket.chat for ticket in line.grant(at)] == ["fine"]


def test_nobody_waits_for_another_chat() -> None:
    line = WaitingLine([Rate(30, 1.0)], lambda _: [Rate(1, 3.0)])
    for _ in range(10):
        line.join("busy", Urgency.PROGRESS)
    line.join("quiet", Urgency.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(line, 0.0)] == [(0.0, "busy"), (0.0, "quiet")]


def test_a_chat_on_hold_keeps_nobody_else_waiting() -> None:
    line = WaitingLine([Rate(30, 1.0)], lambda _: [Rate(1, 1.0)])
    line.hold("flooded", 40.0)
    line.join("flooded", Urgency.ANSWER)
    line.join("other", Urgency.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(line, 100.0)] == [(0.0, "other"), (40.0, "flooded")]


def test_texts_that_stay_overtake_progress() -> None:
    line = WaitingLine([Rate(1, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in "abc":
        line.join(chat, Urgency.PROGRESS)
    line.join("d", Urgency.ANSWER)
    assert next(chat for _, chat, _ in served(line, 100.0)) == "d"


def test_progress_leaves_room_in_the_allowance() -> None:
    line = WaitingLine([], lambda _: [Rate(18, 60.0)])
    for _ in range(30):
        line.join("group", Urgency.PROGRESS)
    assert sum(at < 60 for at, _, _ in served(line, 59.9)) == 12


def test_leaving_the_line_frees_the_place() -> None:
    line = WaitingLine([], lambda _: [Rate(1, 5.0)])
    gone, stays = line.join("a", Urgency.ANSWER), line.join("a", Urgency.ANSWER)
    line.leave(gone)
    line.leave(gone)
    assert [number for _, _, number in served(line, 0.0)] == [stays.number]
