"""The replies that a client was given last, by which one is known that is given twice, to two requests.

A response that comes twice on a connection (a proxy that repeats itself) is read as the answer to whatever is asked
over it next, and from then on every answer there is the one before. HTTP/1.1 has nothing to tell that by; the reply
has: its id and all of its bytes are those of another's.
"""

from collections import OrderedDict
from typing import Any

from aif.chat.base import CallError, Kind

REMEMBERED = 1024  # replies: more than are in flight, since a second delivery comes close behind the first


class Misdelivered(CallError):
    """A reply that is another request's. Nothing more is to be read from connections that were open then, or each would
    go on being one answer behind."""

    def __init__(self) -> None:
        said = "The answer to another request came a second time; all connections are made anew."
        super().__init__(Kind.CONNECTION, said)


class Given:
    """One client's. Servers whose ids are all the same tell nothing by them, and are believed."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by id: digests of request and response
        self._ids_vary = False

    def take(self, asked: bytes, data: Any, content: bytes) -> None:
        """Remembers the reply to a request, parsed and as it came, whether or not it is one that can be used. Raises
        Misdelivered where it was given to another request before."""
        id = data.get("id") if isinstance(data, dict) else None
        if not id or not isinstance(id, str):
            return
        now = hash(asked), hash(content)
        before = self._given.get(id)
        self._ids_vary = self._ids_vary or bool(self._given and before is None)
        if before is None:
            self._given[id] = now
            if len(self._given) > REMEMBERED:
                self._given.popitem(last=False)
        if self._ids_vary and before is not None and before[0] != now[0] and before[1] == now[1]:
            raise Misdelivered
