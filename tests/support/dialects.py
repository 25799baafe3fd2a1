"""Providers' request dialects as documented (docs/providers.md), on one loopback server: a proxy that receives every
call to the providers' hosts. What a provider refuses is refused with its status and its own message.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from random import Random
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.replies import RUBRICS, Asked, fields, written

KEY = "sk-of-the-provider"

Body = Mapping[str, Any]
Answer = tuple[int, Any]
Rule = Callable[[Body], Answer | None]  # returns the refusal of a body, or None


@dataclass(frozen=True, slots=True)
class Dialect:
    """A provider: its path, the rules for bodies it refuses, its authentication header ("" for none), the query that it
    needs, and what it returns without these."""

    url: str
    refuses: tuple[Rule, ...] = ()
    header: str = "authorization"
    query: Mapping[str, str] = field(default_factory=dict)
    unversioned: Answer = (404, {"error": {"code": "404", "message": "Resource not found"}})
    unknown_key: Answer = (401, {"error": {"message": "Incorrect API key provided"}})

    def answer(self, query: Mapping[str, list[str]], headers: Mapping[str, str], body: Body) -> Answer:
        if any(query.get(name) != [said] for name, said in self.query.items()):
            return self.unversioned
        key = f"Bearer {KEY}" if self.header == "authorization" else KEY
        if self.header and headers.get(self.header) != key:
            return self.unknown_key
        return next((no for rule in self.refuses if (no := rule(body))), None) or (200, _reply(body))


def _error(message: str, status: int = 400, **more: Any) -> Answer:
    return status, {"error": {"message": message, "type": "invalid_request_error"} | more}


_PLAIN = frozenset(("model", "messages", "temperature", "top_p", "response_format", "reasoning_effort"))


def _only(names: str, no: Callable[[str], Answer]) -> Rule:
    """Refuse all fields but these and those that every provider knows."""
    known = _PLAIN | set(names.split())
    return lambda body: next((no(name) for name in body if name not in known), None)


def _never(names: str, no: Callable[[str], Answer]) -> Rule:
    return lambda body: next((no(name) for name in names.split() if name in body), None)


def _within(name: str, least: float, most: float, no: Answer) -> Rule:
    return lambda body: None if name not in body or least <= body[name] <= most else no


def _no_schema(no: Answer) -> Rule:
    return lambda body: no if _format(body) == "json_schema" else None


def _bounded(names: str, no: Callable[[str], Answer]) -> Rule:
    """Refuse a schema with these keywords."""
    return lambda body: next(
        (no(n) for n in names.split() if f'"{n}"' in json.dumps(body.get("response_format"))), None
    )


def _unless(told: Callable[[Body], bool], no: Answer) -> Rule:
    return lambda body: None if told(body) else no


def _format(body: Body) -> str:
    return str(body.get("response_format", {}).get("type", "text"))


def _forbidden(name: str) -> Answer:
    one = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1}
    return 422, {"object": "error", "message": {"detail": [one]}, "type": "invalid_request_error", "code": None}


def _unknown_name(name: str) -> Answer:
    said = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return 400, [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}]


def _grok(said: str) -> Answer:
    return 400, {"code": "Client specified an invalid argument", "error": said}


def _cerebras(said: str) -> Answer:
    return 400, {
        "message": said,
        "type": "invalid_request_error",
        "param": "validation_error",
        "code": "wrong_api_format",
    }


def _unsupported(name: str) -> Answer:
    instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    said = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
    return _error(said, param=name, code="unsupported_parameter")


def _zhipu(name: str) -> Answer:
    return 400, {"error": {"code": "1214", "message": f"{name}参数非法。请检查文档。"}}


_SUBSCRIPTION = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
    "active subscription and use a correct regional API endpoint for your resource."
)
_AT_MOST = "is not less or equal to 0.99, please reformat your input and try again."
_REASONING = _never("max_tokens temperature top_p", _unsupported)
_BOUNDS = "minLength maxLength minItems maxItems pattern"
_GRAMMAR = _error("Failed to initialize samplers: failed to parse grammar", code=400)

# By their headings in docs/providers.md.
DIALECTS: Mapping[str, Dialect] = {
    "OpenAI": Dialect("api.openai.com/v1", (_REASONING,)),
    "Azure": Dialect("name.openai.azure.com/openai/v1", (_REASONING,)),
    "Azure, older surface": Dialect(
        "name.openai.azure.com/openai/deployments/my-deployment",
        (_REASONING,),
        "api-key",
        {"api-version": "2025-04-01-preview"},
        unknown_key=(401, {"error": {"code": "401", "message": _SUBSCRIPTION}}),
    ),
    "Anthropic": Dialect(
        "api.anthropic.com/v1",
        (
            _only(
                "max_tokens system output_config thinking service_tier",
                lambda name: _error(f"{name}: Extra inputs are not permitted"),
            ),
            _never("temperature top_p", lambda name: _error(f"`{name}` is not supported")),
        ),
    ),
    "Mistral": Dialect("api.mistral.ai/v1", (_only("max_tokens random_seed stop prompt_mode", _forbidden),)),
    "Gemini": Dialect(
        "generativelanguage.googleapis.com/v1beta/openai",
        (_only("max_tokens max_completion_tokens extra_body", _unknown_name),),
    ),
    "xAI": Dialect(
        "api.x.ai/v1",
        (
            _never("presence_penalty", lambda _: _grok("Argument not supported on this model: presencePenalty")),
            _never(
                "reasoning_effort",
                lambda _: _grok("Model grok-4-fast-reasoning does not support parameter reasoningEffort."),
            ),
        ),
    ),
    "DeepSeek": Dialect(
        "api.deepseek.com/v1",
        (_no_schema(_error("This response_format type is unavailable now", param=None, code="invalid_request_error")),),
    ),
    "Groq": Dialect(
        "api.groq.com/openai/v1",
        (
            _never("logit_bias logprobs", lambda name: _error(f"'{name}' : property '{name}' is unsupported")),
            _bounded(
                _BOUNDS,
                lambda name: _error(
                    f"invalid schema for response format: response_format/json_schema: {name} is not supported"
                ),
            ),
        ),
    ),
    "Cerebras": Dialect(
        "api.cerebras.ai/v1",
        (
            _only(
                "max_completion_tokens max_tokens seed disable_reasoning",
                lambda name: _cerebras(f"body.{name}: property 'body.{name}' is unsupported"),
            ),
            _bounded(_BOUNDS, lambda name: _cerebras(f"Unsupported JSON schema fields: {{'{name}'}}")),
            _within("temperature", 0, 1.5, _cerebras("temperature: Input should be less than or equal to 1.5")),
        ),
    ),
    "Cohere": Dialect(
        "api.cohere.ai/compatibility/v1",
        (
            _within(
                "top_p",
                0.01,
                0.99,
                (400, {"message": f"Malformed input request: #/p: 1 {_AT_MOST}"}),
            ),
        ),
    ),
    "Alibaba Model Studio": Dialect(
        "dashscope-intl.aliyuncs.com/compatible-mode/v1",
        (
            _unless(
                lambda body: body.get("enable_thinking") is False,
                _error(
                    "parameter.enable_thinking must be set to false for non-streaming calls",
                    code="invalid_parameter_error",
                ),
            ),
        ),
    ),
    "Moonshot": Dialect(
        "api.moonshot.ai/v1",
        (
            _within("temperature", 1, 1, _error("invalid temperature: only 1 is allowed for this model")),
            _within("top_p", 0.95, 0.95, _error("invalid top_p: only 0.95 is allowed for this model")),
        ),
    ),
    "OpenRouter": Dialect(
        "openrouter.ai/api/v1",
        (
            _unless(
                lambda body: "seed" not in body or not body.get("provider", {}).get("require_parameters"),
                _error("No endpoints found that can handle the requested parameters.", 404, code=404),
            ),
        ),
    ),
    "Fireworks": Dialect(
        "api.fireworks.ai/inference/v1",
        (
            _only(
                "max_tokens max_completion_tokens seed top_k min_p stop",
                lambda name: _error(f"Extra inputs are not permitted, field: '{name}', value: 1"),
            ),
        ),
    ),
    "Z.ai": Dialect(
        "api.z.ai/api/paas/v4",
        (
            _within("temperature", 0, 1, _zhipu("temperature")),
            _within("top_p", 0.01, 1, _zhipu("top_p")),
            _no_schema((400, {"error": {"code": "1210", "message": "API 调用参数有误，请检查文档。"}})),
        ),
    ),
    "Together": Dialect(
        "api.together.xyz/v1",
        (_only("max_tokens seed reasoning top_k min_p", lambda _: (400, {"message": "Input validation error"})),),
    ),
    "TGI": Dialect(
        "gpu-1:8080/v1",
        (
            _within(
                "top_p", 1e-9, 1 - 1e-9, (422, {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0"})
            ),
            _within(
                "temperature",
                1e-9,
                9,
                (422, {"error": "Input validation error: `temperature` must be strictly positive"}),
            ),
        ),
        header="",
    ),
    "llama.cpp": Dialect("gpu-1:8081/v1", (_bounded(_BOUNDS, lambda _: _GRAMMAR),), header=""),
}


# --- replies ---------------------------------------------------------------------------------------------------------

TASK = "Explain device number"  # the first words of every prompt; a judge's request begins otherwise
_numbers = count()


def _reply(body: Body) -> Any:
    """Return a completion or ratings, in the API of the request."""
    n = next(_numbers)
    text = f"It measures rainfall by a bucket that tips, {n} times a day." if _is_task(body) else _ratings(body, n)
    served = {"id": f"reply-{n}", "model": body.get("model", "deployed")}
    if "max_tokens" in body and str(body.get("model")).startswith("claude"):
        used = {"input_tokens": 20, "output_tokens": 12}
        return served | {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "usage": used}
    used = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}
    message = {"role": "assistant", "content": text}
    return served | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": used}


def _is_task(body: Body) -> bool:
    return str(body["messages"][-1]["content"]).startswith(TASK)


def _ratings(body: Body, n: int) -> str:
    by_schema = "response_format" in body or "format" in body.get("output_config", {})
    shown = len({*re.findall(r"\bcompletion (\d+)", json.dumps(body["messages"]), re.IGNORECASE)})
    asked = replace(Asked(RUBRICS["unified"], "ratings", shown, "text"), form="schema" if by_schema else "text")
    return written(asked, fields(Random(n), asked))


@contextmanager
def every_provider() -> Iterator[str]:
    """Run the server until the block ends; yield the proxy's address."""
    served = {dialect.url: dialect for dialect in DIALECTS.values()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = urlsplit(self.path)
            place = (asked.netloc.lower() + asked.path).removesuffix("/chat/completions").removesuffix("/messages")
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, said = served[place].answer(parse_qs(asked.query), headers, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
