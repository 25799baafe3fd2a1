"""What to do about a failure, by its kind and the server's words. Pure."""

import re

from aif.providers.base import Kind

FIXES: dict[str, str] = {
    Kind.CONTEXT_OVERFLOW: "prompt and max_tokens don't fit the model's context: lower max_tokens, or max_chars; of a "
    "judge, `on_overflow: single` asks about one completion at a time",
    Kind.BLOCKED: "the provider's filter refused it; another model may answer",
    Kind.BAD_REQUEST: "it refuses what it is sent; its words say why",
    Kind.EMPTY: "the model says nothing; if it reasons, raise max_tokens (which asks all its completions again)",
    Kind.TRUNCATED: "raise the judge's max_tokens (which asks all judgements again)",
    Kind.UNREADABLE: "see `raw` in the table `failed`; try `reply: schema` or `text`, or another judge",
    Kind.CACHED: "turn the gateway's cache off for these requests, or set `samples: 1`",
    Kind.RATE_LIMITED: "a run slows down by itself; what is refused while others are answered is more than a minute "
    "allows: lower max_tokens",
    Kind.SERVER_ERROR: "the server is ill, or this request makes it so; see its log",
    Kind.TIMEOUT: "is the server still loading? else raise timeout_s, or lower concurrency",
    Kind.CONNECTION: "nothing answers there: is the server up, is base_url right?",
    Kind.BAD_REPLY: "what answers there is no chat completions API: see base_url (it ends with /v1)",
    Kind.UNAUTHORIZED: "set the key's environment variable to a key that may use this model",
    Kind.QUOTA_EXHAUSTED: "the account has no money left: add some, or use another key",
    Kind.UNKNOWN_MODEL: "the server has no such model: see `model` and `base_url`",
    Kind.WRONG_URL: "set base_url to where the API is, up to and with /v1",
}

_TURNS = "its template takes no system turn, or no two of a role: `system: fold_into_user`"

_AZURE = (
    "Azure's base_url ends with /openai/v1; its older surface has /openai/deployments/NAME there, the version by "
    "`extra_query: {api-version: …}` and the key by `extra_headers: {api-key: …}`"
)

# The first that is in a failure's message comes before what its kind says.
_BY_WORDS: tuple[tuple[str, str, str], ...] = (
    (Kind.CONTEXT_OVERFLOW, r"per min|\btpm\b", "no minute allows so large a request: lower max_tokens, or raise it"),
    (Kind.BAD_REQUEST, "max_completion_tokens.{0,20}instead", "`dialect: openai` sends max_tokens by that name"),
    (Kind.BAD_REQUEST, "max_completion_tokens", "`dialect: compatible` sends it as max_tokens"),
    (Kind.BAD_REQUEST, r"(?<![\w/-])seed(?![\w-])", "`omit: [seed]` leaves it out"),  # and no model of that name
    (Kind.BAD_REQUEST, "service.?tier", "take `service_tier` out, or name one that this model has"),
    (Kind.BAD_REQUEST, r"temperature|top_p|\bp must be|#/p\b", "`temperature: null` and `top_p: null` leave them out"),
    (Kind.BAD_REQUEST, "output_config", "take `reasoning_effort` out; `reply: text` asks without a schema"),
    (Kind.BAD_REQUEST, r"reasoning.?effort|\beffort\b|not support thinking",
     "take `reasoning_effort` out, or give a word that this model knows"),
    (Kind.BAD_REQUEST, r"alternat|roles are supported|messages\.\d+\.role",
     _TURNS),
    (Kind.BAD_REQUEST, r"\bsystem\b|developer (instr|mess)", "it takes no system turn: `system: fold_into_user`"),
    (Kind.BAD_REQUEST, r"\bm(ax|in)(Items|Length)\b|\b(m(ax|in)imum|pattern)\b.{0,9} not (permitted|supported|allowed)"
     "|parse grammar", "`dialect: openai` leaves bounds out of the schema; `reply: text` asks without one"),
    (Kind.BAD_REQUEST, "response.?format|schema|guided|grammar|structured", "`reply: text` asks without a schema"),
    (Kind.BAD_REQUEST, "(entity|body|payload|content) (is )?too large",
     "the body is too large for what stands before the model: raise its limit, or lower the source's max_chars"),
    (Kind.BAD_REQUEST, "enable.thinking.{0,60}stream",
     "`extra_body: {enable_thinking: false}`: it thinks only in streams, and aif's are none"),
    (Kind.BAD_REQUEST, "api.version", _AZURE),
    (Kind.WRONG_URL, "resource not found", f"{FIXES[Kind.WRONG_URL]}. {_AZURE}"),
    (Kind.UNAUTHORIZED, "subscription key", f"is the key right? {_AZURE}"),
    (Kind.UNKNOWN_MODEL, "requested parameters", "no provider of this model takes all that is sent: "
     "`omit: [seed]`, `reply: text`, or `require_parameters` out of extra_body"),
    (Kind.UNKNOWN_MODEL, "data policy|guardrail", "the account's privacy settings leave no provider of this model"),
    (Kind.BAD_REQUEST, r"\bstream(ing)?\b", "it streams only, which aif doesn't: a gateway must gather its replies"),
    (Kind.BAD_REQUEST, "(higher|raise|increase|larger) .{0,20}max_", "raise max_tokens: it was reached"),
    (Kind.BAD_REQUEST, "max_(new_)?tokens|output tokens", "max_tokens is more than this model writes: lower it"),
    (Kind.BAD_REQUEST, "chat.?template|tokenizer|template (error|not found)",
     "serve the model with a chat template, or take an instruct model"),
    (Kind.BAD_REQUEST, "[`'\"](n|best_of)[`'\"]", "aif asks for one choice: a gateway between must not add `n`"),
    (Kind.BAD_REQUEST,
     r"(unknown|unrecognized|unsupported|unexpected|extra) .{0,30}(field|argument|param|input|key)"
     r"|not support .{0,30}(field|argument|param)|(argument|param|property)\b.{0,40} (is )?(un|not )supported",
     "it doesn't know a field that it is sent: take out the setting of that name (see extra_body)"),
    (Kind.BAD_REPLY, "is larger than", "the reply doesn't end: see the server's log, or lower max_tokens"),
    (Kind.BAD_REPLY, "finished by", "the server gave up in the midst of its reply: see its log"),
    (Kind.UNAUTHORIZED, "a page, and no api",
     "let the firewall pass this address; where it refuses one prompt alone, take that row out"),
    (Kind.SERVER_ERROR, "^HTTP 5[02]4",
     "a proxy before the model waits no longer: raise its limit (often 60 to 100 s), go round it, or lower max_tokens"),
    (Kind.SERVER_ERROR, "alternat|roles are supported",
     _TURNS),
    (Kind.BAD_REPLY, "^HTTP 2|is an error", "the server says so instead of a reply: see its words, and its log"),
    (Kind.CONNECTION, r"\(SOCKS,", "set HTTPS_PROXY and HTTP_PROXY to an HTTP proxy, or NO_PROXY to this host"),
    (Kind.CONNECTION, "through the proxy",
     "the proxy doesn't pass it on: see HTTPS_PROXY and HTTP_PROXY, or set NO_PROXY to this host"),
    (Kind.CONNECTION, "message:|decode|chunk|payload|transfer", "something answers, but its HTTP can't be read: "
     "see what stands between, a proxy or gateway"),
    (Kind.QUOTA_EXHAUSTED, "key limit", "the key's own limit is reached: raise it where the key was made"),
    (Kind.QUOTA_EXHAUSTED, "will reset|regain|replenish", "come back when it ends, or use another key or model"),
    (Kind.QUOTA_EXHAUSTED, "budget", "the key's budget is used up: raise it at the gateway, or use another key"),
    (Kind.QUOTA_EXHAUSTED, "limit of more than a minute", "come back when it ends, or use another key or model"),
)  # fmt: skip


def fix(kind: str, message: str) -> str:
    """What to do about a failure; nothing where there is nothing to say."""
    told = (what for of, words, what in _BY_WORDS if of == kind and re.search(words, message, re.IGNORECASE))
    return next(told, FIXES.get(kind, ""))


NEXT_STEPS = {
    "later": "asked again by the next run",
    "failed": "waits for --retry-failed",
    "refused": "takes no call until it is mended",
    "pending": "not asked yet",
    "waiting": "waiting for completions that are pending",
    "again": "made again in this run",
}
