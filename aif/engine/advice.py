"""Suggest a fix for a failed call, from its error kind and the server's message. No I/O."""

import re

from aif.providers.base import Kind

FIXES: dict[str, str] = {
    Kind.CONTEXT_OVERFLOW: "prompt and max_tokens don't fit the context window: lower max_tokens, or max_chars; for a "
    "judge, `on_overflow: single` judges one completion at a time",
    Kind.BLOCKED: "the provider's content filter refused it; another model may answer",
    Kind.BAD_REQUEST: "the server rejects the request; its message says why",
    Kind.EMPTY: "the reply is empty; if the model reasons, raise max_tokens (which requests all its completions again)",
    Kind.TRUNCATED: "raise the judge's max_tokens (which requests all its judgements again)",
    Kind.UNREADABLE: "see `raw` in the table `failed`; try `reply: schema` or `text`, or another judge",
    Kind.CACHED: "turn the gateway's cache off for these requests, or set `samples: 1`",
    Kind.RATE_LIMITED: "a run slows down by itself; a request that is refused while others succeed exceeds the limit "
    "per minute: lower max_tokens",
    Kind.SERVER_ERROR: "server error; check the server's log (this request may trigger it)",
    Kind.TIMEOUT: "is the server still loading? If not, raise timeout_s, or lower concurrency",
    Kind.CONNECTION: "nothing listens at that address: is the server up, and is base_url right?",
    Kind.BAD_REPLY: "that address isn't a chat completions API: check base_url (it ends with /v1)",
    Kind.UNAUTHORIZED: "set the key's environment variable to a key that may use this model",
    Kind.QUOTA_EXHAUSTED: "the account is out of money or quota: add some, or use another key",
    Kind.UNKNOWN_MODEL: "the server has no such model: check `model` and `base_url`",
    Kind.WRONG_URL: "set base_url to the API's address, including /v1",
}

_ROLES = "the chat template rejects a system turn, or two turns of one role: set `system: fold_into_user`"

_AZURE = (
    "Azure's base_url ends with /openai/v1; its older API has /openai/deployments/NAME there, with "
    "`extra_query: {api-version: …}` and `extra_headers: {api-key: …}`"
)

# (kind, pattern, fix): the first pattern that matches the error message; else FIXES has the fix.
_BY_MESSAGE: tuple[tuple[str, str, str], ...] = (
    (Kind.CONTEXT_OVERFLOW, r"per min|\btpm\b",
     "the request exceeds the token limit per minute: lower max_tokens, or raise the limit"),
    (Kind.BAD_REQUEST, "max_completion_tokens.{0,20}instead",
     "set `dialect: openai`, which sends max_tokens as max_completion_tokens"),
    (Kind.BAD_REQUEST, "max_completion_tokens", "set `dialect: compatible`, which sends it as max_tokens"),
    (Kind.BAD_REQUEST, r"(?<![\w/-])seed(?![\w-])", "`omit: [seed]` leaves it out"),  # not a model of that name
    (Kind.BAD_REQUEST, "service.?tier", "remove `service_tier`, or name a tier that this model has"),
    (Kind.BAD_REQUEST, r"temperature|top_p|\bp must be|#/p\b", "`temperature: null` and `top_p: null` leave them out"),
    (Kind.BAD_REQUEST, "output_config", "remove `reasoning_effort`; `reply: text` sends no schema"),
    (Kind.BAD_REQUEST, r"reasoning.?effort|\beffort\b|not support thinking",
     "remove `reasoning_effort`, or use a value that this model supports"),
    (Kind.BAD_REQUEST, r"alternat|roles are supported|messages\.\d+\.role",
     _ROLES),
    (Kind.BAD_REQUEST, r"\bsystem\b|developer (instr|mess)",
     "the model takes no system turn: set `system: fold_into_user`"),
    (Kind.BAD_REQUEST, r"\bm(ax|in)(Items|Length)\b|\b(m(ax|in)imum|pattern)\b.{0,9} not (permitted|supported|allowed)"
     "|parse grammar", "`dialect: openai` leaves bounds out of the schema; `reply: text` sends none"),
    (Kind.BAD_REQUEST, "response.?format|schema|guided|grammar|structured", "`reply: text` sends no schema"),
    (Kind.BAD_REQUEST, "(entity|body|payload|content) (is )?too large",
     "the request body is too large for a proxy or gateway: raise its limit, or lower the source's max_chars"),
    (Kind.BAD_REQUEST, "enable.thinking.{0,60}stream",
     "set `extra_body: {enable_thinking: false}`: the model reasons only when streaming, and aif doesn't stream"),
    (Kind.BAD_REQUEST, "api.version", _AZURE),
    (Kind.WRONG_URL, "resource not found", f"{FIXES[Kind.WRONG_URL]}. {_AZURE}"),
    (Kind.UNAUTHORIZED, "subscription key", f"check the key. {_AZURE}"),
    (Kind.UNKNOWN_MODEL, "requested parameters", "no provider of this model takes all parameters that are sent: set "
     "`omit: [seed]` or `reply: text`, or remove `require_parameters` from extra_body"),
    (Kind.UNKNOWN_MODEL, "data policy|guardrail",
     "the account's privacy settings exclude every provider of this model"),
    (Kind.BAD_REQUEST, r"\bstream(ing)?\b",
     "the model only streams, and aif doesn't: put a gateway before it that gathers the reply"),
    (Kind.BAD_REQUEST, "(higher|raise|increase|larger) .{0,20}max_", "the reply reached max_tokens: raise max_tokens"),
    (Kind.BAD_REQUEST, "max_(new_)?tokens|output tokens", "max_tokens is above this model's maximum: lower it"),
    (Kind.BAD_REQUEST, "chat.?template|tokenizer|template (error|not found)",
     "serve the model with a chat template, or use an instruct model"),
    (Kind.BAD_REQUEST, "[`'\"](n|best_of)[`'\"]", "aif requests one choice: a gateway in between must not add `n`"),
    (Kind.BAD_REQUEST,
     r"(unknown|unrecognized|unsupported|unexpected|extra) .{0,30}(field|argument|param|input|key)"
     r"|not support .{0,30}(field|argument|param)|(argument|param|property)\b.{0,40} (is )?(un|not )supported",
     "the server doesn't know a field of the request: remove the setting of that name (see extra_body)"),
    (Kind.BAD_REPLY, "is larger than", "the reply doesn't end: check the server's log, or lower max_tokens"),
    (Kind.BAD_REPLY, "finished by", "the server stopped in the middle of its reply: check its log"),
    (Kind.UNAUTHORIZED, "a page, and no api",
     "a firewall answered: let it pass this address; if it refuses only one prompt, remove that row"),
    (Kind.SERVER_ERROR, "^HTTP 5[02]4",
     "a proxy timed out: raise its timeout (often 60 to 100 s), bypass it, or lower max_tokens"),
    (Kind.SERVER_ERROR, "alternat|roles are supported",
     _ROLES),
    (Kind.BAD_REPLY, "^HTTP 2|is an error",
     "the server sent an error in place of a reply: read its message, and check its log"),
    (Kind.CONNECTION, r"\(SOCKS,", "set HTTPS_PROXY and HTTP_PROXY to an HTTP proxy, or NO_PROXY to this host"),
    (Kind.CONNECTION, "through the proxy",
     "the proxy doesn't forward the request: check HTTPS_PROXY and HTTP_PROXY, or set NO_PROXY to this host"),
    (Kind.CONNECTION, "message:|decode|chunk|payload|transfer", "the reply is not valid HTTP: "
     "check the proxy or gateway in between"),
    (Kind.QUOTA_EXHAUSTED, "key limit", "the key's own limit is reached: raise it in the provider's key settings"),
    (Kind.QUOTA_EXHAUSTED, "will reset|regain|replenish", "wait until the limit resets, or use another key or model"),
    (Kind.QUOTA_EXHAUSTED, "budget", "the key's budget is spent: raise it at the gateway, or use another key"),
    (Kind.QUOTA_EXHAUSTED, "limit of more than a minute", "wait until the limit resets, or use another key or model"),
)  # fmt: skip


def fix(kind: str, message: str) -> str:
    """Return the suggested fix for a failed call; "" if there is none. `kind` is a value of `providers.base.Kind`, such
    as "timeout"; `message` is what the server said."""
    matches = (text for of, pattern, text in _BY_MESSAGE if of == kind and re.search(pattern, message, re.IGNORECASE))
    return next(matches, FIXES.get(kind, ""))


# By verdict: what happens next with an item that has no answer.
NEXT_STEPS = {
    "later": "retried by the next run",
    "failed": "retry with --retry-failed",
    "refused": "no more calls until this is fixed",
    "pending": "not sent yet",
    "waiting": "waiting for pending completions",
    "again": "retried in this run",
}
