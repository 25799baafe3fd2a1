"""A loopback chat completions server that takes almost no CPU: fixed replies after a fixed latency.

    python -m trials.performance.server --generate-ms 200 --judge-ms 400

A model with "judge" in its name answers after --judge-ms, any other after --generate-ms. A request with a JSON schema
gets an instance of it, any other 300 tokens of text. The server prints its base URL. GET /stats returns for each side
(completion or judgement) the calls, the most in flight, and the times of the first call and the last reply, in
monotonic seconds; GET /reset clears them. It is written to asyncio's protocols: it takes 0.03 ms a call, a web
framework 0.2 ms.
"""

import argparse
import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import orjson

# 300 tokens at four characters each
ANSWER = ("The tide comes in twice a day because the earth turns under two bulges of the sea. " * 15)[:1200]
FAR = 10**9


def instance(schema: dict[str, Any], root: dict[str, Any], index: int = 0) -> Any:
    """Return a value that the schema allows, with texts of about 35 tokens; `index` varies choices."""
    if "$ref" in schema:
        node: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        return instance(node, root, index)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return instance(schema[key][0], root, index)
    if "enum" in schema:
        return schema["enum"][index % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            return {name: instance(part, root, index + n) for n, (name, part) in enumerate(parts.items())}
        case "array":
            return [instance(schema.get("items", {}), root, n) for n in range(schema.get("minItems", 0))]
        case "integer" | "number":
            return schema.get("minimum", 1) + index % 5
        case "boolean":
            return True
    return ANSWER[: min(140, schema.get("maxLength", 140))]


class CallCounts:
    """Counts and times of the calls of one side."""

    def __init__(self) -> None:
        self.calls = self.in_flight = self.peak = 0
        self.first = self.last = 0.0

    def begin(self) -> None:
        self.first = self.first or time.monotonic()
        self.calls += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def end(self) -> None:
        self.in_flight -= 1
        self.last = time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "peak": self.peak, "first": self.first, "last": self.last}


class Server:
    def __init__(self, generate_s: float, judge_s: float) -> None:
        self.latency = {"completion": generate_s, "judgement": judge_s}
        self.sides = {"completion": CallCounts(), "judgement": CallCounts()}
        self._instances: dict[bytes, str] = {}

    def stats(self) -> bytes:
        return orjson.dumps({name: side.as_dict() for name, side in self.sides.items()})

    def reset(self) -> bytes:
        self.sides = {name: CallCounts() for name in self.sides}
        return b"{}"

    def answer(self, body: Any) -> bytes:
        """Return the reply to a request, as JSON."""
        wanted = body.get("response_format") or {}
        schema = wanted.get("json_schema", {}).get("schema")
        text = self._instance(schema) if schema else ANSWER
        return orjson.dumps(
            {
                "id": "chatcmpl-benchmark",
                "object": "chat.completion",
                "created": 1767225600,
                "model": body["model"],
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 50, "completion_tokens": 300, "total_tokens": 350},
            }
        )

    def _instance(self, schema: dict[str, Any]) -> str:
        name = orjson.dumps(schema)
        if name not in self._instances:
            self._instances[name] = json.dumps(instance(schema, schema))
        return self._instances[name]


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 to one client: one request after another, each with its length."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 : (head.find(b"\r\n", at) + FAR) % FAR or end]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
            self._ask(head.split(b" ", 2)[1], body)

    def _ask(self, path: bytes, body: bytes) -> None:
        server = self._server
        if not path.endswith(b"/chat/completions"):
            self._send(server.stats() if path == b"/stats" else server.reset())
            return
        request = orjson.loads(body)
        kind = "judgement" if "judge" in request["model"] else "completion"
        side = server.sides[kind]
        side.begin()

        def reply() -> None:
            side.end()
            self._send(server.answer(request))

        if server.latency[kind]:
            asyncio.get_running_loop().call_later(server.latency[kind], reply)
        else:
            reply()

    def _send(self, body: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)


async def main(generate_s: float, judge_s: float, port: int) -> None:
    server = Server(generate_s, judge_s)
    listening = await asyncio.get_running_loop().create_server(
        lambda: Connection(server), "127.0.0.1", port, backlog=2048
    )
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generate-ms", type=float, default=200)
    parser.add_argument("--judge-ms", type=float, default=400)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(main(given.generate_ms / 1000, given.judge_ms / 1000, given.port))
