"""Limits on requests and tokens per minute, enforced with token buckets as by the providers.

The methods take the current time (`now`, in seconds) as an argument.
"""

from datetime import UTC, datetime, timedelta

from aif.simulator.models import RefusedError


class RateLimitBuckets:
    """The rate limits of one model: a token bucket for requests and another for tokens.

    requests_per_minute: the limit on requests; None for no limit.
    tokens_per_minute: the limit on tokens (prompt plus max_tokens); None for no limit.
    burst_s: a full bucket holds what the limit allows in this many seconds.

    A refused request counts against the limit on requests, as with the real providers.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, burst_s: float = 60.0
    ) -> None:
        self._buckets = {
            name: _Bucket(per_minute, burst_s)
            for name, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if per_minute is not None
        }

    def take(self, tokens: int, now: float) -> None:
        """Count a request against the limits. `tokens` is the number of tokens in its prompt plus max_tokens; `now` is
        in seconds. Raises RefusedError (429) if a limit is exceeded."""
        amounts = {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait(amounts[name], now) for name, bucket in self._buckets.items()}
        if exceeded := [name for name, wait in waits.items() if wait > 0]:
            if "requests" in self._buckets:
                self._buckets["requests"].take(1, now)
            wait = max(waits.values())
            raise RefusedError(
                429,
                f"Rate limit reached on {exceeded[0]} per min. Please try again in {wait:.3f}s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": f"{wait:.3f}"},
            )
        for name, bucket in self._buckets.items():
            bucket.take(amounts[name], now)

    def headers(self, now: float, anthropic: bool) -> dict[str, str]:
        """Return the response headers for each limit: the limit, what remains of it and when it is full again. They are
        in Anthropic's form if `anthropic`, else in OpenAI's."""
        headers: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            left, full_in = bucket.left(now), bucket.wait(bucket.size, now)
            full_at = (datetime.now(UTC) + timedelta(seconds=full_in)).strftime("%Y-%m-%dT%H:%M:%SZ")
            for part, value in (
                ("limit", f"{bucket.per_minute:.0f}"),
                ("remaining", f"{left:.0f}"),
                ("reset", full_at if anthropic else f"{full_in:.3f}s"),
            ):
                headers[f"anthropic-ratelimit-{name}-{part}" if anthropic else f"x-ratelimit-{part}-{name}"] = value
        return headers


class _Bucket:
    """A token bucket: it holds at most `size`, begins full, and refills by `per_minute`."""

    def __init__(self, per_minute: float, burst_s: float) -> None:
        self.per_minute = per_minute
        self.size = per_minute * burst_s / 60
        self._left = self.size
        self._updated = float("-inf")

    def left(self, now: float) -> float:
        elapsed = max(0.0, now - self._updated)
        return self.size if elapsed == float("inf") else min(self.size, self._left + elapsed * self.per_minute / 60)

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds from `now` until `amount` is available, 0 if it is. An amount above `size` waits for a
        full bucket."""
        return max(0.0, (min(amount, self.size) - self.left(now)) * 60 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        self._left, self._updated = max(0.0, self.left(now) - amount), now
