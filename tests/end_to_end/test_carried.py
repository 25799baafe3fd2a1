"""Completions, scores and material provided by a prompt source: what is judged, paired and shown of them."""

import json
import re
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from aif.cli.views.show import print_prompt
from aif.config.pipeline import Pipeline, load
from aif.core.errors import BadInput
from aif.core.types import KEY_LENGTH, digest
from aif.engine.prepare import prepare, rubric_of
from aif.engine.rebuild import rebuild
from aif.export.dataset import export
from aif.store import journal
from aif.store.journal import Damage
from aif.store.journaled_store import JournaledStore
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from tests.engine.test_orchestrator import ask, run, write
from tests.support.serving import Served

Serve = Callable[..., Served]
Row = dict[str, Any]

WRITERS = ("ann", "ben", "cat")
WORST = {"pairs": {"policy": "best_vs_worst"}}


def rows(folder: Path, name: str, *found: Row) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))


def answered(number: int, *scores: float | None) -> Row:
    """A row with three completions, and their scores where there are any."""
    given = [
        {"model": writer, "text": f"{writer} on lighthouse {number}: " + "because it is lit, " * (n + 1)}
        for n, writer in enumerate(WRITERS)
    ]
    for one, score in zip(given, scores, strict=False):
        one["rating"] = score  # type: ignore[assignment]
    return {"prompt": f"Why is lighthouse {number} lit?", "answers": given}


def bring(folder: Path, served: Served, *found: Row, **changes: Any) -> Path:
    """A pipeline without a pool over rows that carry their completions."""
    source = {"file": "prompts.jsonl", "completions": {"field": "answers"}}
    path = write(folder, served, models={}, prompts=[source], **changes)
    rows(folder, "prompts.jsonl", *found)
    return path


def slots(pipeline: Pipeline) -> dict[str, list[str]]:
    found = ask(pipeline, "SELECT prompt_id, list(model ORDER BY slot) AS models FROM slots GROUP BY prompt_id")
    return {row["prompt_id"]: row["models"] for row in found}


def export_of(pipeline: Pipeline, out: Path) -> dict[str, bytes]:
    """The data files of an export, by name."""
    with JournaledStore.open(pipeline.store, print) as journaled:
        export(pipeline, rubric_of(pipeline), journaled, out, lambda words: None)
    return {path.name: path.read_bytes() for path in out.rglob("*.parquet")}


def told_by(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_completions_that_come_with_prompts_go_straight_to_the_judge(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = bring(tmp_path, served, *(answered(n) for n in range(6)))
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert served.stats()["by_model"] == {"judge": 6}
    assert list(slots(pipeline).values()) == [list(WRITERS)] * 6
    assert ask(pipeline, "SELECT count(*) AS n FROM ratings") == [{"n": 6 * 3 * 4}]
    assert sum(ended.outcomes.values()) == 6
    run(path)
    assert served.stats()["by_model"] == {"judge": 6}


def test_one_completion_a_row_is_gathered_over_rows_and_files(tmp_path: Path, serve: Serve) -> None:
    """A file for each model is how many benchmarks keep their answers."""
    prompts = ["Why?", "How?"]
    for writer in WRITERS:
        rows(tmp_path, f"{writer}.jsonl", *({"prompt": p, "said": f"{writer}: {p}", "by": writer} for p in prompts))
    one = {"completions": {"field": "said", "model": "by"}}
    path = write(tmp_path, serve(), models={}, prompts=[{"file": f"{writer}.jsonl", **one} for writer in WRITERS])
    pipeline, ended = run(path)

    assert list(slots(pipeline).values()) == [list(WRITERS)] * 2
    assert not ended.incomplete
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().intake == {"selected": 2, "gathered": 4}


def test_a_pool_answers_the_prompts_that_bring_nothing(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = write(
        tmp_path,
        served,
        prompts=[{"file": "brought.jsonl", "completions": {"field": "answers"}}, {"file": "prompts.jsonl"}],
    )
    rows(tmp_path, "brought.jsonl", answered(0), answered(1) | {"answers": []})
    pipeline, ended = run(path, "prompts.1.limit=3")

    assert not ended.incomplete
    assert sorted(map(len, slots(pipeline).values())) == [3, 4, 4, 4, 4]
    assert served.stats()["by_model"]["judge"] == 5


def test_without_a_pool_a_prompt_that_brings_nothing_is_counted(tmp_path: Path, serve: Serve) -> None:
    pipeline, _ = run(bring(tmp_path, serve(), answered(0), answered(1) | {"answers": []}))
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().intake == {"selected": 1, "no_completions": 1}


def test_a_pool_that_comes_or_goes_changes_which_prompts_are_taken(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = bring(tmp_path, served, answered(0), answered(1) | {"answers": []})
    run(path)
    pool = f"models={{large: {{provider: vllm, base_url: '{served.base_url}', samples: 4}}}}"
    pipeline, ended = run(path, pool)
    assert not ended.incomplete
    assert sorted(map(len, slots(pipeline).values())) == [3, 4]

    pipeline, ended = run(path)
    assert list(map(len, slots(pipeline).values())) == [3]
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().intake == {"selected": 1, "no_completions": 1}


def test_too_few_completions_are_not_judged(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    _, ended = run(bring(tmp_path, served, {"prompt": "Why?", "answers": [{"model": "ann", "text": "So."}]}))

    assert ended.outcomes["too_few_completions"] == 1
    assert served.stats()["calls"] == 0


def test_a_completion_that_is_added_asks_the_judge_of_that_prompt_alone(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = bring(tmp_path, served, *(answered(n) for n in range(4)))
    run(path)
    more = answered(3)
    more["answers"].append({"model": "dan", "text": "dan keeps it lit"})
    rows(tmp_path, "prompts.jsonl", *(answered(n) for n in range(3)), more)
    pipeline, ended = run(path)

    assert served.stats()["calls"] == 5
    assert not ended.incomplete
    assert sorted(map(len, slots(pipeline).values())) == [3, 3, 3, 4]


# --- scores of their own ----------------------------------------------------------------------------------------------


def scored(folder: Path, *found: Row, **changes: Any) -> Path:
    source = {"file": "prompts.jsonl", "completions": {"field": "answers", "score": "rating"}}
    path = write(folder, Served("http://127.0.0.1:9/v1"), models={}, judges={}, prompts=[source], **changes)
    rows(folder, "prompts.jsonl", *found)
    return path


def test_scores_that_come_with_completions_go_straight_to_pairs(tmp_path: Path) -> None:
    one_lacks, two_lack = answered(2, 5, None, 1), answered(3, 5, None, None)
    path = scored(tmp_path, answered(0, 3, 9, 1), answered(1, 2, 2, 2), one_lacks, two_lack, **WORST)
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert {name: n for name, n in ended.outcomes.items() if n} == {"paired": 2, "tie": 1, "unrated": 1}
    columns = "chosen_model, rejected_model, score_chosen, score_rejected"
    assert ask(pipeline, f"SELECT {columns} FROM pairs ORDER BY score_chosen DESC") == [
        {"chosen_model": "ben", "rejected_model": "cat", "score_chosen": 9.0, "score_rejected": 1.0},
        {"chosen_model": "ann", "rejected_model": "cat", "score_chosen": 5.0, "score_rejected": 1.0},
    ]
    with Reader.open(pipeline.store) as reader:
        assert reader.prompt_counts().unrated == 1 + 2
    assert ask(pipeline, "SELECT count(*) AS n FROM calls") == [{"n": 0}]
    assert export_of(pipeline, tmp_path / "out")


def two_sources(folder: Path, policy: str = "all", **sources: str) -> Path:
    """Of the same three prompts, one source scores from 0 to 1 and the other from 1 to 10."""
    for name, low, high in (("a", 0.1, 0.95), ("b", 2, 9)):
        good, bad = {"model": f"{name}-good", "s": high}, {"model": f"{name}-bad", "s": low}
        answers = [[one | {"text": f"{one['model']} {n}"} for one in (bad, good)] for n in range(3)]
        rows(folder, f"{name}.jsonl", *({"prompt": f"Why {n}?", "answers": of} for n, of in enumerate(answers)))
    carried = {"field": "answers", "score": "s"}
    entries = [{"file": f"{name}.jsonl", "completions": carried, **sources} for name in "ab"]
    nobody = Served("http://127.0.0.1:9/v1")
    return write(folder, nobody, models={}, judges={}, prompts=entries, pairs={"policy": policy})


SIDES = "SELECT chosen_model, rejected_model, count(*)::INTEGER AS n FROM pairs GROUP BY ALL ORDER BY ALL"


def sides(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in ask(pipeline, SIDES)]


@pytest.mark.parametrize("policy", ["all", "best_vs_worst", "best_vs_random"])
def test_scores_of_two_sources_are_compared_within_each(tmp_path: Path, policy: str) -> None:
    path = two_sources(tmp_path, policy)
    pipeline, ended = run(path)
    assert ended.outcomes["paired"] == 3
    assert {(a, b) for a, b, _ in sides(pipeline)} <= {("a-good", "a-bad"), ("b-good", "b-bad")}
    assert sum(n for *_, n in sides(pipeline)) == (6 if policy == "all" else 3)
    assert ask(pipeline, "SELECT DISTINCT source FROM carried ORDER BY ALL") == [
        {"source": "a.jsonl"},
        {"source": "b.jsonl"},
    ]
    for name in "ab":
        held = json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[0])
        rows(tmp_path, f"{name}.jsonl", held | {"answers": held["answers"][:1]})
    pipeline, ended = run(path)
    assert (ended.outcomes["other_scale"], sides(pipeline)) == (1, [])


def test_scores_that_are_likelihoods_pair_and_are_told_apart(tmp_path: Path) -> None:
    pipeline, ended = run(scored(tmp_path, answered(0, 3e-11, 1e-11, 1.0000000000001e-11), **WORST))
    assert ended.outcomes["paired"] == 1
    console = Console(file=StringIO(), width=100)
    with Reader.open(pipeline.store) as reader:
        print_prompt(console, reader, "")
    assert "ann, score 3e-11" in told_by(console)
    assert re.search(r"rejected (ben|cat), score 1e-11", told_by(console))


def test_no_mean_is_made_of_scores_of_several_sources_and_each_is_told_with_its_own(tmp_path: Path) -> None:
    """A model's mean would tell which source it stands in."""
    path = two_sources(tmp_path)
    means = "SELECT DISTINCT mean_score, aspects FROM leaderboard"
    pipeline, _ = run(path)
    assert ask(pipeline, means) == [{"mean_score": None, "aspects": None}]
    export_of(pipeline, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of 2 sources, each on a scale of its own: pairs are made within a source" in card
    console = Console(file=StringIO(), width=100)
    with Reader.open(pipeline.store) as reader:
        print_prompt(console, reader, reader.example_prompt_id())
    assert "a-good: 0.95, of source a.jsonl" in told_by(console)
    pipeline, _ = run(path, "prompts.0.source=one", "prompts.1.source=one")
    assert len(ask(pipeline, means)) == 4


@pytest.mark.parametrize("ends", [(1e300, -1e300), (5e-324, 0.0)])
def test_scores_of_any_size_are_exported(tmp_path: Path, ends: tuple[float, float]) -> None:
    pipeline, _ = run(scored(tmp_path, answered(0, *ends), **WORST))
    assert export_of(pipeline, tmp_path / "out")


def test_sources_that_are_said_to_be_one_are_on_one_scale(tmp_path: Path) -> None:
    pipeline, _ = run(two_sources(tmp_path, "best_vs_worst", source="one"))
    assert sides(pipeline) == [("b-good", "a-bad", 3)]


def test_of_two_scores_of_a_completion_the_first_holds_and_is_told(tmp_path: Path) -> None:
    """Whether the other comes in the row, in a later one, or from another source."""
    path = two_sources(tmp_path)
    held = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    held[0]["answers"] += [{"model": "a-good", "text": "a-good 0", "s": 3}, held[0]["answers"][0] | {"s": 7}]
    rows(tmp_path, "b.jsonl", *held, held[1])
    rows(tmp_path, "a.jsonl", *(json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()))
    pipeline, told = load(path), list[str]()
    with JournaledStore.open(pipeline.store, print) as journaled:
        prepare(pipeline, journaled, rubric_of(pipeline), told.append)
        with Reader.of(journaled.store) as reader:
            books = reader.prompt_counts()
    said = "a completion of {} has score {} here; it had score {} ({}.jsonl) before, and keeps that"
    assert [line.partition("b.jsonl:1: ")[2] for line in told[1:]] == [
        said.format("a-good", 3, 0.95, "a"),
        said.format("b-bad", 7, 2, "b"),
    ]
    assert (books.rescored, books.intake) == (2, {"selected": 3, "gathered": 3, "duplicate": 1})
    run(path)
    assert sides(pipeline) == [("a-good", "a-bad", 3), ("b-good", "b-bad", 3)]


def test_a_journal_that_tells_no_source_of_scores_has_them_read_again(tmp_path: Path) -> None:
    """As earlier versions wrote them; where the sources are gone, that is said, and nothing is compared."""
    path = two_sources(tmp_path)
    pipeline, _ = run(path)
    kept = [
        record for _, record in journal.replay(StorePaths(pipeline.store).journal) if not isinstance(record, Damage)
    ]
    assert [record.pop("sources") for record in kept if "sources" in record] != []
    shutil.rmtree(StorePaths(pipeline.store).journal)
    pipeline.store.unlink()
    with JournaledStore.open(pipeline.store, print) as journaled:
        journaled.keep([{name: said for name, said in record.items() if name != "at"} for record in kept])
        with Reader.of(journaled.store) as reader:
            assert reader.any_score_without_source()
    (tmp_path / "b.jsonl").rename(tmp_path / "gone.jsonl")
    told = r"did not store the source of each.*put the sources back, and `aif run \S*pipeline\.yaml` reads them again"
    with pytest.raises(BadInput, match=told):
        run(path)
    (tmp_path / "gone.jsonl").rename(tmp_path / "b.jsonl")
    run(path)
    assert sides(pipeline) == [("a-good", "a-bad", 3), ("b-good", "b-bad", 3)]


def test_texts_that_look_the_same_make_no_pair(tmp_path: Path) -> None:
    """However they are composed, and whatever blanks they end with; a digest of any other text is what it was."""
    texts = ["caf\u00e9", "cafe\u0301", " caf\u00e9\n", "Caf\u00e9"]
    answers = [
        [{"model": "m", "text": text, "rating": 3 - n} for n, text in enumerate(one)] for one in (texts[:3], texts)
    ]
    found = [{"prompt": f"Where {n}?", "answers": one} for n, one in enumerate(answers)]
    pipeline, ended = run(scored(tmp_path, *found, pairs={"policy": "all"}))
    assert {name: n for name, n in ended.outcomes.items() if n} == {"identical": 1, "paired": 1}
    assert ask(pipeline, "SELECT DISTINCT rejected_text FROM pairs") == [{"rejected_text": "Caf\u00e9"}]
    (held,) = ask(pipeline, "SELECT list(DISTINCT text_id ORDER BY text_id) AS ids FROM completions")
    assert held["ids"] == sorted(digest(text)[:KEY_LENGTH] for text in (texts[0], texts[3]))


def test_a_prompt_without_scores_beside_others_waits_for_no_one(tmp_path: Path) -> None:
    _, ended = run(scored(tmp_path, answered(0, 3, 9, 1), answered(1, None, None, None), **WORST))
    assert not ended.incomplete
    assert {name: n for name, n in ended.outcomes.items() if n} == {"paired": 1, "no_common_aspect": 1}


def test_scores_that_no_row_has_are_bad_input(tmp_path: Path) -> None:
    path = scored(tmp_path, answered(0, None, None, None))
    for _ in range(2):
        with pytest.raises(BadInput, match=r"prompts: completions\.score: no completion of any row has a score"):
            run(path)


def test_a_score_that_changes_changes_the_pair_and_calls_no_one(tmp_path: Path) -> None:
    path = scored(tmp_path, answered(0, 3, 9, 1), **WORST)
    run(path)
    rows(tmp_path, "prompts.jsonl", answered(0, 3, 0.5, 1))
    pipeline, _ = run(path)

    assert ask(pipeline, "SELECT chosen_model, rejected_model FROM pairs") == [
        {"chosen_model": "ann", "rejected_model": "ben"}
    ]


def test_the_journal_makes_it_all_again(tmp_path: Path) -> None:
    pipeline, _ = run(scored(tmp_path, *(answered(n, n % 3, 2, 1) for n in range(9))))
    before = export_of(pipeline, tmp_path / "before")
    tables = ("completions", "carried", "judgements", "selection", "slots")
    held = [ask(pipeline, f"SELECT * FROM {table} ORDER BY ALL") for table in tables]
    rebuild(pipeline, lambda words: None)

    assert [ask(pipeline, f"SELECT * FROM {table} ORDER BY ALL") for table in tables] == held
    assert export_of(pipeline, tmp_path / "after") == before


def test_the_story_tells_where_completions_and_scores_come_from(tmp_path: Path) -> None:
    pipeline, _ = run(scored(tmp_path, answered(0, 3, 9, 1)))
    console = Console(width=100, file=StringIO())
    with Reader.open(pipeline.store) as reader:
        print_prompt(console, reader, reader.example_prompt_id())
    told = told_by(console)

    assert told.count("it came with the prompt; no model was called for it") == 3
    assert "scores that came with the completions" in told
    assert "ben: 9" in told


# --- material ---------------------------------------------------------------------------------------------------------


def shown(folder: Path, served: Served, *references: str | None, **changes: Any) -> Path:
    """A pipeline whose rows bring a reference answer each, or none."""
    source = {"file": "prompts.jsonl", "material": {"reference": "answer"}}
    path = write(folder, served, prompts=[source], **changes)
    rows(folder, "prompts.jsonl", *({"prompt": f"Why {n}?", "answer": one} for n, one in enumerate(references)))
    return path


def test_the_judge_is_shown_what_a_prompt_brings_for_it(tmp_path: Path, serve: Serve) -> None:
    pipeline, ended = run(shown(tmp_path, serve(), "It is dark at sea.", None))
    assert not ended.incomplete
    (kept,) = ask(pipeline, "SELECT digest, content FROM texts WHERE kind = 'material'")
    assert json.loads(kept["content"])["reference"]["text"] == "It is dark at sea."
    judged = ask(pipeline, "SELECT j.material FROM judgements j JOIN selection e USING (prompt_id) ORDER BY e.position")
    assert [row["material"] for row in judged] == [kept["digest"], None]

    console = Console(width=100, file=StringIO())
    with Reader.open(pipeline.store) as reader:
        first = reader._query("SELECT prompt_id FROM selection ORDER BY position LIMIT 1")[0]["prompt_id"]
        print_prompt(console, reader, first)
    assert "It is dark at sea." in told_by(console)


def test_a_reference_that_changes_asks_the_judge_of_that_prompt_alone(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    path = shown(tmp_path, served, "It is dark.", "It is old.", None)
    run(path)
    before = served.stats()["by_model"]
    shown(tmp_path, served, "It is dark.", "It is new.", None)
    pipeline, ended = run(path)

    assert not ended.incomplete
    assert served.stats()["by_model"] == before | {"judge": before["judge"] + 1}
    shown(tmp_path, served, "It is dark.", "It is old.", None)
    run(path)
    assert served.stats()["by_model"]["judge"] == before["judge"] + 1, "going back is free"
    assert ask(pipeline, "SELECT count(*) AS n FROM needed WHERE state <> 'answered'") == [{"n": 0}]


def test_a_slot_that_the_rubric_lacks_is_bad_input(tmp_path: Path, serve: Serve) -> None:
    path = shown(tmp_path, serve(), "It is dark.")
    with pytest.raises(BadInput, match=r"material\.hearsay: rubric unified has no such slot; it has"):
        run(path, "prompts.0.material={hearsay: answer}")
    assert load(path).prompts[0].material == {"reference": "answer"}


def test_scores_that_came_with_completions_are_in_every_export_format(tmp_path: Path) -> None:
    """In `ultrafeedback` as ratings without a rationale, by a judge called carried; one that lacks is told."""
    path = scored(tmp_path, answered(0, 9, 2, 7), answered(1, 5, 5, None))
    run(path)
    kto = "export.kto={rule: scores, desirable: 7, undesirable: 2}"
    export_of(load(path, ["export.formats=[trl, ultrafeedback, kto, reward, sft]", kto]), tmp_path / "out")

    def rows_of(config: str) -> list[Row]:
        (file,) = (tmp_path / "out" / config).glob("*.parquet")
        found: list[Row] = pq.read_table(file).to_pylist()
        return found

    assert {config: len(rows_of(config)) for config in ("trl", "kto", "reward", "sft")} == {
        "trl": 1, "kto": 3, "reward": 1, "sft": 2,
    }  # fmt: skip
    ratings = {
        (one["judge"], one["aspect"], one["state"], one["Rating"], one["reason"])
        for row in rows_of("ultrafeedback")
        for completion in row["completions"]
        for one in completion["annotations"]
    }
    assert ratings == {("carried", "overall", "rated", float(score), None) for score in (9, 2, 7, 5)} | {
        ("carried", "overall", "missing", None, "not_asked")
    }


def test_material_is_in_the_export_of_everything(tmp_path: Path, serve: Serve) -> None:
    source = {"file": "prompts.jsonl", "material": {"reference": "answer"}}
    path = write(tmp_path, serve(), prompts=[source], export={"formats": ["ultrafeedback"]})
    rows(
        tmp_path,
        "prompts.jsonl",
        {"prompt": "Two and two?", "answer": "Four."},
        {"prompt": "And three?", "answer": None},
    )
    pipeline, _ = run(path)
    export_of(pipeline, tmp_path / "out")
    (file,) = (tmp_path / "out" / "ultrafeedback").glob("*.parquet")
    found = {row["instruction"]: row["material"] for row in pq.read_table(file).to_pylist()}
    assert found == {"Two and two?": [{"slot": "reference", "text": "Four."}], "And three?": []}


def test_the_card_says_that_no_one_was_asked(tmp_path: Path) -> None:
    pipeline, _ = run(scored(tmp_path, answered(0, 0.25, 1.0, 0.0), **WORST, export={"formats": ["trl", "kto"]}))
    export_of(pipeline, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()

    assert "1 prompt came with its completions, and these have scores" in card
    assert "No judge was called" in card
    assert "`best_vs_worst` by the scores that came with the completions. Chosen is" in card
    assert "A completion that came without a score is in no pair" in card
    assert "aspect" not in card.split("## How this was made")[1].split("## A row")[0]
    assert "0–0.1" in card
    assert "not known" not in card
