import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.reasoning import split_reasoning

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
        ('Plan.\n</think>\n\n{"a": "it leaks</think>Yes"}', '{"a": "it leaks</think>Yes"}', "Plan."),
        ('<think time="5">plan</think>Answer', "Answer", "plan"),
        ("Plan.\n[BEGIN FINAL RESPONSE]\nAnswer\n[END FINAL RESPONSE]", "Answer", "Plan."),
        ("A plan.assistantfinalAnswer", "Answer", "A plan."),
        ("<|im_start|>assistant\n<think>plan</think>Answer", "Answer", "plan"),
        ("\ufeff<think>plan</think>Answer", "Answer", "plan"),
        # several blocks, and an empty one of the prompt's template
        ("<think>a</think>\n\n<think>b</think>\n\nAnswer", "Answer", "a</think>\n\n<think>b"),
        ("<think>\n\n</think>\n\n<think>b</think>Answer", "Answer", "</think>\n\n<think>b"),
        ("</think>\n\n<think>b</think>Answer", "Answer", "</think>\n\n<think>b"),
        # thoughts that end with code, on a server that drops line breaks; that leave a fence open, as the answer does
        ("```py\nx\n```</think>Answer:\n```\ny\n```", "Answer:\n```\ny\n```", "```py\nx\n```"),
        ("analysisSo:\n```\nx\n```assistantfinalAnswer", "Answer", "So:\n```\nx\n```"),
        ("<think>\n```\nx\n</think>\nAnswer\n```\ny", "Answer\n```\ny", "```\nx"),
        ("**Plan.**</think>**Answer.**", "**Answer.**", "**Plan.**"),
        ("Plan.</think>![a](b)", "![a](b)", "Plan."),
        ("{x} is odd.</think>\n{1}", "{1}", "{x} is odd."),
        ("用户问首都。</think>北京。", "北京。", "用户问首都。"),
        ("Answer[|endofturn|]", "Answer", None),
    ],
)
def test_reasoning_is_cut(content: str, text: str, reasoning: str | None) -> None:
    told = split_reasoning(content)

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
        "DeepSeek writes </think> once it is done.",
        "## <think> and </think>\n\nThese wrap the thoughts.",
        "Das Modell schreibt </think> ans Ende.",
        "Der </think>-Tag beendet es, wie „</think>“.",
        "Le modèle écrit </think> à la fin.",
        "Модель пишет </think> в конце.",
        "R1用</think>结束思考。",
        "R1 用 </think> 结束思考。",
        "结束标签是</think>。",
        "「</think>」は終わりを示します。",
        "R1은 </think> 태그로 끝냅니다.",
        "ينهي النموذج أفكاره بالوسم </think> ثم يجيب.",
        '[{"text": "a</think>b"}]',
        '{"rationale": "it leaks</think>Yes", "rat',
        "<pre><code>plan</think>answer</code></pre>",
        "re.sub('.*</think>', '', s)",
        "The template:\n\n    {thoughts}\n    </think>\n    {answer}\n\nDone.",
        "@@ -1 +1 @@\n-{{ t }}</think>\n+{{ t }}",
        "> hm\n> </think>\n\nThis is a quote.",
        "| mark |\n|---|\n| </think> | ends |",
        "EOS: <|im_end|>",
        "1. <|im_start|>\n2. <|im_end|>",
        "Now <s class=x>ten</s>",
        " Four. \n",
    ],
)
def test_an_answer_is_not_cut(content: str) -> None:
    assert split_reasoning(content).text == content


@pytest.mark.parametrize(
    "content",
    [
        SENTENCE,
        "Sure.\n\n<think>b</think>",
        "Hi.<|im_end|>\n<|im_start|>user\nMore",
        "analysisWe need to",
        "thought\nWe need to",
        "Yes, planassistantfinalAnswer",
    ],
)
def test_text_that_is_left_and_looks_like_a_tag_is_reported(content: str) -> None:
    assert (split_reasoning(content).mark or "").startswith("left: ")


def test_a_cut_in_a_reply_that_mentions_the_tag_is_reported() -> None:
    assert (
        split_reasoning("<think>plan</think>`<think>` opens it.").mark == "cut: <think>plan</think>`<think>` opens it."
    )
    assert split_reasoning("<think>标签开始思考，</think>标签结束。").mark is not None, (
        "in a script without capitals, too"
    )
    assert split_reasoning("<think>plan</think>Answer").mark is None
    assert split_reasoning("<think>用户问首都。</think>北京。").mark is None
    assert split_reasoning(TEMPLATE).mark is None, "code is what it is"


def test_own_tags_are_the_only_ones() -> None:
    tags = ("<plan>", "</plan>")

    assert split_reasoning("<plan>a</plan>b", tags=tags).text == "b"
    assert split_reasoning("a</plan>b", tags=tags).text == "b"
    assert split_reasoning("<think>a</think>b", tags=tags).text == "<think>a</think>b"
    assert split_reasoning("```\n</plan>\n```\nb", tags=tags).text == "```\n</plan>\n```\nb"


_PIECES = st.sampled_from(
    ["<think>", "</think>", "[THINK]", "[/THINK]", "<|im_end|>", "</s>", "`", "```", "\n", " ", "a", "Is it.", "~~~\n"]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_text_and_reasoning_cover_the_content(content: str) -> None:
    told = split_reasoning(content)

    assert told.text in content
    assert not told.reasoning or told.reasoning in content
    assert split_reasoning(content, tags="none").text == content
    if told.mark is None:
        assert split_reasoning(told.text).text == told.text, "twice is once"


@given(st.lists(_PIECES.filter(lambda piece: "`" not in piece and "~" not in piece), max_size=9).map("".join))
def test_code_is_never_cut(code: str) -> None:
    content = f"See:\n```\n{code}\n```\nSo."

    assert split_reasoning(content).text == content


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
    split_reasoning(unit * (500_000 // len(unit)) + "</think>a")

    assert time.process_time() - began < 5
