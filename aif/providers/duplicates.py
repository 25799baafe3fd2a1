"""Detect a response that is delivered to two requests: remember recent replies by id.

A proxy may send a response twice on a connection. Then the client takes the second for the answer to its next request.
Every later answer on that connection goes to the wrong request.

HTTP/1.1 can't show the error, but the reply can: its id and all its bytes equal those of another request's reply. The
same check detects a gateway whose cache ignores the seed. Such a gateway repeats a reply on any connection.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from aif.providers.base import CallError, Kind

REMEMBERED = 1024  # replies: more than are in flight, since a second delivery follows the first closely


class Misdelivered(CallError):
    """Raised for a reply that belongs to another request. Open connections must be closed, since their next replies may
    belong to other requests as well."""

    def __init__(self) -> None:
        message = "The response to another request was delivered a second time; all connections are reopened."
        super().__init__(Kind.CONNECTION, message)


class _Delivery(NamedTuple):
    """A delivered response, as three hashes.

    request: hash of the request's body.
    messages: hash of only the messages in the request.
    response: hash of the response's body.
    """

    request: int
    messages: int
    response: int


class DuplicateDetector:
    """Remembers a client's recent replies (1,024 of them), to detect a reply that is delivered twice.

    Servers that give all replies the same id are not checked.
    """

    def __init__(self) -> None:
        self._delivered: OrderedDict[str, _Delivery] = OrderedDict()  # by id
        self._suspect: OrderedDict[str, None] = OrderedDict()  # ids that were delivered twice
        self._ids_vary = False
        self._is_cached = False

    def check(self, request: bytes, messages: bytes, data: Any, content: bytes) -> None:
        """Check that a reply was not delivered to another request before, and remember it. Errors and replies without
        an id are not checked.

        request: the body of the reply's request.
        messages: the messages in that request.
        data: the reply's body, parsed.
        content: the reply's body as bytes.

        Raises Misdelivered when a reply is repeated for the first time. Raises CallError(CACHED) when the same reply is
        repeated again, although connections were reopened: then a gateway caches replies. From then on, any reply that
        is repeated for the same messages raises CallError(CACHED) at once.
        """
        id = data.get("id") if isinstance(data, dict) and not data.get("error") else None  # errors may be identical
        if not id or not isinstance(id, str):
            return
        now = _Delivery(hash(request), hash(messages), hash(content))
        before = self._delivered.get(id)
        self._ids_vary = self._ids_vary or bool(self._delivered and before is None)
        if before is None:
            _remember(self._delivered, id, now)
        if not self._ids_vary or before is None or before.request == now.request or before.response != now.response:
            return
        if id in self._suspect or (self._is_cached and before.messages == now.messages):
            self._is_cached = True
            message = "a gateway in between caches replies and ignores the seed: it sent the reply to another request"
            raise CallError(Kind.CACHED, f"{message} ({id[:60]}) again, over new connections.")
        _remember(self._suspect, id, None)
        raise Misdelivered


def _remember(recent: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    recent[key] = value
    if len(recent) > REMEMBERED:
        recent.popitem(last=False)
