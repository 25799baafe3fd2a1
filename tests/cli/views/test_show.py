"""`aif show` tells the truth: what was cut, who is who, what failed now, whatever names come from outside."""

import io
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console

from aif.cli.views.pairs import print_preview
from aif.cli.views.show import print_prompt
from aif.cli.views.summary import print_items, print_status, print_summary
from aif.engine.make_pairs import make_pairs
from aif.engine.pair_preview import preview
from aif.store.result_queries import ResultReader
from tests.end_to_end.test_carried import answered, rows, scored
from tests.engine.test_orchestrator import run
from tests.support.building import Cut, Fate, build, complete, rate


def told(tell: Callable[[Console], None]) -> str:
    screen = io.StringIO()
    tell(Console(width=140, file=screen))
    return screen.getvalue()


def test_names_from_outside_are_told_as_they_are(tmp_path: Path) -> None:
    """Rich takes brackets for markup, and raises on a closing tag that closes nothing."""
    row = answered(0, 5, 3, 1) | {"from": "[/red] hearsay"}
    for one, name in zip(row["answers"], ("[/b] ann", "[red]ben[/red]", "cat\\"), strict=True):
        one["model"] = name
    path = scored(tmp_path, row)
    declared = yaml.safe_load(path.read_text())
    declared["prompts"][0]["source_field"] = "from"
    path.write_text(yaml.safe_dump(declared))
    rows(tmp_path, "prompts.jsonl", row)
    pipeline, _ = run(path)
    with ResultReader.open(pipeline.store) as reader:
        story = told(lambda console: print_prompt(console, reader, reader.example_prompt_id()))
        summary = told(lambda console: print_summary(console, reader, 1.0))
        status = told(lambda console: print_status(console, reader))
        items = told(lambda console: print_items(console, reader.item_counts()))
        pairs = told(lambda console: print_preview(console, preview(pipeline, reader), None, []))
    assert "source [/red] hearsay" in story
    assert "by cat\\: answered" in story
    for text in (story, summary, status, items, pairs):
        assert all(name in text for name in ("[/b] ann", "[red]ben[/red]", "cat\\"))


def test_what_was_cut_is_said_since_it_is_never_chosen(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 1, complete=lambda n, model: Cut("able was cu") if model == "able" else complete(n, model)
    )
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        with ResultReader.of(journaled.store) as reader:
            story = told(lambda console: print_prompt(console, reader, reader.example_prompt_id()))
    assert "chosen   fair, score 4.000" in story
    (able,) = [part for part in story.split(" completion ")[1:] if "\nby able: " in part]
    assert "cut at max_tokens" in able
    assert story.count("cut at max_tokens") == 1


def test_two_completions_of_one_model_are_told_apart(tmp_path: Path) -> None:
    pool = "models={able: {provider: simulator, quality: 0.9, samples: 3}, poor: {provider: simulator, quality: 0.1}}"
    pipeline, rubric, journaled = build(tmp_path, 1, sets=[pool])
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        with ResultReader.of(journaled.store) as reader:
            story = told(lambda console: print_prompt(console, reader, reader.example_prompt_id()))
            keys = [row["key"] for row in reader._query("SELECT key FROM slots WHERE model = 'able'")]
    assert all(f"= able ({key[:8]})" in story and f"able ({key[:8]}), honesty: 5" in story for key in keys)
    assert "= poor" in story


def test_a_prompt_that_is_no_longer_selected_is_not_promised_a_pair(tmp_path: Path) -> None:
    _, _, journaled = build(tmp_path, 3)
    journaled.close()
    pipeline, rubric, journaled = build(tmp_path, 2)
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        with ResultReader.of(journaled.store) as reader:
            (gone,) = reader._query("SELECT prompt_id FROM prompts ANTI JOIN selection USING (prompt_id)")
            story = told(lambda console: print_prompt(console, reader, gone["prompt_id"]))
    assert "no longer have this prompt" in story


def test_a_judgement_that_failed_is_told(tmp_path: Path) -> None:
    pipeline, rubric, journaled = build(
        tmp_path, 1, rate=lambda n, model, aspect: Fate.FAILED if model == "able" else rate(n, model, aspect)
    )
    with journaled:
        make_pairs(pipeline, rubric, journaled.store)
        with ResultReader.of(journaled.store) as reader:
            (one,) = reader._query("SELECT prompt_id FROM selection")
            story = told(lambda console: print_prompt(console, reader, one["prompt_id"]))
    assert "no pair: no judge gave a readable rating (judgement_failed)" in story
    assert "judgement by strict without a rating: ratings, failed" in story
