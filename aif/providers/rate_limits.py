"""Spread the requests and tokens of one endpoint over each minute, so that its rate limits are never exceeded.

Pure: the caller passes the time, in seconds of any clock.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from aif.providers.base import Measure, Quota

BURST_S = 1.0  # some providers enforce a per-minute limit second by second
# A minute as counted here: a request takes a varying time to reach the place where it is counted.
MINUTE_S = 61.0
# Headers are hints, and some are nonsense. They are believed only for this long after a 429 has confirmed that there is
# a limit at all. So a value that is too low costs nothing, and a right one costs a 429 every ten minutes.
BELIEVED_S = 600.0
SLOWEST_S = 1.0  # headers delay a request by no more than this: slower limits are enforced by 429s and backoff
_EPSILON_S = 1e-6
_CHARS, _TOKENS = 20_000, 5_000  # first estimate, 4 characters a token; weighs as much as this many counted ones


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The tokens that a request counts against rate limits. It also counts as one request.

    chars: the number of characters in the request's messages.
    prompt: the number of prompt tokens, estimated from `chars`.
    max_reply: the most tokens that the reply may have.
    """

    chars: int
    prompt: int
    max_reply: int

    def amount(self, measure: Measure) -> int:
        """Return how much the request counts against a limit of this measure: 1 for requests, else a number of
        tokens."""
        prompt, reply = self.prompt, self.max_reply
        return {"requests": 1, "tokens": prompt + reply, "input": prompt, "output": reply}[measure]


class RateLimiter:
    """Decides when the next request to an endpoint may be sent, by its limits of requests and tokens per minute.

    A limit is *configured* in the pipeline file, or else *learned* from the provider's response headers.

    - A configured limit is never exceeded within any 60 s. An exception is a request with more tokens than a
      minute allows: that request is sent alone, and the next request waits for longer.
    - A learned limit is applied only for BELIEVED_S seconds after a 429.
    - Requests are spread evenly. After idling, at most one second's share of the limit is sent at once, but always at
      least one request.
    - A request counts with its prompt and its max_tokens, as OpenAI counts. Tokens that the reply didn't use are not
      given back.
    - Prompt tokens are estimated by the ratio of tokens to characters in earlier requests. If the estimate was too low,
      the difference is counted when the reply arrives.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._configured: dict[Measure, _ConfiguredLimit] = {}
        if requests_per_minute is not None:
            self._configured["requests"] = _ConfiguredLimit(requests_per_minute)
        if tokens_per_minute is not None:
            self._configured["tokens"] = _ConfiguredLimit(tokens_per_minute)
        self._learned: dict[Measure, _LearnedLimit] = {}
        self._believed_until = float("-inf")
        self._chars, self._tokens = _CHARS, _TOKENS

    def cost(self, chars: int, max_reply: int) -> RequestCost:
        """Return what a request with this many characters counts against the rate limits, if its reply may have up to
        `max_reply` tokens."""
        return RequestCost(chars, -(-chars * self._tokens // self._chars), max_reply)

    def wait(self, cost: RequestCost, now: float) -> float:
        """Return the seconds until the request may be sent, if no other is sent before it."""
        return max((limit.wait(cost.amount(measure), now) for measure, limit in self._limits(now)), default=0.0)

    def take(self, cost: RequestCost, now: float) -> None:
        """Record that the request is sent. Only valid while `wait` is 0."""
        for measure, limit in self._limits(now):
            limit.take(cost.amount(measure), now)

    def record_prompt_tokens(self, cost: RequestCost, tokens: int, now: float) -> None:
        """Record how many prompt tokens (`tokens`) the provider counted for a request, so that estimates improve. If
        the estimate in `cost` was too low, count the difference against a configured limit."""
        self._chars, self._tokens = self._chars + cost.chars, self._tokens + tokens
        if tokens > cost.prompt and (limit := self._configured.get("tokens")):
            limit.take(tokens - cost.prompt, now)

    def learn(self, quotas: Iterable[Quota]) -> None:
        """Record the rate limits that a response's headers report. A reported limit of requests is ignored if a limit
        of requests is configured; the same holds for tokens. Recorded limits are applied only after a 429
        (`record_limit_hit`)."""
        for quota in quotas:
            if ("requests" if quota.measure == "requests" else "tokens") not in self._configured:
                self._learned.setdefault(quota.measure, _LearnedLimit()).quota = quota

    def record_limit_hit(self, now: float) -> None:
        """Record that a request got a 429. For the next BELIEVED_S seconds the limits learned from headers are
        applied."""
        if now >= self._believed_until:
            for limit in self._learned.values():
                limit.until = now
        self._believed_until = now + BELIEVED_S

    def _limits(self, now: float) -> "Iterable[tuple[Measure, _ConfiguredLimit | _LearnedLimit]]":
        if now >= self._believed_until:
            return self._configured.items()
        return (*self._configured.items(), *self._learned.items())


class _ConfiguredLimit:
    """A limit per minute of requests or tokens that is never exceeded within any 60 s.

    Requests are spaced evenly. A request also waits if those sent in the last minute leave no room for it.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._until = float("-inf")  # when requests sent so far have used up their share of time
        self._sent: deque[tuple[float, int]] = deque()  # (time, amount) within the last minute
        self._sum = 0

    def wait(self, amount: int, now: float) -> float:
        while self._sent and self._sent[0][0] + MINUTE_S <= now + _EPSILON_S:
            self._sum -= self._sent.popleft()[1]
        ready, excess = self._until, self._sum + amount - self._per_minute
        for at, earlier in self._sent if excess > 0 else ():
            excess, ready = excess - earlier, max(ready, at + MINUTE_S)
            if excess <= 0:
                break
        return max(0.0, ready - now) if ready > now + _EPSILON_S else 0.0

    def take(self, amount: int, now: float) -> None:
        self._until = max(self._until, now - BURST_S) + amount * MINUTE_S / self._per_minute
        self._sent.append((now, amount))
        self._sum += amount


class _LearnedLimit:
    """A limit of requests or tokens that the provider's response headers reported. It delays a request by at most 1 s.

    The limit allows what remains, as the headers report, plus what is refilled in the next minute. The refill rate
    follows from the reported time until the limit is fully available again. The period in the header's name is not
    used: some providers report a daily limit under the name of a per-minute limit.
    """

    def __init__(self) -> None:
        self.quota: Quota | None = None
        self.until = float("-inf")

    def wait(self, amount: int, now: float) -> float:
        return max(0.0, self.until - now) if self.until > now + _EPSILON_S else 0.0

    def take(self, amount: int, now: float) -> None:
        if self.quota is not None:
            share_s = min(SLOWEST_S, amount / self.quota.per_second)
            self.until = max(self.until, now - BURST_S) + share_s
