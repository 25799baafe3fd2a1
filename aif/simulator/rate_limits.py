"""Requests and tokens a minute, as providers enforce them. Pure: the time is given."""

from datetime import UTC, datetime, timedelta

from aif.simulator.models import RefusedError


class Allowance:
    """What one model may be asked: a bucket of `burst_s` seconds' worth of requests and one of tokens, refilled all the
    time. A refused request counts as one, too, as it does at the providers. None is no limit."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, burst_s: float = 60.0
    ) -> None:
        self._buckets = {
            name: _Bucket(per_minute, burst_s)
            for name, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if per_minute is not None
        }

    def take(self, tokens: int, now: float) -> None:
        """Lets a request of so many tokens (prompt and the most it may write) pass. Raises RefusedError."""
        asked = {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait(asked[name], now) for name, bucket in self._buckets.items()}
        if short := [name for name, wait in waits.items() if wait > 0]:
            if "requests" in self._buckets:
                self._buckets["requests"].take(1, now)
            wait = max(waits.values())
            raise RefusedError(
                429,
                f"Rate limit reached on {short[0]} per min. Please try again in {wait:.3f}s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": f"{wait:.3f}"},
            )
        for name, bucket in self._buckets.items():
            bucket.take(asked[name], now)

    def headers(self, now: float, anthropic: bool) -> dict[str, str]:
        """What is left, as OpenAI says it, or as Anthropic does."""
        said: dict[str, str] = {}
        for name, bucket in self._buckets.items():
            left, full_in = bucket.left(now), bucket.wait(bucket.size, now)
            at = (datetime.now(UTC) + timedelta(seconds=full_in)).strftime("%Y-%m-%dT%H:%M:%SZ")
            for part, value in (
                ("limit", f"{bucket.per_minute:.0f}"),
                ("remaining", f"{left:.0f}"),
                ("reset", at if anthropic else f"{full_in:.3f}s"),
            ):
                said[f"anthropic-ratelimit-{name}-{part}" if anthropic else f"x-ratelimit-{part}-{name}"] = value
        return said


class _Bucket:
    def __init__(self, per_minute: float, burst_s: float) -> None:
        self.per_minute = per_minute
        self.size = per_minute * burst_s / 60
        self._left = self.size
        self._at = float("-inf")

    def left(self, now: float) -> float:
        gone = max(0.0, now - self._at)
        return self.size if gone == float("inf") else min(self.size, self._left + gone * self.per_minute / 60)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is there; what is more than the bucket holds waits until it is full."""
        return max(0.0, (min(amount, self.size) - self.left(now)) * 60 / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        self._left, self._at = max(0.0, self.left(now) - amount), now
