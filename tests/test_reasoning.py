import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.reasoning import split

SENTENCE = "<think> is the tag that R1 opens its reasoning with, and </think> closes it."
TEMPLATE = "R1's template:\n\n```\n<|Assistant|>{thoughts}\n</think>\n{answer}\n```\n\nThat is all."


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("Hmm, the capital. It must be Paris.</think>Paris.", "Paris.", "Hmm, the capital. It must be Paris."),
        ("plan</think>Answer", "Answer", "plan"),
        ("<think> plan </think> answer", "answer", "plan"),
        ("\n\n<think>\nplan\n</think>\n\nAnswer\n", "Answer\n", "plan"),
        ("<thinking>plan</thinking>Answer", "Answer", "plan"),
        ("<thought>\nplan\n</thought>\n\nAnswer", "Answer", "plan"),
        ("<reasoning>plan</reasoning>Answer", "Answer", "plan"),
        ("[THINK]plan[/THINK]Answer", "Answer", "plan"),
        ("◁think▷plan◁/think▷Answer", "Answer", "plan"),
        ("<seed:think>plan</seed:think>Answer", "Answer", "plan"),
        ("<think:opensource>plan</think:opensource>Answer", "Answer", "plan"),
        ("<ifm|think_faster>plan</ifm|think_faster>Answer", "Answer", "plan"),
        ("<|channel>thought\nplan<channel|>Answer<turn|>", "Answer", "thought\nplan"),
        ("<|START_THINKING|>plan<|END_THINKING|><|START_RESPONSE|>Answer<|END_RESPONSE|>", "Answer", "plan"),
        ("<|begin_of_thought|>\nplan\n<|end_of_thought|>\n\n<|begin_of_solution|>\nAnswer", "Answer", "plan"),
        (
            "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>Answer<|return|>",
            "Answer",
            "plan",
        ),
        ("<|channel|>final<|message|>Answer<|return|>", "Answer", None),
        ("analysisThe user asks.assistantfinalAnswer", "Answer", "The user asks."),
        ("Here is my thought process: plan\nHere is my response: Answer", "Answer", "plan"),
        ("<think>plan", "", "plan"),
        ("</think>\n\nAnswer", "Answer", None),
        ("Answer<|im_end|>\n", "Answer", None),
        ("Answer</s></s>", "Answer", None),
        ("Answer.\n<|eot_id|><|endoftext|>", "Answer.", None),
        # thoughts that leave a fence open, which then seems to go on through the answer
        ("<think>\n```py\nx = 1\n</think>\nAnswer:\n```py\ny\n```", "Answer:\n```py\ny\n```", "```py\nx = 1"),
        # thoughts that speak of the mark
        (
            "<think>\nThe user wants </think> in it.\n</think>\n\nUse `</think>`.",
            "Use `</think>`.",
            "The user wants </think> in it.",
        ),
        ("<think>\nI write </think> inside.\n</think>\n\nYes.", "Yes.", "I write </think> inside."),
        ("I write </think> inside.\n</think>\n\nYes.", "Yes.", "I write </think> inside."),
    ],
)
def test_reasoning_is_cut(content: str, text: str, reasoning: str | None) -> None:
    told = split(content)

    assert (told.text, told.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "content",
    [
        SENTENCE,
        TEMPLATE,
        TEMPLATE.replace("```", "~~~~"),
        "R1 ends its thoughts with </think>, on a line of its own.",
        'It prints "</think>" there.',
        "An end mark such as `</think>` stands once.",
        "``` </think>``` is inline.",
        '{"rationale": "it leaks</think>Yes", "rating": 3}',
        "Sure.\n\n<think>b</think>",
        "It cost <s>ten</s>",
        "Llama 2 ends a turn with </s>",
        "analysis of the data. assistantfinal",
        " Four. \n",
    ],
)
def test_an_answer_is_not_cut(content: str) -> None:
    assert split(content).text == content


@pytest.mark.parametrize("content", [SENTENCE, "Sure.\n\n<think>b</think>", "Hi.<|im_end|>\n<|im_start|>user\nMore"])
def test_what_stays_and_looks_like_a_mark_is_said(content: str) -> None:
    assert (split(content).mark or "").startswith("left: ")


def test_what_was_cut_where_the_reply_also_speaks_of_the_mark_is_said() -> None:
    assert split("<think>plan</think>`<think>` opens it.").mark == "cut: <think>plan</think>`<think>` opens it."
    assert split("<think>plan</think>Answer").mark is None
    assert split(TEMPLATE).mark is None, "code is what it is"


def test_marks_of_ones_own_are_the_only_ones() -> None:
    tags = ("<plan>", "</plan>")

    assert split("<plan>a</plan>b", tags=tags).text == "b"
    assert split("a</plan>b", tags=tags).text == "b"
    assert split("<think>a</think>b", tags=tags).text == "<think>a</think>b"
    assert split("```\n</plan>\n```\nb", tags=tags).text == "```\n</plan>\n```\nb"


_PIECES = st.sampled_from(
    ["<think>", "</think>", "[THINK]", "[/THINK]", "<|im_end|>", "</s>", "`", "```", "\n", " ", "a", "Is it.", "~~~\n"]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_text_and_what_was_cut_cover_the_content(content: str) -> None:
    told = split(content)

    assert told.text in content
    assert not told.reasoning or told.reasoning in content
    assert split(content, tags="none").text == content
    if told.mark is None:
        assert split(told.text).text == told.text, "twice is once"


@given(st.lists(_PIECES.filter(lambda piece: "`" not in piece and "~" not in piece), max_size=9).map("".join))
def test_code_is_never_cut(code: str) -> None:
    content = f"See:\n```\n{code}\n```\nSo."

    assert split(content).text == content


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "`",
        "`a",
        "```\n",
        "</s>",
        "<",
        "[",
        " ",
        "\n",
        "<|channel|>analysis",
        "~~~\n```\n",
        "` \n",
    ],
)
def test_a_hostile_reply_takes_time_by_its_length(unit: str) -> None:
    began = time.process_time()
    split(unit * (500_000 // len(unit)) + "</think>a")

    assert time.process_time() - began < 5
