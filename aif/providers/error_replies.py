"""What a server means by an error, wherever in a body it stands: by its own codes and words first, by its status last.
Pure.

A status alone misleads: an account without money is told with 400, 401, 403, 429 and 500, a crash with 400, and an
error of any kind with 200. The errors of every API are read here, since they differ by server rather than by API.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aif.core.redaction import redact
from aif.core.strict_json import parse_body, replace_surrogates
from aif.providers.base import TRANSIENT, CallError, Kind
from aif.providers.limit_headers import in_words, quotas, retry_after, spoken

SAID_LENGTH = 300  # characters of a server's own words in a message
_READ = 8000  # characters that are looked at: the rest quotes what was sent
_DEEPEST = 16

# The keys under which servers put their words, their codes, and either of them further in.
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
_PASSING = frozenset({408, 409, 423, 424, 425, 498, 499})  # besides 5xx; 498 is Groq's, 499 nginx's


class _Rule(NamedTuple):
    """What is said, and what it means. `busy`: by a server that is there and may come back."""

    kind: Kind
    said: re.Pattern[str]
    busy: bool = False


def _rule(kind: Kind, *said: str, busy: bool = False) -> _Rule:
    return _Rule(kind, re.compile("|".join(said)), busy)


# The first that is found counts. A code stands there as "=code", in lower case and without its separators, before the
# words, in lower case too.
_RULES = (
    _rule(
        Kind.RATE_LIMITED,
        r"=\w*throttl",  # DashScope, which speaks of quota and billing; Bedrock
        r"=\w*perminute",  # Google's quotaId, whose words speak of quota and billing
        r"\bper[ _-]?min(ute)?\b|\b[rt]pm\b|per_minute",  # Cerebras, by a code that names a quota; Vertex
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
        # Bedrock, LiteLLM; not of a guardrail that is unknown, nor of providers that none lets through (OpenRouter)
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
        Kind.UNREADABLE,  # its own check of a structured output failed: another sample may pass
        r"=\w*(jsonvalidatefailed|outputparsefailed|toolusefailed)",  # Groq
        r"failed to (generate|validate) json|model generated output that could not be parsed",  # Groq
    ),
    _rule(
        Kind.SERVER_ERROR,
        r"=\w*(overloaded|capacityexceeded|modelnotready|modelnotloaded|modelloading|slowdown)",  # Anthropic, Groq, Ark
        r"=\w*resourceunavailable|resource unavailable",  # OpenAI's flex tier, by 429
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
# Of a limit by the day, week or month. OpenRouter: free-models-per-day; GitHub: UserByModelByDay, per 86400s.
_DAY = re.compile(
    r"\bper[ _-]?(day|week|month|86400 ?s)|/ ?(day|month)\b|\b[rt]pd\b|try again tomorrow|=\w*(perday|byday|daily)"
    r"|每日|当日|今日|(daily|weekly|monthly)\b.{0,40}(limit|quota|allocation|allowance|budget|requests|tokens|credits)"
)
_LIMIT = re.compile(r"limit|quota|exceed|exhaust|used up|too many|上限")
_USED_UP = re.compile(r"exceed|exhaust|used up|too many|reached|上限")
_KEY = re.compile(r"api[ _-]?key|authenticat|credential")
# What was sent, quoted (pydantic, FastAPI, gateways): words of a prompt are none of the server's.
_QUOTED = re.compile(r"\binput_value ?=|['\"](input|messages|body)['\"] ?:|\breceived ?[:=]")
_MINUTE = re.compile(r"\bper[ _-]?min|\b[rt]pm\b|per[ _-]?second|per[ _-]?hour")
# A max_tokens that no prompt would fit: vLLM, OpenAI, Groq, Anthropic, DeepSeek, DashScope.
_ROOM = re.compile(r"max_[a-z_]{0,24}tokens\b")
_TOO_MUCH = re.compile(
    r"must be|cannot be|too large|valid range|should be|maximum allowed number of output|at most \d+"
)
_SENT = re.compile(r"\b(inputs?|prompt|messages)\b")
# A name such as context_size alone is none: a server that doesn't know a setting refuses it with every request.
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
# A chat template that takes no such turns. llama.cpp says so by 500, though no later call gets past it either.
_TEMPLATE = re.compile(r"\bjinja|raise_exception\(|\broles must alternate|\broles are supported")
# How many tokens the model holds, as such words say.
_HOLDS = re.compile(
    # OpenAI, vLLM, SGLang, llama.cpp, LM Studio, MLC, Moonshot, watsonx, TabbyAPI, GitHub
    r"(?:context (?:length|window|size)|(?:maximum prompt|model) length|(?:length|tokens?) limit|max_seq_len|max size)"
    r"\W{0,3}(?:(?:is|was|of)(?: only)?)?\W{0,3}(\d[\d,]*)"
    r"|context limit:.{0,40}> (\d[\d,]*)|> (\d[\d,]*) maximum|(\d[\d,]*) maximum context"  # Anthropic, Mistral
    r"|must be <= (\d+)|less than (\d+) tokens|model limit of (\d[\d,]*)"  # TGI, Bedrock
    r"|length should be \[\d+, (\d+)\]"  # DashScope
    r"|max_prompt_tokens \((\d+)\)"  # SiliconFlow
)
# What an error in a body of status 200 is that has no code: MiniMax's 2013, gateways.
_SHAPE = re.compile(
    r"=baseresp2013\b|=\w*(invalidrequest|invalidparam|badrequest)|invalid (param|argument|request|value)"
    r"|(must be|should be) (in|one of|between|less|greater|at (most|least))|not permitted|unsupported (param|value)"
)
_ILL = re.compile(r"internal (server )?error|unknown error|try again later")
# "Request too large for … on tokens per minute: Limit 6000, Requested 6524": no minute holds it. OpenAI 429, Groq 413.
_NUMBERS = re.compile(r"\blimit:? (\d{1,12}),? (?:used:? \d+, )?requested:? (\d{1,12})\b")
_UNSEEN = re.compile(r"<(script|style)\b.*?(</\1>|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_NOWHERE = re.compile(r"[\W\d_]*((404|405|page|path|resource|url|the|requested|method|not|found|allowed|detail)\W*)*\Z")


class _Said(NamedTuple):
    """A server's own words on an error, its codes, the HTTP status among these (0: none), and whether it is a page."""

    words: str
    codes: tuple[str, ...]
    status: int = 0
    page: bool = False


def classify(status: int, headers: Mapping[str, str], text: str, *, keys: Sequence[str] = ()) -> CallError:
    """What an HTTP error means. `text` is the body; `headers` have names in lower case."""
    if 300 <= status < 400:
        return _moved(status, redact(headers.get("location", ""), *keys), redact(text, *keys))
    return _refusal(status, headers, _said(text), text, keys)


def inside(data: Any) -> CallError | None:
    """What a body means that came with status 200 and is no reply; None where it says nothing of an error.

    It says so under any name, in a list, or in the choice: OpenRouter, MiniMax (`base_resp`), LM Studio, gateways.
    """
    said = _of(data, "")
    error = _refusal(200, {}, said, "", ())
    return error if said.words or said.status or error.told else None


def holds(words: str) -> int | None:
    """How many tokens a model holds, where an error says so."""
    said = None if re.search(r"per min|\btpm\b", words, re.IGNORECASE) else _HOLDS.search(words.lower())
    return int(next(filter(None, said.groups())).replace(",", "")) if said else None


def cut(text: str) -> str:
    """A server's words on one line, cut to SAID_LENGTH characters."""
    line = " ".join(text.split())
    return line if len(line) <= SAID_LENGTH else line[: SAID_LENGTH - 1] + "…"


def _refusal(status: int, headers: Mapping[str, str], said: _Said, text: str, keys: Sequence[str]) -> CallError:
    kind, told, busy = _kind(status, said)
    wait_s = retry_after(headers)
    if wait_s is None and kind in TRANSIENT | {Kind.QUOTA_EXHAUSTED}:
        wait_s = spoken(said.words)
    words = cut(redact(said.words, *keys)) or redact(", ".join(said.codes), *keys) or "(no message)"
    at = f"HTTP {status}" + (f" with an error{f' {said.status}' if said.status else ''}" if 200 <= status < 300 else "")
    return CallError(
        kind,
        f"{at}: {words}{_hint(kind, said, wait_s)}",
        retry_after=wait_s if kind in TRANSIENT | {Kind.QUOTA_EXHAUSTED} else None,
        raw=redact(text, *keys),
        quotas=quotas(headers),
        told=told,
        busy=busy,
    )


def _hint(kind: Kind, said: _Said, wait_s: float | None) -> str:
    if kind is Kind.UNAUTHORIZED and said.page:
        return " (a page, and no API's answer: a firewall in front of the API refuses the request, or its address)"
    if kind is Kind.QUOTA_EXHAUSTED and _daily(_flat(said)) and not _MONEY.said.search(_flat(said)):
        return f" (a limit of more than a minute; it ends {f'in {in_words(wait_s)}' if wait_s else 'later'})"
    return {
        Kind.UNAUTHORIZED: " (check the API key and what it may use)",
        Kind.UNKNOWN_MODEL: " (check model and base_url)",
        Kind.WRONG_URL: " (check base_url)",
        Kind.QUOTA_EXHAUSTED: " (check the account's quota and billing)",
    }.get(kind, "")


def _moved(status: int, where: str, raw: str) -> CallError:
    """A redirect, which is not followed: a key goes to the host that the pipeline names."""
    base = next((where.removesuffix(end) for end in _PATHS if where.endswith(end)), "")
    mend = f"set base_url to {base}" if base else "no API is at base_url"
    return CallError(Kind.WRONG_URL, f"HTTP {status} to {cut(where) or 'nowhere'}: {mend}", raw=raw, told=True)


def _said(text: str) -> _Said:
    if (data := _json(text)) is not None:
        return _of(data, text)
    page = text.lstrip()[:1] == "<" and "<html" in text[:2000].lower()
    return _Said(" ".join(replace_surrogates(_UNSEEN.sub(" ", text)).split()), (), page=page)


def _of(data: Any, text: str) -> _Said:
    """The words and codes of a parsed body; its text where it has no words of its own."""
    found = list(_walk(data, 0, "error" if isinstance(data, str | list) else ""))
    codes = tuple(dict.fromkeys(replace_surrogates(value) for is_code, value in found if is_code))
    words = "; ".join(
        dict.fromkeys(replace_surrogates(value) for is_code, value in found if not is_code and value.strip())
    )
    status = next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), 0)
    return _Said(words or ("" if codes else replace_surrogates(text)), codes, status)


def _walk(data: Any, depth: int, under: str) -> Iterator[tuple[bool, str]]:
    """What a body says, outermost first, as (whether it is a code, value)."""
    if depth > _DEEPEST:
        return
    if isinstance(data, str) and under in _WORDS:
        inner = _json(data)
        yield from _walk(inner, depth + 1, under) if inner is not None else [(False, data)]
    elif isinstance(data, list):
        for one in data[:20]:
            yield from _walk(one, depth + 1, under)
    elif isinstance(data, dict):
        place = data.get("loc")  # of FastAPI's refusals
        at = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
        for name, value in data.items():
            lower = str(name).lower()
            if lower in _CODES and isinstance(value, str | int) and not isinstance(value, bool):
                yield True, f"{'base_resp_' if under == 'base_resp' else ''}{value}"
            elif lower == "retrydelay" and isinstance(value, str):  # Google
                yield False, f"retry in {value}"
            elif at and lower == "msg":
                yield False, f"{at}{value}"
            elif lower in _WORDS | _INSIDE:
                yield from _walk(value, depth + 1, lower)


def _json(text: str) -> Any:
    """The JSON that a text is, as gateways quote it of what is behind them, too; None where it is none."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return parse_body(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _flat(said: _Said) -> str:
    """What the rules look at."""
    codes = (f"={re.sub(r'[^a-z0-9]', '', code.lower())}" for code in said.codes)
    words = " ".join(_QUOTED.split(said.words[:_READ].lower(), maxsplit=1)[0].replace("=", "= ").split())
    return f"{' '.join(codes)[:_READ]}\n{words}"


def _kind(status: int, said: _Said) -> tuple[Kind, bool, bool]:
    """The kind of failure, whether words or codes tell it, and whether they say that the server is busy."""
    flat = _flat(said)
    if said.page:
        tls = "http request was sent to https" in flat  # nginx
        return (Kind.WRONG_URL if tls else _by_status(status, said)), tls or status in (401, 402), False
    # the code in a body of 200 is its status; behind a 400, gateways hide another's
    status = said.status if said.status and (status < 300 or status == 400) else 0 if status < 300 else status
    if _too_large(flat):
        return Kind.CONTEXT_OVERFLOW, True, False
    limited = _LIMIT if status == 0 else _USED_UP
    if (status == 429 or (status in (0, 400, 402, 403) and limited.search(flat))) and _daily(flat):
        return Kind.QUOTA_EXHAUSTED, True, False
    for rule in _RULES:
        if _may(rule.kind, status, flat) and rule.said.search(flat):
            return (Kind.RATE_LIMITED if status == 429 and rule.busy else rule.kind), True, rule.busy
    if status in (0, 400, 413, 422) or status >= 500:
        if _no_room(flat) and status < 500:
            return Kind.BAD_REQUEST, True, False
        if _OVERFLOW.search(flat):
            return Kind.CONTEXT_OVERFLOW, True, False
        if status >= 500 and _TEMPLATE.search(flat):
            return Kind.BAD_REQUEST, True, False
    if status == 0 and _SHAPE.search(flat):
        return Kind.BAD_REQUEST, True, False
    if status == 0 and _ILL.search(flat):
        return Kind.SERVER_ERROR, True, False
    return _by_status(status, said), status in (401, 402), False


def _may(kind: Kind, status: int, flat: str) -> bool:
    """Whether a status leaves it open that an error is of this kind."""
    if kind is Kind.RATE_LIMITED:
        return status not in (401, 402, 404, 413) and status < 500
    if kind in (Kind.UNAUTHORIZED, Kind.UNKNOWN_MODEL, Kind.WRONG_URL):
        keyed = kind is Kind.UNAUTHORIZED and _KEY.search(flat) is not None
        return status not in (402, 413, 429) and (status < 500 or keyed)
    return kind is not Kind.BLOCKED or (status not in (401, 402) and status < 429)


def _daily(flat: str) -> bool:
    """Whether a limit is by the day or longer: by a code, or by what the words name first."""
    codes, _, words = flat.partition("\n")
    if _DAY.search(codes):
        return True
    day, minute = _DAY.search(words), _MINUTE.search(words)
    return day is not None and (minute is None or day.start() < minute.start())


def _no_room(flat: str) -> bool:
    """Whether max_tokens alone is refused."""
    words = flat.partition("\n")[2]
    name = _ROOM.search(words)
    return name is not None and _TOO_MUCH.search(words, name.end()) is not None and not _SENT.search(words)


def _too_large(flat: str) -> bool:
    """Whether a request is larger than its limit, and not only than what is left of it now."""
    numbers = _NUMBERS.search(flat)
    return int(numbers[2]) > int(numbers[1]) if numbers else "request too large for" in flat


def _by_status(status: int, said: _Said) -> Kind:
    if status < 300:
        return Kind.BAD_REPLY  # an empty 204, or an error that says nothing of itself
    if status in _PASSING or status >= 500:
        return Kind.SERVER_ERROR
    if status == 404 and not said.page and not _NOWHERE.match(said.words.lower()):
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
