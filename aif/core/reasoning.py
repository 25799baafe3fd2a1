"""Reasoning told apart from the answer it stands before: by the marks that models and chat formats put around it. Pure.

A mark is found by its words alone, so a reply that speaks of one looks much alike. Code is never cut. A sentence goes
on behind a mark that it speaks of as no answer begins: with a comma, a bracket, "is", "tag"; or the mark stands in it
as a word does. Where neither can be told, the block is cut; that it was in doubt, and what stays and looks like a mark,
is said in `Split.mark`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import orjson

Tags = Literal["auto", "none"] | tuple[str, str]

_NAMES = r"(?:think(?:_fast(?:er)?|ing)?|thoughts?|reasoning)"
_FRAME = r"<\|start\|>assistant", r"<\|channel\|>", r"(?:[^<]{0,99}<\|constrain\|>)?[^<]{0,99}<\|message\|>"
# What opens a block, and what closes it with what the format puts before the answer. All begin as in _BEGIN, so that
# a text without these is passed over in no time. By vLLM 0.32's parsers, where it has one (file names), else as said.
_MARKS = (
    # DeepSeek, Qwen, GLM, MiniMax (basic_parsers); <seed:… (seed_oss), <mm:… (minimax_m3), <ifm|… (k2_horizon),
    # <think:… (hy_v3); <thought>: EXAONE Deep; <thinking>, <reasoning>: what prompts and fine-tunes ask for
    (
        rf"<(?:\w{{1,9}}[:|])?(?i:{_NAMES})(?::\w{{1,19}})?(?:\s[^<>\n/]{{1,60}})?>",
        rf"</(?:\w{{1,9}}[:|])?(?i:{_NAMES})(?::\w{{1,19}})?>",
    ),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral (mistral)
    ("◁think▷", "◁/think▷"),  # Kimi-VL's chat template
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),  # cohere_command
    (r"<\|channel>", r"<channel\|>"),  # gemma4
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>(?:\s*<\|open\|>response<\|sep\|>)?"),  # kimi_k3
    (r"(?!)", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel (apriel): the template opens it
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?"),  # Sky-T1's data and its kin
    # gpt-oss (openai/harmony, docs/format.md)
    (
        rf"(?:{_FRAME[0]})?{_FRAME[1]}(?:analysis|commentary){_FRAME[2]}",
        rf"(?:<\|end\|>)?(?:{_FRAME[0]})?{_FRAME[1]}final{_FRAME[2]}",
    ),
)
_ANY = re.compile("|".join(f"(?P<o{n}>{opens})|(?P<c{n}>{closes})" for n, (opens, closes) in enumerate(_MARKS)))
_BEGIN = re.compile(r"<|◁|\[(?:/?THINK|BEGIN FINAL)")
_BLOCKS = 9  # one behind another are cut at most: to look at each takes time by all marks
# What may stand before the block that begins a reply: blanks, and a turn's begin that the server should not have sent.
_LEAD = re.compile(r"(?:[\s\ufeff\u200b]|<s>|<\|\w{1,30}\|>(?:assistant\b)?)*")
# Marks that are words, and so known at the begin of a reply alone: gpt-oss where a server drops special tokens; granite
_WORDS = (
    (re.compile(r"analysis(?=[^\sa-z])"), re.compile("assistantfinal")),
    (re.compile("Here(?:'s| is) my thought process:"), re.compile("Here(?:'s| is) my response:")),
)
_NEVER, _FINAL = re.compile("(?!)"), re.compile(r"(?<=[.!?\n])assistantfinal(?=[^\sa-z]|\n)")
_BARE = re.compile(r"\s*(?:analysis[A-Z]|thought\n)")  # gpt-oss, Gemma 4: where no mark is left of the end
# What chat formats end a turn with: ChatML, Llama 3 and 4, Mistral, GPT-2 and its heirs, Gemma, gpt-oss, Cohere,
# DeepSeek, Kimi K3, Sky-T1, Apriel, GLM, Starling, EXAONE, Seed, MiniMax
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end_of_text|>", "</s>", "<|endoftext|>", "<end_of_turn>",
    "<turn|>", "<eos>", "<|return|>", "<|end|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_solution|>", "[END FINAL RESPONSE]", "<|user|>",
    "<|end_of_turn|>", "[|endofturn|]", "<seed:eos>", "[e~[",
)  # fmt: skip
_LIKE = re.compile(rf"(?:{_ANY.pattern})|<\|\w{{1,30}}\|>|<(?:start|end)_of_turn>|<｜[^｜<]{{1,30}}｜>")

# How a sentence goes on behind a mark that it speaks of; and what stands around one that it quotes.
_SPOKEN = re.compile(
    r"[ \t]?(?:[,.;:?)\]}”’»，。、；：！？）」』】》،؛؟]|!(?!\[)|</|-[^\W\d_]|[\"'][,;:)\]])|"
    r"[ \t](?:is|are|was|were|and|or|(?:tag|token|mark|marker|block|element)s?|opens|"
    r"closes|begins|starts|ends|comes|stands|means|must|should|can|will|has|have|to|in|on|at|as|from|with|before|after|"
    r"around|which|that)\b"
)
_QUOTES = {'"': '"', "'": "'", "*": "*", "_": "_", "(": ")", "„": "“"}
_OPENED = re.compile(r"(?<![\w.!?,;。！？*])(?:\*+|[\"'_(„])$", re.ASCII)
# How a reply begins that is no thought: JSON, markup, a patch, a table, a quote. And a line that is code or quoted.
_WRITTEN = re.compile(r"""\s*(?:\{\s*["}]|\[\s*["{]|<[?!a-zA-Z]|@@ |--- |> |\|)""")
_ASIDE = re.compile(r" {4}|\t|[ \t]*[>|]")
# What an end mark stands behind that is named: a word and a blank, a colon, the sign of a list.
_NAMED = re.compile(r"(?:\w |[:：]\s*|(?<![^\n])[ \t]*(?:[-*•]|\d+[.)])[ \t]*)$")
# One that closes may have a mark right behind it, where a server drops line breaks.
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})(?:(?=[<[◁]|assistantfinal)|([^\n`<]*)$)", re.MULTILINE)
AROUND = 60  # characters of an example on each side of its mark


@dataclass(frozen=True, slots=True)
class Split:
    """What a model said, and its reasoning. `mark` says what looks like a mark and was left, or in doubt was cut."""

    text: str
    reasoning: str | None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    kind: str
    closes: bool
    start: int
    end: int
    code: bool
    spoken: bool


def split(content: str, thoughts: str = "", tags: Tags = "auto") -> Split:
    """Text and reasoning of a content, and thoughts that came apart from it. A block that is never closed has no text
    after it. `none` takes the content for the text; with marks of one's own no others count."""
    if tags == "none":
        return Split(content, thoughts or None, left(content))
    start, cut, doubt = (
        _cut(content) if tags == "auto" else _between(content, *(re.compile(re.escape(t)) for t in tags))
    )
    text = content[start : _ended(content, start)]
    reasoning = "\n".join(filter(None, (thoughts, cut.strip())))
    mark = _example("cut", content, start) if doubt and text.strip() else left(text)
    return Split(text, reasoning or None, mark)


def known(had: str | None, given: Mapping[str, Tags]) -> dict[str, Tags]:
    """Marks by who is read with them, `stage/name`, where they are not `auto`: those there were (JSON), and those
    given."""
    every = orjson.loads(had or "{}") | orjson.loads(orjson.dumps(dict(given)))
    return {name: tags for name, tags in every.items() if tags != "auto"}


def _cut(content: str) -> tuple[int, str, bool]:
    """Where the text begins, what was cut before it, and whether that is in doubt."""
    for opens, closes in _WORDS:
        if opens.match(content.lstrip()) and (found := _between(content, opens, closes))[0] < len(content):
            return found
    if "assistantfinal" in content and 0 < (found := _between(content, _NEVER, _FINAL))[0] < len(content):
        return found
    marks = list(_marks(content))
    thoughts = start = end = 0
    doubt = False
    for n in range(_BLOCKS):
        if (block := _block(content, marks, start)) is None:
            break
        begin, close = block
        thoughts = thoughts if n else begin
        if close is None:
            return len(content), content[thoughts:], False
        end, start = close.start, _behind(content, close)
        inside = sum(begin <= one.start < end for one in marks)
        marks = [one for one in marks if one.start >= start]
        doubt = doubt or inside > 0 or close.code or _runs_on(content, close)
    return start, content[thoughts:end], doubt or bool(start and marks)


def _block(content: str, marks: list[_Mark], at: int) -> tuple[int, _Mark | None] | None:
    """Where thoughts begin that a text begins with, and their end mark; None where there are none. The prompt may have
    opened the first."""
    if not marks:
        return None
    first = marks[0]
    ends = [one for one in marks if one.closes and not one.code]
    if not first.code and _LEAD.fullmatch(content, at, first.start):
        if first.closes:
            return None if first.spoken or not content[first.end :].strip() else (first.start, first)
        in_code = [one for one in marks if one.closes and one.code and one.kind == first.kind]
        close = _close(content, [one for one in ends if one.kind == first.kind], in_code)
        return None if first.spoken and (close is None or close.spoken) else (first.end, close)
    sound = _sound(content, ends)
    if len({one.kind for one in sound}) == 1:
        sound = [one for one in sound if _alone(content, one)] or sound
    if at or len(sound) != 1 or _WRITTEN.match(content):
        return None
    (close,) = sound
    line = content.rfind("\n", 0, close.start)
    earlier = [one for one in marks if one.start < close.start and one.kind == close.kind]
    opened = any(not (one.closes or one.code) and (not one.spoken or one.start > line) for one in earlier)
    return None if opened else (0, close)


def _close(content: str, ends: list[_Mark], in_code: list[_Mark]) -> _Mark | None:
    """Where a block ends that begins a reply: at the first mark of which it doesn't only speak. Thoughts may leave a
    fence open, which then seems to go on through the answer."""
    if ends:
        return next(iter(_sound(content, ends)), ends[-1])
    if in_code and (_alone(content, in_code[-1]) or _code(content[in_code[-1].end :])[1] is None):
        return in_code[-1]
    return None


def _alone(content: str, mark: _Mark) -> bool:
    """Whether it has a line of its own."""
    return content[mark.start - 1] == "\n" and content[mark.end : mark.end + 1] == "\n"


def _sound(content: str, ends: list[_Mark]) -> list[_Mark]:
    """Those of which nothing seems to speak: where there are some, those behind which no sentence may run on."""
    sound = [one for one in ends if not one.spoken]
    return [one for one in sound if not _runs_on(content, one)] or sound


def _behind(content: str, mark: _Mark) -> int:
    return len(content) - len(content[mark.end :].lstrip())


def _runs_on(content: str, mark: _Mark) -> bool:
    """Whether what follows may be the rest of a sentence."""
    after = content[mark.end : mark.end + 9]
    begin = after.lstrip(" \t")[:1]
    return (begin.islower() and begin != after[:1]) or _amid(content, mark.start, mark.end)


def _amid(content: str, start: int, end: int) -> bool:
    """Whether it stands in a sentence as a word does: between blanks, or letters of a script without capitals, where no
    sentence has ended and none begins."""
    before, after = content[max(0, start - 9) : start], content[end : end + 9]
    last, begin = before.rstrip(" \t")[-1:], after.lstrip(" \t")[:1]
    if not begin.isalpha() or begin.isupper() or not (last.isalnum() or last in tuple(",，、،")):
        return False
    blanks = last != before[-1:] and begin != after[:1]
    return blanks or (begin.lower() == begin.upper() and last.lower() == last.upper() and not last.isdecimal())


def _between(content: str, opens: re.Pattern[str], closes: re.Pattern[str]) -> tuple[int, str, bool]:
    """The same by marks of which it is known that they are this model's."""
    spans, _ = _code(content)
    begun = opens.match(content, len(content) - len(content.lstrip()))
    ends = [one for one in closes.finditer(content, begun.end() if begun else 0) if not _within(spans, one.start())]
    if begun and not ends:
        return len(content), content[begun.end() :], False
    earlier = opens.search(content, 0, ends[0].start()) if ends and not begun else None
    if not ends or (not begun and (len(ends) > 1 or earlier)):
        return 0, "", False
    start = len(content) - len(content[ends[0].end() :].lstrip())
    return start, content[begun.end() if begun else 0 : ends[0].start()], False


def _ended(content: str, start: int) -> int:
    """Where the text ends: before the marks that a chat format ends with, and the blanks before these. What a sentence
    speaks of stays, and so does code, and HTML that is struck through."""
    end = at = len(content)
    struck = cache(lambda: re.search("<[sS][ >]", content) is not None)
    while True:
        while at > start and content[at - 1].isspace():
            at -= 1
        if not content.endswith(_ENDS, start, at):
            break
        mark = next(one for one in _ENDS if content.endswith(one, start, at))
        at -= len(mark)
        if (mark == "</s>" and struck()) or _NAMED.search(content, max(start, at - 24), at):
            return end
        end = at
    if end == len(content):
        return end
    spans, _ = _code(content[start:])
    return len(content) if _within(spans, end - start) else at


def _found(pattern: re.Pattern[str], content: str) -> Iterator[re.Match[str]]:
    """As finditer, 20 times as fast: the branches of a pattern hide from `re` what they all begin with."""
    end = 0
    # of 1,200 characters 0.2 µs, and 7 one by one
    some = "<" in content or "◁" in content or "THINK]" in content or "[BEGIN FINAL" in content
    for begin in _BEGIN.finditer(content) if some else ():
        if begin.start() >= end and (found := pattern.match(content, begin.start())):
            end = found.end()
            yield found


def _marks(content: str) -> Iterator[_Mark]:
    spans: list[tuple[int, int]] | None = None
    line = 0
    for found in _found(_ANY, content):
        spans = _code(content)[0] if spans is None else spans
        line = max(line, content.rfind("\n", line, found.start()) + 1)
        group = str(found.lastgroup)
        kind = re.sub(r"[</>]|\s.*", "", found[0]).lower() if group[1:] == "0" else group[1:]
        quote = _OPENED.search(content, max(0, found.start() - 3), found.start())
        spoken = (
            bool(_SPOKEN.match(content[found.end() : found.end() + 12]))
            or bool(quote and content.startswith(_QUOTES[quote[0][0]], found.end()))
            or bool(_ASIDE.match(content, line, found.start()))
            or _amid(content, found.start(), found.end())
        )
        code = _within(spans, found.start())
        yield _Mark(kind, group.startswith("c"), found.start(), found.end(), code, spoken)


def _code(content: str) -> tuple[list[tuple[int, int]], int | None]:
    """Where code stands: in fences, and between backticks on a line. And where a fence begins that is never closed."""
    spans: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    plain = 0
    for fence in _FENCE.finditer(content):
        if opened is None and fence[2] is None:
            continue
        if opened is None:
            spans += _inline(content, plain, fence.start())
            opened = fence
        elif fence[1].startswith(opened[1]) and not (fence[2] or "").strip():
            spans.append((opened.start(), fence.end()))
            opened, plain = None, fence.end()
    if opened is None:
        return spans + _inline(content, plain, len(content)), None
    return [*spans, (opened.start(), len(content))], opened.start()


def _inline(content: str, start: int, end: int) -> list[tuple[int, int]]:
    """Code between runs of as many backticks. Told from the end, which run is closed by which takes one pass a line."""
    spans: list[tuple[int, int]] = []
    closed: dict[tuple[int, int], int] = {}
    runs = [(one.start(), one.end()) for one in re.finditer("`+", content[start:end])]
    line, last, closes = 0, len(content), dict[int, int]()
    for a, b in reversed(runs):
        if "\n" in content[start + b : start + last]:
            closes = {}
        if b - a in closes:
            closed[a, b] = closes[b - a]
        closes[b - a] = b
        last = a
    for a, b in runs:
        if a >= line and (a, b) in closed:
            line = closed[a, b]
            spans.append((start + a, start + line))
    return spans


def _within(spans: list[tuple[int, int]], at: int) -> bool:
    """Whether a place is in one of these, which are in order."""
    n = bisect_right(spans, (at, len(spans) and spans[-1][1])) - 1
    return n >= 0 and spans[n][0] <= at < spans[n][1]


def left(text: str) -> str | None:
    """What looks like a mark and stays, outside code that is whole."""
    if (at := 0 if _BARE.match(text) else text.find("assistantfinal")) >= 0:
        return _example("left", text, at)
    spans: list[tuple[int, int]] | None = None
    for found in _found(_LIKE, text):
        if spans is None:
            spans, broken = _code(text)
            spans = [one for one in spans if one[0] != broken]
        if not _within(spans, found.start()):
            return _example("left", text, found.start())
    return None


def _example(what: str, content: str, at: int) -> str:
    return f"{what}: {' '.join(content[max(0, at - AROUND) : at + AROUND].split())}"
