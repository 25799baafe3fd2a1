"""Failures and notes that many endpoints share take one line, and what differs stays apart."""

import io

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from aif.cli.views.failures import group_failures, print_failures
from aif.cli.views.grouping import Name, few, grouped, pattern, shortened
from aif.core.types import FailureGroup

NAMES = [f"model-{n}" for n in range(12)]


def failing(name: str, kind: str, items: int, example: str, verdict: str = "failed") -> FailureGroup:
    return FailureGroup("completion", name, kind, verdict, items, example, "p")


def test_a_pattern_leaves_out_names_numbers_and_quotes() -> None:
    first = pattern("large: nothing came in 120 s from http://a:8000/v1 for 'x'", "large")
    assert first == pattern("tiny: nothing came in 30 s from http://b:9000/v1 for 'yy'", "tiny")
    assert first != pattern("tiny: nothing was sent in 30 s to http://b:9000/v1 for 'yy'", "tiny")


def test_names_are_few_and_short() -> None:
    assert few(["a"]) == "a"
    assert few(["a", "b"]) == "a, b"
    assert few(NAMES) == "model-0, model-1 and 10 more"
    assert few(["meta-llama/Llama-3.3-70B-Instruct-Turbo"]) == "…/Llama-3.3-70B-…t-Turbo"
    assert grouped([("a", "asks again in 1 s"), ("b", "starting"), ("c", "asks again in 2 s")]) == {
        "asks again in 1 s": ["a", "c"],
        "starting": ["b"],
    }


def test_a_name_that_is_a_word_of_the_message_is_kept() -> None:
    alike = [("large", "no key for this model"), ("model", "no key for this model"), ("key", "starting")]
    assert grouped(alike) == {"no key for this model": ["large", "model"], "starting": ["key"]}


def test_names_that_differ_at_their_ends_stay_apart_in_a_narrow_column() -> None:
    assert shortened("mistralai/Mistral-7B-Instruct-v0.1") == "…/Mistral-7B-Ins…ct-v0.1"
    assert shortened("mistralai/Mistral-7B-Instruct-v0.2") == "…/Mistral-7B-Ins…ct-v0.2"
    assert shortened("an-organization/small-model") == "…/small-model"
    assert shortened("漢字" * 20, 11) == "漢字漢…字"
    for width in range(1, 40):
        assert cell_len(shortened("模型/" + "漢字" * 20, width)) <= width
    grid = Table(box=None, padding=0)
    grid.add_column(width=24)
    for version in (1, 2):
        grid.add_row(Name(f"mistralai/Mistral-7B-Instruct-v0.{version}\x1b", ""))
    screen = io.StringIO()
    Console(width=80, file=screen).print(grid)
    assert screen.getvalue().split() == ["…/Mistral-7B-Ins…t-v0.1␛", "…/Mistral-7B-Ins…t-v0.2␛"]


def test_failures_that_are_alike_are_one_group() -> None:
    alike = [failing(name, "timeout", n + 1, f"{name}: nothing in {n} s") for n, name in enumerate(NAMES)]
    other = failing("model-3", "timeout", 5, "the connection was closed")
    later = failing("model-4", "timeout", 7, "model-4: nothing in 4 s", "later")
    blocked = failing("model-5", "blocked", 90, "model-5: nothing in 4 s")
    groups = group_failures([other, *alike, later, blocked])
    assert groups == [[blocked], alike, [later], [other]]

    screen = io.StringIO()
    print_failures(Console(width=80, file=screen), [*alike, failing("a", "", 4, "", "pending")])
    lines = screen.getvalue().splitlines()
    assert lines[1:3] == ["Failures", "timeout: 78 (retry with --retry-failed)"]
    assert lines[3] == f"    {', '.join(f'{name} {n + 1}' for n, name in enumerate(NAMES))}"
    assert lines[4] == "    for example: model-0: nothing in 0 s"
    assert lines[5].startswith("    → ")
    assert lines[7:] == ["Pending", "not sent yet: 4", "    a"]


def test_nothing_is_printed_without_failures() -> None:
    screen = io.StringIO()
    print_failures(Console(file=screen), [])
    assert not screen.getvalue()
