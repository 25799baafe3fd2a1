"""docs/providers.md: each entry is run, by `aif run` and its provider's client, against a stub that refuses what the
provider refuses; and what is refused without it comes with the advice that leads to it."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from aif.config.pipeline import Pipeline, load
from aif.core.errors import Exit
from tests.engine.test_orchestrator import aif, ask
from tests.support.dialects import DIALECTS, KEY, TASK, every_provider

PAGE = (Path(__file__).resolve().parent.parent / "docs/providers.md").read_text()
BLOCKS = dict(re.findall(r"^### (.+)\n(?:(?!^#).*\n)*?```yaml\n((?:.*\n)*?)```", PAGE, re.MULTILINE))
# Where none is given: the address itself, whose key is that of the environment.
ADDRESSES = {
    "OpenAI": ("http://api.openai.com/v1", "OPENAI_API_KEY"),
    "Anthropic": ("http://api.anthropic.com", "ANTHROPIC_API_KEY"),
}
N = 2
SIMULATED = {"provider": "simulator"}
Case = tuple[str, str, dict[str, Any], str, str]

# By heading and role, what an entry has instead (None: not the key), the words that come, and what helps.
REFUSED: list[Case] = [
    ("OpenAI", "model", {"dialect": "compatible"}, "Use 'max_completion_tokens' instead", "dialect: openai"),
    ("Azure", "model", {"temperature": 1.0}, "'temperature' is not supported", "temperature: null"),
    ("Azure, older surface", "model", {"extra_query": None}, "Resource not found", "extra_query: {api-version"),
    (
        "Azure, older surface",
        "judge",
        {"extra_headers": None, "api_key_env": "AZURE_OPENAI_API_KEY"},
        "Access denied due to invalid subscription key",
        "extra_headers: {api-key",
    ),
    ("Anthropic", "model", {"extra_body": {"top_k": 40}}, "top_k: Extra inputs", "see extra_body"),
    ("Mistral", "model", {"omit": None}, "body.seed: Extra inputs are not permitted", "omit: [seed]"),
    ("Mistral", "judge", {"dialect": "openai"}, "body.max_completion_tokens: Extra", "dialect: compatible"),
    ("Gemini", "judge", {"omit": None}, 'Unknown name "seed": Cannot find field', "omit: [seed]"),
    ("xAI", "model", {"reasoning_effort": "low"}, "does not support parameter", "remove `reasoning_effort`"),
    ("xAI", "model", {"extra_body": {"presence_penalty": 1}}, "Argument not supported", "see extra_body"),
    ("DeepSeek", "judge", {"reply": None}, "This response_format type is unavailable now", "reply: text"),
    ("Groq", "judge", {"dialect": None}, "maxLength is not supported", "dialect: openai"),
    ("Groq", "model", {"extra_body": {"logit_bias": {"1": 2}}}, "is unsupported", "see extra_body"),
    ("Cerebras", "model", {"extra_body": {"min_p": 0.1}}, "'body.min_p' is unsupported", "see extra_body"),
    ("Cerebras", "judge", {"dialect": None}, "Unsupported JSON schema fields", "dialect: openai"),
    ("Cohere", "model", {"top_p": 1.0}, "#/p: 1 is not less", "top_p: null"),
    ("Alibaba Model Studio", "model", {"extra_body": None}, "must be set to false", "{enable_thinking: false}"),
    ("Moonshot", "judge", {"temperature": 0.0}, "only 1 is allowed", "temperature: null"),
    ("Moonshot", "model", {"top_p": 1.0}, "only 0.95 is allowed", "top_p: null"),
    ("OpenRouter", "model", {"omit": None}, "No endpoints found that can handle", "require_parameters"),
    (
        "Fireworks",
        "model",
        {"extra_body": {"enable_thinking": False}},
        "field: 'enable_thinking'",
        "remove the setting",
    ),
    ("Z.ai", "model", {"temperature": 1.3}, "temperature参数非法", "temperature: null"),
    ("TGI", "model", {"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0", "top_p: null"),
    ("TGI", "judge", {"temperature": 0.0}, "must be strictly positive", "temperature: null"),
    ("llama.cpp", "judge", {"dialect": None}, "failed to parse grammar", "dialect: openai"),
]


def entry(heading: str, judge: bool = False, change: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the page says to write, the address over plain HTTP, which a stub can stand behind."""
    (found,) = yaml.safe_load(BLOCKS[heading]).values()
    if judge and (more := re.search("# a judge needs: (.*)", BLOCKS[heading])):
        found |= yaml.safe_load(more[1])
    url, key = ADDRESSES.get(heading, (found.get("base_url", ""), found.get("api_key_env")))
    found |= {"base_url": url.replace("https://", "http://")} | ({"api_key_env": key} if key else {})
    gone = {name for name, said in (change or {}).items() if said is None}
    return {name: said for name, said in (found | (change or {})).items() if name not in gone}


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    with every_provider() as url:
        yield url


def run(folder: Path, proxy: str, models: dict[str, Any], judges: dict[str, Any]) -> tuple[int, str, Pipeline]:
    """`aif run` of N prompts, each completed by every model and judged by every judge: code, stderr, pipeline."""
    rows = [{"prompt": f"{TASK} {n}."} for n in range(N)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = {
        "name": "dialects",
        "store": str(folder / "feedback.duckdb"),
        "prompts": [{"file": "prompts.jsonl"}],
        "completions": {"per_prompt": len(models), "max_tokens": 200},
        "models": models,
        "judges": judges,
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline))
    keys = dict.fromkeys(re.findall(r"\b[A-Z_]+_API_KEY\b", PAGE), KEY)
    clean = {name: said for name, said in os.environ.items() if not name.lower().endswith("_proxy")}
    done = aif("run", "--yes", path, env=clean | keys | {"HTTP_PROXY": proxy})
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr, load(path)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, proxy: str) -> tuple[int, str, Pipeline]:
    """A run of every entry of the page, as a model and as a judge."""
    models = {heading: entry(heading) for heading in BLOCKS}
    judges = {f"{heading} judges": entry(heading, judge=True) for heading in BLOCKS}
    return run(tmp_path_factory.mktemp("answered"), proxy, models, judges)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, proxy: str) -> dict[str, tuple[int, str]]:
    """By role, a run of every entry that lacks what helps."""
    wrong = {
        role: {
            f"case {n}": entry(heading, role == "judge", change)
            for n, (heading, of, change, _, _) in enumerate(REFUSED)
            if of == role
        }
        for role in ("model", "judge")
    }
    sound = {"one": SIMULATED, "two": SIMULATED}
    folders = [tmp_path_factory.mktemp(role) for role in wrong]
    with ThreadPoolExecutor() as both:
        completed = both.submit(run, folders[0], proxy, wrong["model"], {"judge": SIMULATED})
        judged = both.submit(run, folders[1], proxy, sound, wrong["judge"])
        return {"model": completed.result()[:2], "judge": judged.result()[:2]}


def test_every_provider_of_the_table_has_an_entry_and_a_stub() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)[1:]

    assert len(rows) >= 10
    assert BLOCKS.keys() == DIALECTS.keys()
    assert {name.partition(",")[0] for name in BLOCKS} == {row.partition(" (")[0] for row in rows}


@pytest.mark.parametrize("heading", BLOCKS)
def test_an_entry_of_the_page_is_answered(heading: str, answered: tuple[int, str, Pipeline]) -> None:
    code, said, pipeline = answered
    calls = ask(pipeline, "SELECT endpoint, verdict, count(*) AS n FROM calls GROUP BY ALL ORDER BY ALL")

    assert [row for row in calls if row["endpoint"] in (heading, f"{heading} judges")] == [
        {"endpoint": heading, "verdict": "answered", "n": N},
        {"endpoint": f"{heading} judges", "verdict": "answered", "n": N},
    ]
    assert code == Exit.DONE, said


@pytest.mark.parametrize(("n", "case"), [*enumerate(REFUSED)], ids=[f"{one[0]}-{one[4]}" for one in REFUSED])
def test_what_is_refused_comes_with_the_key_that_helps(n: int, case: Case, refused: dict[str, tuple[int, str]]) -> None:
    _, role, _, words, advice = case
    code, said = refused[role]
    (told,) = re.findall(rf"^  case {n}: (.*\n    → .*)", said, re.MULTILINE)

    assert words in told
    assert advice in told
    assert code == Exit.REFUSED
