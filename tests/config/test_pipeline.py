"""Pipeline files: what a sound one gives, and the messages for everything that can be wrong."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aif.config.pipeline import Pipeline, api_key, load, parse, request_options
from aif.config.sections import Model, Price
from aif.core.errors import BadInput
from aif.core.types import Sampling, Usage

PATH = Path("p.yaml")

SOUND = """\
name: zephyr-7b
seed: 42
prompts:
  - hub: HuggingFaceH4/ultrachat_200k
    split: train_sft
    limit: 64000
  - file: more/own prompts.jsonl
principles: ultrafeedback
models:
  llama-2-7b-chat:
    provider: vllm
    base_url: http://gpu-2:8000/v1/
    model: meta-llama/Llama-2-7b-chat-hf
    revision: 08751db
    concurrency: 256
  small-openai: {provider: openai, model: gpt-4.1-mini, price: {input: 0.40, cached_input: 0.10, output: 1.60}}
  rehearsal: {provider: simulator, quality: 0.6}
  served: {provider: vllm, base_url: [http://a:1/v1, http://b:1/v1]}
judges:
  gpt-4.1: {provider: openai, model: gpt-4.1-2025-04-14, price: {input: 2, output: 8}}
export: {formats: [trl], test_size: 0.05, license: mit}
"""


def sound(*sets: str) -> Pipeline:
    return parse(SOUND, PATH, sets)


def complaints(text: str, *sets: str) -> list[str]:
    with pytest.raises(BadInput) as raised:
        parse(text, PATH, sets)
    return str(raised.value).splitlines()


# what a sound file gives


def test_every_key_has_its_place() -> None:
    pipeline = sound()
    assert (pipeline.name, pipeline.seed, pipeline.principles, pipeline.rubric) == (
        "zephyr-7b",
        42,
        "ultrafeedback",
        "unified",
    )
    assert pipeline.store == Path("runs/zephyr-7b/feedback.duckdb")
    assert [(s.source, s.split, s.limit, s.field) for s in pipeline.prompts] == [
        ("ultrachat_200k", "train_sft", 64000, "prompt"),
        ("own prompts", "train", None, "prompt"),
    ]
    assert list(pipeline.models) == ["llama-2-7b-chat", "small-openai", "rehearsal", "served"]
    assert [m.name for m in pipeline.models.values()] == list(pipeline.models)
    assert next(iter(pipeline.judges.values())).name == "gpt-4.1"
    assert pipeline.export.test_size == 0.05
    assert pipeline.path == PATH


def test_defaults_that_depend_on_the_provider() -> None:
    models = sound().models
    assert [m.concurrency for m in models.values()] == [256, 16, 32, 64]
    assert [m.timeout_s for m in models.values()] == [300] * 4
    assert next(iter(sound().judges.values())).timeout_s == 120


def test_addresses_are_a_tuple_whether_one_or_several() -> None:
    models = sound().models
    assert models["llama-2-7b-chat"].base_url == ("http://gpu-2:8000/v1",)
    assert models["served"].base_url == ("http://a:1/v1", "http://b:1/v1")
    assert models["small-openai"].base_url == ()


def test_identity_is_the_declared_model_and_revision_never_the_host() -> None:
    assert [m.identity for m in sound().models.values()] == [
        "meta-llama/Llama-2-7b-chat-hf@08751db",
        "gpt-4.1-mini",
        "simulator/rehearsal?quality=0.6",
        "served",
    ]
    elsewhere = sound("models.llama-2-7b-chat.base_url=http://other:1/v1")
    assert [m.identity for m in elsewhere.models.values()] == [m.identity for m in sound().models.values()]
    judge = next(iter(sound("judges={j: {provider: simulator, noise: 0.2}}").judges.values()))
    assert judge.identity == "simulator/j?noise=0.2"


def test_sampling_merges_overrides_and_null_is_not_sent() -> None:
    pipeline = sound(
        "models.rehearsal.temperature=null", "models.served={provider: simulator, top_p: 0.5, max_tokens: 9}"
    )
    assert pipeline.sampling(pipeline.models["small-openai"]) == Sampling(1024, 1.0, 1.0)
    assert pipeline.sampling(pipeline.models["rehearsal"]) == Sampling(1024, None, 1.0)
    assert pipeline.sampling(pipeline.models["served"]) == Sampling(9, 1.0, 0.5)
    assert next(iter(pipeline.judges.values())).sampling == Sampling(2048, 0.0, None)
    assert next(iter(sound("judges.gpt-4.1.temperature=null").judges.values())).sampling == Sampling(2048, None, None)


def test_an_unknown_price_is_none_and_never_zero() -> None:
    usage = Usage(input=1_000_000, output=500_000, cached=400_000)
    models = sound().models
    assert models["small-openai"].cost(usage) == pytest.approx(0.6 * 0.4 + 0.4 * 0.1 + 0.5 * 1.6)
    assert next(iter(sound().judges.values())).cost(usage) == pytest.approx(2 + 4), (
        "without a price for cached tokens they cost the full one"
    )
    assert sound("models.small-openai.price=null").models["small-openai"].cost(usage) is None
    assert models["rehearsal"].cost(usage) == models["served"].cost(usage) == 0
    assert sound("models.served.price={input: 1, output: 0}").models["served"].cost(usage) == 1


def test_no_call_costs_less_than_nothing() -> None:
    """A journal may hold usage of a server that counts cached tokens beside the input, not as part of it."""
    price = Price(input=10.0, cached_input=1.0, output=40.0)

    assert price.cost(Usage(100, 20, cached=5000)) == pytest.approx((5000 * 1 + 20 * 40) / 1e6)


def test_tokens_written_to_the_cache_have_their_own_price() -> None:
    usage = Usage(input=1_000_000, output=0, cached=200_000, written=300_000)
    price = "price: {input: 3, output: 15, cached_input: 0.3, cache_write: 3.75}"
    model = sound(f"models.served={{provider: anthropic, {price}}}").models["served"]
    assert model.cost(usage) == pytest.approx(0.5 * 3 + 0.2 * 0.3 + 0.3 * 3.75)
    plain = sound("models.served={provider: anthropic, price: {input: 3, output: 15}}").models["served"]
    assert plain.cost(usage) == pytest.approx(3)
    assert sound("models.served={provider: anthropic}").models["served"].cost(usage) is None


def test_a_launched_model_is_called_by_what_is_launched_unless_it_has_a_name() -> None:
    launch = "launch: {model: org/a, gpus: 2, args: [--dtype, bfloat16], env: {VLLM_CPU_KVCACHE_SPACE: 1}}"
    launched = sound(f"models.served={{provider: vllm, revision: r1, {launch}}}").models["served"]
    assert (launched.served_name, launched.identity) == ("org/a", "org/a@r1")
    assert launched.launch is not None
    assert (launched.launch.gpus, launched.launch.replicas, launched.launch.ready_s) == (2, None, 900)
    assert launched.launch.args == ("--dtype", "bfloat16")
    assert launched.launch.env == {"VLLM_CPU_KVCACHE_SPACE": "1"}
    named = sound(f"models.served={{provider: vllm, model: mine, {launch}}}").models["served"]
    assert named.identity == "mine"
    judge = sound("judges={j: {provider: vllm, launch: {model: org/j}}}").judges["j"]
    assert judge.identity == "org/j"


@pytest.mark.parametrize(
    ("settings", "dialect"),
    [
        ("provider: openai", "openai"),
        ("provider: openai, base_url: https://eu.api.openai.com/v1", "openai"),
        ("provider: openai, base_url: https://mine.openai.azure.com/openai/v1", "openai"),
        ("provider: openai, base_url: https://mine.services.ai.azure.com/openai/v1", "openai"),
        ("provider: openai, base_url: https://notopenai.com/v1", "compatible"),
        ("provider: openai, base_url: http://gateway:4000/v1", "compatible"),
        ("provider: openai, base_url: http://gateway:4000/v1, dialect: openai", "openai"),
        ("provider: vllm, base_url: http://gateway:4000/v1, dialect: openai", "openai"),
        ("provider: openai, dialect: compatible", "compatible"),
        ("provider: simulator", "compatible"),
    ],
)
def test_the_dialect_of_an_endpoint(settings: str, dialect: str) -> None:
    assert sound(f"models.served={{{settings}}}").models["served"].api_dialect == dialect


def test_what_only_the_provider_knows_is_part_of_the_sampling_settings() -> None:
    plain, steered = sound(), sound("models.served.extra_body={top_k: 40, chat_template_kwargs: {b: 1, a: [x]}}")
    one = steered.models["served"]
    assert steered.sampling(one).identity == plain.sampling(plain.models["served"]).identity | {
        "extra_body": {"chat_template_kwargs": {"a": ["x"], "b": 1}, "top_k": 40}
    }
    assert one.identity == plain.models["served"].identity
    judge = sound("judges={j: {provider: openai, extra_body: {min_p: 0.1}}}").judges["j"]
    assert judge.sampling.extra == '{"min_p":0.1}'


def test_a_call_costs_what_the_tier_costs_that_served_it() -> None:
    usage = Usage(input=1_000_000, output=0)
    price = "price: {input: 2, output: 8, tiers: {flex: {input: 1, output: 4}}}"
    flex = sound(f"models.served={{provider: openai, service_tier: flex, {price}}}").models["served"]
    assert [flex.cost(usage, tier) for tier in (None, "flex", "default", "priority")] == [1, 1, 2, None]
    assert flex.max_cost(1_000_000, 0) == 2, "it may be served by the usual one"
    assert flex.timeout_s == 900
    usual = sound(f"models.served={{provider: openai, {price}}}").models["served"]
    assert [usual.cost(usage, tier) for tier in (None, "flex", "default", "scale")] == [2, 1, 2, 2]
    unknown = sound("models.served={provider: openai, service_tier: priority, price: {input: 2, output: 8}}")
    assert unknown.models["served"].unpriced
    assert unknown.models["served"].max_cost(1, 1) is None
    with pytest.raises(BadInput, match=r"the price of service_tier priority; add price\.tiers: \{priority: "):
        sound("models.served={provider: openai, service_tier: priority, price: {input: 2, output: 8}}", "budget_usd=5")


def test_headers_and_query_come_from_file_and_environment_and_are_not_published() -> None:
    pipeline = sound(
        "models.served={provider: openai, base_url: 'https://a.openai.azure.com/openai/deployments/d', "
        "extra_headers: {api-key: {env: AZURE_KEY}, X-Title: mine}, extra_query: {api-version: 2025-04-01}, omit: seed}"
    )
    one = pipeline.models["served"]
    with pytest.raises(BadInput, match="served: no api-key; set the environment variable AZURE_KEY"):
        request_options(one, {})
    found = request_options(one, {"AZURE_KEY": "s3cret-value"})
    assert found.headers == {"api-key": "s3cret-value", "X-Title": "mine"}, "and no bearer beside it"
    assert found.secrets == ("s3cret-value",)
    assert found.query == {"api-version": "2025-04-01"}
    assert found.omit == {"seed"}
    assert "AZURE" not in pipeline.public_yaml
    assert "X-Title" not in pipeline.public_yaml
    assert "api-version" not in pipeline.public_yaml
    own = sound("models.served={provider: openai, extra_headers: {authorization: {env: MINE}}}").models["served"]
    assert request_options(own, {"OPENAI_API_KEY": "k-12345678", "MINE": "Basic x"}).headers == {
        "authorization": "Basic x"
    }
    plain = sound("models.served={provider: openai, base_url: 'http://a/v1'}").models["served"]
    assert request_options(plain, {}).headers == {"Authorization": "Bearer none"}


def test_several_addresses_of_an_sdk_s_provider_are_refused() -> None:
    with pytest.raises(BadInput, match="only provider vllm takes several addresses"):
        sound("models.served={provider: openai, base_url: [http://a/v1, http://b/v1]}")


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ("provider: openai, model: gpt-4.1", (0.7, 0.9, None)),
        ("provider: openai, model: gpt-5-chat-latest", (0.7, 0.9, None)),
        ("provider: openai, model: gpt-5-mini", (None, None, None)),
        ("provider: openai, model: o3", (None, None, None)),
        ("provider: openai, model: o3, temperature: 1.0", (1.0, None, None)),
        ("provider: openai, model: other, reasoning_effort: low", (None, None, "low")),
        ("provider: anthropic, model: claude, reasoning_effort: high", (None, None, "high")),
        ("provider: anthropic, model: claude, temperature: null", (None, None, None)),
        ("provider: vllm, model: o3, base_url: http://a/v1", (0.7, 0.9, None)),
        ("provider: simulator", (0.7, 0.9, None)),
    ],
)
def test_models_that_refuse_a_temperature_are_not_sent_the_pool_s(
    settings: str, sent: tuple[float | None, float | None, str | None]
) -> None:
    pipeline = sound("completions={temperature: 0.7, top_p: 0.9}", f"models.served={{{settings}}}")
    assert pipeline.sampling(pipeline.models["served"]) == Sampling(1024, *sent)
    assert pipeline.models["served"].takes_temperature == (sent[:2] == (0.7, 0.9))


def test_a_judge_s_own_temperature_goes_to_those_that_take_one() -> None:
    pipeline = sound(
        "judges.claude={provider: anthropic, reasoning_effort: low}",
        "judges.gpt-5={provider: openai}",
        "judges.o3={provider: openai, temperature: 1.0}",
    )
    assert [judge.sampling for judge in pipeline.judges.values()] == [
        Sampling(2048, 0.0),
        Sampling(2048, reasoning_effort="low"),
        Sampling(2048),
        Sampling(2048, 1.0),
    ]


def test_several_judges_have_identities_and_weights() -> None:
    pipeline = sound("judges.second={provider: openai, model: gpt-4.1-2025-04-14, reply: text, weight: 2}")
    assert {name: judge.weight for name, judge in pipeline.judges.items()} == {"gpt-4.1": 1, "second": 2}


def test_pairs_and_export_have_their_keys() -> None:
    pipeline = sound(
        "pairs={policy: all, max_pairs_per_prompt: 3, max_length_ratio: 2, max_per_model: 9}",
        "export.formats=[ultrafeedback, kto, reward, sft]",
        "export.kto={rule: scores, desirable: 4, undesirable: 2.5}",
        "confirm_usd=0",
        "models.served.terms=llama2",
    )
    pairs, export = pipeline.pairs, pipeline.export
    assert (pairs.max_pairs_per_prompt, pairs.max_length_ratio, pairs.max_per_model) == (3, 2, 9)
    assert export.formats == ("ultrafeedback", "kto", "reward", "sft")
    assert (export.kto.rule, export.kto.desirable, export.kto.undesirable) == ("scores", 4, 2.5)
    assert (pipeline.confirm_usd, sound().confirm_usd) == (0, 1)
    assert pipeline.models["served"].terms == "llama2"
    assert sound("pairs={policy: on_policy, model: served}").pairs.model == "served"


CARRIED = """\
name: carried
prompts:
  - {file: a.csv, completions: {field: answers, score: points}, material: {reference: gold}}
  - {file: b.parquet, completions: {field: text, text: t, model: who, score: points}}
"""
JUDGE = "judges={j: {provider: simulator}}"
POOL = "models={m: {provider: simulator, samples: 4}}"


def test_completions_that_come_with_scores_need_neither_models_nor_judges() -> None:
    pipeline = parse(CARRIED, PATH)
    first, second = (source.completions for source in pipeline.prompts)
    assert first is not None
    assert second is not None
    assert (first.field, first.text, first.model, first.score) == ("answers", "text", "model", "points")
    assert (second.field, second.text, second.model, second.score) == ("text", "t", "who", "points")
    assert dict(pipeline.prompts[0].material) == {"reference": "gold"}
    assert pipeline.has_scores
    assert (len(pipeline.models), len(pipeline.judges)) == (0, 0)
    unscored = parse(CARRIED.replace(", score: points", ""), PATH, [JUDGE])
    assert not unscored.has_scores
    assert not parse(CARRIED.replace(", score: points", ""), PATH, [JUDGE, POOL]).has_scores
    chosen = parse(CARRIED, PATH, ["pairs={policy: on_policy, model: whoever wrote it}"])
    assert chosen.pairs.model == "whoever wrote it"


@pytest.mark.parametrize(
    ("cut", "sets", "message"),
    [
        (
            "",
            [JUDGE],
            "--set judges: judges: not needed: the rows bring completions with scores, so none is generated or "
            "rated; remove it, or the sources' completions.score",
        ),
        (
            "",
            [POOL],
            "--set models: models: not needed: the rows bring completions with scores, so none is generated or "
            "rated; remove it, or the sources' completions.score",
        ),
        (
            ", model: who, score: points",
            [JUDGE],
            "p.yaml:3: prompts.0.completions.score: not every source has scores, so a judge rates them all; remove "
            "it, or give it for each source",
        ),
        (", score: points", [], "p.yaml:1: judges: missing; name at least one"),
        (
            "completions: {field: answers, score: points}, ",
            [JUDGE],
            "p.yaml:1: models: missing; name at least one, or set completions: of every source if its rows bring "
            "completions",
        ),
    ],
)
def test_models_and_judges_that_are_missing_or_not_needed(cut: str, sets: list[str], message: str) -> None:
    assert message in complaints(CARRIED.replace(cut, "") if cut else CARRIED, *sets)


def test_a_pipeline_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sound().completions.per_prompt = 3


def test_yaml_text_is_the_file_after_set() -> None:
    pipeline = sound("completions.per_prompt=2")
    again = parse(pipeline.yaml_text, PATH)
    assert again.completions.per_prompt == 2
    assert again.model_dump() == pipeline.model_dump()


def test_yaml_as_people_mean_it() -> None:
    pipeline = parse(
        SOUND.replace("08751db", "2024-05-01") + "pairs: {min_margin: 1e-3}\n",
        PATH,
    )
    assert pipeline.pairs.min_margin == 0.001
    assert pipeline.models["llama-2-7b-chat"].revision == "2024-05-01"


def test_names_are_text_whatever_they_look_like() -> None:
    pipeline = sound("judges={4.1: {provider: openai}}")
    assert next(iter(pipeline.judges.values())).served_name == "4.1"


def test_anchors_and_merges() -> None:
    text = """\
name: a
prompts: [{file: a.jsonl}]
completions: {per_prompt: 2}
models:
  one: &one {provider: simulator, quality: 0.2}
  two: {<<: *one, quality: 0.8}
  three: {<<: *one, quality: 0.9}
  four: {<<: *one, qualty: 1}
judges: {j: {provider: simulator}}
"""
    assert complaints(text) == ["p.yaml:8: models.four.qualty: unknown key 'qualty'; did you mean 'quality'?"]
    pipeline = parse(text.replace("qualty", "quality"), PATH)
    assert [m.quality for m in pipeline.models.values()] == [0.2, 0.8, 0.9, 1]


# --set


@pytest.mark.parametrize(
    ("assignment", "look", "value"),
    [
        ("judges.gpt-4.1.base_url=http://x:1/v1", lambda p: next(iter(p.judges.values())).base_url, ("http://x:1/v1",)),
        ("models.*.samples=2", lambda p: [m.samples for m in p.models.values()], [2, 2, 2, 2]),
        ("prompts.*.limit=5", lambda p: [s.limit for s in p.prompts], [5, 5]),
        ("prompts.0.limit=5", lambda p: [s.limit for s in p.prompts], [5, None]),
        ("completions.temperature=0.7", lambda p: p.completions.temperature, 0.7),
        ("principles=", lambda p: p.principles, None),
        ("principles=a=b", lambda p: p.principles, "a=b"),
        ("pairs={policy: best_vs_worst}", lambda p: p.pairs.policy, "best_vs_worst"),
        ("export.license=null", lambda p: p.export.license, None),
    ],
)
def test_set(assignment: str, look, value: object) -> None:  # type: ignore[no-untyped-def]
    assert look(sound(assignment)) == value


def test_set_takes_the_longest_name_that_fits() -> None:
    text = SOUND.replace("served:", "gpt-4:").replace("rehearsal:", "gpt-4.1:")
    pipeline = parse(text, PATH, ["models.gpt-4.1.quality=0.9", "models.gpt-4.concurrency=3"])
    assert pipeline.models["gpt-4.1"].quality == 0.9
    assert pipeline.models["gpt-4"].concurrency == 3


def test_later_sets_see_earlier_ones() -> None:
    assert sound("pairs={policy: best_vs_worst}", "pairs.min_margin=1").pairs.min_margin == 1
    assert sound("models.*.price={input: 1, output: 1}", "models.served.price.input=2").models["rehearsal"].price == (
        sound("models.rehearsal.price={input: 1, output: 1}").models["rehearsal"].price
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set takes KEY=VALUE, such as --set completions.temperature=0.7"),
        ("=1", "--set takes KEY=VALUE, such as --set completions.temperature=0.7"),
        ("models..x=1", "--set takes KEY=VALUE, such as --set completions.temperature=0.7"),
        ("prompts.7.limit=1", "--set prompts.7.limit: prompts has 2 entries, counted from 0; name one of them"),
        ("prompts.first.limit=1", "--set prompts.first.limit: prompts has 2 entries, counted from 0; name one of them"),
        ("name.x=1", "--set name.x: name is a single value without keys; remove 'x'"),
        ("pairs.*.x=1", "--set pairs.*.x: pairs does not exist, so '*' stands for nothing; name an entry"),
        ("name.*=1", "--set name.*: name has no entries for '*' to stand for; name one"),
        ("seed.*=1", "--set seed.*: seed has no entries for '*' to stand for; name one"),
        ("nme=1", "--set nme: nme: unknown key 'nme'; did you mean 'name'?"),
        (
            "models.served.temprature=1",
            "--set models.served.temprature: models.served.temprature: unknown key 'temprature'; "
            "did you mean 'temperature'?",
        ),
        ("seed=x", "--set seed: seed: expected a whole number, got 'x'"),
        ("pairs={policy: a, policy: b}", "--set pairs: policy: given twice, in lines 1 and 1; keep one"),
        (
            "export=[1",
            "--set export: can't be read as YAML: expected ',' or ']', but got '<stream end>'; "
            "check indentation, colons and quotes",
        ),
    ],
)
def test_invalid_set_options(assignment: str, message: str) -> None:
    assert complaints(SOUND, assignment) == [message]


def test_set_on_a_file_that_holds_nothing() -> None:
    message = complaints("", "name=a")
    assert "p.yaml:1: prompts: missing; this key is needed, add it" in message
    message = complaints("completions:\n", "completions.per_prompt=x")
    assert "--set completions.per_prompt: completions.per_prompt: expected a whole number, got 'x'" in message


# (text in SOUND, its replacement, the message)

WRONG = [
    ("seed: 42", "sed: 42", "p.yaml:2: sed: unknown key 'sed'; did you mean 'seed'?"),
    (
        "seed: 42",
        "zzz: 42",
        "p.yaml:2: zzz: unknown key 'zzz'; keys known here: name, seed, store, prompts, principles, completions, "
        "models, judges, rubric, pairs, budget_usd, confirm_usd, export",
    ),
    ("seed: 42", "seed: 42\nseed: 43", "p.yaml:3: seed: given twice, in lines 2 and 3; keep one"),
    ("seed: 42", "? [a, b]\n: 42", "p.yaml:1: line 2 has a list or mapping as a key; write a name"),
    ("seed: 42", "seed: '42'", "p.yaml:2: seed: expected a whole number, got '42'; remove the quotes"),
    ("seed: 42", "seed: 4.2", "p.yaml:2: seed: expected a whole number, got 4.2"),
    ("seed: 42", "seed: true", "p.yaml:2: seed: expected a whole number, got true"),
    ("seed: 42", "seed:", "p.yaml:2: seed: expected a whole number, got nothing; fill it in, or remove the key"),
    ("seed: 42", "seed: !!int abc", "p.yaml:2: seed: 'abc' can't be read; correct it or put it in quotes"),
    ("seed: 42", "store: ''", "p.yaml:2: store: empty; write something, or remove the key"),
    ("seed: 42", "store: 3", "p.yaml:2: store: expected a text, got 3; put it in quotes"),
    ("name: zephyr-7b\n", "", "p.yaml:1: name: missing; this key is needed, add it"),
    ("name: zephyr-7b", "name: 0123", "p.yaml:1: name: expected a text, got 0123; put it in quotes"),
    (
        "name: zephyr-7b",
        "name: a/b",
        "p.yaml:1: name: 'a/b' can't be the name of a folder under runs/; use letters, digits, '.', '_' and '-', "
        "and begin with a letter or digit",
    ),
    (
        "revision: 08751db",
        "revision: 12e4567",
        "p.yaml:14: models.llama-2-7b-chat.revision: expected a text, got 12e4567; put it in quotes",
    ),
    # prompts
    ("limit: 64000", "limit: 0", "p.yaml:6: prompts.0.limit: must be at least 1, got 0"),
    (
        "  - file: more/own prompts.jsonl",
        "  - {file: a.jsonl, hub: a/b}",
        "p.yaml:7: prompts.1: both file and hub are given; give one: file: prompts.jsonl, or hub: ORG/NAME",
    ),
    (
        "  - file: more/own prompts.jsonl",
        "  - limit: 3",
        "p.yaml:7: prompts.1: neither file nor hub is given; give one: file: prompts.jsonl, or hub: ORG/NAME",
    ),
    ("  - file: more/own prompts.jsonl", "  - a.jsonl", "p.yaml:7: prompts.1: expected keys and values, got 'a.jsonl'"),
    (
        "more/own prompts.jsonl",
        "a.txt",
        "p.yaml:7: prompts.1.file: expected a .jsonl, .parquet or .csv file, got 'a.txt'; write the rows as .jsonl, "
        "one JSON object a line",
    ),
    (
        "more/own prompts.jsonl",
        "a.jsonl\n    split: train",
        "p.yaml:8: prompts.1.split: only for hub datasets; remove it, or give hub: instead of file:",
    ),
    (
        "more/own prompts.jsonl",
        "a.jsonl\n    token: hf_abc",
        "p.yaml:8: prompts.1.token: an API key must not be in the file; put it into the environment variable "
        "OPENAI_API_KEY, ANTHROPIC_API_KEY or HF_TOKEN, or into one that api_key_env: names",
    ),
    ("more/own prompts.jsonl", '""', "p.yaml:7: prompts.1.file: empty; write something, or remove the key"),
    *(
        ("more/own prompts.jsonl", f"a.csv\n    {line}", f"p.yaml:8: prompts.1.{message}")
        for line, message in [
            ("material: [answer]", "material: expected keys and values, got a list"),
            ("material: {reference: 3}", "material.reference: expected a text, got 3; put it in quotes"),
            (
                "material: {reference: }",
                "material.reference: expected a text, got nothing; fill it in, or remove the key",
            ),
            (
                "material: {Ref-1: answer}",
                "material.Ref-1: 'Ref-1' isn't a valid slot name; use up to 40 lower-case letters, digits and _",
            ),
            ("completions: answers", "completions: expected keys and values, got 'answers'"),
            ("completions: {model: m}", "completions.field: missing; this key is needed, add it"),
            (
                "completions: {field: a, scores: s}",
                "completions.scores: unknown key 'scores'; did you mean 'score'?",
            ),
            (
                "completions: {field: a, score: s}",
                "completions.score: not every source has scores, so a judge rates them all; remove it, or give it for "
                "each source",
            ),
        ]
    ),
    # completions
    (
        "principles: ultrafeedback",
        "completions: {min_completions: 5}",
        "p.yaml:8: completions.min_completions: 5 is more than per_prompt (4); lower it to 4 or less",
    ),
    (
        "principles: ultrafeedback",
        "completions: {min_completions: 1}",
        "p.yaml:8: completions.min_completions: must be at least 2, got 1",
    ),
    (
        "principles: ultrafeedback",
        "completions: {per_prompt: 5}",
        "p.yaml:9: models: completions.per_prompt is 5, but the pool can give 4 (llama-2-7b-chat 1, small-openai 1, "
        "rehearsal 1, served 1); add models, raise their samples, or lower per_prompt",
    ),
    (
        "principles: ultrafeedback",
        "completions: {temperature: .nan}",
        "p.yaml:8: completions.temperature: expected a finite number, got .nan",
    ),
    (
        "principles: ultrafeedback",
        "completions: {temperature: 3}",
        "p.yaml:8: completions.temperature: must be at most 2, got 3",
    ),
    ("principles: ultrafeedback", "completions: {top_p: 0}", "p.yaml:8: completions.top_p: must be more than 0, got 0"),
    (
        "principles: ultrafeedback",
        "completions:",
        "p.yaml:8: completions: expected keys and values, got nothing; fill it in, or remove the key",
    ),
    ("principles: ultrafeedback", "principles: [a]", "p.yaml:8: principles: expected a text, got a list"),
    # models
    (
        "provider: simulator",
        "provider: simulater",
        "p.yaml:17: models.rehearsal.provider: expected vllm | openai | anthropic | simulator, got 'simulater'; "
        "did you mean 'simulator'?",
    ),
    (
        "provider: simulator",
        "provider: 7",
        "p.yaml:17: models.rehearsal.provider: expected vllm | openai | anthropic | simulator, got 7",
    ),
    (
        "{provider: simulator, quality: 0.6}",
        "{}",
        "p.yaml:17: models.rehearsal.provider: missing; this key is needed, add it",
    ),
    (
        "{provider: simulator, quality: 0.6}",
        "",
        "p.yaml:17: models.rehearsal: expected keys and values, got nothing; fill it in, or remove the key",
    ),
    (
        "rehearsal:",
        '"a\\tb":',
        "p.yaml:17: models.a\tb: a name needs visible characters, no control characters, and no space at its ends",
    ),
    (
        "rehearsal:",
        '"":',
        "p.yaml:17: models.: a name needs visible characters, no control characters, and no space at its ends",
    ),
    ("quality: 0.6", "quality: 1.5", "p.yaml:17: models.rehearsal.quality: must be at most 1, got 1.5"),
    (
        "quality: 0.6",
        "base_url: http://a:1/v1",
        "p.yaml:17: models.rehearsal.base_url: provider simulator has a server of its own and doesn't use this key; "
        "remove it",
    ),
    (
        "quality: 0.6",
        "model: served",
        "p.yaml:17: models.rehearsal.model: provider simulator has a server of its own and doesn't use this key; "
        "remove it",
    ),
    (
        "concurrency: 256",
        "quality: 0.3",
        "p.yaml:15: models.llama-2-7b-chat.quality: only for provider simulator, not vllm; remove it",
    ),
    (
        "concurrency: 256",
        "max_tokens:",
        "p.yaml:15: models.llama-2-7b-chat.max_tokens: expected a whole number, got nothing; "
        "give a number or remove the key",
    ),
    ("concurrency: 256", "timeout_s: 0", "p.yaml:15: models.llama-2-7b-chat.timeout_s: must be more than 0, got 0"),
    (
        "    base_url: http://gpu-2:8000/v1/\n",
        "",
        "p.yaml:10: models.llama-2-7b-chat.base_url: provider vllm needs the address of a running server (base_url: "
        "http://localhost:8000/v1), or launch: {model: ...} to have aif start one",
    ),
    (
        "concurrency: 256",
        "launch: {model: org/a}",
        "p.yaml:12: models.llama-2-7b-chat.base_url: a launched server gets its address from aif; "
        "remove base_url or launch",
    ),
    *(
        ("concurrency: 256", f"launch: {launch}", f"p.yaml:15: models.llama-2-7b-chat.launch{message}")
        for launch, message in [
            ("org/a", ": expected keys and values, got 'org/a'"),
            ("{}", ".model: missing; this key is needed, add it"),
            ("{model: a, gpu: 1}", ".gpu: unknown key 'gpu'; did you mean 'gpus'?"),
            (
                "{model: a, host: b}",
                ".host: unknown key 'host'; keys known here: model, gpus, replicas, max_model_len, python, args, env, "
                "ready_s",
            ),
            ("{model: a, gpus: 0}", ".gpus: must be at least 1, got 0"),
            ("{model: a, replicas: 0}", ".replicas: must be at least 1, got 0"),
            ("{model: a, ready_s: 0}", ".ready_s: must be more than 0, got 0"),
            ("{model: a, python: ''}", ".python: empty; write something, or remove the key"),
            ("{model: a, args: --dtype}", ".args: expected a list, got '--dtype'"),
            ("{model: a, args: [--seed, 1]}", ".args.1: expected a text, got 1; put it in quotes"),
            (
                "{model: a, args: [--api-key=sk-1]}",
                ".args.0: an API key must not be in the file; remove it, the server listens on this machine alone",
            ),
            ("{model: a, env: [A]}", ".env: expected keys and values, got a list"),
            ("{model: a, env: {A: true}}", ".env.A: expected a text, got true; put it in quotes"),
            (
                "{model: a, env: {a: b}}",
                ".env.a: expected the name of an environment variable in capitals, such as MY_API_KEY, not the key",
            ),
            (
                "{model: a, env: {HF_TOKEN: hf_1}}",
                ".env.HF_TOKEN: an API key must not be in the file; remove it: the server gets aif's HF_TOKEN, and no "
                "API key",
            ),
        ]
    ),
    (
        "quality: 0.6",
        "reasoning_effort: low",
        "p.yaml:17: models.rehearsal.reasoning_effort: a simulated model doesn't reason; remove it",
    ),
    *(
        ("concurrency: 256", typed, f"p.yaml:15: models.llama-2-7b-chat.{message}")
        for typed, message in [
            ("omit: [temperature]", "omit: to leave out temperature, write `temperature: null`"),
            ("omit: [messages]", "omit: only seed can be left out here, got 'messages'"),
            (
                "extra_body: {seed: 1}",
                "extra_body.seed: aif sets it itself; see `seed` of the pipeline; `omit: [seed]` leaves it out",
            ),
            ("extra_body: {n: 2}", "extra_body.n: aif sets it itself; see `samples`"),
            ("extra_body: {top_k: .inf}", "extra_body: top_k: JSON has no inf"),
            ("extra_body: []", "extra_body: expected names and values, such as {top_k: 40}, got a list"),
            (
                "extra_headers: {api-key: sk-1}",
                "extra_headers: an API key must not be in the file; write api-key: {env: NAME}",
            ),
            (
                "extra_headers: {X-A: {env: small}}",
                "extra_headers: expected the name of an environment variable in capitals, such as MY_API_KEY, not "
                "the key",
            ),
            (
                'extra_headers: {X-A: "a\\nb"}',
                "extra_headers: X-A: expected a text on one line, or {env: NAME}, got 'a\\nb'",
            ),
            ("extra_headers: {Host: a}", "extra_headers: Host is set by the client; remove it"),
            ("extra_headers: {a b: c}", "extra_headers: 'a b' isn't a valid header name; use letters, digits and -"),
            (
                "extra_query: {key: abc}",
                "extra_query: key: an API key must not be in the file; see extra_headers: {NAME: {env: VARIABLE}}",
            ),
            ("dialect: azure", "dialect: expected openai | compatible, got 'azure'"),
            ("random_seed: 1", "random_seed: unknown key 'random_seed'; did you mean 'omit'?"),
            ("azure_endpoint: x", "azure_endpoint: unknown key 'azure_endpoint'; did you mean 'base_url'?"),
            (
                "do_sample: true",
                "do_sample: unknown key 'do_sample'; settings that only the provider knows go into extra_body: "
                "{do_sample: …}",
            ),
            (
                "top_k: 40",
                "top_k: unknown key 'top_k'; settings that only the provider knows go into extra_body: {top_k: …}",
            ),
            ("headers: {}", "headers: unknown key 'headers'; did you mean 'extra_headers'?"),
            ("base_urls: []", "base_urls: unknown key 'base_urls'; did you mean 'base_url'?"),
            (
                "system_prompt: x",
                "system_prompt: unknown key 'system_prompt'; a system prompt is a principle: see "
                "`principles` of the pipeline",
            ),
        ]
    ),
    (
        "concurrency: 256",
        "terms: ''",
        "p.yaml:15: models.llama-2-7b-chat.terms: empty; write something, or remove the key",
    ),
    (
        "quality: 0.6",
        "launch: {model: a}",
        "p.yaml:17: models.rehearsal.launch: only for provider vllm, not simulator; remove it",
    ),
    (
        "output: 1.60",
        "output: 1, cache_write: -1",
        "p.yaml:16: models.small-openai.price.cache_write: must be at least 0, got -1",
    ),
    (
        "rehearsal: {",
        "price: {nois: 1, ",
        "p.yaml:17: models.price.nois: unknown key 'nois'; keys known here: provider, model, revision, base_url, "
        "launch, api_key_env, concurrency, requests_per_minute, tokens_per_minute, price, reasoning_effort, "
        "extra_body, service_tier, extra_headers, extra_query, omit, dialect, max_model_len, reasoning_tags, terms, "
        "system, samples, temperature, top_p, max_tokens, timeout_s, quality",
    ),
    (
        "http://gpu-2:8000/v1/",
        "gpu-2:8000",
        "p.yaml:12: models.llama-2-7b-chat.base_url.0: expected an address such as http://localhost:8000/v1, "
        "got 'gpu-2:8000'",
    ),
    (
        "http://gpu-2:8000/v1/",
        "http://gpu-2:99999/v1",
        "p.yaml:12: models.llama-2-7b-chat.base_url.0: expected an address such as http://localhost:8000/v1, "
        "got 'http://gpu-2:99999/v1'",
    ),
    (
        "http://gpu-2:8000/v1/",
        "http://me:hunter2@gpu-2/v1",
        "p.yaml:12: models.llama-2-7b-chat.base_url.0: expected an address without user, password, '?' and '#'; "
        "API keys come from the environment",
    ),
    (
        "http://gpu-2:8000/v1/",
        "[]",
        "p.yaml:12: models.llama-2-7b-chat.base_url: empty; give at least one entry, or remove the key",
    ),
    (
        "served: {provider: vllm, base_url: [http://a:1/v1, http://b:1/v1]}",
        "served: {provider: openai, model: gpt-4.1-mini, samples: 2}",
        "p.yaml:18: models.served: same model and settings as models.small-openai, so both would give the same "
        "completions; keep one, with samples: 3",
    ),
    (
        "input: 0.40",
        "input: '0.40'",
        "p.yaml:16: models.small-openai.price.input: expected a number, got '0.40'; remove the quotes",
    ),
    (", output: 1.60", "", "p.yaml:16: models.small-openai.price.output: missing; this key is needed, add it"),
    (
        ", output: 1.60",
        ", outptu: 1, output: 1",
        "p.yaml:16: models.small-openai.price.outptu: unknown key 'outptu'; did you mean 'output'?",
    ),
    # judges
    (
        "gpt-4.1: {",
        "gpt-4.1: {api_key: sk-123, ",
        "p.yaml:20: judges.gpt-4.1.api_key: an API key must not be in the file; put it into the environment variable "
        "OPENAI_API_KEY, ANTHROPIC_API_KEY or HF_TOKEN, or into one that api_key_env: names",
    ),
    (
        "gpt-4.1: {",
        "gpt-4.1: {api_key_env: hf_abcdef, ",
        "p.yaml:20: judges.gpt-4.1.api_key_env: expected the name of an environment variable in capitals, such as "
        "MY_API_KEY, not the key",
    ),
    (
        "gpt-4.1: {",
        "gpt-4.1: {noise: 0.1, ",
        "p.yaml:20: judges.gpt-4.1.noise: only for provider simulator, not openai; remove it",
    ),
    (
        "gpt-4.1: {",
        "gpt-4.1: {samples: 2, ",
        "p.yaml:20: judges.gpt-4.1.samples: unknown key 'samples'; keys known here: provider, model, revision, "
        "base_url, launch, api_key_env, concurrency, requests_per_minute, tokens_per_minute, price, reasoning_effort, "
        "extra_body, service_tier, extra_headers, extra_query, omit, dialect, max_model_len, reasoning_tags, terms, "
        "reply, on_overflow, temperature, top_p, max_tokens, timeout_s, weight, noise",
    ),
    ("gpt-4.1: {", "gpt-4.1: {weight: 0, ", "p.yaml:20: judges.gpt-4.1.weight: must be more than 0, got 0"),
    (
        "gpt-4.1: {",
        "gpt-4.1: {launch: {model: a}, ",
        "p.yaml:20: judges.gpt-4.1.launch: only for provider vllm, not openai; remove it",
    ),
    *(
        (
            "gpt-4.1: {provider: openai",
            f"gpt-4.1: {{provider: anthropic, {key}: 1.0",
            f"p.yaml:20: judges.gpt-4.1.{key}: Anthropic's API refuses it since version 2026-10-21; remove it",
        )
        for key in ("temperature", "top_p")
    ),
    (
        "judges:",
        "judges:\n  again: {provider: openai, model: gpt-4.1-2025-04-14, weight: 2}",
        "p.yaml:21: judges.gpt-4.1: same model and settings as judges.again, so both would give the same ratings; "
        "keep one",
    ),
    (
        "judges:\n  gpt-4.1: {provider: openai, model: gpt-4.1-2025-04-14, price: {input: 2, output: 8}}\n",
        "",
        "p.yaml:1: judges: missing; name at least one",
    ),
    # pairs and the rest
    *(
        ("seed: 42", f"pairs: {{{pairs}}}", f"p.yaml:2: pairs.{message}")
        for pairs, message in [
            ("policy: best", "policy: expected best_vs_random | best_vs_worst | all | on_policy, got 'best'"),
            (
                "policy: on_policy",
                "model: missing; policy on_policy needs the model that is on one side of every pair",
            ),
            (
                "policy: on_policy, model: gpt",
                "model: the pool has no model 'gpt'; name one of: llama-2-7b-chat, small-openai, rehearsal, served",
            ),
            ("model: served", "model: only for policy on_policy, not best_vs_random; remove it"),
            (
                "policy: best_vs_worst, max_pairs_per_prompt: 2",
                "max_pairs_per_prompt: only for policy all, not best_vs_worst; remove it",
            ),
            ("policy: all, max_pairs_per_prompt: 0", "max_pairs_per_prompt: must be at least 1, got 0"),
            ("max_length_ratio: 0.5", "max_length_ratio: must be at least 1, got 0.5"),
            ("max_per_model: 0", "max_per_model: must be at least 1, got 0"),
        ]
    ),
    ("seed: 42", "confirm_usd: -1", "p.yaml:2: confirm_usd: must be at least 0, got -1"),
    (
        "base_url: [http://a:1/v1, http://b:1/v1]}",
        "max_model_len: 8192, launch: {model: m, max_model_len: 4096}}",
        "p.yaml:18: models.served.max_model_len: launch.max_model_len is 4096; remove one of them",
    ),
    (
        "gpt-4.1: {",
        "gpt-4.1: {on_overflow: drop, ",
        "p.yaml:20: judges.gpt-4.1.on_overflow: expected single | fail, got 'drop'",
    ),
    ("gpt-4.1: {", "gpt-4.1: {reply: xml, ", "p.yaml:20: judges.gpt-4.1.reply: expected schema | text, got 'xml'"),
    # export
    ("formats: [trl]", "formats: trl", "p.yaml:21: export.formats: expected a list, got 'trl'"),
    ("formats: [trl]", "formats: []", "p.yaml:21: export.formats: empty; give at least one entry, or remove the key"),
    ("formats: [trl]", "formats: [trl, trl]", "p.yaml:21: export.formats: a format is named twice; name each once"),
    (
        "formats: [trl]",
        "formats: [orpo]",
        "p.yaml:21: export.formats.0: expected trl | h4 | ultrafeedback | kto | reward | sft, got 'orpo'",
    ),
    *(
        ("license: mit", f"kto: {{{kto}}}", f"p.yaml:21: export.kto.{message}")
        for kto, message in [
            ("rul: scores", "rul: unknown key 'rul'; did you mean 'rule'?"),
            ("rule: score", "rule: expected pairs | scores, got 'score'; did you mean 'scores'?"),
            ("desirable: 4", "desirable: only for rule scores; remove it"),
            (
                "rule: scores, desirable: 4",
                "undesirable: missing; rule scores needs the score up to which a completion is undesirable",
            ),
            (
                "rule: scores, undesirable: 2",
                "desirable: missing; rule scores needs the score from which a completion is desirable",
            ),
            (
                "rule: scores, desirable: 3, undesirable: 3",
                "desirable: must be more than undesirable (3), got 3",
            ),
            ("rule: scores, desirable: .inf, undesirable: 3", "desirable: expected a finite number, got .inf"),
        ]
    ),
    *(
        (
            "test_size: 0.05",
            f"test_size: {size}",
            "p.yaml:21: export.test_size: expected a count such as 2000 or a share between 0 and 1 such as 0.05, "
            f"got {got}",
        )
        for size, got in [("-1", "-1"), ("1.0", "1.0"), ("true", "true"), ("'2'", "'2'"), ("{}", "keys and values")]
    ),
]


@pytest.mark.parametrize(("there", "instead", "message"), WRONG)
def test_error_messages(there: str, instead: str, message: str) -> None:
    assert there in SOUND
    assert complaints(SOUND.replace(there, instead, 1)) == [message]


OWN = [
    *(
        "localhost",
        "LOCALHOST.",
        "vllm.localhost",
        "gpu-1",
        "gpu_2",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "[::1]",
        "[::]",
    ),
    *("10.1.2.3", "172.16.0.1", "172.31.255.254", "192.168.7.7", "169.254.1.1", "100.64.0.1", "100.127.255.254"),
    *("[fd12:3456::1]", "[fe80::1]", "[::ffff:10.0.0.1]", "127.1", "2130706433", "10.1"),
    *("host.docker.internal", "box.local", "nas.lan", "gpu.home.arpa", "vllm.ml.svc.cluster.local"),
]
OTHERS = [
    *(
        "api.together.xyz",
        "api.openai.com",
        "openrouter.ai.",
        "localhost.example.com",
        "internal.example.com",
        "my.host",
    ),
    *("8.8.8.8", "134744072", "0x08080808", "8.8", "172.32.0.1", "100.128.0.1", "192.169.0.1", "11.0.0.1", "192.0.2.1"),
    *(
        "[2606:4700::1111]",
        "[::ffff:8.8.8.8]",
        "[fec0::1]",
        "api%2eopenai%2ecom",
        "api\u3002openai\u3002com",
        "a..local",
    ),
]


def at(*hosts: str, price: Price | None = None) -> Model:
    return Model(provider="vllm", base_url=tuple(f"http://{host}:8000/v1" for host in hosts), price=price)


@pytest.mark.parametrize("host", OWN)
def test_a_server_of_ones_own_is_free(host: str) -> None:
    assert at(host).is_free
    assert at(host, "localhost").cost(None) == 0
    assert at(host).max_cost(10**6, 10**6) == 0


@pytest.mark.parametrize("host", OTHERS)
def test_what_a_server_at_any_other_address_costs_is_unknown_until_it_is_said(host: str) -> None:
    for one in (at(host), at("localhost", host)):
        assert one.unpriced
        assert not one.is_free
        assert one.cost(Usage(10, 10)) is None
        assert one.max_cost(10, 10) is None
    told = at(host, price=Price(input=0.0, output=0.0))
    assert told.is_free
    assert told.cost(Usage(10, 10)) == told.max_cost(10, 10) == 0
    assert at("localhost", price=Price(input=1.0, output=0.0)).cost(Usage(10**6, 0)) == 1


def test_a_budget_asks_for_the_price_of_an_address_that_is_not_ones_own() -> None:
    there = SOUND.replace("http://b:1/v1", "https://api.a.com/v1")
    assert complaints(there, "budget_usd=250") == [
        "p.yaml:18: models.served: budget_usd needs the price of a call to https://api.a.com/v1; add price: "
        "{input: …, output: …}, in USD per million tokens (0 if it is free), or remove budget_usd"
    ]
    assert parse(there, PATH, ["budget_usd=250", "models.served.price={input: 0, output: 0}"]).budget_usd == 250


def test_a_budget_needs_the_price_of_whatever_is_paid_for() -> None:
    assert sound("budget_usd=250").budget_usd == 250
    message = complaints(SOUND.replace(", price: {input: 2, output: 8}", ""), "budget_usd=250")
    assert message == [
        "p.yaml:20: judges.gpt-4.1: budget_usd needs the price of a call to openai; add price: "
        "{input: …, output: …}, in USD per million tokens (0 if it is free), or remove budget_usd"
    ]
    for value, why in [
        ("0", "more than 0, got 0"),
        ("-3", "more than 0, got -3"),
        (".inf", "expected a finite number"),
    ]:
        (line,) = complaints(SOUND, f"budget_usd={value}")
        assert line.startswith("--set budget_usd: budget_usd: ")
        assert why in line


def test_the_most_a_call_can_cost_is_at_the_highest_price_of_input() -> None:
    written = "judges.gpt-4.1.price={input: 2, cached_input: 0.5, cache_write: 2.5, output: 8}"
    assert sound(written).judges["gpt-4.1"].max_cost(1_000, 500) == pytest.approx((1_000 * 2.5 + 500 * 8) / 1e6)
    assert sound("judges.gpt-4.1.price=null").judges["gpt-4.1"].max_cost(1_000, 500) is None
    assert sound().models["served"].max_cost(1_000, 500) == 0


def test_all_errors_are_reported_at_once() -> None:
    text = SOUND.replace("0.6", "6").replace("trl", "kt").replace("64000", "-1") + "budget: 1\n"
    with pytest.raises(BadInput) as raised:
        parse(text, PATH)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "prompts.0.limit",
        "models.rehearsal.quality",
        "export.formats.0",
        "budget",
    ]


@pytest.mark.parametrize(
    "text", ["a: [sk-secret", "a: b: c", "a:\n\t- b", "a: *nowhere", "--- 1\n--- 2", "a: !!python/none x"]
)
def test_what_is_no_yaml(text: str) -> None:
    (message,) = complaints(text)
    assert message.startswith("p.yaml:")
    assert "can't be read as YAML" in message


def test_yaml_that_names_itself_or_holds_control_characters() -> None:
    assert "nested too deeply" in complaints("a: &a [*a]")[0]
    tens = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "more than 100,000 values" in complaints(f"a0: &a0 [x]\n{tens}")[0]
    assert complaints("name: a\nseed: \x00")[0].startswith("p.yaml:2: can't be read as YAML: it contains the character")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.yaml:1: the file is empty; it needs name, prompts, models and judges"),
        ("# nothing\n", "p.yaml:1: the file is empty; it needs name, prompts, models and judges"),
        ("- a\n", "p.yaml:1: expected keys and values, got a list"),
        ("prompts", "p.yaml:1: expected keys and values, got 'prompts'"),
    ],
)
def test_texts_that_are_no_pipeline(text: str, message: str) -> None:
    assert complaints(text) == [message]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("prompts=[]", "prompts: empty; give at least one entry, or remove the key"),
        (
            "models={}",
            "models: missing; name at least one, or set completions: of every source if its rows bring completions",
        ),
        ("judges={}", "judges: missing; name at least one"),
    ],
)
def test_empty_lists_and_mappings(assignment: str, message: str) -> None:
    assert complaints(SOUND, assignment) == [f"--set {assignment.partition('=')[0]}: {message}"]


@pytest.mark.parametrize("key", ["api_key", "token", "API-KEY", "openai_api_key", "password", "hf_token"])
def test_a_secret_is_never_repeated(key: str) -> None:
    message = complaints(SOUND, f"judges.gpt-4.1.{key}=sk-very-secret")
    assert "an API key must not be in the file" in message[0]
    assert "very-secret" not in message[0]


@pytest.mark.parametrize(
    "where",
    [
        "api_key_env=sk-very-secret",
        "base_url=http://me:very-secret@x/v1",
        "launch={model: a, env: {HF_TOKEN: hf_very-secret}}",
        "launch={model: a, args: [--api-key, very-secret]}",
    ],
)
def test_a_secret_in_another_key_is_never_repeated(where: str) -> None:
    (message,) = complaints(SOUND, f"judges.gpt-4.1.{where}")
    assert "very-secret" not in message


@given(st.text(max_size=80))
def test_no_text_crashes_it(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text, PATH)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}))
KEYS = [
    "seed",
    "name",
    "prompts",
    "prompts.0",
    "prompts.0.field",
    "models",
    "models.served",
    "models.served.price",
    "models.*.base_url",
    "judges.gpt-4.1.temperature",
    "export",
    "export.test_size",
    "export.formats",
    "pairs.score",
    "pairs.max_length_ratio",
    "prompts.1.material",
    "prompts.1.completions",
    "prompts.1.completions.field",
    "models.served.launch",
    "models.rehearsal.launch.env",
    "judges.gpt-4.1.weight",
    "export.kto",
    "export.kto.desirable",
    "confirm_usd",
]


@given(st.sampled_from(KEYS), SCALARS)
def test_no_value_crashes_it(key: str, value: object) -> None:
    message = ""
    try:
        pipeline = sound(f"{key}={yaml.safe_dump(value, allow_unicode=True)}")
        assert parse(pipeline.yaml_text, PATH).model_dump() == pipeline.model_dump()
    except BadInput as error:
        message = str(error)
    assert "pydantic" not in message
    assert "Input should" not in message
    assert all(line.startswith(("--set ", "p.yaml:")) for line in message.split("\n") if line)


# files


def test_load_finds_the_file_and_names_it_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("own/p.yaml").write_text("\ufeff" + SOUND, encoding="utf-8")
    pipeline = load(Path("own/p.yaml"), ["seed=1"])
    assert pipeline.seed == 1
    assert pipeline.folder == tmp_path / "own"
    with pytest.raises(BadInput, match=r"^own/p\.yaml:2: seed: given twice|^--set sed: "):
        load(Path("own/p.yaml"), ["sed=1"])
    Path("own/p.yaml").write_text(SOUND.replace("seed:", "sed:"))
    with pytest.raises(BadInput, match=r"^own/p\.yaml:2: sed: unknown key 'sed'"):
        load(Path("own/p.yaml"))


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pipeline file .* not found; searched .*none\.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="can't be read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(BadInput, match=r"latin\.yaml: not UTF-8 \(byte 9\); save it as UTF-8"):
        load(tmp_path / "latin.yaml")


# keys from the environment


def endpoint(settings: str) -> Model:
    return sound(f"models.served={{provider: {settings}}}").models["served"]


@pytest.mark.parametrize(
    ("settings", "environ", "key"),
    [
        ("simulator", {"OPENAI_API_KEY": "sk-1"}, None),
        ("vllm, base_url: http://a/v1", {"OPENAI_API_KEY": "sk-1"}, None),
        ("vllm, base_url: http://a/v1, api_key_env: MINE", {"MINE": "k"}, "k"),
        ("openai", {"OPENAI_API_KEY": " sk-1\n"}, "sk-1"),
        ("openai, api_key_env: MINE", {"OPENAI_API_KEY": "sk-1", "MINE": "k"}, "k"),
        ("openai, base_url: http://a/v1", {}, None),
        ("openai, base_url: http://a/v1", {"OPENAI_API_KEY": "sk-1"}, None),
        ("anthropic", {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-ant"}, "sk-ant"),
        ("anthropic, api_key_env: MINE", {"ANTHROPIC_API_KEY": "sk-ant", "MINE": "k"}, "k"),
        ("anthropic, base_url: http://a/v1", {"ANTHROPIC_API_KEY": "sk-ant"}, None),
        ("vllm, launch: {model: a}", {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-ant"}, None),
    ],
)
def test_api_key(settings: str, environ: dict[str, str], key: str | None) -> None:
    assert api_key(endpoint(settings), environ) == key


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("openai, api_key_env: MINE", "MINE"),
        ("openai, api_key_env: MINE, base_url: http://a/v1", "MINE"),
        ("vllm, api_key_env: MINE, base_url: http://a/v1", "MINE"),
    ],
)
@pytest.mark.parametrize("value", [None, "", "  ", "sk-\N{BULLET}\N{BULLET}", "sk-a\nb"])
def test_a_missing_or_unusable_key_names_its_variable(settings: str, variable: str, value: str | None) -> None:
    with pytest.raises(BadInput, match=rf"served: .*environment variable {variable}") as raised:
        api_key(endpoint(settings), {} if value is None else {variable: value})
    assert not value or not value.strip() or value not in str(raised.value)


def test_what_is_published_says_nothing_of_hosts_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        "name: p\nstore: /data/secret-project/f.duckdb\n"
        "prompts: [{file: /home/someone/prompts.jsonl}, {hub: ./someone/rows}, {hub: org/rows}]\n"
        "completions: {per_prompt: 2}\nrubric: /home/someone/rubrics/strict\n"
        "models:\n  a: {provider: vllm, base_url: 'http://gpu-7.internal:8000/v1', model: org/a}\n"
        "  b: {provider: vllm, launch: {model: /home/someone/tuned, gpus: 2, python: /home/someone/bin/python, "
        "args: [--download-dir, /home/someone], env: {WHERE: internal}, max_model_len: 4096}, terms: apache-2.0}\n"
        "  c: {provider: vllm, launch: {model: org/c}}\n"
        "judges: {j: {provider: openai, base_url: 'http://proxy.internal/v1', api_key_env: TEAM_KEY}}\n"
    )
    public = load(path).public_yaml

    assert not [word for word in ("internal", "someone", "secret", "TEAM_KEY") if word in public]
    told = yaml.safe_load(public)
    assert [source.get("file") or source.get("hub") for source in told["prompts"]] == [
        "prompts.jsonl",
        "rows",
        "org/rows",
    ]
    assert told["rubric"] == "strict"
    assert told["models"] == {
        "a": {"provider": "vllm", "model": "org/a"},
        "b": {
            "provider": "vllm",
            "launch": {"model": "tuned", "gpus": 2, "max_model_len": 4096},
            "terms": "apache-2.0",
        },
        "c": {"provider": "vllm", "launch": {"model": "org/c"}},
    }


def test_what_is_published_of_rows_with_completions_and_scores() -> None:
    assert yaml.safe_load(parse(CARRIED, PATH).public_yaml) == yaml.safe_load(CARRIED)


# where the store is


def named(file: Path, monkeypatch: pytest.MonkeyPatch, here: Path, text: str = SOUND) -> Path:
    """The store of a pipeline file, as its path is shown in a working directory."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(text)
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    return load(file).store


@pytest.mark.parametrize("folder", ["work", "it's a folder", "pipelines/of mine"])
def test_a_file_has_its_store_beside_it_from_whatever_folder_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    file = tmp_path / folder / "p.yaml"
    wanted = tmp_path / folder / "runs/zephyr-7b/feedback.duckdb"
    assert named(file, monkeypatch, tmp_path / "elsewhere") == wanted
    assert named(Path(os.path.relpath(file)), monkeypatch, tmp_path / "elsewhere").resolve() == wanted
    monkeypatch.chdir(file.parent)
    assert load(Path("p.yaml")).store == Path("runs/zephyr-7b/feedback.duckdb")


def test_a_folder_called_pipelines_has_its_stores_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "project/pipelines/p.yaml"
    wanted = tmp_path / "project/runs/zephyr-7b/feedback.duckdb"
    assert named(file, monkeypatch, tmp_path / "elsewhere") == wanted
    assert named(file, monkeypatch, file.parent) == wanted
    monkeypatch.chdir(tmp_path / "project")
    assert load(Path("pipelines/p.yaml")).store == Path("runs/zephyr-7b/feedback.duckdb")


@pytest.mark.parametrize("given", ["kept/f.duckdb", "../kept/f.duckdb"])
def test_a_store_that_is_given_begins_where_the_default_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    file, text = tmp_path / "project/pipelines/p.yaml", SOUND.replace("seed: 42", f"store: {given}")
    assert named(file, monkeypatch, tmp_path / "elsewhere", text).resolve() == (tmp_path / "project" / given).resolve()
    assert load(file, [f"store={tmp_path}/s.duckdb"]).store == tmp_path / "s.duckdb"
    assert parse(text, file, [], tmp_path / "home").store.resolve() == (tmp_path / "home" / given).resolve()


def test_a_link_to_a_file_or_a_folder_leads_to_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "project/pipelines/p.yaml"
    wanted = named(file, monkeypatch, tmp_path / "elsewhere")
    (tmp_path / "linked.yaml").symlink_to(file)
    (tmp_path / "configs").symlink_to(file.parent)
    assert load(tmp_path / "linked.yaml").store == wanted
    assert load(tmp_path / "configs/p.yaml").store == wanted
    assert load(tmp_path / "configs/../pipelines/p.yaml").store == wanted


def test_what_is_shipped_and_what_is_no_file_has_its_store_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Path("pipelines/quickstart.yaml")).store == Path("runs/quickstart/feedback.duckdb")
    assert Pipeline.model_validate(yaml.safe_load(SOUND)).store == Path("runs/zephyr-7b/feedback.duckdb")
    reading, writing = os.pipe()
    os.write(writing, SOUND.encode())
    os.close(writing)
    assert load(Path(f"/dev/fd/{reading}")).store == Path("runs/zephyr-7b/feedback.duckdb")
    os.close(reading)


def test_two_entries_of_a_model_that_differ_in_system_alone_need_principles() -> None:
    """With them the one is steered and the other isn't; without, both would send the same."""
    plain = "served: {provider: openai, model: gpt-4.1-mini, system: none}"
    both = SOUND.replace("served: {provider: vllm, base_url: [http://a:1/v1, http://b:1/v1]}", plain)
    assert [parse(both, PATH).models[name].system for name in ("small-openai", "served")] == ["role", "none"]
    message = "p.yaml:18: models.served: same model and settings as models.small-openai, so both would give the same "
    assert complaints(both, "principles=") == [message + "completions; keep one, with samples: 2"]
    assert complaints(both.replace(", system: none", "")) == [message + "completions; keep one, with samples: 2"]


def test_one_bound_for_scores_of_several_sources_is_refused() -> None:
    """Sources with the same given name are on one scale; default names may be the same by chance."""
    text = """name: n
prompts:
  - {file: a/train.jsonl, completions: {field: answers, score: s}}
  - {file: b/train.jsonl, completions: {field: answers, score: s}}
"""
    rule = "export.kto={rule: scores, desirable: 4, undesirable: 2}"
    (told,) = complaints(text, rule)
    assert told.startswith(
        "--set export.kto: export.kto.rule: the scores of several sources can't have the same bounds (a/train.jsonl, "
        "b/train.jsonl); use rule pairs, or"
    )
    assert parse(text, PATH).score_scales == {"a/train.jsonl", "b/train.jsonl"}
    assert parse(text, PATH, [rule, "prompts.0.source=one", "prompts.1.source=one"]).score_scales == {"one"}
    hub = text.replace("file: a/train.jsonl", "hub: o/d, config: x")
    hub = hub.replace("file: b/train.jsonl", "hub: o/d, config: y")
    assert parse(hub, PATH).score_scales == {"o/d x", "o/d y"}
    assert sound().score_scales == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("null", "expected auto, none, or two tags such as ['<think>', '</think>'], got nothing"),
        ("deepseek_r1", "expected auto, none, or two tags such as ['<think>', '</think>'], got 'deepseek_r1'"),
        ("['<think>']", "expected two tags, the one before reasoning and the one after it, got a list"),
        ("[a, a]", "expected two tags, the one before reasoning and the one after it, got a list"),
    ],
)
def test_reasoning_tags_that_are_no_tags_are_refused(given: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        sound(f"models.served={{provider: openai, reasoning_tags: {given}}}")

    assert f"models.served.reasoning_tags: {message}" in str(caught.value)


def test_entries_of_one_model_have_the_same_reasoning_tags() -> None:
    twice = "{provider: openai, model: m, temperature: %s, reasoning_tags: %s}"
    with pytest.raises(BadInput, match=r"models.b.reasoning_tags: models.a is the same model; give both the same"):
        sound("models.a=" + twice % (0.1, "auto"), "models.b=" + twice % (0.2, "none"))
