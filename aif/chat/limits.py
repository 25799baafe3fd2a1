"""Requests and tokens per minute of one endpoint, spread evenly, so that its limits are kept and not met."""

import asyncio
from collections.abc import Awaitable, Callable

BURST_S = 1.0  # some providers enforce a per-minute limit second by second


class Pace:
    """Lets requests go at a steady rate, in the order they came.

    Each request takes its share of a minute on a schedule for requests and on one for tokens, and goes when both shares
    are over; at most a second's worth (and always one request) may be caught up after idling. So in any 60 s there go
    at most the given number of requests and a second's worth or one more, and at most the given tokens and a second's
    worth or the largest request more. A request larger than a minute's tokens waits its time and goes.
    None sets no limit. One that is cancelled while it waits has taken nothing.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._limited = requests_per_minute is not None or tokens_per_minute is not None
        self._request_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._requests_until = self._tokens_until = float("-inf")
        self._turns = asyncio.Lock()  # wakes those who wait in the order they came

    async def turn(self, tokens: int) -> None:
        """Return when a request of so many tokens (prompt and the most it may write) may be sent."""
        if not self._limited:
            return
        async with self._turns:
            now = self._clock()
            request_s, tokens_s = self._request_s, tokens * self._token_s
            ready = max(
                _share(self._requests_until, request_s, now, max(BURST_S, request_s)),
                _share(self._tokens_until, tokens_s, now, BURST_S),
            )
            if ready > now:
                await self._sleep(ready - now)
            sent = self._clock()  # what one schedule left unused while the other held the request back is gone
            self._requests_until = _share(self._requests_until, request_s, sent, max(BURST_S, request_s))
            self._tokens_until = _share(self._tokens_until, tokens_s, sent, max(BURST_S, tokens_s))


def _share(until: float, seconds: float, now: float, burst_s: float) -> float:
    """The end of a share that follows a schedule's last one, begun at most `burst_s` ago."""
    return max(until, now - burst_s) + seconds
