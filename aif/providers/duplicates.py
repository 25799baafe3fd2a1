"""The replies that a client was given last, by which one is known that is given twice, to two requests.

A response that comes twice on a connection (a proxy that repeats itself) is read as the answer to whatever is asked
over it next, and from then on every answer there is the one before. HTTP/1.1 has nothing to tell that by; the reply
has: its id and all of its bytes are those of another's. A gateway that keeps replies and takes requests for the same
that differ in their seed gives the same again, over whatever connection.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from aif.providers.base import CallError, Kind

REMEMBERED = 1024  # replies: more than are in flight, since a second delivery comes close behind the first


class Misdelivered(CallError):
    """A reply that is another request's. Nothing more is to be read from connections that were open then, or each would
    go on being one answer behind."""

    def __init__(self) -> None:
        said = "The answer to another request came a second time; all connections are made anew."
        super().__init__(Kind.CONNECTION, said)


class _Once(NamedTuple):
    """Digests of a request, of its messages alone, and of the response."""

    request: int
    messages: int
    response: int


class Given:
    """One client's. Servers whose ids are all the same tell nothing by them, and are believed."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, _Once] = OrderedDict()  # by id
        self._suspect: OrderedDict[str, None] = OrderedDict()  # ids of replies that came a second time
        self._ids_vary = False
        self._kept = False

    def take(self, asked: bytes, messages: bytes, data: Any, content: bytes) -> None:
        """Remembers the reply to a request, parsed and as it came, whether or not it is one that can be used.

        Raises Misdelivered where it was given to another request before, and CallError(CACHED) where it comes a third
        time, over connections that were made anew, or a second from a gateway that was seen to keep replies.
        """
        id = data.get("id") if isinstance(data, dict) and not data.get("error") else None  # errors may be all alike
        if not id or not isinstance(id, str):
            return
        now = _Once(hash(asked), hash(messages), hash(content))
        before = self._given.get(id)
        self._ids_vary = self._ids_vary or bool(self._given and before is None)
        if before is None:
            _remember(self._given, id, now)
        if not self._ids_vary or before is None or before.request == now.request or before.response != now.response:
            return
        if id in self._suspect or (self._kept and before.messages == now.messages):
            self._kept = True
            said = "a gateway between keeps replies and ignores the seed: it gave the reply to another request"
            raise CallError(Kind.CACHED, f"{said} ({id[:60]}) again, over new connections.")
        _remember(self._suspect, id, None)
        raise Misdelivered


def _remember(kept: OrderedDict[Any, Any], name: Any, value: Any) -> None:
    kept[name] = value
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
