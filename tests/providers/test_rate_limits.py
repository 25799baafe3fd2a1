"""aif/providers/rate_limits.py, with times that are given."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.providers.base import Quota
from aif.providers.rate_limits import BELIEVED_S, BURST_S, MINUTE_S, RateLimiter, RequestCost

START = 1000.0


def cost(tokens: int) -> RequestCost:
    return RequestCost(0, 0, tokens)


def sent_at(
    arrivals: Sequence[tuple[float, int]], rpm: float | None, tpm: float | None, late: float = 0.0
) -> list[tuple[float, int]]:
    """When each request of (seconds since the one before, tokens) was sent, each as soon as it could after those before
    it; `late` is how much longer than asked the waits were."""
    limiter, at, now = RateLimiter(rpm, tpm), START, START
    sent: list[tuple[float, int]] = []
    for gap, tokens in arrivals:
        at += gap
        now = max(now, at)
        while wait := limiter.wait(cost(tokens), now):
            now += wait + late
        limiter.take(cost(tokens), now)
        sent.append((now, tokens))
    return sent


def seconds(sent: list[tuple[float, int]]) -> list[float]:
    return [round(at - START, 6) for at, _ in sent]


def test_no_limit_no_wait() -> None:
    assert seconds(sent_at([(0.0, 10**9)] * 100, None, None)) == [0.0] * 100


def test_requests_go_evenly_after_a_second_s_worth() -> None:
    share = MINUTE_S / 600

    assert seconds(sent_at([(0.0, 1)] * 20, 600, None)) == [0.0] * 10 + [
        round(share * n - BURST_S, 6) for n in range(10, 20)
    ]


def test_a_low_limit_lets_the_first_go_at_once() -> None:
    assert seconds(sent_at([(0.0, 1)] * 4, 2, None)) == [0.0, 29.5, 61.0, 90.5]


def test_a_request_larger_than_a_minute_goes_alone_and_its_time_is_waited_after_it() -> None:
    sent = sent_at([(0.0, 1200), (0.0, 600), (0.0, 1)], None, 600)

    assert seconds(sent) == [0.0, 2 * MINUTE_S - BURST_S, 3 * MINUTE_S - BURST_S]


rates = st.floats(1.0, 5000.0)
arrivals = st.lists(
    st.tuples(st.just(0.0) | st.floats(0.0, 30.0), st.integers(0, 3000)),
    min_size=1,
    max_size=60,
)


def most(sent: list[tuple[float, int]], within_s: float = 60.0) -> tuple[int, int]:
    """The most requests, and the most tokens of requests that go together, within so many seconds."""
    windows = [[one for one in sent[first:] if one[0] - begin <= within_s] for first, (begin, _) in enumerate(sent)]
    tokens = [sum(n for _, n in window) for window in windows if len(window) > 1]
    return max(map(len, windows)), max(tokens, default=0)


@given(arrivals, rates, st.floats(10.0, 50_000.0), st.just(0.0) | st.floats(0.0, 0.05))
def test_never_more_than_the_limit_in_any_minute(
    arrivals: list[tuple[float, int]], rpm: float, tpm: float, late: float
) -> None:
    sent = sent_at(arrivals, rpm, tpm, late)
    requests, tokens = most(sent)

    assert requests <= rpm
    assert tokens <= tpm


@given(st.integers(60, 6000), st.floats(0.0, 0.002))
def test_where_there_is_work_nearly_all_of_a_limit_is_used(rpm: int, late: float) -> None:
    sent = sent_at([(0.0, 1)] * rpm * 3, rpm, None, late)

    assert len([at for at, _ in sent if at < START + 120]) >= 0.95 * 2 * rpm


@given(st.lists(st.integers(100, 1000), min_size=400, max_size=400))
def test_nearly_all_of_a_limit_of_tokens_is_used(sizes: list[int]) -> None:
    sent = sent_at([(0.0, size) for size in sizes], None, 30_000)
    took = sent[-1][0] - START

    assert sum(sizes) >= 0.95 * 500 * (took - BURST_S)


def test_tokens_are_learned_from_what_providers_count() -> None:
    """A language of one token a character: the first prompts are charged afterwards, later ones beforehand."""
    limiter = RateLimiter(None, 60_000)
    first = limiter.cost(8000, 100)
    assert (first.prompt, first.amount("tokens")) == (2000, 2100)
    limiter.take(first, START)
    assert limiter.wait(cost(1), START + 1.2) == 0
    limiter.record_prompt_tokens(first, 8000, START + 1.2)
    assert limiter.wait(cost(1), START + 1.2) == pytest.approx(8100 * MINUTE_S / 60_000 - 2.2)

    assert limiter.cost(8000, 100).prompt > 3700


def learned(*quotas: Quota, at: float = START, given: float | None = None) -> RateLimiter:
    """A limiter that has read these quotas, then got a 429."""
    limiter = RateLimiter(given, None)
    limiter.learn(quotas)
    limiter.record_limit_hit(at)
    return limiter


def per_minute(limiter: RateLimiter, tokens: int = 10, now: float = START) -> int:
    """Requests that go within a minute, if the headers stay as they are."""
    end, n = now + 60, 0
    while (now := now + limiter.wait(cost(tokens), now)) < end:
        limiter.take(cost(tokens), now)
        n += 1
    return n


def test_what_headers_say_is_obeyed_once_a_429_confirms_it_and_for_ten_minutes() -> None:
    quota = Quota("requests", 600, 0, 60.0)
    limiter = RateLimiter(None, None)
    limiter.learn([quota])
    assert limiter.wait(cost(10), START) == 0
    for _ in range(1000):
        limiter.take(cost(10), START)
    assert limiter.wait(cost(10), START) == 0, "as long as all are answered there is no limit"

    limiter.record_limit_hit(START)
    assert 600 <= per_minute(limiter) <= 611
    assert limiter.wait(cost(10), START + BELIEVED_S) == 0


@pytest.mark.parametrize(
    ("quota", "requests"),
    [
        (Quota("requests", 600, 0, 60.0), 600),  # a minute's bucket, empty
        (Quota("requests", 600, 300, 30.0), 900),  # half full: what is left, and what comes back
        (Quota("requests", 10, 0, 1.0), 600),  # a second's limit by the same name
        (Quota("requests", 86_400, 43_200, 43_200.0), 43_260),  # a day's
        (Quota("tokens", 6000, 0, 60.0), 600),
        (Quota("output", 6000, 0, 60.0), 600),
        (Quota("requests", 1, 0, 86_400.0), 60),  # hints slow a run down to a request a second, and no further
        (Quota("tokens", 1, 1, 0.0), 60),
    ],
)
def test_what_is_left_and_what_comes_back_may_be_used(quota: Quota, requests: int) -> None:
    found = per_minute(learned(quota))

    assert requests <= found <= requests * 1.02 + 2


def test_the_scarcest_quota_counts_and_the_newest_of_each() -> None:
    limiter = learned(Quota("requests", 6000, 0, 60.0), Quota("tokens", 3000, 0, 60.0))
    assert 300 <= per_minute(limiter) <= 307
    limiter.learn([Quota("tokens", 60_000, 60_000, 0.0)])
    assert 6000 <= per_minute(limiter, now=START + 60) <= 6150


def test_what_is_given_is_not_learned() -> None:
    limiter = learned(Quota("requests", 60, 0, 60.0), given=6000)

    assert per_minute(limiter) >= 5900
