"""Books that balance: whatever became of each item, status, summary and card say the same, and it adds up."""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from aif.cli.views.summary import print_leaderboard, print_status, print_summary
from aif.config.pipeline import parse
from aif.core.types import FailureGroup
from aif.engine.make_pairs import make_pairs
from aif.engine.outcome_text import balance_lines, shortfall_lines
from aif.engine.prepare import rubric_of
from aif.export.dataset import export
from aif.store import records
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from aif.store.report_queries import ItemCounts, Tally
from tests.end_to_end.test_carried import answered as bringing
from tests.end_to_end.test_carried import rows
from tests.engine.test_orchestrator import run, write
from tests.support.building import PIPELINE, Cut, Fate, build, complete, rate
from tests.support.serving import Served

POOL = ("able", "fair", "plain", "poor")
Completions = Mapping[tuple[int, str], Fate | None]


def told(tell: Callable[[Console], None], width: int = 80) -> str:
    screen = io.StringIO()
    tell(Console(width=width, file=screen))
    return screen.getvalue()


def made(
    folder: Path, completions: Completions, judgements: Mapping[int, Fate | None], *sets: str, count: int = 5
) -> JournaledStore:
    """A store in which each completion has its fate (by prompt and model), and each prompt's judgement."""
    _, _, journaled = build(
        folder,
        count,
        sets=sets,
        complete=lambda n, model: completions.get((n, model)) or complete(n, model),
        rate=lambda n, model, aspect: judgements.get(n) or rate(n, model, aspect),
    )
    return journaled


def counted(
    slots: Iterable[tuple[int, str]], completions: Completions, judgements: Mapping[int, Fate | None]
) -> dict[tuple[str, str], Tally]:
    """The balance of slots (prompt, model) in plain Python; a prompt is judged from two completions on."""
    states: dict[tuple[str, str], Counter[str]] = {}
    prompts: dict[int, list[Fate | None]] = {}
    for number, model in slots:
        fate = completions.get((number, model))
        states.setdefault(("completion", model), Counter())[fate.value if fate else "answered"] += 1
        prompts.setdefault(number, []).append(fate)
    for number, fates in prompts.items():
        if len(fates) - fates.count(Fate.FAILED) >= 2:
            fate = Fate.PENDING if Fate.PENDING in fates else judgements.get(number)
            states.setdefault(("judgement", "strict"), Counter())[fate.value if fate else "answered"] += 1
    return {place: Tally(n.total(), n["answered"], n["failed"], 0) for place, n in states.items()}


def numbers(text: str) -> list[tuple[int, ...]]:
    """Every balance that is told in words: wanted, answered, failed, pending."""
    found = re.findall(r"([\d,]+) (?:completion|judgement)s? = ([\d,]+) \w+ \+ ([\d,]+) \w+ \+ ([\d,]+)", text)
    return [tuple(int(n.replace(",", "")) for n in one) for one in found]


ROW = st.tuples(*[st.sampled_from([None, None, None, Fate.FAILED, Fate.PENDING])] * 5)  # four completions, a judgement


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans=st.lists(st.tuples(st.integers(2, 4), st.lists(ROW, min_size=5, max_size=5)), min_size=2, max_size=2))
def test_whatever_became_of_each_item_the_books_balance(plans: list[tuple[int, list[tuple[Fate | None, ...]]]]) -> None:
    """Of one plan, and of another in its place that asks for all of it anew (there are no principles any more)."""
    with tempfile.TemporaryDirectory() as name:
        for (per_prompt, drawn), principles in zip(plans, ("ultrafeedback", "null"), strict=True):
            completions = {
                (n, model): fate for n, row in enumerate(drawn) for model, fate in zip(POOL, row, strict=False)
            }
            judgements = {n: row[4] for n, row in enumerate(drawn)}
            sets = (f"completions.per_prompt={per_prompt}", f"principles={principles}")
            with made(Path(name), completions, judgements, *sets) as journaled, Reader.of(journaled.store) as reader:
                slots = [(row["position"], row["model"]) for row in reader._query("SELECT position, model FROM slots")]
                balance = reader.item_counts()
                assert balance.tallies == reader.tallies() == counted(slots, completions, judgements)
                first = [(n, model) for n, model in slots if n < 2]
                assert reader.tallies(limit=2) == counted(first, completions, judgements)
                bad = {n for n, model in slots if completions[n, model]} | {n for n, fate in judgements.items() if fate}
                _check(balance, 5, per_prompt, whole=5 - len(bad))


def _check(balance: ItemCounts, prompts: int, per_prompt: int, whole: int) -> None:
    assert (balance.prompts, balance.complete, balance.slots) == (prompts, whole, {per_prompt: prompts})
    assert balance.total("completion").wanted == prompts * per_prompt
    for place, tally in balance.tallies.items():
        missing = [one for one in balance.missing if (one.stage, one.endpoint) == place]
        assert sum(one.items for one in missing if one.verdict == "failed") == tally.failed
        assert sum(one.items for one in missing if one.verdict != "failed") == tally.pending
        assert tally.answered + tally.failed + tally.pending == tally.wanted


def test_replies_that_ended_by_an_unknown_word_are_counted_by_word(tmp_path: Path) -> None:
    """They are kept as if they were cut: rated, never chosen."""

    def said(n: int, model: str) -> str | Cut | Fate:
        ends = {("fair", 0): "weird", ("fair", 1): "weird", ("fair", 2): "[b]odd", ("poor", 3): ""}
        text = complete(n, model)
        word = ends.get((model, n))
        return text if word is None or not isinstance(text, str) else Cut(text, word)

    _, _, journaled = build(tmp_path, 5, complete=said)
    with journaled, Reader.of(journaled.store) as reader:
        assert reader.unknown_endings() == [("fair", 1, "[b]odd"), ("fair", 2, "weird")]
        summary = told(lambda console: print_summary(console, reader, 2.0), width=120)
    assert "fair: 1 answer ended with the unknown finish reason '[b]odd': stored as if cut" in summary
    assert "fair: 2 answers ended with the unknown finish reason 'weird'" in summary
    assert re.search(r"^fair .*5 \(3 cut\)", summary, re.MULTILINE)
    assert re.search(r"^poor .*5 \(1 cut\)", summary, re.MULTILINE)


def test_status_summary_and_card_say_the_same(tmp_path: Path) -> None:
    completions = {(0, "fair"): Fate.FAILED, (1, "poor"): Fate.PENDING, (2, "able"): Fate.FAILED}
    with made(tmp_path, completions, {3: Fate.FAILED}) as journaled:
        pipeline = parse(PIPELINE, tmp_path / "pipeline.yaml", [f"store={journaled.store.path}"])
        export(pipeline, rubric_of(pipeline), journaled, tmp_path / "out", lambda words: None)
        with Reader.of(journaled.store) as reader:
            status = told(lambda console: print_status(console, reader))
            summary = told(lambda console: print_summary(console, reader, 2.0))
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (status, summary, card):
        assert numbers(text) == [(20, 17, 2, 1), (5, 3, 1, 1)], text
        assert "5 prompts × 4 = 20 completions" in text
        assert "1 of 5 prompts complete (20.0%)" in text
    for row in ("able completions 5 4 1 0", "poor completions 5 4 0 1", "strict judgements 5 3 1 1"):
        assert row in re.sub(r"[ |]+", " ", status)
        assert row in re.sub(r"[ |]+", " ", card)
    assert "blocked: 3 (retry with --retry-failed)\n    able 1, fair 1, strict 1\n" in status


def test_what_has_no_price_is_told_as_unknown_never_as_nothing(tmp_path: Path) -> None:
    with made(tmp_path, {}, {}) as journaled:
        db = journaled.store.cursor()
        db.execute("UPDATE calls SET usd = NULL WHERE endpoint IN ('able', 'fair')")
        db.execute(
            "UPDATE calls SET usd = 0 WHERE endpoint = 'able' AND prompt_id = (SELECT min(prompt_id) FROM calls)"
        )
        db.execute("UPDATE calls SET usd = 0 WHERE endpoint = 'poor'")
        db.execute("UPDATE calls SET usd = NULL WHERE endpoint = 'plain' AND rowid % 2 = 0")
        spend = {row["endpoint"]: row["usd"] for row in _ask(journaled, "FROM spend")}
        with Reader.of(journaled.store) as reader:
            said = told(lambda console: print_summary(console, reader, 1.0))
    assert (spend["able"], spend["fair"], spend["poor"]) == (None, None, 0)
    assert [len(re.findall(rf"{name} .* unknown *\n", said)) for name in ("able", "fair", "plain")] == [1, 1, 1]
    assert re.search(r"plain .* \$0\.00\d+ \+ \d+ calls unknown", said)
    assert re.search(r"poor .* \$0\.00 *\n", said)


def test_what_was_read_anew_and_not_planned_yet_is_said(tmp_path: Path) -> None:
    with made(tmp_path, {}, {}) as journaled:
        journaled.keep([records.page(0, [], []), records.selected("other", {})])
        with Reader.of(journaled.store) as reader:
            assert balance_lines(reader.item_counts())[-1] == "no prompt is selected"
        (one,) = {row["prompt_id"] for row in _ask(journaled, "SELECT min(prompt_id) AS prompt_id FROM prompts")}
        journaled.keep([records.page(0, [(one, "s")], []), records.selected("third", {})])
        with Reader.of(journaled.store) as reader:
            said = balance_lines(reader.item_counts())
    assert said[-2:] == [
        "1 prompt not planned yet: the next run plans them first",
        "0 of 1 prompt complete (0.0%)",
    ]


def _ask(journaled: JournaledStore, query: str) -> list[dict[str, Any]]:
    with Reader.of(journaled.store) as reader:
        return reader._query(query)


def test_completions_that_came_with_prompts_are_apart_from_those_a_model_of_that_name_was_asked_for(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = write(
        tmp_path,
        serve(),
        prompts=[{"file": "brought.jsonl", "completions": {"field": "answers"}}, {"file": "prompts.jsonl", "limit": 3}],
    )
    row = bringing(0)
    row["answers"][0]["model"] = "large"
    rows(tmp_path, "brought.jsonl", row)
    pipeline, ended = run(path)
    assert not ended.incomplete
    with Reader.open(pipeline.store) as reader:
        tallies, balance = reader.tallies(), reader.item_counts()
        board = {(one["model"], one["carried"]): one["completions"] for one in reader._query("FROM leaderboard")}
        status = told(lambda console: print_status(console, reader))
    assert tallies["completion", "large"] == Tally(3, 3, 0, 0)
    assert tallies["carried", "large"] == Tally(1, 1, 0, 0)
    assert (board["large", False], board["large", True], board["ben", True]) == (3, 1, 1)
    assert balance.slots == {4: 3, 3: 1}
    assert "3 prompts × 4 + 1 prompt × 3 = 15 completions = 15 answered + 0 failed + 0 pending" in status
    assert "large (carried)" in status


# --- at 80 columns ----------------------------------------------------------------------------------------------------

LONG = ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "mistralai/Mixtral-8x22B-Instruct-v0.1", "able", "poor")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_names_stand_whole_and_no_line_is_too_long(tmp_path: Path, width: int) -> None:
    board = [
        {
            "model": name, "carried": False, "completions": 64_000, "truncated": 0, "mean_tokens": 143.0,
            "mean_score": 4.0, "chosen": 63_366, "rejected": 21_280,
            "aspects": {"helpfulness": 4.0, "honesty": 4.0, "instruction_following": 4.0, "truthfulness": 4.0},
        }
        for name in LONG
    ]  # fmt: skip
    text = told(lambda console: print_leaderboard(console, board), width)
    assert all(len(line) <= width for line in text.splitlines())
    for name in LONG:
        assert re.search(rf"^{re.escape(name)} +64,000 +4\.00", text, re.MULTILINE), text
    assert ("Models, ratings by aspect" in text) is (width == 80)
    assert len(re.findall(r"4\.00", text)) == 4 * 5


def test_one_is_told_as_one(tmp_path: Path) -> None:
    with made(tmp_path, {}, {}, count=1) as journaled:
        pipeline = parse(PIPELINE, tmp_path / "pipeline.yaml", [f"store={journaled.store.path}"])
        make_pairs(pipeline, rubric_of(pipeline), journaled.store)
        with Reader.of(journaled.store) as reader:
            said = told(lambda console: print_summary(console, reader, 2.0))
    assert "1 prompt, 1 pair in 2.0 s" in said
    for words in ("1 +row read", "= 1 +prompt", "= 1 +pair"):
        assert re.search(rf"{words} *$", said, re.MULTILINE)


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_what_gets_it() -> None:
    missing = (
        FailureGroup("completion", "able", "blocked", "failed", 1, "its filter " * 90, "p"),
        FailureGroup("judgement", "strict", "timeout", "later", 2000, "no answer", "p"),
        FailureGroup("judgement", "strict", "", "pending", 3, "", "p"),
    )
    balance = ItemCounts(3000, 2999, {4: 3000}, {}, missing)
    said = shortfall_lines(balance, 1.0, "p.yaml")
    assert said[0].startswith("2,999 of 3,000 prompts complete (almost 100%)")
    assert said[1].startswith("  able: 1 completion failed permanently: blocked, as in: its filter")
    assert len(said[1]) < 250
    assert said[2:4] == [
        "  strict: 2,000 judgements to be retried: timeout, as in: no answer",
        "  strict: 3 judgements, not sent yet",
    ]
    assert "`aif run p.yaml`" in said[4]
    assert "--retry-failed" in said[5]
    assert shortfall_lines(balance, 0.9, "p.yaml") == []
    failed = ItemCounts(4, 3, {4: 4}, {}, missing[:1])
    assert not any("pending" in line for line in shortfall_lines(failed, 1.0, "p.yaml"))
