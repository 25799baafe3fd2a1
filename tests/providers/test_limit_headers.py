"""aif/providers/limit_headers.py: what providers, gateways and nonsense say of limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.providers.base import Quota
from aif.providers.limit_headers import quotas, retry_after

DATE = "Fri, 20 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),  # no Date to compare it with
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": "Fri, 20 Nov 2026 10:00:00 -0000"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 11:00:30 +0100", "date": DATE}, 30.0),
        ({"retry-after": "Fri, 20 Nov 1026 11:00:30 GMT", "date": DATE}, 0.0),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def openai(limit: str, remaining: str, reset: str, of: str = "requests") -> dict[str, str]:
    return {f"x-ratelimit-{k}-{of}": v for k, v in (("limit", limit), ("remaining", remaining), ("reset", reset))}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1s", 1.0),
        ("8.64s", 8.64),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800.0),
        ("1m30s500ms", 90.5),
        ("17", 17.0),
        ("0", 0.0),
        ("-3", 0.0),
    ],
)
def test_openai_s_resets(reset: str, seconds: float) -> None:
    (quota,) = quotas(openai("60", "59", reset))
    assert (quota.measure, quota.limit, quota.remaining) == ("requests", 60, 59)
    assert quota.reset_s == pytest.approx(seconds)


def test_anthropic_s_quotas_by_the_response_s_own_date() -> None:
    headers = {"date": DATE}
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        headers |= {
            f"anthropic-ratelimit-{name}-limit": "1000",
            f"anthropic-ratelimit-{name}-remaining": "900",
            f"anthropic-ratelimit-{name}-reset": "2026-11-20T10:00:06Z",
        }

    assert quotas(headers) == tuple(Quota(of, 1000, 900, 6.0) for of in ("requests", "tokens", "input", "output"))
    del headers["date"]
    assert quotas(headers) == ()


@pytest.mark.parametrize(
    "said",
    [
        ("-1", "-1", "0"),
        ("0", "0", "0s"),
        ("60", "-1", "1s"),
        ("60", "61", "1s"),
        ("60", "nan", "1s"),
        ("many", "60", "1s"),
        ("60", "59", "soon"),
        ("60", "59", ""),
        ("60", "59", "1799999999"),  # a date in seconds
        ("60", "59", "2026-11-20T10:00:06"),
        ("inf", "59", "1s"),
        ("60", "59", "9" * 400 + "s"),
        ("1e-320", "0", "1d"),  # so little a second that it is none
    ],
)
def test_what_can_not_be_is_no_quota(said: tuple[str, str, str]) -> None:
    assert quotas({**openai(*said), "date": DATE}) == ()


def test_half_of_a_quota_is_none() -> None:
    headers = openai("60", "59", "1s")
    for name in headers:
        assert quotas({key: value for key, value in headers.items() if key != name}) == ()


@pytest.mark.parametrize("zone", ["+9959", "+9999999999999", "-" + "9" * 30])
def test_a_zone_that_is_none_is_no_date(zone: str) -> None:
    date = f"Fri, 20 Nov 2026 10:00:00 {zone}"

    assert retry_after({"retry-after": date, "date": DATE}) is None
    assert quotas({**openai("60", "59", "2026-11-20T10:00:06Z"), "date": date}) == ()


words = st.text(max_size=12) | st.integers().map(str) | st.floats().map(str) | st.just("6m0s") | st.just(DATE)


@given(words, words, words, words, words)
def test_any_header_is_read_or_left(limit: str, remaining: str, reset: str, after: str, date: str) -> None:
    headers = openai(limit, remaining, reset) | {"retry-after": after, "date": date}
    said = retry_after(headers)

    assert said is None or (said >= 0 and math.isfinite(said))
    for quota in quotas(headers):
        assert 0 <= quota.remaining <= quota.limit < math.inf
        assert quota.reset_s >= 0
        assert quota.per_second > 0
