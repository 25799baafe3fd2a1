"""Replies split again with other reasoning tags; judgements count only for the texts they were made of."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from aif.cli.views.summary import print_reasoning_marks, print_status
from aif.config.pipeline import load
from aif.engine.outcome_text import reasoning_mark_text
from aif.engine.prepare import prepare
from aif.engine.workload import prepare_and_estimate
from aif.store.journal_batches import Rubrics, parse_record
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.engine.test_orchestrator import aif, ask, run
from tests.support.building import build

THOUGHT = "Thinking of it.</think>Paris, says r1."


class Server:
    """r1 reasons in its text; the judge rates by the schema, single completions if `tight`. `calls` counts both."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.says: Callable[[int], str] = lambda n: THOUGHT
        self.tight = False

    def reply(self, body: dict[str, Any]) -> str | None:
        self.calls[body["model"]] += 1
        if body["model"] == "judge":
            schema = body["response_format"]["json_schema"]["schema"]
            return None if self.tight and "2" in schema["properties"] else json.dumps(_least(schema))
        return self.says(self.calls["r1"]) if body["model"] == "r1" else "Plain."


def _least(schema: dict[str, Any], whole: dict[str, Any] | None = None, at: int = 0) -> Any:
    """The smallest reply that a schema allows, with a higher rating for the second completion."""
    whole = whole or schema
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        return schema["enum"][at]
    if schema["type"] == "object":
        return {name: _least(part, whole, 1 if name == "2" else at) for name, part in schema["properties"].items()}
    return {"array": [], "string": "ok"}.get(schema["type"], 1)


@contextmanager
def _served(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = server.reply(body)
            ended = "length" if text and text.endswith("...") else "stop"
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": ended}
            usage = {"prompt_tokens": 50, "completion_tokens": 20}
            said = {"id": f"c{server.calls.total()}", "model": body["model"], "choices": [choice], "usage": usage}
            if text is None:
                said = {"error": {"message": "too long", "code": "context_length_exceeded"}}
            self.send_response(400 if text is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
        listening.shutdown()


class Kept:
    """A pipeline of three prompts, to be run several times."""

    def __init__(self, folder: Path, url: str, server: Server) -> None:
        self.path, self.server = folder / "p.yaml", server
        rows = [{"prompt": f"Question {n}?"} for n in range(3)]
        (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = {"provider": "vllm", "base_url": url}
        priced = {**entry, "provider": "openai", "price": {"input": 1.0, "output": 2.0}}
        said = {
            "name": "t", "store": "s/feedback.duckdb", "prompts": [{"file": "p.jsonl"}],
            "completions": {"per_prompt": 2, "max_tokens": 100},
            "models": {name: {**entry, "model": name} for name in ("r1", "plain")},
            "judges": {"judge": {**priced, "model": "judge"}},
        }  # fmt: skip
        self.path.write_text(yaml.safe_dump(said))

    def run(self, tags: str = "auto", whose: str = "models.r1") -> dict[str, int]:
        """Run the pipeline; return the number of calls by model."""
        self.server.calls.clear()
        run(self.path, f"{whose}.reasoning_tags={tags}")
        return dict(self.server.calls)

    def texts(self) -> set[str]:
        return {row["text"] for row in ask(load(self.path), "SELECT text FROM completions WHERE identity = 'r1'")}

    @property
    def store(self) -> Path:
        return load(self.path).store


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    server = Server()
    with _served(server) as url:
        yield Kept(tmp_path, url, server)


ASKED = {"r1": 3, "plain": 3, "judge": 3}


def test_changed_tags_call_only_judges_and_changing_back_is_free(kept: Kept) -> None:
    assert kept.run() == ASKED
    assert kept.texts() == {"Paris, says r1."}

    assert kept.run("none") == {"judge": 3}
    assert kept.texts() == {THOUGHT}
    assert kept.run("none") == {}

    assert kept.run() == {}
    assert kept.texts() == {"Paris, says r1."}
    assert kept.run("[Thinking, it.]") == {"judge": 3}
    assert kept.run("none") == {}
    assert kept.run("none", "judges.judge") == {}


def test_completions_judged_singly_are_judged_again_in_the_same_run(kept: Kept) -> None:
    kept.server.tight = True
    kept.path.write_text(kept.path.read_text().replace("  judge:\n", "  judge:\n    on_overflow: single\n"))

    assert kept.run() == {**ASKED, "judge": 3 + 6}
    assert kept.run("none") == {"judge": 3 + 3}
    assert kept.run("none") == {}
    assert kept.run() == {"judge": 3}, "that all together are too long is asked again, and nothing that was rated"


def test_an_estimate_reports_the_changes_and_their_cost(kept: Kept) -> None:
    kept.run()
    told: list[str] = []
    pipeline = load(kept.path, ["models.r1.reasoning_tags=none"])

    foreseen = prepare_and_estimate(pipeline, None, told.append)

    assert told[0] == "reasoning_tags of r1 changed: 3 replies were split again, 3 with another result"
    assert told[1].startswith("judge: 3 judgements were shown texts that are parsed differently now: retried for $0.01")
    assert foreseen.calls == 3


def test_a_reply_that_becomes_empty_is_requested_again_and_one_that_gains_text_is_an_answer(kept: Kept) -> None:
    kept.server.says = lambda n: "<plan>All of it is thought."
    plan = "['<plan>', '</plan>']"
    assert kept.run(plan).keys() == {"r1", "plain"}

    assert kept.run("none") == {"judge": 3}
    assert kept.texts() == {"<plan>All of it is thought."}

    kept.server.says = lambda n: "<plan>a</plan>Paris."
    assert kept.run(plan) == {"r1": 3, "judge": 3}
    assert kept.texts() == {"Paris."}
    assert kept.run("none") == {}, "the first answer stands again, and what was said of it"
    assert kept.run(plan) == {}


def test_the_store_alone_can_split_replies_again(kept: Kept) -> None:
    kept.run()
    kept.run("none")
    for file in sorted((kept.store.parent / "feedback.journal").iterdir()):
        file.unlink()

    assert kept.run() == {}
    assert kept.texts() == {"Paris, says r1."}
    assert kept.run("none") == {}
    assert kept.texts() == {THOUGHT}


def test_a_judgement_of_a_lost_text_is_not_used(kept: Kept) -> None:
    kept.run()
    kept.server.says = lambda n: "<think>x</think>Another text."
    journal = next((kept.store.parent / "feedback.journal").iterdir())
    lines = journal.read_bytes().splitlines(keepends=True)
    lost = next(n for n, line in enumerate(lines) if b'"stage":"completion"' in line and b'"endpoint":"r1"' in line)
    lines[lost] = b"x" * (len(lines[lost]) - 1) + b"\n"
    journal.write_bytes(b"".join(lines))
    kept.store.unlink()

    assert kept.run() == {"r1": 1, "judge": 1}
    assert kept.run() == {}


def test_reasoning_tags_in_texts_are_counted_with_an_example(kept: Kept) -> None:
    kept.server.says = lambda n: ["<think>x</think>It opens with <think>.", "See <|im_start|> there.", "Paris."][n - 1]
    kept.run()

    shown = []
    with Reader.open(kept.store) as reader:
        marks = reader.reasoning_marks()
        for tell in (print_status, print_reasoning_marks):
            console = Console(record=True, width=300, file=StringIO())
            tell(console, reader)
            shown.append(console.export_text())
    assert {(one.model, one.kind, one.completions, one.example) for one in marks} == {
        ("r1", "cut", 1, "<think>x</think>It opens with <think>."),
        ("r1", "left", 1, "See <|im_start|> there."),
    }
    for said in shown:
        assert "r1: 1 completion with what looks like a reasoning mark (see reasoning_tags), as in " in said
        assert "r1: 1 completion cut at a mark that the reply may only quote" in said
    told = aif("failures", kept.path).stdout
    assert "See <|im_start|> there." in told
    assert aif("export", kept.path).returncode == 0
    card = (kept.store.parent / "dataset" / "README.md").read_text()
    assert "what looks like a reasoning mark" in card
    assert "It opens with" not in card.partition("## A row")[0], "what was cut may hold reasoning"


def test_a_text_cut_at_max_tokens_is_counted_if_others_of_the_model_have_reasoning(kept: Kept) -> None:
    kept.server.says = lambda n: THOUGHT if n > 1 else "Thinking of it, still..."
    kept.run()

    with Reader.open(kept.store) as reader:
        (mark,) = reader.reasoning_marks()
    assert (mark.model, mark.kind, mark.completions, mark.example) == ("r1", "whole", 1, "Thinking of it, still...")
    assert "maybe before their reasoning ended" in reasoning_mark_text(mark)


def test_reasoning_in_an_assistant_turn_of_a_prompt_is_counted(tmp_path: Path) -> None:
    def turns(number: int) -> list[dict[str, str]]:
        first = "Hm.</think>Paris." if number else "Paris."
        return [
            {"role": "user", "content": f"{number}: what does <think> open?"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And of Peru?"},
        ]

    *_, journaled = build(tmp_path, 2, ask=turns)
    with journaled, Reader.of(journaled.store) as reader:
        (mark,) = reader.reasoning_marks()
    assert (mark.model, mark.kind, mark.completions, mark.example) == ("", "left", 1, "Hm.</think>Paris.")
    assert reasoning_mark_text(mark).startswith("1 prompt with what looks like a reasoning mark in an earlier answer")


def test_texts_of_an_older_journal_are_split_again(tmp_path: Path) -> None:
    said = {"able": "Hm.</think>Four.", "fair": "<think> is a tag.", "plain": "Four.", "poor": "[THINK]4[/THINK]4."}
    pipeline, rubric, journaled = build(tmp_path, 2, complete=lambda number, model: said[model])
    journaled.close()
    with JournaledStore.open(pipeline.store, print) as journaled, Reader.of(journaled.store) as reader:
        texts = {row["text"] for row in reader._query("SELECT text FROM completions")}
        states = {row["state"] for row in reader._query("SELECT state FROM needed")}
    assert texts == {"Four.", "<think> is a tag.", "4."}
    assert states == {"pending"}, "the judge was shown what is another text now"

    plain = JournaledStore.open(pipeline.store, print, tags=dict.fromkeys(pipeline.reasoning_tags, "none"))
    prepare(pipeline, plain, rubric, print)
    with plain as journaled, Reader.of(journaled.store) as reader:
        states = {row["state"] for row in reader._query("SELECT state FROM needed")}
    assert states == {"answered"}


def test_the_store_of_an_older_journal_holds_replies_as_received_and_as_shown(tmp_path: Path) -> None:
    said = {"able": "Hm.</think>Four.", "fair": "[THINK]All of it.", "plain": "Four.", "poor": "[THINK]4[/THINK]4."}
    pipeline, rubric, journaled = build(tmp_path, 2, complete=lambda number, model: said[model])
    journaled.close()
    for file in (pipeline.store.parent / "feedback.journal").iterdir():
        file.unlink()

    def had(tags: Any) -> tuple[set[str], set[str], set[str]]:
        again = JournaledStore.open(pipeline.store, print, tags=dict.fromkeys(pipeline.reasoning_tags, tags))
        prepare(pipeline, again, rubric, print)
        with again as journaled, Reader.of(journaled.store) as reader:
            words = "SELECT text AS it FROM completions", "SELECT raw AS it FROM calls WHERE raw IS NOT NULL"
            states = "SELECT state AS it FROM foreseen"
            texts, raw, stands = ({row["it"] for row in reader._query(one)} for one in (*words, states))
        return texts, raw, stands

    assert had("auto") == ({"Four.", "4."}, {"[THINK]All of it."}, {"pending"})
    texts, _, _ = had("none")
    assert texts == set(said.values()) - {"[THINK]All of it."}


def test_a_judgement_of_an_empty_reply_is_not_used_for_a_later_reply(tmp_path: Path) -> None:
    said = {"able": "Two.", "fair": "[THINK]All of it.", "plain": "Four.", "poor": "Five."}
    pipeline, rubric, journaled = build(tmp_path, 1, complete=lambda number, model: said[model])
    with journaled, Reader.of(journaled.store) as reader:
        (gone,) = reader._query("SELECT key, prompt_id FROM failed WHERE stage = 'completion'")
        assert {row["state"] for row in reader._query("SELECT state FROM foreseen")} == {"pending"}
    build(tmp_path, 1, complete=lambda number, model: "Three.")[2].close()

    again = JournaledStore.open(pipeline.store, print, rebuild=True)
    prepare(pipeline, again, rubric, print)
    with again as journaled, Reader.of(journaled.store) as reader:
        assert reader._query("SELECT text FROM completions WHERE key = ?", [gone["key"]]) == [{"text": "Three."}]
        assert {row["shown"] is None for row in reader._query("SELECT shown FROM judgements")} == {False}
        assert {row["state"] for row in reader._query("SELECT state FROM needed")} == {"pending"}


def test_a_record_that_splits_the_same_is_unchanged() -> None:
    call = {"t": "call", "stage": "completion", "identity": "m", "kind": None, "text": "4.", "reasoning": "2 + 2"}

    assert parse_record(call, Rubrics()).record is call


def test_tags_of_a_name_apply_to_every_model_served_under_it() -> None:
    call = {
        "t": "call", "stage": "completion", "identity": "m+sha256:0123456789ab", "kind": None, "verdict": "answered",
        "text": THOUGHT, "reasoning": None,
    }  # fmt: skip

    assert parse_record(call, Rubrics(tags={"completion/m": "none"})).record["text"] == THOUGHT
