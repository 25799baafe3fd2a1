"""Find the context window of each model and judge: the most tokens that prompt and reply may have together.

It is taken from the pipeline file, else from the server's list of models, else from an earlier error of the server.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp

from aif.config.pipeline import Pipeline, request_options
from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.strict_json import parse_body
from aif.core.types import Stage
from aif.providers.base import CallError
from aif.providers.http import deadline, proxy_of, read_body
from aif.providers.vllm import normalize_base_url

LIST_S = 5.0  # seconds to wait for a list of models

Key = tuple[Stage, str]

# Where a list of models has the context window (object in the entry, field); the window as served comes first: vLLM,
# SGLang; LM Studio; OpenRouter, Together; Groq; Mistral; llama.cpp.
_FIELDS = (
    ("", "max_model_len"),
    ("", "loaded_context_length"),
    ("top_provider", "context_length"),
    ("", "context_length"),
    ("", "context_window"),
    ("", "max_context_length"),
    ("meta", "n_ctx"),
    ("meta", "n_ctx_train"),
)


def declared_endpoints(pipeline: Pipeline) -> dict[Key, Model | Judge]:
    """Return every model and judge of a pipeline by (stage, name)."""
    models: dict[Key, Model | Judge] = {("completion", name): model for name, model in pipeline.models.items()}
    return models | {("judgement", name): judge for name, judge in pipeline.judges.items()}


async def known_windows(
    endpoints: Mapping[Key, DeclaredEndpoint], from_errors: Mapping[Key, int | None]
) -> dict[Key, int]:
    """Return the context windows that are known, in tokens, by (stage, name). The window of a model or judge comes from
    the first of these that states it:

    - the pipeline file;
    - the list of models that the server returns;
    - `from_errors`: windows stated in earlier error messages of the server (None: none did).
    """
    undeclared = {_server(e): e for e in endpoints.values() if e.context_window is None and e.base_url}
    lists = dict(zip(undeclared, await asyncio.gather(*map(_model_list, undeclared.values())), strict=True))
    windows = {
        key: e.context_window or listed_window(lists.get(_server(e)), e.served_name) or from_errors.get(key)
        for key, e in endpoints.items()
    }
    return {key: window for key, window in windows.items() if window}


def _server(endpoint: DeclaredEndpoint) -> tuple[str, str | None]:
    return next(iter(endpoint.base_url), ""), endpoint.api_key_env


async def _model_list(endpoint: DeclaredEndpoint) -> Any:
    """Return the server's list of models; None if it can't be fetched or parsed."""
    try:
        url = f"{normalize_base_url(endpoint.base_url[0])}/models"
        request = request_options(endpoint, ENVIRON)
        async with (
            deadline(LIST_S, url, request.secrets),
            aiohttp.ClientSession(headers=dict(request.headers), cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, params=request.query, proxy=proxy_of(url), allow_redirects=False) as response,
        ):
            return parse_body(await read_body(response.content.iter_any()))
    except (BadInput, CallError, ValueError, RecursionError):  # no key yet, not up, no list: a run reports it
        return None


def listed_window(data: Any, model: str) -> int | None:
    """Return the context window of `model` in `data`, a server's parsed list of models; None if it isn't there. If the
    list has a single entry, that entry counts whatever its name: llama.cpp serves one model under any name."""
    rows = data.get("data") if isinstance(data, dict) else data
    models = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    named = [row for row in models if row.get("id") == model] or (models if len(models) == 1 else [])
    return next((n for row in named for n in _numbers(row)), None)


def _numbers(row: Mapping[str, Any]) -> Iterator[int]:
    for part, field in _FIELDS:
        values = row.get(part) if part else row
        n = values.get(field) if isinstance(values, dict) else None
        if isinstance(n, int) and not isinstance(n, bool) and n > 0:
            yield n
