"""What lint finds: every error at once, each unwise thing by its rule, and nothing in what is sound."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from aif.core.resources import shipped
from aif.judging.lint import COMPLETIONS, MAX_TRIED, Finding, lint, longest_reply, request_sizes
from aif.judging.rubric import load

SHEET = """\
name: small
role: role.md
requests:
  one: {template: ask.md, aspects: [clarity]}
aspects:
  clarity:
    title: Clarity
    question: Is it clear?
"""
ASK = "{% for name, aspect in aspects.items() %}{{ aspect.question }}{% endfor %} {{ reply }}"
FILES = {"rubric.yaml": SHEET, "role.md": "You are a judge.\n", "ask.md": ASK}
MORE = "\n    "  # another key of the aspect


def found(folder: Path, files: Mapping[str, str]) -> list[Finding]:
    """What lint finds in a folder with these files, places told from the folder on."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    findings, rubric = lint(folder)
    assert (rubric is None) is any(error for error, _ in findings)
    return [Finding(error, text.replace(f"{folder}/", "")) for error, text in findings]


def sheet(*changes: tuple[str, str]) -> dict[str, str]:
    text = SHEET
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return {**FILES, "rubric.yaml": text}


@pytest.mark.parametrize("name", ["unified", "ultrafeedback", "mt-bench"])
def test_nothing_is_found_in_a_shipped_rubric(name: str) -> None:
    assert lint(shipped("prompts", "rubrics", name)) == ([], load(shipped("prompts", "rubrics", name)))


def test_nothing_is_found_in_the_small_one(tmp_path: Path) -> None:
    assert found(tmp_path, FILES) == []


# --- errors ----------------------------------------------------------------------------------------------------------


def test_all_that_keeps_a_rubric_from_being_used_is_told_at_once(tmp_path: Path) -> None:
    files = sheet(
        ("[clarity]", "[clarity, tone, clarity]"),
        ("aspects:\n  c", "aspects:\n  wit: {title: Wit}\n  c"),
        ("ask.md", "aks.md"),
    )
    assert found(tmp_path, files) == [
        (True, "rubric.yaml:4: requests.one.aspects: no aspect 'tone'; the rubric has wit, clarity"),
        (True, "rubric.yaml:4: requests.one.aspects: clarity is listed twice; list it once, in one request"),
        (True, "rubric.yaml:6: aspects.wit: is in no request; add it to the `aspects` of one, or remove it"),
        (
            True,
            "rubric.yaml:4: requests.one.template: no file aks.md; the folder has ask.md, role.md, rubric.yaml; "
            "correct the name, or add the file",
        ),
    ]


def test_templates_are_looked_at_even_where_the_sheet_is_broken(tmp_path: Path) -> None:
    files = {**sheet(("name: small\n", "nam: small\n"), ("title:", "titel:")), "role.md": "Fine.\n{% if %}"}
    told = [text for error, text in found(tmp_path, files) if error]
    assert len(told) == 5
    assert sum(text.startswith("rubric.yaml:") for text in told) == 4
    assert told[-1].startswith("role.md:2: can't be rendered: TemplateSyntaxError: ")


def test_every_template_that_cannot_be_rendered_is_told(tmp_path: Path) -> None:
    files = {**FILES, "role.md": "A judge.\n{{ n }}", "ask.md": "{{ reply }}\n\n{{ 1 / 0 }}"}
    assert found(tmp_path, files) == [
        (
            True,
            "role.md:2: can't be rendered: UndefinedError: 'n' is undefined; it has no variables here "
            "(conversation, material and completions are put before a template's text automatically)",
        ),
        (True, "ask.md:3: can't be rendered: ZeroDivisionError: division by zero"),
    ]


@pytest.mark.parametrize("name", ["prompt", "completions", "material"])
def test_a_template_that_prints_what_stands_before_it_is_told_so(tmp_path: Path, name: str) -> None:
    ((error, text),) = found(tmp_path, {**FILES, "ask.md": f"{ASK} {{{{ {name} }}}}"})
    assert error
    variables = "a template's variables here are aspects, n, reply (conversation, material and"
    assert f"'{name}' is undefined; {variables}" in text


def test_a_template_is_tried_about_any_number_of_completions(tmp_path: Path) -> None:
    ((error, text),) = found(tmp_path, {**FILES, "ask.md": ASK + f"{{{{ 1 / (n - {MAX_TRIED}) }}}}"})
    assert error
    assert text == "ask.md:1: can't be rendered: ZeroDivisionError: division by zero; `n` is 2 to per_prompt"


def test_files_that_are_no_text_are_each_told(tmp_path: Path) -> None:
    for name in ("role.md", "ask.md"):
        (tmp_path / name).write_bytes(b"\xff")
    told = found(tmp_path, {"rubric.yaml": SHEET})
    assert [(error, text.partition(":")[0]) for error, text in told] == [(True, "ask.md"), (True, "role.md")]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    ((error, text),) = lint(tmp_path / "gone")[0]
    assert error
    assert "no such rubric folder; give a shipped rubric's name, or a folder with a rubric.yaml" in text


# --- legal but unwise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**FILES, "ask.md": ASK.replace("{{ reply }}", "")}, "ask.md: never prints {{ reply }}, so the judge"),
        ({**FILES, "ask.md": "Rate it. {{ reply }}"}, "ask.md: asks for clarity without mentioning it; print"),
        (
            sheet(("title: Clarity", f"title: Clarity{MORE}guidance: Read it aloud.")),
            "rubric.yaml:8: aspects.clarity.guidance: the judge never sees it; print aspect.guidance in ask.md",
        ),
        (
            sheet(("title: Clarity", f"title: Clarity{MORE}types: {{1: Long words.}}")),
            "rubric.yaml:8: aspects.clarity.types: the judge never sees it; print aspect.types in ask.md",
        ),
        (
            {
                **sheet(("title: Clarity", f"title: Clarity{MORE}levels: {{1: No., 4: Nearly., 5: Yes.}}")),
                "ask.md": ASK + "{{ aspects.clarity.levels.values() | join(' ') }}",
            },
            "rubric.yaml:8: aspects.clarity.levels: 2, 3 of the scale have no description, so judges prefer the others",
        ),
        (
            sheet(("title: Clarity", f"title: Clarity{MORE}weight: 0")),
            "rubric.yaml:5: aspects: no aspect has a weight, so no pairs can be made; give one a weight above 0",
        ),
        (
            sheet(("title: Clarity", f"title: Clarity{MORE}rationale_chars: 40")),
            "rubric.yaml:8: aspects.clarity.rationale_chars: 40 characters are too few for a reason",
        ),
        (
            sheet(("title: Clarity", f"title: Clarity{MORE}rationale_chars: 2100")),
            "rubric.yaml:4: requests.one: a reply about 4 completions may take 2,1",
        ),
        (
            sheet(
                ("{template", "{mode: single, template"),
                ("title: Clarity", f"title: Clarity{MORE}not_applicable: Never."),
            ),
            "rubric.yaml:8: aspects.clarity.not_applicable: request one shows one completion at a time, so N/A",
        ),
        ({**FILES, "role.md": "You are GPT-4, a judge."}, "role.md: mentions GPT-4, and judges favour"),
        ({**FILES, "ask.md": f"No Claude. {ASK}"}, "ask.md: mentions Claude, and judges favour"),
        (
            {**FILES, "ask.md": ASK + "{% if n > 90 %}{{ answers }}{% endif %}"},
            "ask.md: has {{ answers }} in a branch, but a template's variables are aspects, n, reply; remove it",
        ),
        (
            {**FILES, "ask.md": ASK + "{% if n > 90 %}{{ completions }}{% endif %}"},
            "reply; that is put before a template's text automatically; remove it",
        ),
        (
            sheet(
                ("[clarity]}", "[clarity, wit]}"),
                ("aspects:\n  c", "aspects:\n  wit: {title: Wit, question: How, scale: [0, 40]}\n  c"),
            ),
            "rubric.yaml:5: aspects: scales differ (wit 0–40, clarity 1–5), so in the mean each rating counts as a "
            "fraction of its scale",
        ),
        ({**FILES, "old.md": "{{ gone }}"}, "old.md: no request uses it; remove it, or name it in rubric.yaml"),
        (
            sheet(("aspects:\n  c", "material: {reference: {title: Answer}}\naspects:\n  c")),
            "rubric.yaml:5: material.reference: has no note, so the judge has to guess how to use it; write one",
        ),
    ],
)  # fmt: skip
def test_what_is_unwise_is_told_with_its_place(tmp_path: Path, files: dict[str, str], told: str) -> None:
    ((error, text),) = found(tmp_path, files)
    assert not error, text
    assert told in text


def test_requests_with_different_schemas_are_told(tmp_path: Path) -> None:
    two = "[clarity]}\n  two: {template: ask.md, aspects: [wit, tone]}"
    files = sheet(
        ("[clarity]}", two),
        ("aspects:\n  c", "aspects:\n  wit: {title: Wit, question: How}\n  tone: {title: Tone, question: Which}\n  c"),
    )
    ((error, text),) = found(tmp_path, files)
    assert not error, text
    assert text.startswith("rubric.yaml:3: requests: one and two send different schemas, which providers put before")


def test_an_overall_aspect_alone_needs_no_weight_but_is_told(tmp_path: Path) -> None:
    overall = {**FILES, "rubric.yaml": SHEET.replace("clarity", "overall").replace("title:", "weight: 0\n    title:")}
    ((_, text),) = found(tmp_path, overall)
    assert "no aspect has a weight, so only `pairs.score: overall` can be used" in text


def test_a_template_may_be_put_together_from_files_and_a_readme_stand_beside_it(tmp_path: Path) -> None:
    files = {**FILES, "ask.md": "{% include 'part.j2' %} {{ reply }}", "part.j2": ASK, "README.md": "{{ mine"}
    assert found(tmp_path, files) == []
    assert found(tmp_path, {"ask.md": "{% set part = 'part' %}{% include part ~ '.j2' %}"}) == []


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_what_is_sent() -> None:
    rubric = load(shipped("prompts", "rubrics", "ultrafeedback"))
    found = {one.request: one for one in request_sizes(rubric)}
    assert found["honesty"].calls == 1
    assert found["critique"].calls == COMPLETIONS
    assert found["honesty"].role == -(-len(rubric.role) // 4)
    assert found["honesty"].request_text == -(-len(rubric.request_text("honesty", COMPLETIONS, "schema")) // 4)
    assert found["critique"].fixed == found["critique"].role + found["critique"].request_text + found["critique"].schema


def test_the_longest_reply_has_every_rationale_at_its_limit() -> None:
    rubric = load(shipped("prompts", "rubrics", "unified"))
    aspects = rubric.sheet.aspects
    leaves = {
        name: {"rationale": "x" * one.rationale_chars, "rating": "N/A" if one.not_applicable else "1"}
        for name, one in aspects.items()
    }
    reply = json.dumps({str(i): leaves for i in range(1, 5)}, separators=(",", ":"))
    assert longest_reply(rubric, "ratings", 4) == -(-len(reply) // 4)
