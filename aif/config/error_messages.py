"""Turn pydantic's errors into messages for the author of the file: what is wrong with which key, and what to do.

`unknown_key_message` suggests the right key for a typo, or for a name that other tools use (`_SYNONYMS`).
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aif.config.located_yaml import KeyPath, Problem, YamlDocument

_SECRET_KEYS = frozenset(("key", "apikey", "token", "hf_token", "auth_token", "access_token", "secret", "password"))

# Settings that only some providers know; they belong in extra_body.
_BODY_KEYS = (
    "stop top_k min_p typical_p repetition_penalty presence_penalty frequency_penalty length_penalty logit_bias "
    "stop_token_ids chat_template_kwargs enable_thinking thinking thinking_budget guided_json logprobs safety_settings "
    "stop_sequences do_sample reasoning_format include_reasoning disable_reasoning safe_prompt prompt_mode verbosity "
    "context_length_exceeded_behavior transforms plugins num_ctx"
)
# Keys of aif, each with the names that other tools use for it. A name in _SECRET_KEYS or _BODY_KEYS, or one that begins
# like a system prompt, has no effect here: unknown_key_message checks these first.
_SYNONYMS: Mapping[str, str] = {
    word: key
    for key, words in {
        "base_url": "base_urls url urls api_base endpoint endpoints host server api_url azure_endpoint",
        "extra_headers": "headers header default_headers custom_headers",
        "extra_query": "query params api_version default_query",
        "extra_body": "extra extra_args model_kwargs generation_kwargs extra_params additional_params",
        "omit": "random_seed drop_params additional_drop_params omit_params",
        "samples": "n num_samples num_completions num_generations num_return_sequences",
        "max_tokens": "max_new_tokens max_length max_output_tokens max_completion_tokens max_gen_len",
        "timeout_s": "timeout request_timeout",
        "concurrency": "max_concurrency max_workers workers parallel num_workers batch_size max_concurrent_requests",
        "requests_per_minute": "rpm max_rpm rate_limit max_requests_per_minute",
        "tokens_per_minute": "tpm max_tpm max_tokens_per_minute",
        "reasoning_effort": "effort thinking_effort reasoning",
        "reasoning_tags": "think_tags thinking_tags think_tag reasoning_parser strip_thinking",
        "service_tier": "tier",
        "temperature": "temp",
        "model": "model_name model_id checkpoint deployment engine",
        "provider": "api backend type client",
        "reply": "structured_output response_format",
    }.items()
    for word in words.split()
}


class ConflictError(ValueError):
    """Raised by a validator if keys of a mapping contradict each other.

    problems: one problem for each contradiction. Its key path is relative to that mapping: `base_url`, not
        `models.a.base_url`.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = problems


def validation_problems(
    error: ValidationError, document: YamlDocument, unknown: Callable[[KeyPath], str]
) -> Iterator[Problem]:
    """Yield a `Problem` for each of pydantic's errors, except errors that only follow from another.

    error: the exception with pydantic's errors.
    document: the YAML that was validated. Messages show a number as it is written there.
    unknown: gets the key path of an unknown key and returns its message.
    """
    details = error.errors(include_url=False)
    for detail in details:
        keys = tuple(key for key in detail["loc"] if key != "[key]")
        if _is_consequence(detail, details):
            continue
        reason = detail.get("ctx", {}).get("error")
        if isinstance(reason, ConflictError):
            yield from (Problem(keys + problem.keys, problem.text) for problem in reason.problems)
        elif reason is not None:
            yield Problem(keys, str(reason))
        elif detail["type"] == "extra_forbidden":
            yield Problem(keys, unknown(keys))
        else:
            yield Problem(keys, _message(detail, document.location_of(keys).written))


def format_value(value: Any, written: str | None = None) -> str:
    """Format a value for an error message. A string is cut to 60 characters; a list or mapping is shown by its type
    alone. For any other value, `written` is its spelling in the file, which is shown if it is given."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    return written or str(value).lower()


def unknown_key_message(key: str, known: Sequence[str]) -> str:
    """Return the error message for a key that isn't among the `known` keys of its section. The message suggests the
    known key that other tools call `key` (`_SYNONYMS`), else the known key with the most similar spelling. For a key
    that looks like an API key, a system prompt or a setting of `extra_body`, the message says where to put the value
    instead."""
    plain = key.lower().replace("-", "_")
    if plain in _SECRET_KEYS or plain.endswith("api_key"):
        return (
            "an API key must not be in the file; put it into the environment variable OPENAI_API_KEY, "
            "ANTHROPIC_API_KEY or HF_TOKEN, or into one that api_key_env: names"
        )
    if "extra_body" in known and plain in _BODY_KEYS.split():
        return f"unknown key {key!r}; settings that only the provider knows go into extra_body: {{{plain}: …}}"
    if "extra_body" in known and plain.startswith(("system_", "instruct", "prompt")):
        return f"unknown key {key!r}; a system prompt is a principle: see `principles` of the pipeline"
    if (meant := _SYNONYMS.get(plain)) in known:
        return f"unknown key {key!r}; did you mean {meant!r}?"
    if similar := difflib.get_close_matches(key, known, n=1):
        return f"unknown key {key!r}; did you mean {similar[0]!r}?"
    return f"unknown key {key!r}; keys known here: {', '.join(known)}"


def _is_consequence(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Return whether an error (`detail`) only follows from another of the errors (`details`), so that it needs no
    message: a list is too short because its entries are invalid, or a default can't be computed because a key is
    invalid."""
    keys = detail["loc"]
    below = any(other["loc"][: len(keys)] == keys and len(other["loc"]) > len(keys) for other in details)
    return detail["type"] == "default_factory_not_called" or (detail["type"] == "too_short" and below)


def _message(detail: ErrorDetails, written: str | None) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    got = format_value(value, written)
    if kind == "missing":
        return "missing; this key is needed, add it"
    if kind == "literal_error":
        return _wrong_choice(value, str(context["expected"]), got)
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind]} {context[_LIMIT_NAMES[kind]]:g}, got {got}"
    if kind == "too_short":
        return "empty; give at least one entry, or remove the key"
    if kind == "string_too_short":
        return "empty; write something, or remove the key"
    if kind == "finite_number":
        return f"expected a finite number, got {got}"
    if kind in _EXPECTED:
        return _wrong_type(_EXPECTED[kind], value, got)
    return f"{detail['msg']}, got {got}"


def _wrong_type(expected: str, value: Any, got: str) -> str:
    text = f"expected {expected}, got {got}"
    if value is None:
        return f"{text}; fill it in, or remove the key"
    if expected == "a text" and not isinstance(value, dict | list | tuple):
        return f"{text}; put it in quotes"
    if expected.endswith("number") and isinstance(value, str) and _numeric(value):
        return f"{text}; remove the quotes"
    return text


def _numeric(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


# The base_url of services and servers that people name as a provider.
_BASE_URLS = (
    ("azure", "https://NAME.openai.azure.com/openai/v1"),
    ("ollama", "http://localhost:11434/v1"),
    ("studio", "http://localhost:1234/v1"),
    ("llama", "http://localhost:8080/v1"),
    ("sglang", "http://localhost:30000/v1"),
    ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai"),
    ("google", "https://generativelanguage.googleapis.com/v1beta/openai"),
    ("groq", "https://api.groq.com/openai/v1"),
    ("openrouter", "https://openrouter.ai/api/v1"),
    ("together", "https://api.together.xyz/v1"),
    ("mistral", "https://api.mistral.ai/v1"),
    ("deepseek", "https://api.deepseek.com/v1"),
    ("fireworks", "https://api.fireworks.ai/inference/v1"),
    ("xai", "https://api.x.ai/v1"),
    ("grok", "https://api.x.ai/v1"),
    ("cohere", "https://api.cohere.ai/compatibility/v1"),
    ("cerebras", "https://api.cerebras.ai/v1"),
    ("moonshot", "https://api.moonshot.ai/v1"),
    ("kimi", "https://api.moonshot.ai/v1"),
    ("dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    ("qwen", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    ("zai", "https://api.z.ai/api/paas/v4"),
    ("zhipu", "https://api.z.ai/api/paas/v4"),
)


def _wrong_choice(value: Any, expected: str, got: str) -> str:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    text = f"expected {' | '.join(choices)}, got {got}"
    similar = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    if not similar and "vllm" in choices and isinstance(value, str):
        at = next((f" (base_url: {url})" for word, url in _BASE_URLS if word in value.lower()), "")
        return f"{text}; for a server with OpenAI's API write provider: openai and its base_url{at}, or vllm"
    return f"{text}; did you mean {similar[0]!r}?" if similar else text


_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "is_instance_of": "a text",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}
_BOUNDS: Mapping[str, str] = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
}
_LIMIT_NAMES: Mapping[str, str] = {"greater_than": "gt", "greater_than_equal": "ge", "less_than_equal": "le"}
