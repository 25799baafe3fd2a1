"""The replies that a client was given last, by which one is known that is given twice, to two requests.

A response that comes twice on a connection (a proxy that repeats itself) is read as the answer to whatever is asked
over it next, and from then on every answer there is the one before. HTTP/1.1 has nothing to tell that by; the reply
has: its id and all of its bytes are those of another's.
"""

from collections import OrderedDict

REMEMBERED = 4096  # replies: more than are in flight, since a second delivery comes close behind the first


class Given:
    """One client's. Servers whose ids are all the same tell nothing by them, and are believed."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by id: digests of request and response
        self._ids_vary = False

    def to_another(self, asked: bytes, id: str | None, content: bytes) -> bool:
        """Whether a reply was given to another request before. Remembers it."""
        if not id:
            return False
        now = hash(asked), hash(content)
        before = self._given.get(id)
        self._ids_vary = self._ids_vary or bool(self._given and before is None)
        if before is None:
            self._given[id] = now
            if len(self._given) > REMEMBERED:
                self._given.popitem(last=False)
        return self._ids_vary and before is not None and before[0] != now[0] and before[1] == now[1]
