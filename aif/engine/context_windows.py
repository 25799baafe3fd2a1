"""How many tokens a model or judge holds, prompt and reply together: as declared, else as its server lists it, else as
its own errors said."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp

from aif.config.pipeline import Pipeline, options
from aif.config.sections import DeclaredEndpoint, Judge, Model
from aif.core.environment import ENVIRON
from aif.core.errors import BadInput
from aif.core.strict_json import parse
from aif.core.types import Stage
from aif.providers.base import CallError
from aif.providers.http import deadline, proxy_of, whole
from aif.providers.vllm import normalised

LIST_S = 5.0  # for a list of models; a server that is not up tells nothing

Key = tuple[Stage, str]

# Where a list says it, what is served first: vLLM, SGLang; LM Studio; OpenRouter, Together; Groq; Mistral; llama.cpp.
_SAID = (
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
    models: dict[Key, Model | Judge] = {("completion", name): one for name, one in pipeline.models.items()}
    return models | {("judgement", name): one for name, one in pipeline.judges.items()}


async def known_windows(of: Mapping[Key, DeclaredEndpoint], erred: Mapping[Key, int | None]) -> dict[Key, int]:
    """The windows of these models and judges that are known; `erred` has what errors said."""
    asked = {_place(one): one for one in of.values() if one.window is None and one.base_url}
    lists = dict(zip(asked, await asyncio.gather(*map(_list, asked.values())), strict=True))
    found = {
        key: one.window or listed_window(lists.get(_place(one)), one.served_name) or erred.get(key)
        for key, one in of.items()
    }
    return {key: window for key, window in found.items() if window}


def _place(one: DeclaredEndpoint) -> tuple[str, str | None]:
    return next(iter(one.base_url), ""), one.api_key_env


async def _list(one: DeclaredEndpoint) -> Any:
    """What a server says of its models; None where it says nothing that can be read."""
    try:
        url = f"{normalised(one.base_url[0])}/models"
        said = options(one, ENVIRON)
        async with (
            deadline(LIST_S, url, said.secrets),
            aiohttp.ClientSession(headers=dict(said.headers), cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(url, params=said.query, proxy=proxy_of(url), allow_redirects=False) as answer,
        ):
            return parse(await whole(answer.content.iter_any()))
    except (BadInput, CallError, ValueError, RecursionError):  # no key yet, not up, no list: a run tells of that
        return None


def listed_window(data: Any, model: str) -> int | None:
    """The window of a model by a list, or of the only one there: llama.cpp serves one, whatever it is called."""
    rows = data.get("data") if isinstance(data, dict) else data
    models = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    own = [row for row in models if row.get("id") == model] or (models if len(models) == 1 else [])
    return next((n for row in own for n in _numbers(row)), None)


def _numbers(row: Mapping[str, Any]) -> Iterator[int]:
    for part, name in _SAID:
        of = row.get(part) if part else row
        n = of.get(name) if isinstance(of, dict) else None
        if isinstance(n, int) and not isinstance(n, bool) and n > 0:
            yield n
