"""The fix that is suggested for an error names its cause."""

import re
from pathlib import Path

import pytest

from aif.engine.advice import _BY_MESSAGE, FIXES, fix
from aif.providers.base import Kind

SHAPE, QUOTA = Kind.BAD_REQUEST, Kind.QUOTA_EXHAUSTED


@pytest.mark.parametrize(
    ("kind", "message", "suggested"),
    [
        (
            SHAPE,
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "dialect: openai",
        ),
        (SHAPE, "Unrecognized request argument supplied: max_completion_tokens", "dialect: compatible"),
        (SHAPE, "body.seed: Extra inputs are not permitted", "omit: [seed]"),
        (SHAPE, "Invalid service_tier argument", "service_tier"),
        (SHAPE, "Unsupported value: 'temperature' does not support 0.2", "temperature: null"),
        (SHAPE, "`temperature` and `top_p` cannot both be specified", "top_p: null"),
        (SHAPE, "System role not supported", "system: fold_into_user"),
        (SHAPE, "Developer instruction is not enabled for models/tiny", "system: fold_into_user"),
        (SHAPE, "Conversation roles must alternate user/assistant", "system: fold_into_user"),
        (SHAPE, "Only user and assistant roles are supported!", "system: fold_into_user"),
        (SHAPE, "response_format value is json_schema, which is not supported", "reply: text"),
        (
            SHAPE,
            "Could not finish: max_tokens was reached. Please try again with higher max_tokens",
            "raise max_tokens",
        ),
        (SHAPE, "body.messages.1.role: Input should be 'user' or 'assistant'", "system: fold_into_user"),
        (Kind.SERVER_ERROR, "HTTP 500: Conversation roles must alternate", "system: fold_into_user"),
        (Kind.SERVER_ERROR, "HTTP 504: stream timeout", "a proxy timed out"),
        (Kind.SERVER_ERROR, "HTTP 524: A timeout occurred", "lower max_tokens"),
        (Kind.CONNECTION, "400, message: Can not decode content-encoding: gzip", "proxy"),
        (QUOTA, "Key limit exceeded (total limit)", "own limit"),
        (QUOTA, "your limit will reset at 10:00", "wait until the limit resets"),
        (SHAPE, "Invalid schema for 'reply': 'maxItems' is not permitted", "dialect: openai"),
        (SHAPE, "Invalid schema for 'reply': no", "reply: text"),
        (SHAPE, "413 Request Entity Too Large", "max_chars"),
        (SHAPE, "max_tokens is too large: 9. This model supports at most 8 completion tokens", "lower it"),
        (SHAPE, "reasoning_effort 'lowest' is not valid", "reasoning_effort"),
        (SHAPE, "As of transformers v4.44, default chat template is no longer allowed", "chat template"),
        (SHAPE, "Unrecognized request argument supplied: foo", "doesn't know a field"),
        (SHAPE, "'n' must be 1", "one choice"),
        (SHAPE, "This model only supports stream mode", "gathers the reply"),
        (SHAPE, "nobody knows", FIXES[SHAPE]),
        (Kind.CONTEXT_OVERFLOW, "maximum context length is 8", FIXES[Kind.CONTEXT_OVERFLOW]),
        (Kind.CONTEXT_OVERFLOW, "too large on tokens per min (TPM): Limit 8, Requested 9", "token limit per minute"),
        (QUOTA, "Budget has been exceeded!", "budget"),
        (QUOTA, "requests per day (a limit of more than a minute; it ends in 9 min)", "wait until the limit resets"),
        (QUOTA, "Insufficient credits", "money"),
        (Kind.UNAUTHORIZED, "HTTP 403: Blocked (a page, and no API's answer: …)", "firewall"),
        (Kind.UNAUTHORIZED, "Incorrect API key", "environment variable"),
        (Kind.BAD_REPLY, "The answer's choice is an error.", "read its message"),
        (Kind.BAD_REPLY, "The answer is not JSON: <html>an error page", "base_url"),
        (Kind.CONNECTION, "http-gateway.local: Connection refused", "is the server up"),
        (Kind.BAD_REPLY, "The answer is larger than 8 MiB", "doesn't end"),
        (Kind.BAD_REPLY, "The completion finished by abort", "log"),
        (Kind.CONNECTION, "a.b through the proxy 127.0.0.1:9 (SOCKS, which aif doesn't speak): reset", "an HTTP proxy"),
        (Kind.CONNECTION, "a.b through the proxy 127.0.0.1:9: Connection refused", "NO_PROXY"),
        (SHAPE, "Model doubao-seed-1.6 does not support parameter logprobs.", "extra_body"),
        (SHAPE, "Argument not supported on this model: presencePenalty", "extra_body"),
        (SHAPE, "body.logit_bias: property 'body.logit_bias' is unsupported", "extra_body"),
        (SHAPE, "parameter.enable_thinking must be set to false for non-streaming calls", "enable_thinking: false"),
        (SHAPE, "Extra inputs are not permitted, field: 'enable_thinking', value: False", "remove the setting"),
        (SHAPE, "This model does not support image inputs", FIXES[SHAPE]),
        (SHAPE, "invalid request: p must be between 0.01 and 0.99 inclusive, got 1", "top_p: null"),
        (SHAPE, "This model does not support the effort parameter.", "reasoning_effort"),
        (SHAPE, "output_config: Extra inputs are not permitted", "reasoning_effort"),
        (SHAPE, '"gemma3" does not support thinking', "reasoning_effort"),
        (SHAPE, "Unsupported JSON schema fields: {'minItems'}", "dialect: openai"),
        (SHAPE, "Failed to initialize samplers: failed to parse grammar", "dialect: openai"),
        (SHAPE, "`maximum` tokens exceeded", FIXES[SHAPE]),
        (SHAPE, "Template error: template not found", "chat template"),
        (SHAPE, "API version not supported", "extra_query: {api-version"),
        (Kind.WRONG_URL, "HTTP 404: Resource not found (check base_url)", "extra_query: {api-version"),
        (Kind.UNAUTHORIZED, "Access denied due to invalid subscription key", "extra_headers: {api-key"),
        (Kind.UNKNOWN_MODEL, "No endpoints found that can handle the requested parameters", "require_parameters"),
        (Kind.UNKNOWN_MODEL, "No endpoints available matching your guardrail restrictions", "privacy"),
        (Kind.UNKNOWN_MODEL, "No endpoints found for a/b:free.", "check `model`"),
        (Kind.CACHED, "", "samples: 1"),
    ],
)
def test_the_fix_for_a_message(kind: Kind, message: str, suggested: str) -> None:
    assert suggested in fix(kind, message)


def test_every_error_kind_has_a_fix_and_other_states_have_none() -> None:
    assert FIXES.keys() == {kind.value for kind in Kind}
    assert fix("pending", "") == ""


def test_the_pipeline_keys_that_fixes_name_are_documented() -> None:
    documented = Path("docs/pipeline.md").read_text()
    for text in (*FIXES.values(), *(fix_text for _, _, fix_text in _BY_MESSAGE)):
        for key in re.findall(r"`(\w+): ", text):
            assert f".{key}`" in documented, key
