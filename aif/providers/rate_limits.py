"""Requests and tokens per minute of one endpoint, spread evenly, so that its limits are kept and not met. Pure: the
time is given, in seconds of any clock."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from aif.providers.base import Measure, Quota

BURST_S = 1.0  # some providers enforce a per-minute limit second by second
# Of a minute, as it is told here: a request takes some time to where it is counted, and not always the same.
MINUTE_S = 61.0
# Headers are hints, and some say nonsense. They are believed only for so long after a 429 has confirmed that there is
# a limit at all, so that one which is too low costs nothing, and one that is right a 429 every ten minutes.
BELIEVED_S = 600.0
SLOWEST_S = 1.0  # nor do they hold a request longer than this: what is slower is enforced by 429s and rests
_EPSILON_S = 1e-6
_CHARS, _TOKENS = 20_000, 5_000  # 4 characters a token, until as many again are counted


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request counts: the tokens of its prompt, as reckoned before it is sent, and the most it may write."""

    chars: int
    prompt: int
    room: int

    def of(self, measure: Measure) -> int:
        counted = {"requests": 1, "tokens": self.prompt + self.room, "input": self.prompt, "output": self.room}
        return counted[measure]


class Pace:
    """When the next request may go. None sets no limit; then what the provider's headers say is learned.

    A limit that is given is exact: within any 60 s there go at most so many requests and tokens, spread evenly, with at
    most a second's worth (and always one request) caught up after idling. A request larger than a minute's tokens goes
    alone, and its time is waited after it.

    Tokens are reckoned as a prompt and all that may be written, as OpenAI counts them; what was not written is not
    given back. Tokens a character are learned from the usage of replies; what was reckoned too low is charged then.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._given: dict[Measure, _Given] = {}
        if requests_per_minute is not None:
            self._given["requests"] = _Given(requests_per_minute)
        if tokens_per_minute is not None:
            self._given["tokens"] = _Given(tokens_per_minute)
        self._learned: dict[Measure, _Learned] = {}
        self._believed_until = float("-inf")
        self._chars, self._tokens = _CHARS, _TOKENS

    def cost(self, chars: int, room: int) -> Cost:
        """What a request of so many characters comes to."""
        return Cost(chars, -(-chars * self._tokens // self._chars), room)

    def wait(self, cost: Cost, now: float) -> float:
        """Seconds until the request may go, if no other goes before."""
        return max((lane.wait(cost.of(measure), now) for measure, lane in self._lanes(now)), default=0.0)

    def take(self, cost: Cost, now: float) -> None:
        """Sends a request that need not wait."""
        for measure, lane in self._lanes(now):
            lane.take(cost.of(measure), now)

    def counted(self, cost: Cost, tokens: int, now: float) -> None:
        """The provider counted so many tokens in the prompt of a request."""
        self._chars, self._tokens = self._chars + cost.chars, self._tokens + tokens
        if tokens > cost.prompt and (lane := self._given.get("tokens")):
            lane.take(tokens - cost.prompt, now)

    def learn(self, quotas: Iterable[Quota]) -> None:
        """What the headers of a response say, of what is not given."""
        for quota in quotas:
            if ("requests" if quota.measure == "requests" else "tokens") not in self._given:
                self._learned.setdefault(quota.measure, _Learned()).quota = quota

    def limited(self, now: float) -> None:
        """A request was refused since a limit was met."""
        if now >= self._believed_until:
            for lane in self._learned.values():
                lane.until = now
        self._believed_until = now + BELIEVED_S

    def _lanes(self, now: float) -> "Iterable[tuple[Measure, _Given | _Learned]]":
        return (*self._given.items(), *self._learned.items()) if now < self._believed_until else self._given.items()


class _Given:
    """So many a minute, whatever minute is looked at: evenly, and by what went within the last one."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._until = float("-inf")  # the end of the shares of all that went
        self._went: deque[tuple[float, int]] = deque()
        self._sum = 0

    def wait(self, amount: int, now: float) -> float:
        while self._went and self._went[0][0] + MINUTE_S <= now + _EPSILON_S:
            self._sum -= self._went.popleft()[1]
        ready, over = self._until, self._sum + amount - self._per_minute
        for at, gone in self._went if over > 0 else ():
            over, ready = over - gone, max(ready, at + MINUTE_S)
            if over <= 0:
                break
        return max(0.0, ready - now) if ready > now + _EPSILON_S else 0.0

    def take(self, amount: int, now: float) -> None:
        self._until = max(self._until, now - BURST_S) + amount * MINUTE_S / self._per_minute
        self._went.append((now, amount))
        self._sum += amount


class _Learned:
    """What headers say: what is left may be used up within a minute, and what comes back meanwhile.

    It comes back as fast as the quota is said to be whole again. So it does not matter of which span of time the
    headers speak: some providers give a day's limit by the name of a minute's.
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
