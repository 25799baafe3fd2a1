"""Classify a server's error response: by the codes and words in its body first, by its HTTP status last. Pure.

A status alone misleads: an account without money is reported with 400, 401, 403, 429 or 500, a crash with 400, and any
error with 200. The errors of every API are classified here, since they differ by server rather than by API.

To add a provider's error, add its code or words to the rule of that kind in _RULES.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aif.core.redaction import redact
from aif.core.strict_json import parse_body, replace_surrogates
from aif.providers.base import TRANSIENT, CallError, Kind
from aif.providers.limit_headers import format_wait, quotas, retry_after, wait_in_text

MAX_MESSAGE_CHARS = 300  # of a server's own words in a message
_MAX_SEARCHED = 8000  # characters; what follows them quotes the request
_MAX_DEPTH = 16

# JSON keys of error messages, of codes, and of objects that contain either.
_WORDS = frozenset(
    {"message", "msg", "status_msg", "detail", "details", "error", "errors", "error_msg", "error_message", "raw"}
    | {"errormessage", "errmsg", "error_description", "description", "title", "fault", "faultstring", "cause"}
)
_CODES = frozenset(
    {"code", "type", "status", "reason", "error_code", "error_type", "errorcode", "status_code", "http_code"}
    | {"__type", "quotaid", "quota_limit"}
)
_INSIDE = frozenset({"metadata", "innererror", "inner_error", "base_resp", "violations"})

_PATHS = ("/chat/completions", "/chat/completions/", "/v1/messages")
_TRANSIENT_STATUSES = frozenset({408, 409, 423, 424, 425, 498, 499})  # besides 5xx; 498 is Groq's, 499 nginx's


class _Rule(NamedTuple):
    """A rule that tells the kind of a server error by its text.

    kind: the kind of the errors that the rule matches.
    pattern: matches the text of such an error.
    busy: True if such an error shows that the server exists and may recover.
    """

    kind: Kind
    pattern: re.Pattern[str]
    busy: bool = False


def _rule(kind: Kind, *patterns: str, busy: bool = False) -> _Rule:
    return _Rule(kind, re.compile("|".join(patterns)), busy)


# The first match counts. The patterns search the output of _searchable: codes as "=code" in lower case without
# separators, then the message in lower case.
_RULES = (
    _rule(
        Kind.RATE_LIMITED,
        r"=\w*throttl",  # DashScope, whose message mentions quota and billing; Bedrock
        r"=\w*perminute",  # Google's quotaId; its message mentions quota and billing
        r"\bper[ _-]?min(ute)?\b|\b[rt]pm\b|per_minute",  # Cerebras, whose code names a quota; Vertex
    ),
    _rule(
        Kind.BLOCKED,
        r"=\w*content(filter|policy|moderation|blocked)|=\w*responsibleaipolicy",  # OpenAI, Azure, xAI
        r"=\w*(datainspection|sensitivecontent|prohibitedcontent|moderationblocked)",  # DashScope, Volcengine, Gemini
        r"=1301\b|=baseresp102[67]\b",  # Zhipu, MiniMax
        r"content (management|filtering|moderation) policy|content exists risk",  # Azure, Anthropic, DeepSeek
        r"(input|prompt|content|message)s? (was|were|has been) (flagged|blocked|rejected)|considered high risk",  # Kimi
        r"inappropriate content|violates? (\w+ )?(usage|content|safety) (guidelines|policy|policies)",  # DashScope, xAI
        r"unsafe or sensitive|不安全或敏感",  # Zhipu
        # Bedrock, LiteLLM; not an unknown guardrail, nor a guardrail that excludes all providers (OpenRouter)
        r"(blocked|flagged|violat\w+|rejected|stopped|intervened) .{0,30}guardrail",
        r"guardrail.{0,40}(interven|violat|block|flag)",
    ),
    _rule(
        Kind.QUOTA_EXHAUSTED,
        r"=\w*insufficient\w*(quota|balance|funds|credits)",  # OpenAI, Azure, one-api, MiniMax, Venice
        r"=\w*(billing|creditbalance|creditserror|spendlimit|paymentrequired)",  # OpenAI, Anthropic, opencode
        r"=\w*(exceededcurrentquota|budgetexceeded|overdue|arrearage)",  # Moonshot, LiteLLM, Volcengine, DashScope
        r"=\w*(freetieronly|tokenquotareached|preconsumetokenquota|setlimitexceeded)",  # DashScope, watsonx, Ark
        r"=\w*notenough(balance|credit|quota)|=\w*(freeresourcepack|chargeresource)exhausted",  # Novita, Tencent
        r"=1113\b|=baseresp1008\b",  # Zhipu, MiniMax
        r"(insufficient|not enough) (account |user |available )?(balance|credit|fund|quota)",  # DeepSeek, OpenRouter
        r"(balance|credit|fund|quota)s? (is|are) (insufficient|not enough|exhausted|negative)",  # SiliconFlow, one-api
        r"credit balance is too low|specified api usage limits|usage limit (has been )?reached",  # Anthropic, Zhipu
        r"budget has been exceeded|exceeded\s?\w*\s?budget|over budget|budget exceeded",  # LiteLLM
        r"(credit|spend(ing)?) limit|all available credits|included credits",
        r"(out of|no|any|requires more) credits\b(?! (were|was|have been) )",
        r"(enter a|no|valid) payment method|payment required|unpaid|past due|(recharge|top up) your|please recharge",
        r"\baccount\b.{0,40}\b(suspended|not active)|free tier .*exhausted|exhausted its .{0,20}quota",  # Fireworks
        r"key limit exceeded|out of call volume quota|package has expired|=1309\b",  # OpenRouter, Azure APIM, Zhipu
        r"余额|额度|欠费|充值",  # Zhipu, one-api: balance, quota, in arrears, recharge
    ),
    _rule(
        Kind.UNREADABLE,  # the server's own check of structured output failed: another sample may pass
        r"=\w*(jsonvalidatefailed|outputparsefailed|toolusefailed)",  # Groq
        r"failed to (generate|validate) json|model generated output that could not be parsed",  # Groq
    ),
    _rule(
        Kind.SERVER_ERROR,
        r"=\w*(overloaded|capacityexceeded|modelnotready|modelnotloaded|modelloading|slowdown)",  # Anthropic, Groq, Ark
        r"=\w*resourceunavailable|resource unavailable",  # OpenAI's flex tier, with status 429
        r"=1305\b",  # Zhipu
        r"\bloading( the)? model|model \S* ?(is )?((currently|still) )?(loading|being loaded)\b",  # llama.cpp, TGI
        r"no models? (is |are )?(currently )?loaded|model (is )?not loaded|\bunloaded\b|channel error",  # LM Studio
        r"failed to load( the)? model|负载",  # LM Studio, new-api
        r"(model|engine|server|process|worker|runner)\b.{0,20}\b(has |was |is )?(crashed|died|dead|terminated)\b",
        r"unexpectedly stopped|enginedeaderror|warming up|cold start|starting up",  # Ollama, vLLM, serverless
        r"overloaded|(over|at|no) capacity|(server|system|engine|service|model) (is )?(currently )?(too )?busy",
        r"high (demand|load|traffic)|queue (is )?full|maximum queue size",  # xAI, Gemini, TGI
        r"degraded function|scaled to zero|endpoint is paused",  # NVIDIA, Hugging Face
        busy=True,
    ),
    _rule(
        Kind.WRONG_URL,
        r"invalid url|unexpected endpoint|cannot post\b|no route matched|unknown (path|endpoint|request url)",  # Kong
        r"http request to an https server",  # Go
    ),
    _rule(
        Kind.UNKNOWN_MODEL,
        r"=\w*model(not(found|exist|supported|available)|doesnotexist)|=\w*(unknown|invalid)model",  # OpenAI, DashScope
        r"=\w*deploymentnotfound|=1211\b",  # Azure, Zhipu
        r"(model|deployment)\b.{0,120}? (does not|doesn't|do not) exist|model not (exist|found)",  # vLLM, DeepSeek
        r"models?[ /]\S+ (is |was )?not found|no such model|not a valid model|(invalid|unknown) model (name|id)",
        r"model (identifier|id|name)\b.{0,20} invalid|could not resolve the (foundation )?model",  # Bedrock
        r"deployment for this resource does not exist|no healthy deployments for this model",  # Azure, LiteLLM
        r"model\b.{0,90}? (has been|is|has) (decommissioned|deprecated|retired|reached its end)",  # Groq, NVIDIA
        r"no endpoints (found|available)|on-demand throughput isn.t supported",  # OpenRouter, Bedrock
        r"unable to access (the )?model|no allowed providers",  # Together, OpenRouter
    ),
    _rule(
        Kind.UNAUTHORIZED,
        r"=\w*(invalid|incorrect|expired|missing|no)(api|access)?(key|auth|token|credentials?)(exception|error)?\b",
        r"=\w*(apikey|accesstoken|token)(invalid|expired)\b",  # Google
        r"=\w*(authenticat|autherror|unauthori[sz]ed|permissiondenied|permissionerror)",  # Google, Anthropic
        r"=\w*(deactivated|onhold|restricted|accessdenied|tokennotfound|unsupportedcountry)|=baseresp(1004|2049)\b",
        r"(organization|account|key|user) (has been|is|was) (disabled|deactivated|restricted|banned|revoked)",  # Groq
        r"(location|country|region|territory)( \S+)? (is )?not (supported|available)",  # Google, OpenAI
        r"api[ _-]?key (is )?(not valid|invalid|expired|missing|not found|not allowed)|(no|missing) api[ _-]?key",
        r"(invalid|incorrect|malformed|bad) (x-)?(api[ _-]?key|bearer|access token|authentication|authorization)",
        r"(invalid|incorrect) (credential|((access|auth|bearer) )?token (provided|supplied))",
        r"authentication (fail|error)|unauthori[sz]ed|not (authori[sz]ed|authenticated)",
        r"(token|key) (((is|has) )?expired|may not)\b",
        r"(do not|don't|does not|doesn't) have (access|permission)|no permission|permission denied",
        r"security token .{0,30}(invalid|expired)",  # AWS
        r"身份验证|无效的令牌",  # Zhipu, one-api
    ),
    _rule(
        Kind.RATE_LIMITED,
        r"=\w*(ratelimit|toomanyrequests|resourceexhausted|limitrequests|burstrate)|=130[23]\b|=baseresp(1002|1039)\b",
        r"too many requests|rate[ -]?limit(ed|( is)? (exceeded|reached))|(exceeded|reached) (\S+ )?(\S+ )?rate limit",
        r"no deployments available|qps request limit|速率限制|并发",  # LiteLLM, Baidu, Zhipu
    ),
)
_MONEY = next(rule for rule in _RULES if rule.kind is Kind.QUOTA_EXHAUSTED)
# A limit per day, week or month. OpenRouter: free-models-per-day; GitHub: UserByModelByDay, per 86400s.
_DAY = re.compile(
    r"\bper[ _-]?(day|week|month|86400 ?s)|/ ?(day|month)\b|\b[rt]pd\b|try again tomorrow|=\w*(perday|byday|daily)"
    r"|每日|当日|今日|(daily|weekly|monthly)\b.{0,40}(limit|quota|allocation|allowance|budget|requests|tokens|credits)"
)
_LIMIT = re.compile(r"limit|quota|exceed|exhaust|used up|too many|上限")
_USED_UP = re.compile(r"exceed|exhaust|used up|too many|reached|上限")
_KEY = re.compile(r"api[ _-]?key|authenticat|credential")
# The server quotes the request from here on (pydantic, FastAPI, gateways): words of a prompt must not match.
_QUOTED = re.compile(r"\binput_value ?=|['\"](input|messages|body)['\"] ?:|\breceived ?[:=]")
_MINUTE = re.compile(r"\bper[ _-]?min|\b[rt]pm\b|per[ _-]?second|per[ _-]?hour")
# A max_tokens above what the model allows with any prompt: vLLM, OpenAI, Groq, Anthropic, DeepSeek, DashScope.
_MAX_TOKENS = re.compile(r"max_[a-z_]{0,24}tokens\b")
_OUT_OF_RANGE = re.compile(
    r"must be|cannot be|too large|valid range|should be|maximum allowed number of output|at most \d+"
)
_PROMPT = re.compile(r"\b(inputs?|prompt|messages)\b")
# A name such as context_size alone doesn't count: a server may refuse it as an unknown setting.
_OVERFLOW = re.compile(
    r"context_?length_?exceeded|exceedcontextsize|=(prompttoolong|requesttoolarge|tokenslimitreached|1261)\b"
    r"|=stringabovemaxlength|context[ _-]?window[ _-]?exceeded|maximum (context|model|input|prompt|sequence) length"
    r"|context (length|window|size) (is|of|was|has been) |exceed\S*\b.{0,40}\bcontext[ _-](length|window|size|limit)"
    r"|(prompt|input|inputs|request|max_tokens'?) (is|are|was|were)? ?too (long|large)|prompt 超长"  # Ollama, Zhipu
    r"|request body too large|reduce the length"  # GitHub
    r"|`inputs` (tokens \+ `max_new_tokens` )?must |too large for model with|context the overflows"  # TGI, Mistral, LM
    r"|exceeds? (the )?((max(imum)?|total) )?(number of |input )?tokens? (allowed|limit)|input tokens exceed"  # Gemini
    r"|exceeded model token limit|exceeds the model limit|too many (input )?tokens\b"  # Moonshot, Bedrock, Cohere
    r"|has exceeded max_prompt_tokens"  # SiliconFlow
    r"|(prompt|input|sequence|tokens)\b.{0,60} (greater|longer|larger) than .{0,30}(\bmax|limit|context)"  # MLC, SGLang
    r"|exceeds max length \d|greater than max_seq_len|in the prompt cannot exceed|inputs must have less than \d"
    r"|input length plus max_tokens exceeds|prompt_len \+ max_tokens"  # several
    r"|range of input length|cannot exceed the total tokens limit|context window exceeds limit"  # DashScope, watsonx
)
# The chat template rejects these turns. llama.cpp sends 500, though retrying is useless.
_TEMPLATE = re.compile(r"\bjinja|raise_exception\(|\broles must alternate|\broles are supported")
# The size of the context window in a message that the prompt exceeds it.
_CONTEXT_WINDOW = re.compile(
    # OpenAI, vLLM, SGLang, llama.cpp, LM Studio, MLC, Moonshot, watsonx, TabbyAPI, GitHub
    r"(?:context (?:length|window|size)|(?:maximum prompt|model) length|(?:length|tokens?) limit|max_seq_len|max size)"
    r"\W{0,3}(?:(?:is|was|of)(?: only)?)?\W{0,3}(\d[\d,]*)"
    r"|context limit:.{0,40}> (\d[\d,]*)|> (\d[\d,]*) maximum|(\d[\d,]*) maximum context"  # Anthropic, Mistral
    r"|must be <= (\d+)|less than (\d+) tokens|model limit of (\d[\d,]*)"  # TGI, Bedrock
    r"|length should be \[\d+, (\d+)\]"  # DashScope
    r"|max_prompt_tokens \((\d+)\)"  # SiliconFlow
)
# A bad request reported with status 200 and no status code in the body: MiniMax's 2013, gateways.
_BAD_REQUEST = re.compile(
    r"=baseresp2013\b|=\w*(invalidrequest|invalidparam|badrequest)|invalid (param|argument|request|value)"
    r"|(must be|should be) (in|one of|between|less|greater|at (most|least))|not permitted|unsupported (param|value)"
)
_SERVER_ERROR = re.compile(r"internal (server )?error|unknown error|try again later")
# "Request too large for … on tokens per minute: Limit 6000, Requested 6524": never allowed. OpenAI 429, Groq 413.
_LIMIT_AND_REQUESTED = re.compile(r"\blimit:? (\d{1,12}),? (?:used:? \d+, )?requested:? (\d{1,12})\b")
_MARKUP = re.compile(r"<(script|style)\b.*?(</\1>|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_PATH_NOT_FOUND = re.compile(
    r"[\W\d_]*((404|405|page|path|resource|url|the|requested|method|not|found|allowed|detail)\W*)*\Z"
)


class _ErrorText(NamedTuple):
    """The content of an error response.

    message: the server's message.
    codes: the server's error codes, as text.
    status: the first HTTP error status among the codes; 0 if there is none.
    is_page: True if the body is a web page.
    """

    message: str
    codes: tuple[str, ...]
    status: int = 0
    is_page: bool = False


def classify(status: int, headers: Mapping[str, str], text: str, *, keys: Sequence[str] = ()) -> CallError:
    """Return the CallError for an HTTP response that is an error or a redirect; `text` is its body.

    `headers` have names in lower case; `keys` are secrets to redact.
    """
    if 300 <= status < 400:
        return _redirect(status, redact(headers.get("location", ""), *keys), redact(text, *keys))
    return _error(status, headers, _error_text(text), text, keys)


def error_in_body(data: Any) -> CallError | None:
    """Return the error reported in a parsed body of status 200; None if it reports none.

    The names of the error's fields vary (OpenRouter, LM Studio, gateways; MiniMax's `base_resp`), and the error may be
    in a list.
    """
    reported = _error_text_of(data, "")
    error = _error(200, {}, reported, "", ())
    return error if reported.message or reported.status or error.explicit else None


def context_window_in(message: str) -> int | None:
    """Return the size of the model's context window in tokens, if the error message names it."""
    if re.search(r"per min|\btpm\b", message, re.IGNORECASE):
        return None
    match = _CONTEXT_WINDOW.search(message.lower())
    return int(next(filter(None, match.groups())).replace(",", "")) if match else None


def shorten(text: str) -> str:
    """Return the text on one line, with at most MAX_MESSAGE_CHARS characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 1] + "…"


def _error(status: int, headers: Mapping[str, str], reported: _ErrorText, text: str, keys: Sequence[str]) -> CallError:
    kind, explicit, busy = _kind(status, reported)
    may_wait = kind in TRANSIENT or kind is Kind.QUOTA_EXHAUSTED
    wait_s = retry_after(headers)
    if wait_s is None and may_wait:
        wait_s = wait_in_text(reported.message)
    message = shorten(redact(reported.message, *keys)) or redact(", ".join(reported.codes), *keys) or "(no message)"
    prefix = f"HTTP {status}"
    if 200 <= status < 300:
        prefix += f" with an error{f' {reported.status}' if reported.status else ''}"
    return CallError(
        kind,
        f"{prefix}: {message}{_hint(kind, reported, wait_s)}",
        retry_after=wait_s if may_wait else None,
        raw=redact(text, *keys),
        quotas=quotas(headers),
        explicit=explicit,
        busy=busy,
    )


def _hint(kind: Kind, reported: _ErrorText, wait_s: float | None) -> str:
    if kind is Kind.UNAUTHORIZED and reported.is_page:
        return " (a page, and no API's answer: a firewall in front of the API refuses the request, or this address)"
    searchable = _searchable(reported)
    if kind is Kind.QUOTA_EXHAUSTED and _is_long_limit(searchable) and not _MONEY.pattern.search(searchable):
        return f" (a limit of more than a minute; it ends {f'in {format_wait(wait_s)}' if wait_s else 'later'})"
    return {
        Kind.UNAUTHORIZED: " (check the API key and its permissions)",
        Kind.UNKNOWN_MODEL: " (check model and base_url)",
        Kind.WRONG_URL: " (check base_url)",
        Kind.QUOTA_EXHAUSTED: " (check the account's quota and billing)",
    }.get(kind, "")


def _redirect(status: int, target: str, raw: str) -> CallError:
    """Return the error for a redirect to `target`; `raw` is the body. aif follows no redirect: a key is sent only to
    the host that the pipeline names."""
    base = next((target.removesuffix(end) for end in _PATHS if target.endswith(end)), "")
    fix = f"set base_url to {base}" if base else "no API is at base_url"
    return CallError(Kind.WRONG_URL, f"HTTP {status} to {shorten(target) or 'nowhere'}: {fix}", raw=raw, explicit=True)


def _error_text(text: str) -> _ErrorText:
    if (data := _json(text)) is not None:
        return _error_text_of(data, text)
    is_page = text.lstrip()[:1] == "<" and "<html" in text[:2000].lower()
    return _ErrorText(" ".join(replace_surrogates(_MARKUP.sub(" ", text)).split()), (), is_page=is_page)


def _error_text_of(data: Any, text: str) -> _ErrorText:
    """Return the messages and codes in the parsed body `data`. If it has neither, the message is the unparsed body
    `text`."""
    values = list(_walk(data, 0, "error" if isinstance(data, str | list) else ""))
    codes = tuple(dict.fromkeys(replace_surrogates(value) for is_code, value in values if is_code))
    message = "; ".join(
        dict.fromkeys(replace_surrogates(value) for is_code, value in values if not is_code and value.strip())
    )
    status = next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), 0)
    return _ErrorText(message or ("" if codes else replace_surrogates(text)), codes, status)


def _walk(data: Any, depth: int, key: str) -> Iterator[tuple[bool, str]]:
    """Yield each code, as (True, code), and each message, as (False, message), in the parsed JSON `data`, outermost
    first. `key` is the key under which `data` stands in the body; `depth` is the number of levels above `data`."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(data, str) and key in _WORDS:
        inner = _json(data)  # gateways put another server's error into a text
        yield from _walk(inner, depth + 1, key) if inner is not None else [(False, data)]
    elif isinstance(data, list):
        for item in data[:20]:
            yield from _walk(item, depth + 1, key)
    elif isinstance(data, dict):
        location = data.get("loc")  # FastAPI's
        field = ".".join(map(str, location)) + ": " if isinstance(location, list) else ""
        for name, value in data.items():
            lower = str(name).lower()
            if lower in _CODES and isinstance(value, str | int) and not isinstance(value, bool):
                yield True, f"{'base_resp_' if key == 'base_resp' else ''}{value}"
            elif lower == "retrydelay" and isinstance(value, str):  # Google
                yield False, f"retry in {value}"
            elif field and lower == "msg":
                yield False, f"{field}{value}"
            elif lower in _WORDS | _INSIDE:
                yield from _walk(value, depth + 1, lower)


def _json(text: str) -> Any:
    """Return the JSON object or list that a text consists of; None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return parse_body(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _searchable(reported: _ErrorText) -> str:
    """Return an error's codes and message in the form that the patterns of _RULES search: codes in the first line, each
    as "=code", the message in the second."""
    codes = (f"={re.sub(r'[^a-z0-9]', '', code.lower())}" for code in reported.codes)
    own_words = _QUOTED.split(reported.message[:_MAX_SEARCHED].lower(), maxsplit=1)[0]
    return f"{' '.join(codes)[:_MAX_SEARCHED]}\n{' '.join(own_words.replace('=', '= ').split())}"


def _kind(status: int, reported: _ErrorText) -> tuple[Kind, bool, bool]:
    """Classify a server's error. Return three values of its CallError:

    kind: the kind of the error.
    explicit: True if the server's own words name the kind, or for a web page with status 401 or 402.
    busy: True if the server says that it is loading, overloaded or restarting.
    """
    text = _searchable(reported)
    if reported.is_page:
        tls = "http request was sent to https" in text  # nginx
        return (Kind.WRONG_URL if tls else _by_status(status, reported)), tls or status in (401, 402), False
    # with status 200 the code in the body is the status; with 400, gateways may hide another error's status
    if reported.status and (status < 300 or status == 400):
        status = reported.status
    elif status < 300:
        status = 0
    if _exceeds_rate_limit(text):
        return Kind.CONTEXT_OVERFLOW, True, False
    limited = _LIMIT if status == 0 else _USED_UP
    if (status == 429 or (status in (0, 400, 402, 403) and limited.search(text))) and _is_long_limit(text):
        return Kind.QUOTA_EXHAUSTED, True, False
    for rule in _RULES:
        if _status_allows(rule.kind, status, text) and rule.pattern.search(text):
            return (Kind.RATE_LIMITED if status == 429 and rule.busy else rule.kind), True, rule.busy
    if status in (0, 400, 413, 422) or status >= 500:
        if _rejects_max_tokens(text) and status < 500:
            return Kind.BAD_REQUEST, True, False
        if _OVERFLOW.search(text):
            return Kind.CONTEXT_OVERFLOW, True, False
        if status >= 500 and _TEMPLATE.search(text):
            return Kind.BAD_REQUEST, True, False
    if status == 0 and _BAD_REQUEST.search(text):
        return Kind.BAD_REQUEST, True, False
    if status == 0 and _SERVER_ERROR.search(text):
        return Kind.SERVER_ERROR, True, False
    return _by_status(status, reported), status in (401, 402), False


def _status_allows(kind: Kind, status: int, text: str) -> bool:
    """Return whether an error with this HTTP status can be of this kind.

    `kind` is what the words of the error suggest. They may mislead, so the status must allow it, too. `text` is the
    searchable text of the error.
    """
    if kind is Kind.RATE_LIMITED:
        return status not in (401, 402, 404, 413) and status < 500
    if kind in (Kind.UNAUTHORIZED, Kind.UNKNOWN_MODEL, Kind.WRONG_URL):
        names_key = kind is Kind.UNAUTHORIZED and _KEY.search(text) is not None
        return status not in (402, 413, 429) and (status < 500 or names_key)
    return kind is not Kind.BLOCKED or (status not in (401, 402) and status < 429)


def _is_long_limit(text: str) -> bool:
    """Return whether an error is about a limit per day or longer: a code says so, or the first period that the message
    names is that long."""
    codes, _, message = text.partition("\n")
    if _DAY.search(codes):
        return True
    day, minute = _DAY.search(message), _MINUTE.search(message)
    return day is not None and (minute is None or day.start() < minute.start())


def _rejects_max_tokens(text: str) -> bool:
    """Return whether the error says that max_tokens is out of range by itself, not together with the prompt."""
    message = text.partition("\n")[2]
    name = _MAX_TOKENS.search(message)
    return name is not None and _OUT_OF_RANGE.search(message, name.end()) is not None and not _PROMPT.search(message)


def _exceeds_rate_limit(text: str) -> bool:
    """Return whether the error says that the request is larger than the whole limit per minute, so that waiting can't
    help."""
    numbers = _LIMIT_AND_REQUESTED.search(text)
    return int(numbers[2]) > int(numbers[1]) if numbers else "request too large for" in text


def _by_status(status: int, reported: _ErrorText) -> Kind:
    if status < 300:
        return Kind.BAD_REPLY  # an empty 204, or an error without a description
    if status in _TRANSIENT_STATUSES or status >= 500:
        return Kind.SERVER_ERROR
    if status == 404 and not reported.is_page and not _PATH_NOT_FOUND.match(reported.message.lower()):
        return Kind.UNKNOWN_MODEL
    return {
        401: Kind.UNAUTHORIZED,
        402: Kind.QUOTA_EXHAUSTED,
        403: Kind.UNAUTHORIZED,
        404: Kind.WRONG_URL,
        405: Kind.WRONG_URL,
        407: Kind.UNAUTHORIZED,
        410: Kind.WRONG_URL,
        429: Kind.RATE_LIMITED,
    }.get(status, Kind.BAD_REQUEST)
