"""aif/providers/error_replies.py, with values alone."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.providers import chat_completions
from aif.providers.base import UNBILLED, CallError, Kind
from aif.providers.error_replies import MAX_MESSAGE_CHARS, classify, context_window_in
from tests.support.loopback import KEY

OVERFLOW, RATE, QUOTA, MODEL = Kind.CONTEXT_OVERFLOW, Kind.RATE_LIMITED, Kind.QUOTA_EXHAUSTED, Kind.UNKNOWN_MODEL
SERVER, KEYS, SHAPE, URL = Kind.SERVER_ERROR, Kind.UNAUTHORIZED, Kind.BAD_REQUEST, Kind.WRONG_URL


def _error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def _google(code: int, message: str, status: str, *details: dict[str, Any]) -> list[Any]:
    return [_error(message, code=code, status=status, details=list(details))]


def _violates(*quotas: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": one} for one in quotas]}


def error_for(status: int, said: Any, headers: dict[str, str] | None = None) -> CallError:
    """What a response means; of status 200, too."""
    content = said if isinstance(said, str) else json.dumps(said)
    with pytest.raises(CallError) as caught:
        chat_completions.parse_response(status, headers or {}, content.encode(), sent={}, keys=())
    return caught.value


GOOGLE_SPENT = "You exceeded your current quota, please check your plan and billing details."
# What servers say, by who says it: the status, the body, and the kind that its words or codes tell.
TOLD: dict[str, tuple[int, Any, Kind]] = {
    # money
    "OpenAI's quota": (429, _error("You ran out.", type="insufficient_quota", code="insufficient_quota"), QUOTA),
    "Moonshot": (429, _error("Account suspended, recharge", type="exceeded_current_quota_error"), QUOTA),
    "LiteLLM's budget": (400, _error("Budget has been exceeded! Current cost: 2.5", code="400"), QUOTA),
    "LiteLLM's budget, older": (401, _error("Authentication Error, ExceededTokenBudget", type="auth_error"), QUOTA),
    "MiniMax by 500": (500, {"type": "error", "error": {"message": "insufficient balance (1008)"}}, QUOTA),
    "opencode by 401": (401, {"message": "Insufficient balance.", "type": "CreditsError"}, QUOTA),
    "a code by 403": (403, {"code": "INSUFFICIENT_BALANCE", "message": "no"}, QUOTA),
    "Zhipu": (429, _error("您的账户已欠费", code="1113"), QUOTA),
    "DashScope": (400, {"code": "Arrearage", "message": "Access denied."}, QUOTA),
    "DashScope's free tier": (403, _error("The free tier is exhausted", code="AllocationQuota.FreeTierOnly"), QUOTA),
    "OpenRouter's key": (403, _error("Key limit exceeded (total limit). Manage it", code=403), QUOTA),
    "Azure's gateway": (403, {"message": "Out of call volume quota. Replenished in 02:12:34."}, QUOTA),
    "Zhipu's package": (429, _error("Your package has expired, use it after renewing", code="1309"), QUOTA),
    "Zhipu's day": (429, _error("今日调用次数已达上限", code="1304"), QUOTA),
    "OpenRouter's moderation": (
        403, _error('Your input was flagged for "violence". No credits were charged.', code=403), Kind.BLOCKED
    ),
    "OpenRouter's guardrail": (
        404, _error("No endpoints available matching your guardrail restrictions and data policy.", code=404), MODEL
    ),
    "Bedrock's guardrail": (400, {"message": "The input was blocked by the guardrail"}, Kind.BLOCKED),
    "NVIDIA's model": (410, {"detail": "The model 'a/b' has reached its end of life on 2026-05-01"}, MODEL),
    "Bedrock's on-demand": (400, {"message": "Model x with on-demand throughput isn't supported."}, MODEL),
    "AWS": (400, {"message": "The security token included in the request is invalid"}, Kind.UNAUTHORIZED),
    "MiniMax's shape": (200, {"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}, Kind.BAD_REQUEST),
    "no code at all": (200, {"detail": "Not authenticated"}, Kind.UNAUTHORIZED),
    "nor here": (200, {"error": "unknown error, please try again later"}, Kind.SERVER_ERROR),
    "xAI's credits": (403, {"code": "x", "error": "Your team has used all available credits."}, QUOTA),
    "Fireworks": (412, _error("Account mine is suspended", code="PRECONDITION_FAILED"), QUOTA),
    "Hugging Face": (402, {"error": "You have exceeded your monthly included credits."}, QUOTA),
    "Anthropic's credit": (400, _error("Your credit balance is too low.", type="invalid_request_error"), QUOTA),
    "watsonx": (403, {"errors": [{"code": "token_quota_reached", "message": "no more"}]}, QUOTA),
    "one-api": (403, _error("用户额度不足", type="one_api_error", code="insufficient_user_quota"), QUOTA),
    "Novita": (403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "no"}, QUOTA),
    "SiliconFlow": (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, QUOTA),
    "new-api": (403, _error("该令牌额度已用尽", type="new_api_error"), QUOTA),
    "Tencent": (400, _error("no", code="ResourceInsufficient.ChargeResourceExhausted"), QUOTA),
    "Ark's free quota": (403, _error("Your account has exhausted its free trial quota", code="QuotaExceeded"), QUOTA),
    "xAI's new team": (403, {"code": "x", "error": "Your newly created team doesn't have any credits yet."}, QUOTA),
    "Mistral's subscription": (401, {"detail": "Inactive subscription or usage limit reached"}, QUOTA),
    "DeepInfra": (403, {"detail": {"error": "inference prohibited, please enter a Payment Method"}}, QUOTA),
    # a limit of a day, and of a minute that speaks of a quota
    "Groq's day": (429, _error("Limit on tokens per day (TPD): Limit 9, Used 8, Requested 2. Try again in 2m"), QUOTA),
    "OpenRouter's day": (429, _error("Rate limit exceeded: free-models-per-day. Add credits", code=429), QUOTA),
    "an upsell": (429, _error("Rate limit reached. Add a payment method, or more credits, to increase it."), RATE),
    "OpenRouter's minute": (429, _error("Rate limit exceeded: free-models-per-min. 50 requests per day free"), RATE),
    "GitHub's day": (429, _error("Rate limit of 8 per 86400s exceeded for UserByModelByDay.", code="RateLimit"), QUOTA),
    "Bedrock's day": (429, {"__type": "ThrottlingException", "message": "Too many tokens per day, wait."}, QUOTA),
    "Bedrock": (429, {"__type": "ThrottlingException", "message": "Too many requests, wait."}, RATE),
    "Cerebras's minute": (429, {"message": "Requests per minute exceeded", "code": "request_quota_exceeded"}, RATE),
    "Cerebras's day": (429, {"message": "Tokens per day limit exceeded", "code": "token_quota_exceeded"}, QUOTA),
    "DashScope's throttle": (
        429, _error(GOOGLE_SPENT, type="insufficient_quota", code="Throttling.AllocationQuota"), RATE
    ),
    "Google's minute": (
        429, _google(429, GOOGLE_SPENT, "RESOURCE_EXHAUSTED", _violates("RequestsPerMinutePerProject")), RATE
    ),
    "Google's day": (
        429, _google(429, GOOGLE_SPENT, "RESOURCE_EXHAUSTED", _violates("TokensPerMinute", "RequestsPerDay")), QUOTA
    ),
    "Google's": (429, _google(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED"), RATE),
    "Baidu's day": (200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, QUOTA),
    "Baidu's rate": (200, {"error_code": 18, "error_msg": "Open api qps request limit reached"}, RATE),
    "Cohere's month": (429, {"message": "You use a Trial key, which is limited to 9 API calls / month."}, QUOTA),
    "Zhipu's rate": (429, _error("您的账户已达到速率限制", code="1302"), RATE),
    "a gateway's code": (429, {"code": "rate_limit_daily", "message": "Error code: 429"}, QUOTA),
    "Azure's": (429, _error("exceeded token rate limit of this tier. Please retry after 86400 seconds."), RATE),
    "Azure's in another's": (400, _error('Status 429: {"error": {"message": "Rate limit is exceeded."}}'), RATE),
    "LiteLLM's cooldown": (429, _error("No deployments available for selected model, Try again in 5 seconds."), RATE),
    # keys
    "Google's key": (
        400, _google(400, "API key not valid.", "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"}), KEYS
    ),
    "Zhipu's key": (401, _error("身份验证失败", code="1000"), KEYS),
    "DashScope's key": (400, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}, KEYS),
    "AWS's token": (400, {"__type": "ExpiredTokenException", "message": "The token included is expired"}, KEYS),
    "LiteLLM's key, by 500": (500, _error("AuthenticationError: Incorrect API key provided", code="500"), KEYS),
    "OpenAI's countries": (403, _error("Not here", code="unsupported_country_region_territory"), KEYS),
    "Anthropic's organization": (400, _error("This organization has been disabled."), KEYS),
    "Groq's organization": (400, _error("Organization has been restricted.", code="organization_restricted"), KEYS),
    "Google's countries": (400, _google(400, "User location is not supported for the API use.", "FAILED"), KEYS),
    "Anthropic's permission": (403, _error("Ask for it", type="permission_error"), KEYS),
    # models and paths
    "vLLM's model": (404, _error("The model `org/Tiny-0.5B` does not exist.", type="NotFoundError"), MODEL),
    "Ollama's model": (404, _error("model 'tiny' not found, try pulling it first"), MODEL),
    "DeepSeek's model": (400, _error("Model Not Exist", code="invalid_request_error"), MODEL),
    "Azure's deployment": (404, _error("The API deployment does not exist.", code="DeploymentNotFound"), MODEL),
    "LiteLLM's model": (400, _error("You passed in model=x. There are no healthy deployments for this model"), MODEL),
    "OpenRouter's model": (400, _error("a/b is not a valid model ID", code=400), MODEL),
    "Groq's model": (400, _error("The model `old` has been decommissioned.", code="model_decommissioned"), MODEL),
    "Bedrock's model": (400, {"message": "The provided model identifier is invalid."}, MODEL),
    "OpenAI's path": (404, _error("Invalid URL (POST /v1/v1/chat/completions)"), URL),
    "LM Studio's path": (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, URL),
    # filters
    "Azure's filter": (400, _error("no", code="x", innererror={"code": "ResponsibleAIPolicyViolation"}), Kind.BLOCKED),
    "DashScope's": (400, _error("May contain inappropriate content.", code="data_inspection_failed"), Kind.BLOCKED),
    "DeepSeek's": (400, _error("Content Exists Risk", code="invalid_request_error"), Kind.BLOCKED),
    "Moonshot's": (400, _error("rejected: considered high risk", type="content_filter"), Kind.BLOCKED),
    "xAI's": (403, {"code": "x", "error": "Content violates usage guidelines."}, Kind.BLOCKED),
    # its own check of a sample
    "Groq's JSON": (400, _error("Try again.", code="json_validate_failed", failed_generation="{"), Kind.UNREADABLE),
    # no room
    "SGLang": (400, {"message": "The input (21 tokens) is longer than the model's context length (8)."}, OVERFLOW),
    "TGI": (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 8. Given: 21", "error_type": "v"}, OVERFLOW),
    "TGI's prompt": (422, {"error": "`inputs` must have less than 8 tokens. Given: 21"}, OVERFLOW),
    "Google's room": (
        400, _google(400, "input token count (21) exceeds the maximum number of tokens allowed", "X"), OVERFLOW
    ),
    "Groq's": (413, _error("Request too large for model x on tokens per minute: Limit 8, Requested 21"), OVERFLOW),
    "no minute holds it": (429, _error("Rate limit reached on TPM: Limit 8, Used 0, Requested 21."), OVERFLOW),
    "LM Studio": (400, {"error": "the context the overflows: loaded with context length of only 8 tokens"}, OVERFLOW),
    "llama.cpp": (400, _error("request (21 tokens) exceeds the available context size (8 tokens)"), OVERFLOW),
    "llama.cpp, by 500": (500, _error("Context size has been exceeded.", code=500, type="server_error"), OVERFLOW),
    "llama.cpp's code": (400, _error("no", type="exceed_context_size_error"), OVERFLOW),
    "Bedrock's limit": (400, {"message": "The maximum tokens you requested exceeds the model limit of 8."}, OVERFLOW),
    "Bedrock's prompt": (400, {"message": "Input is too long for requested model."}, OVERFLOW),
    "Mistral": (400, {"message": "Prompt of 21 tokens, too large for model with 8 maximum context length"}, OVERFLOW),
    "TabbyAPI": (400, {"detail": "Prompt length 21 is greater than max_seq_len 8"}, OVERFLOW),
    "MLC": (400, {"message": "Request prompt has 21 tokens, larger than the model input length limit 8"}, OVERFLOW),
    "Moonshot's room": (400, _error("Your request exceeded model token limit: 8"), OVERFLOW),
    "DashScope's room": (400, _error("Range of input length should be [1, 8]"), OVERFLOW),
    "Ollama's room, by 500": (500, {"error": "input length exceeds maximum context length"}, OVERFLOW),
    "watsonx's room": (400, {"errors": [{"message": "tokens 21 cannot exceed the total tokens limit 8"}]}, OVERFLOW),
    "GitHub's room": (413, _error("Max size: 8 tokens.", code="tokens_limit_reached"), OVERFLOW),
    "MiniMax's room": (400, _error("invalid params, context window exceeds limit (2013)"), OVERFLOW),
    "SiliconFlow's room": (
        400, {"message": "number of input tokens (21) has exceeded max_prompt_tokens (8) limit."}, OVERFLOW
    ),
    # a setting that no prompt would fit
    "OpenAI's max_tokens": (400, _error("max_tokens is too large: 9. This model supports at most 8"), SHAPE),
    "Groq's max_tokens": (400, _error("`max_tokens` must be less than or equal to `8`, context_window"), SHAPE),
    "DeepSeek's max_tokens": (400, _error("Invalid max_tokens value, the valid range is [1, 8]"), SHAPE),
}  # fmt: skip


@pytest.mark.parametrize(("status", "said", "kind"), TOLD.values(), ids=list(TOLD))
def test_words_and_codes_tell_the_kind(status: int, said: Any, kind: Kind) -> None:
    error = error_for(status, said)

    assert (error.kind, error.explicit, error.busy) == (kind, True, False)
    assert f"HTTP {status}" in error.message


@pytest.mark.parametrize(("status", "said", "kind"), TOLD.values(), ids=list(TOLD))
@pytest.mark.parametrize(
    "around",
    [
        lambda status, said: said,
        lambda status, said: [said],
        lambda status, said: {"error": said if isinstance(said, dict) else said[0], "user_id": "me"},
        lambda status, said: {"id": "x", "choices": None, "error": {"code": status, "message": json.dumps(said)}},
        lambda status, said: {"error": {"message": "Upstream", "code": status, "metadata": {"raw": json.dumps(said)}}},
        lambda status, said: {"choices": [{"message": {"content": None}, "error": said, "finish_reason": "error"}]},
        lambda status, said: {"detail": said, "code": status},
    ],
)
def test_they_tell_it_in_a_body_of_status_200_too(status: int, said: Any, kind: Kind, around: Any) -> None:
    assert error_for(200, around(status, said)).kind is kind


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (503, _error("Loading model", type="unavailable_error"), SERVER),  # llama.cpp
        (503, {"error": "Model org/tiny is currently loading", "estimated_time": 20.0}, SERVER),
        (400, {"error": "The model has crashed without additional information."}, SERVER),  # LM Studio
        (400, {"error": "Model does not exist or was unloaded while request still in queue"}, SERVER),
        (400, {"error": "Channel Error"}, SERVER),
        (404, _error("Failed to load model 'tiny'. Error: insufficient system resources"), SERVER),
        (503, _error("当前分组上游负载已饱和", type="new_api_error"), SERVER),
        (429, _error("loading", code="ModelLoadingError"), RATE),  # Ark
        (404, _error("No models loaded. Please load one.", code="model_not_found"), SERVER),
        (500, {"error": "llama runner process has terminated: exit status 2"}, SERVER),  # Ollama
        (500, _error("EngineCore encountered an issue: EngineDeadError", type="InternalServerError"), SERVER),  # vLLM
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Sorry"}}, SERVER),  # Anthropic
        (498, _error("no room", code="capacity_exceeded"), SERVER),  # Groq's flex tier
        (200, _error("The model is overloaded.", code=503, status="UNAVAILABLE"), SERVER),  # Google
        (429, _error("Resource Unavailable", code="resource_unavailable"), RATE),  # OpenAI's flex tier
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, RATE),  # TGI
        (429, _error("当前API请求过多", code="1305"), RATE),  # Zhipu
        (503, {"detail": {"msg": "Server is busy; please try again later."}}, SERVER),  # KoboldCpp
    ],
)
def test_a_server_that_is_there_and_may_come_back(status: int, said: Any, kind: Kind) -> None:
    error = error_for(status, said)

    assert (error.kind, error.busy) == (kind, True)


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (403, "<!DOCTYPE html><html><title>Blocked</title><body>No phrase such as api key or quota.", KEYS),
        (403, "error code: 1020", KEYS),
        (403, {"message": "Forbidden"}, KEYS),
        (404, {"detail": "Not Found"}, URL),
        (404, "404 page not found", URL),
        (404, "<html><h1>404</h1>", URL),
        (404, "", URL),
        (404, _error("Resource not found", code="404"), URL),
        (405, {"detail": "Method Not Allowed"}, URL),
        (404, _error("nothing of that name"), MODEL),
        (502, "<html><h1>502 Bad Gateway</h1></html>", SERVER),
        (503, {"error": "no healthy upstream"}, SERVER),
        (503, "<html><h1>503 Service Temporarily Unavailable", SERVER),
        (425, "", SERVER),
        (413, "<html><title>413 Request Entity Too Large</title>", SHAPE),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, SHAPE),
        (400, _error("Conversation roles must alternate user/assistant"), SHAPE),
        (400, _error("Unsupported parameter: 'max_tokens' is not supported with this model."), SHAPE),
        (400, _error("Unsupported value: 'temperature' does not support 0.2 with this model."), SHAPE),
        (200, _error("something is wrong"), Kind.BAD_REPLY),
        (200, {"base_resp": {"status_code": 1013, "status_msg": "unknown"}}, Kind.BAD_REPLY),
        (200, {"error": {"code": 502, "message": "Network connection lost."}}, SERVER),
        (204, "", Kind.BAD_REPLY),
    ],
)
def test_a_status_alone_tells_less(status: int, said: Any, kind: Kind) -> None:
    error = error_for(status, said)

    assert (error.kind, error.explicit, error.busy) == (kind, False, False)


@pytest.mark.parametrize(
    "said",
    [
        "While executing CallExpression at line 189 … Error: Jinja Exception: conversation roles must alternate",
        "{{- raise_exception('After the optional system message, con... ^",
        "Only user, assistant and tool roles are supported, got system. at row 60, column 9",
    ],
)
def test_a_template_that_takes_no_such_turns_is_no_outage(said: str) -> None:
    """llama.cpp: a run waited for it, 89 s or half an hour."""
    assert (error_for(500, _error(said)).kind, error_for(500, _error(said)).explicit) == (SHAPE, True)


@pytest.mark.parametrize(("status", "kind"), [(401, KEYS), (402, QUOTA)])
def test_but_for_a_key_and_for_money_it_does(status: int, kind: Kind) -> None:
    assert (error_for(status, "").kind, error_for(status, "").explicit) == (kind, True)


@pytest.mark.parametrize(
    ("code", "kind"), [(1004, KEYS), (2049, KEYS), (1008, QUOTA), (1002, RATE), (1027, Kind.BLOCKED)]
)
def test_minimax_tells_its_own_status_beside_what_looks_like_a_reply(code: int, kind: Kind) -> None:
    whole = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
    error = error_for(200, whole | {"base_resp": {"status_code": code, "status_msg": "no"}})

    assert (error.kind, error.explicit) == (kind, True)
    fine = json.dumps(whole | {"base_resp": {"status_code": 0, "status_msg": "success"}}).encode()
    assert chat_completions.parse_response(200, {}, fine, sent={}, keys=()).text == "Yes."


def test_the_server_s_words_are_shown_wherever_they_stand() -> None:
    for said in (
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "its words"}}'}}},
        [{"error": {"message": "its words"}}],
        {"detail": "its words"},
        {"detail": [{"loc": ["body", "n"], "msg": "its words", "input": {"message": "what was sent"}}]},
        {"errors": ["its words"]},
        {"error": "its words"},
        {"code": 7, "msg": "its words"},
        {"error_code": 17, "error_msg": "its words"},
        {"fault": {"faultstring": "its words"}},
        "its words",
        "<html><style>p {}</style><script>var x</script><p>its <b>words</b></p></html>",
    ):
        error = error_for(400, said)
        assert "its words" in error.message
        assert "sent" not in error.message
        assert "var x" not in error.message
        assert error.raw
    assert "body.n: its words" in error_for(400, {"detail": [{"loc": ["body", "n"], "msg": "its words"}]}).message
    assert error_for(429, {"error": {"message": "", "code": "billing_limit"}}).message.startswith(
        "HTTP 429: billing_limit"
    )


def test_a_firewall_s_page_is_called_one() -> None:
    assert "a page, and no API's answer" in error_for(403, "<html><title>Attention Required!</title></html>").message


@pytest.mark.parametrize(
    "said",
    [
        "<html><h1>400</h1>The plain HTTP request was sent to HTTPS port</html>",  # nginx
        "Client sent an HTTP request to an HTTPS server.\n",  # Go
    ],
)
def test_a_url_that_wants_https(said: str) -> None:
    error = error_for(400, said)

    assert (error.kind, error.explicit) == (URL, True)
    assert "https" in error.message.lower()


def test_where_a_redirect_leads() -> None:
    def moved(to: str) -> str:
        return error_for(308, "<html>", {"Location": to}).message

    base = "https://gateway.example.net/v1"
    assert moved(f"{base}/chat/completions") == f"HTTP 308 to {base}/chat/completions: set base_url to {base}"
    assert moved(f"{base}/messages").endswith("set base_url to https://gateway.example.net")
    assert moved("https://login.example.net/?to=x").endswith("no API is at base_url")
    assert moved("").startswith("HTTP 308 to nowhere")
    assert KEY not in classify(308, {"location": f"https://x/?key={KEY}"}, "", keys=[KEY]).message


def test_when_a_long_limit_ends() -> None:
    words = "Limit on requests per day reached. "
    assert "it ends in 10 min" in error_for(429, words + "Please try again in 9m38.5s.").message
    assert "it ends in 3 h 20 min" in error_for(429, words, {"Retry-After": "12000"}).message
    assert "it ends later" in error_for(429, words).message
    assert error_for(429, "Slow down", {"Retry-After": "80000"}).kind is RATE, "a long wait alone is no day's limit"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Try again in 60 seconds. Passed model=x", 60.0),
        ("Please retry in 45.5s.", 45.5),
        ("Please try again in 9m38.016s. Need more?", 578.016),
        ("wait 36123 seconds before retrying", 36123.0),
        ("please try again in 2 hours, 5 minutes", 7500.0),
        ("try again after 500ms", 0.5),
        ("try again later", None),
        ("wait 2 months", None),
        ("will reset at 2026-09-01 18:00", None),
    ],
)
def test_a_wait_in_words(said: str, seconds: float | None) -> None:
    assert error_for(429, said).retry_after == seconds
    assert error_for(429, said, {"Retry-After": "7"}).retry_after == 7.0


@pytest.mark.parametrize("status", [200, 408, 409, 425, 429, 500, 503])
def test_every_failure_that_may_pass_says_how_long_to_wait(status: int) -> None:
    assert error_for(status, _error("not now"), {"Retry-After": "7"}).retry_after == 7.0


_KEYS = [
    "error", "errors", "message", "detail", "code", "type", "status", "base_resp", "status_code", "raw", "loc", "msg",
    "metadata", "choices", "content", "retryDelay", "violations", "quotaId", "usage", "id",
]  # fmt: skip
_ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["per day", "quota", "Limit 1, Requested 2", "model x not found", '{"error": "a"}', "<html>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(_KEYS),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(200, 599), _ODD)
def test_whatever_a_body_holds_it_has_a_meaning(status: int, said: Any) -> None:
    error = error_for(status, said)

    assert error.message.encode()
    assert len(error.message) < MAX_MESSAGE_CHARS + 160
    assert error.retry_after is None or error.retry_after >= 0.0
    assert error.kind in UNBILLED or error.kind in Kind


@pytest.mark.parametrize(
    "piece", ["<", "<a", "<script", "max_tokens ", "model ", "limit: 9 ", "{", '["', "\\", "not found ", "=", "=a"]
)
def test_a_long_body_takes_no_time(piece: str) -> None:
    """Patterns that look back over what they have seen would take minutes of a page of 2 MB."""
    for said in (piece * (2_000_000 // len(piece)), json.dumps({"error": piece * 100_000})):
        assert error_for(400, said).kind


@given(
    st.integers(100, 199) | st.integers(300, 599),
    st.text(),
    st.dictionaries(st.sampled_from(["Retry-After", "Date"]), st.text()),
)
def test_any_http_error_is_classified(status: int, text: str, headers: dict[str, str]) -> None:
    error = classify(status, headers, text, keys=[KEY])

    assert error.message.startswith(f"HTTP {status}")
    assert error.message.encode()
    assert error.retry_after is None or error.retry_after >= 0.0


def test_a_limit_no_prompt_fits_is_a_setting_and_no_overflow() -> None:
    """vLLM says this to every request, so it is not the item's failure."""
    text = '{"error": {"message": "max_tokens=9 cannot be greater than max_model_len=8.", "code": 400}}'

    assert classify(400, {}, text).kind == Kind.BAD_REQUEST


WORDINGS = [
    "This model's maximum context length is 8 tokens. However, you requested 9 tokens (4 in the messages, 5 in the "
    "completion). Please reduce the length of the messages or completion.",
    "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 8 tokens and "
    "your request has 2 input tokens.",
    "You passed 9 input tokens and requested 10 output tokens. However, the model's context length is only 8.",
    "The decoder prompt (length 9) is longer than the maximum model length of 8. Make sure that `max_model_len` is "
    "no smaller than the number of text tokens.",
    "the request exceeds the available context size",
    "This model's maximum prompt length is 8 but the request contains 9 tokens.",
    "prompt is too long: 9 tokens > 8 maximum",
]


@pytest.mark.parametrize("words", WORDINGS)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_wordings_of_an_overflow(words: str, status: int) -> None:
    assert classify(status, {}, words).kind is Kind.CONTEXT_OVERFLOW
    assert classify(429, {}, words).kind is Kind.RATE_LIMITED
    assert context_window_in(classify(status, {}, words).message) == (None if "available" in words else 8)


SAYS_NOTHING = {"llama.cpp, by 500", "llama.cpp's code", "Bedrock's prompt", "Ollama's room, by 500", "MiniMax's room"}
PER_MINUTE = {"Groq's", "no minute holds it"}


@pytest.mark.parametrize("name", [name for name, (_, _, kind) in TOLD.items() if kind is OVERFLOW])
def test_an_overflow_says_how_much_the_model_holds(name: str) -> None:
    status, said, _ = TOLD[name]
    none = name in SAYS_NOTHING | PER_MINUTE or name == "Google's room"
    assert context_window_in(error_for(status, said).message) == (None if none else 8)


def test_numbers_with_commas_and_sums() -> None:
    assert context_window_in("maximum context length is 131,072 tokens") == 131072
    assert (
        context_window_in("input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease")
        == 200000
    )
    assert context_window_in("") is None


def test_a_per_minute_limit_that_speaks_of_quota_is_waited_for() -> None:
    text = '{"error": {"code": 429, "message": "You exceeded your current quota, please check your billing details."}}'

    assert classify(429, {}, text).kind is Kind.RATE_LIMITED


TOO_LARGE = "Request too large for gpt-9 in organization org-1 on tokens per min (TPM): Limit 30000, {}Requested 40000."


def test_what_no_minute_holds_is_the_item_s_failure() -> None:
    for used in ("", "Used 29000, "):
        assert classify(429, {}, TOO_LARGE.format(used)).kind is Kind.CONTEXT_OVERFLOW
    fits = TOO_LARGE.format("Used 25000, ").replace("40000", "9000")
    assert classify(429, {}, fits).kind is Kind.RATE_LIMITED
    reached = "Rate limit reached for gpt-9 on tokens per min (TPM): Limit 30000, Used 29000, Requested 9000."
    assert classify(429, {}, reached).kind is Kind.RATE_LIMITED


@pytest.mark.parametrize(
    "words",
    [
        "Unrecognized request argument supplied: context_size",
        "context_length: extra fields are not permitted",
        "Invalid value for 'context window': expected an integer",
        "unknown field max_model_len",
    ],
)
def test_a_setting_that_speaks_of_the_context_is_no_overflow(words: str) -> None:
    """A server refuses it with every request: taken for an overflow, every item would have failed for good."""
    assert classify(400, {}, words).kind is Kind.BAD_REQUEST


def test_a_long_message_is_cut_and_a_key_at_the_cut_is_gone() -> None:
    error = classify(401, {}, "x" * (MAX_MESSAGE_CHARS - 5) + KEY + "y" * 5000, keys=[KEY])

    assert len(error.message) < 400
    assert KEY[:6] not in error.message + error.raw


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, "guardrails: Extra inputs are not permitted", Kind.BAD_REQUEST),
        (400, "Function id 'x': DEGRADED function cannot be invoked", Kind.SERVER_ERROR),
        (400, "Failed to parse grammar: invalid token at 7", Kind.BAD_REQUEST),
        (400, {"code": "invalid_token_count", "message": "no"}, Kind.BAD_REQUEST),
        (500, "open /models/tiny: permission denied", Kind.SERVER_ERROR),
        (400, "this region of the text is not supported", Kind.BAD_REQUEST),
        (400, "it takes no system turn; for its quota per day see the docs", Kind.BAD_REQUEST),
        (503, "overloaded, 60 requests per minute", Kind.SERVER_ERROR),
        (400, "1 validation error: messages.0, input_value='an engine of 3000 rpm'", Kind.BAD_REQUEST),
        (422, "wrong field; 'input': 'the world is overloaded, there is high demand'", Kind.BAD_REQUEST),
        (401, {"code": "account_deactivated", "message": "its use violates our usage policies"}, Kind.UNAUTHORIZED),
    ],
)
def test_harmless_words_are_taken_for_no_more_than_they_say(status: int, said: Any, kind: Kind) -> None:
    error = classify(status, {}, json.dumps({"error": {"message": said} if isinstance(said, str) else said}))
    assert error.kind is kind, error.message


def test_a_redirect_s_body_keeps_no_key() -> None:
    error = classify(302, {"location": "https://x.example/login"}, "Bearer k-9", keys=["k-9"])
    assert "k-9" not in error.raw


def test_words_that_come_again_and_again_are_read_in_no_time() -> None:
    began = time.process_time()
    classify(400, {}, json.dumps({"message": "max_tokens" * 800 + " input prompt messages" * 300}))
    assert time.process_time() - began < 1.0
