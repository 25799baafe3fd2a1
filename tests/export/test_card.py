"""The dataset card as a value: metadata by the Hub's convention, counts that add up, no host, path or key."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard

from aif.config.pipeline import parse
from aif.config.sections import publishable_name
from aif.core.types import FailureGroup
from aif.engine.prepare import rubric_of
from aif.export.card import CardFacts, code_block, render_card, table_cell
from aif.store.report_queries import Balance, Books, Tally
from tests.support.building import PIPELINE

BALANCE = Balance(
    prompts=30,
    whole=27,
    slots={4: 30},
    tallies={
        ("completion", "able"): Tally(60, 58, 1, 1),
        ("completion", "poor"): Tally(60, 60, 0, 0),
        ("judgement", "strict"): Tally(29, 27, 1, 0),
    },
    missing=(
        FailureGroup("completion", "able", "blocked", "failed", 1, "key sk-123 at http://gpu-2.internal.example", "p1"),
        FailureGroup("completion", "able", "timeout", "later", 1, "no answer", "p2"),
        FailureGroup("judgement", "strict", "unreadable", "failed", 1, "no rating", "p3"),
        FailureGroup("judgement", "strict", "", "pending", 1, "", "p4"),
    ),
)
COUNTS = Books({"selected": 30, "duplicate": 4, "too_long": 1}, {"paired": 23, "tie": 5, "pending": 2}, 23)
MADE = datetime(2026, 4, 2, 8, 15, tzinfo=UTC)

SECRETIVE = """
name: guarded
prompts: [{file: /home/someone/secret-prompts.jsonl, source: asked}]
principles: ultrafeedback
completions: {per_prompt: 2}
models:
  local: {provider: vllm, model: /models/private/llama-7b, base_url: "http://gpu-2.internal.example:8000/v1"}
  hosted: {provider: openai, model: gpt-small, api_key_env: POOL_KEY, temperature: null}
judges:
  wise: {provider: openai, model: gpt-large, base_url: "https://judge.internal.example/v1", api_key_env: JUDGE_KEY}
rubric: ultrafeedback
pairs: {score: overall, min_margin: 1.5, policy: best_vs_worst, missing: drop}
export: {formats: [trl, h4], license: mit}
"""

SAMPLE: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Why is the sky blue?"}],
    "chosen": [{"role": "assistant", "content": "Short waves scatter more."}],
    "rejected": [{"role": "assistant", "content": "It mirrors the sea."}],
}


def facts(text: str = PIPELINE, *sets: str, **changes: Any) -> CardFacts:
    pipeline = parse(text, Path("pipeline.yaml"), sets)
    rubric = rubric_of(pipeline)
    row: dict[str, Any] = {"carried": False, "completions": 30, "truncated": 2, "mean_tokens": 81.4}
    row["aspects"] = {"honesty": 3.25, "helpfulness": 4.0}
    made = CardFacts(
        pipeline=pipeline,
        rubric=rubric,
        rows={"trl": {"train": 20, "test": 3}, "h4": {"train_prefs": 20, "test_prefs": 3}},
        files={
            config: {split: f"{config}/{split}-00000-of-00001-0a1b.parquet" for split in splits}
            for config, splits in {"trl": ["train", "test"], "h4": ["train_prefs", "test_prefs"]}.items()
        },
        prompt_counts=COUNTS,
        balance=BALANCE,
        sources=[("first", 20, 15), ("second", 10, 8)],
        chosen=np.array([5.0, 4.75, 4.5] + [4.0] * 20),
        rejected=np.array([1.0, 2.0, 1.5] + [3.0] * 20),
        leaderboard=[
            {"model": "able", "mean_score": 4.31, "chosen": 20, "rejected": 3, **row},
            {"model": "poor", "mean_score": None, "chosen": None, "rejected": None, **row, "aspects": None},
        ],
        agreement=[],
        disputed=0,
        spend=[
            {
                "stage": "judgement", "endpoint": "strict", "calls": 1234, "answered": 1200, "input_tokens": 5_000_000,
                "cached_tokens": None, "output_tokens": 70_000, "usd": 12.5, "unpriced": 3, "seconds": 9.0,
            },
            {
                "stage": "completion", "endpoint": "able", "calls": 10, "answered": 10, "input_tokens": 100,
                "cached_tokens": 0, "output_tokens": 50, "usd": None, "unpriced": 10, "seconds": 9.0,
            },
        ],
        sample=SAMPLE,
        version="9.9",
        made=MADE,
        calls=(MADE, MADE),
    )  # fmt: skip
    return replace(made, **changes)


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_metadata_is_what_the_hub_expects() -> None:
    card = render_card(facts(PIPELINE, "export.license=cc-by-4.0"))
    assert metadata(card) == {
        "license": "cc-by-4.0",
        "pretty_name": "built",
        "tags": ["rlaif", "preference", "dpo", "synthetic", "trl", "aif"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "trl",
                "default": True,
                "data_files": [
                    {"split": "train", "path": "trl/train-00000-of-00001-0a1b.parquet"},
                    {"split": "test", "path": "trl/test-00000-of-00001-0a1b.parquet"},
                ],
            },
            {
                "config_name": "h4",
                "data_files": [
                    {"split": "train_prefs", "path": "h4/train_prefs-00000-of-00001-0a1b.parquet"},
                    {"split": "test_prefs", "path": "h4/test_prefs-00000-of-00001-0a1b.parquet"},
                ],
            },
        ],
    }
    read = vars(DatasetCard(card).data)  # as the Hub's own client reads it
    assert (read["license"], read["pretty_name"]) == ("cc-by-4.0", "built")
    assert read["configs"] == metadata(card)["configs"]


def test_without_a_licence_none_is_made_up() -> None:
    card = render_card(facts())
    assert "license" not in metadata(card)
    assert "No licence was set (`export.license`" in section(card, "Licence")


def test_stated_terms_are_listed_and_endpoints_without_terms_are_named() -> None:
    told = section(render_card(facts(SECRETIVE, "models.local.terms=Llama 2 | licence")), "Licence")
    assert "| local | Llama 2 \\| licence |" in told
    assert "**Licence of model outputs not stated for**: hosted, wise (`terms`" in told
    whole = section(render_card(facts(SECRETIVE, "models.*.terms=mit", "judges.*.terms=OpenAI's")), "Licence")
    assert "| wise | OpenAI's |" in whole
    assert "not stated" not in whole
    assert "not stated" not in render_card(facts())  # what is simulated comes under none


@pytest.mark.parametrize(
    ("rows", "bucket"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (10_000, "10K<n<100K"), (2_000_000, "1M<n<10M")],
)
def test_the_size_bucket_is_that_of_the_default_config(rows: int, bucket: str) -> None:
    card = render_card(facts(rows={"trl": {"train": rows - 9, "test": 9}, "h4": {"train_prefs": rows}}))
    assert metadata(card)["size_categories"] == [bucket]


def test_with_h4_alone_it_is_the_default_and_trl_is_not_mentioned() -> None:
    card = render_card(facts(rows={"h4": {"train_prefs": 20}}, files={"h4": {"train_prefs": "h4/p.parquet"}}))
    assert [(c["config_name"], c.get("default")) for c in metadata(card)["configs"]] == [("h4", True)]
    assert "trl" not in metadata(card)["tags"]
    assert 'load_dataset("REPOSITORY_OR_FOLDER", "h4", split="train_prefs")' in card
    assert "**`trl`**" not in card
    assert "There is no test split" in card


def test_a_test_split_is_described_if_there_is_one() -> None:
    """h4 has three train splits; another config may hold out a prompt where the default one holds out none."""
    both, asked, none = (
        "Train and test share no prompt",
        "no prompt falls into it with `export.test_size` 0.01",
        "`export.test_size` in the pipeline makes one",
    )
    plain: dict[str, dict[str, int]] = {"h4": {"train_prefs": 20, "train_sft": 20, "train_gen": 20}}

    def said(rows: dict[str, dict[str, int]], *sets: str) -> list[bool]:
        files = {config: {split: f"{config}/{split}.parquet" for split in splits} for config, splits in rows.items()}
        use = section(render_card(facts(PIPELINE, *sets, rows=rows, files=files)), "Use")
        return [words in use for words in (both, asked, none)]

    assert said(plain) == [False, False, True]
    assert said(plain, "export.test_size=0.01") == [False, True, False]
    assert said({"trl": {"train": 20}, "ultrafeedback": {"train": 28, "test": 2}}) == [True, False, False]


def test_planned_work_is_not_described_as_done() -> None:
    """Some completions fail, some are pending: the counts say so, and no sentence may contradict them."""
    card = render_card(facts())
    assert "30 prompts went to a pool of 4 models for 4 completions each, the completions went to strict to be" in card
    for words in ("every completion was rated", "was answered 4 times"):
        assert words not in card


def test_the_card_says_what_the_judge_saw() -> None:
    def saw(*sets: str) -> str:
        made = section(render_card(facts(PIPELINE, *sets)), "How this was made")
        return next(line for line in made.splitlines() if "**What the judge saw**" in line)

    material = "prompts=[{file: p.jsonl, material: {reference: answer}}]"
    assert (
        "every turn of the prompt, and its completions, numbered in a random order drawn by hash, but neither" in saw()
    )
    assert "the prompt, the material provided with it (reference), and its completions" in saw(material)
    assert "the prompt, and one completion at a time, but neither the models' names nor" in saw("rubric=mt-bench")
    assert "truthfulness, helpfulness) or one at a time (critique), but neither" in saw("rubric=ultrafeedback")


def test_models_without_principles_are_named() -> None:
    assert "one drawn for each except those of plain. They" in render_card(facts(PIPELINE, "models.plain.system=none"))
    assert "one drawn for each. They" in render_card(facts())


def test_the_card_says_how_complete_it_is_and_what_is_missing_without_messages() -> None:
    """A server's words may hold anything."""
    card = section(render_card(facts()), "Prompt counts")
    assert "- 30 prompts × 4 = 120 completions = 118 answered + 1 failed + 1 pending" in card
    assert "- 29 judgements = 27 answered + 1 failed + 1 pending" in card
    assert "- 27 of 30 prompts complete (90.0%)" in card
    assert "| able | completions | 60 | 58 | 1 | 1 |" in card
    assert "Missing: 1 of able (blocked), 1 of able (timeout), 1 of strict (unreadable)." in card
    assert "sk-123" not in card
    assert "internal.example" not in card


def test_carried_completions_are_listed_apart_from_the_model_of_that_name() -> None:
    rows = facts().leaderboard
    card = section(render_card(facts(leaderboard=[rows[0], {**rows[0], "carried": True}])), "Models")
    assert re.search(r"^\| able \| 30 ", card, re.MULTILINE)
    assert re.search(r"^\| able \(carried\) \| 30 ", card, re.MULTILINE)


def test_the_prompt_counts_add_up() -> None:
    lines = re.findall(r"^\| ([−=]? ?[\d,]+) \| (.*) \|$", section(render_card(facts()), "Prompt counts"), re.MULTILINE)
    amounts = [int(amount.replace("−", "-").replace("=", "").replace(" ", "").replace(",", "")) for amount, _ in lines]
    assert lines[0] == ("35", "rows read")
    assert sum(amounts[:3]) == amounts[3] == 30
    assert sum(amounts[3:6]) == amounts[6] == 23
    assert [words for _, words in lines[1:4]] == ["duplicate", "too long", "prompts"]


def test_every_score_is_in_one_bar_and_the_highest_in_the_last() -> None:
    bins = re.findall(r"^ *([\d.]+)–([\d.]+) +(\d+) *[█▏▎▍▌▋▊▉]* +(\d+)", render_card(facts()), re.MULTILINE)
    assert [edge for edge, *_ in bins] == ["1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5"]
    assert [int(n) for *_, n, _ in bins] == [0, 0, 0, 0, 0, 0, 20, 3]
    assert [int(n) for *_, n in bins] == [1, 1, 1, 0, 20, 0, 0, 0]


def test_the_scale_of_an_overall_score_is_its_own() -> None:
    card = render_card(facts(SECRETIVE, chosen=np.array([10.0, 9.0]), rejected=np.array([1.0, 8.999999999999999])))
    bins = re.findall(r"^ *(\d+)–(\d+) +(\d+) *[█▏▎▍▌▋▊▉]* +(\d+)", card, re.MULTILINE)
    assert [(low, int(chosen), int(rejected)) for low, _, chosen, rejected in bins if chosen != rejected] == [
        ("1", 0, 1),
        ("9", 2, 1),
    ]
    assert bins[-1][:2] == ("9", "10")


BROUGHT = "{name: n, prompts: [{file: a.jsonl, completions: {field: answers, score: rating}}]}"


@pytest.mark.parametrize("times", [1e-11, 1.0, 1e299])
def test_scores_of_any_size_have_their_bars(times: float) -> None:
    card = render_card(facts(BROUGHT, chosen=np.array([4, 3.0]) * times, rejected=np.array([1, 3.0]) * times))
    bins = re.findall(r"–\S+ +(\d+) *[█▏▎▍▌▋▊▉]* +(\d+)", card)
    assert [sum(int(n) for n in side) for side in zip(*bins, strict=True)] == [2, 2]
    assert len(bins) > 7


def test_scores_that_are_shares_are_described_as_such() -> None:
    rubric = rubric_of(parse(PIPELINE, Path("pipeline.yaml")))
    aspects = {**rubric.sheet.aspects, "honesty": rubric.sheet.aspects["honesty"].model_copy(update={"scale": (0, 40)})}
    mixed = replace(rubric, sheet=rubric.sheet.model_copy(update={"aspects": aspects}))
    card = render_card(facts(rubric=mixed, chosen=np.array([0.9]), rejected=np.array([0.1])))
    assert "a score is the mean of each aspect's rating scaled from 0 to 1. Ties" in card
    assert "0.9–1" in card
    assert "shares" not in render_card(facts())


def test_margin_statistics() -> None:
    assert "mean 1.29, min 1.00, p25 1.00, median 1.00, p75 1.00, max 4.00" in render_card(facts())


def test_the_pool_is_listed_best_first_with_gaps_for_unknown_values() -> None:
    table = section(render_card(facts()), "Models").strip().splitlines()
    assert table[0].startswith("| model | completions | score | honesty | helpfulness | chosen")
    assert table[2] == "| able | 30 | 4.31 | 3.25 | 4.00 | 20 | 3 | 81 | 2 |"
    assert table[3] == "| poor | 30 | – | – | – | 0 | 0 | 81 | 2 |"
    assert len({line.count("|") for line in table[:4]}) == 1


def test_neither_hosts_nor_paths_nor_keys_are_in_it() -> None:
    card = render_card(facts(SECRETIVE))
    for word in ("internal", "example", "http", "/models", "private", "/home", "someone", "secret", "_KEY", "8000"):
        assert word not in card
    made = section(card, "How this was made")
    assert "| local | llama-7b |" in made
    assert "| hosted | gpt-small | up to 1 | server's default | 1 | 1024 | role |" in made
    assert "wise (gpt-large)" in made


def test_how_this_was_made_agrees_with_the_pipeline() -> None:
    made = section(render_card(facts(SECRETIVE)), "How this was made")
    assert "`best_vs_worst` by the overall score" in made
    assert "Chosen is the best completion that was not cut at its limit" in made
    assert "rejected is the lowest of those at least 1.5 below it. Ties" in made
    assert "makes no pair" in made.split("Ties make no pair")[1]
    assert "*ultrafeedback*, digest `" in made
    assert "Overall (1–10, weight 0)" in made
    assert "none; no system prompt was added" in section(
        render_card(facts(PIPELINE.replace("principles: ultrafeedback\n", ""))), "How this was made"
    )


def test_several_judges_are_named_with_how_far_they_agree() -> None:
    two = "judges={wise: {provider: openai, weight: 2}, mild: {provider: openai, reply: text}}"
    rows = [{"judge": "mild", "other": "wise", "aspect": None, "completions": 1200, "difference": 0.5,
             "correlation": None}]  # fmt: skip
    card = render_card(facts(PIPELINE, two, agreement=rows, disputed=3))
    assert "went to wise and mild to be rated against" in card
    assert "- **Judge**: wise (wise), temperature 0, replies bound by a JSON schema, weight 2.\n" in card
    assert "- **Judge**: mild (mild), temperature 0, replies as text.\n" in card
    assert "| mild, wise | 1,200 | 0.50 | – |" in section(card, "Models")
    assert "3 of 23 pairs: at least one judge prefers the rejected answer." in card
    assert "each aspect being the weighted mean of its judges" in card
    assert "agree" not in render_card(facts())


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            ("pairs.policy=all",),
            "Every completion that was not cut at its limit is chosen over every completion below it. ",
        ),
        (
            ("pairs.policy=all", "pairs.max_pairs_per_prompt=3", "pairs.max_length_ratio=2.0"),
            "over every completion below it, at most 2 times as long or as short; of each prompt the 3 pairs with the "
            "largest margin stay. ",
        ),
        (
            ("pairs.policy=on_policy", "pairs.model=poor", "pairs.max_per_model=1000"),
            "not cut at its limit, in pairs with poor as chosen or rejected; rejected is drawn from those below it; "
            "each model is chosen at most 1,000 times, and rejected at most as often. ",
        ),
        (("pairs.min_margin=0.5",), "rejected is drawn from those at least 0.5 below it. "),
    ],
)
def test_the_pairing_rule_is_described(sets: tuple[str, ...], words: str) -> None:
    assert words in section(render_card(facts(PIPELINE, *sets)), "How this was made")


def test_simulated_models_are_named() -> None:
    assert "A rehearsal, not training data**: able, fair, plain, poor, strict are simulated" in render_card(facts())
    assert "rehearsal" not in render_card(facts(SECRETIVE))


def test_no_text_of_a_prompt_ends_its_block_or_passes_for_the_run_section() -> None:
    text = "```\n# Heading\n````markdown\n<!-- run:begin -->\n| a |\n---\n"
    card = render_card(facts(sample={"prompt": [{"role": "user", "content": text}]}))
    block = section(card, "A row")
    fence = re.search(r"^(`+)json\n", block, re.MULTILINE)
    assert fence is not None
    assert len(fence[1]) == 5
    assert len(re.findall(rf"^{fence[1]}", block, re.MULTILINE)) == 2
    assert card.count("<!-- run:begin -->") == card.count("<!-- run:end -->") == 1
    shown = block.split(f"{fence[1]}json\n")[1].split(f"\n{fence[1]}")[0]
    assert yaml.safe_load(shown)["prompt"][0]["content"] == text


def test_time_and_spend_are_in_the_marked_section_alone() -> None:
    one = facts()
    other = replace(one, made=datetime(2027, 1, 1, tzinfo=UTC), calls=None, spend=one.spend[:1], version="10.0")
    cut = re.compile("<!-- run:begin -->.*<!-- run:end -->", re.DOTALL)
    assert render_card(one) != render_card(other)
    assert cut.sub("", render_card(one)) == cut.sub("", render_card(other))


def test_the_spend_table_shows_unknown_costs() -> None:
    run = section(render_card(facts()), "The run")
    assert "| judgement | strict | 1,234 | 1,200 | 5,000,000 | 0 | 70,000 | 12.5000 and 3 calls unknown |" in run
    assert "| completion | able | 10 | 10 | 100 | 0 | 50 | unknown |" in run
    assert "| **all** | | 1,244 | 1,210 | 5,000,100 | 0 | 70,050 | 12.5000 and 13 calls unknown |" in run
    assert "Made 2026-04-02 08:15 UTC by aif 9.9" in run


def test_of_many_sources_the_rest_is_summed() -> None:
    card = render_card(facts(sources=[(f"s{n}", 100 - n, 10) for n in range(25)]))
    table = section(card, "Prompt counts")
    assert "| s19 | 81 | 10 |" in table
    assert "| s20 |" not in table
    assert f"| 5 more | {80 + 79 + 78 + 77 + 76} | 50 |" in table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("two\nlines", "two lines"),
        ("<b>bold</b>", "&lt;b>bold&lt;/b>"),
        ("`*[x](y)~", r"\`\*\[x\](y)\~"),
        ("x" * 100, "x" * 79 + "…"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_a_cell_holds_no_markup(text: str, shown: str) -> None:
    assert table_cell(text) == shown


def test_a_fence_is_longer_than_any_run_inside() -> None:
    assert code_block("plain", "text") == "```text\nplain\n```"
    assert code_block("a ``` b ````` c").startswith("``````\n")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/name@main", "org/name@main"),
        ("/models/x/llama", "llama"),
        ("./llama", "llama"),
        ("~/m/llama@v1", "llama@v1"),
        (r"C:\models\llama", "llama"),
    ],
)
def test_of_a_path_its_last_part_is_public(name: str, shown: str) -> None:
    assert publishable_name(name) == shown


def test_a_path_in_a_relative_folder_is_not_public_either() -> None:
    """A name on the Hub has one slash; a server may call its model whatever it likes."""
    launched = "models.local={provider: vllm, launch: {model: someone/models/llama-7b}, revision: refs/pr/1}"
    one = facts(SECRETIVE, launched, "models.hosted.model=accounts/fast/models/llama")
    assert "| local | llama-7b@refs/pr/1 |" in render_card(one)
    assert "| hosted | accounts/fast/models/llama |" in render_card(one)
    assert "someone" not in render_card(one) + one.pipeline.public_yaml
    below = parse(SECRETIVE, Path("p.yaml"), ["prompts=[{hub: someone/data/mine}, {hub: org/mine}]"]).public_yaml
    assert [source["hub"] for source in yaml.safe_load(below)["prompts"]] == ["mine", "org/mine"]
