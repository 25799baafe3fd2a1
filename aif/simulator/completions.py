"""Completions of a simulated model: texts about the prompt's subject, as good as the model's *quality* (0 to 1).

Quality decides how many of the prompt's phrases a text covers, and how specific and structured it is. It also decides
how much of the text is filler, overclaiming, drift and repetition. Pure: the same arguments give the same text.
"""

import re
from collections.abc import Sequence
from random import Random

from aif.core.types import Message, as_dicts, digest
from aif.simulator import phrases
from aif.simulator.text_analysis import AnswerForm, answer_form, is_harmful, key_phrases

SPREAD = 0.08  # standard deviation of a text's quality around its model's
_LANGUAGE = re.compile(r"\b(javascript|typescript|sql|python)\b", re.IGNORECASE)


def write_completion(messages: Sequence[Message], quality: float, rng_seed: int) -> str:
    """Write a completion as a model of `quality` (0 to 1) would: about 10 to 250 tokens of English prose."""
    rng = Random(int(digest([as_dicts(messages), rng_seed])[:16], 16))
    turns = [message.content for message in messages if message.role == "user"]
    system = " ".join(message.content for message in messages if message.role == "system")
    question = turns[-1] if turns else ""
    level = min(1.0, max(0.0, rng.gauss(quality, SPREAD)))
    writer = _Writer(rng, level, key_phrases(turns) or ("this",))
    if is_harmful(question) and rng.random() < 1 / (1 + 2.718 ** (-9 * (level - 0.45))):
        return _write_refusal(writer)
    return _write_answer(writer, answer_form(question), question, system)


class _Placeholders(dict[str, str]):
    """The values of the placeholders in one pattern, for `str.format_map`. A value is chosen when its placeholder is
    first met."""

    def __init__(self, writer: "_Writer") -> None:
        super().__init__()
        self._writer = writer

    def __missing__(self, name: str) -> str:
        rng = self._writer.rng
        if name == "n":
            value = str(rng.randint(12, 60))
        elif name == "m":
            value = str(rng.randint(3, 11))
        elif name == "off":
            value = rng.choice(phrases.OFF_TOPICS)
        else:
            value = self._writer.next_phrase()
        self[name] = value
        return value


class _Writer:
    """Makes the sentences of one text of quality `level` (0 to 1), by filling sentence patterns with phrases of the
    prompt.

    At a higher level it uses more of the prompt's phrases. It uses all patterns of a list before it repeats one.
    """

    def __init__(self, rng: Random, level: float, phrase_list: Sequence[str]) -> None:
        self.rng = rng
        self.level = level
        number = max(1, round(len(phrase_list) * min(1.0, 0.25 + 0.85 * level)))
        indices = set(rng.sample(range(len(phrase_list)), number))
        self._phrases = [phrase for at, phrase in enumerate(phrase_list) if at in indices]
        self._next = 0
        self._unused: dict[int, list[str]] = {}

    def next_phrase(self) -> str:
        phrase = self._phrases[self._next % len(self._phrases)]
        self._next += 1
        return phrase

    def fill(self, pattern: str) -> str:
        text = pattern.format_map(_Placeholders(self))
        return text[0].upper() + text[1:]

    def draw(self, patterns: Sequence[str]) -> str:
        """Return a sentence made from a random one of `patterns`: one not used yet, until all are used."""
        unused = self._unused.get(id(patterns))
        if not unused:
            unused = self._unused[id(patterns)] = self.rng.sample(patterns, len(patterns))
        return self.fill(unused.pop())

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def weak_sentence(self) -> str:
        """Return a sentence that makes a text worse: filler, an overclaim, or drift off the topic."""
        return self.draw(self.rng.choices((phrases.FILLER, phrases.OVERCLAIMS, phrases.DRIFTS), weights=(4, 3, 3))[0])


_GOOD: dict[AnswerForm, tuple[str, ...]] = {
    "question": phrases.POINTS,
    "list": phrases.ITEMS,
    "writing": phrases.SCENES,
    "code": phrases.CODE_NOTES,
}
_SENTENCES: dict[AnswerForm, tuple[int, int]] = {"question": (5, 8), "list": (5, 8), "writing": (6, 9), "code": (4, 5)}


def _write_answer(writer: _Writer, form: AnswerForm, question: str, system: str) -> str:
    opening, *body, closing = _parts(writer, form, system)
    if form == "code" and writer.chance(writer.level + 0.2):
        return "\n\n".join(part for part in (opening, _code_block(writer, question), " ".join(body), closing) if part)
    list_chance = {"list": writer.level + 0.2, "question": 0.4 * writer.level}.get(form, 0.0)
    if len(body) > 2 and writer.chance(list_chance):
        numbered = form == "list" and writer.chance(0.6)
        lines = [f"{at}. {line}" if numbered else f"- {line}" for at, line in enumerate(body, 1)]
        return "\n\n".join(part for part in (opening, "\n".join(lines), closing) if part)
    half = 1 + (len(body) + 1) // 2
    text = [line if line[-1] in ".!?:”" else f"{line}." for line in (opening, *body, closing) if line]
    separator = "\n\n" if writer.chance(0.2 + 0.8 * writer.level) else " "
    return separator.join(" ".join(part) for part in (text[:half], text[half:]) if part)


def _parts(writer: _Writer, form: AnswerForm, system: str) -> list[str]:
    """Return the parts of an answer: the opening, the sentences of the body, and the closing, which may be empty.

    The share of good sentences is about equal to the quality (`writer.level`); the other sentences are weak, or repeat
    an earlier one. A good opening may reflect `system`, the system prompt.
    """
    n_parts = writer.rng.randint(*_SENTENCES[form]) + 2
    if writer.chance(0.25 * (1 - writer.level)):
        n_parts = max(2, n_parts // 3)
    n_good = min(n_parts, int(n_parts * writer.level + writer.rng.random()))
    good_or_weak = [True] * n_good + [False] * (n_parts - n_good)
    writer.rng.shuffle(good_or_weak)
    opening = _opening(writer, form, system) if good_or_weak[0] else writer.weak_sentence()
    body: list[str] = []
    for is_good in good_or_weak[1:-1]:
        if is_good:
            body.append(writer.draw(_GOOD[form]))
        else:
            body.append(writer.rng.choice(body) if body and writer.chance(0.25) else writer.weak_sentence())
    if writer.chance(0.3 * (1 - writer.level)):
        body += body[: 1 + len(body) // 2]
    closing = _closing(writer, form) if good_or_weak[-1] else writer.weak_sentence() if writer.chance(0.7) else ""
    return [opening, *body, closing]


def _opening(writer: _Writer, form: AnswerForm, system: str) -> str:
    if system and writer.chance(0.3 + 0.5 * writer.level):
        for cue, pattern in phrases.TINTS:
            if re.search(cue, system, re.IGNORECASE):
                return writer.fill(pattern)
    if form == "writing":
        return writer.draw(phrases.SCENES)
    return writer.draw(phrases.LIST_OPENINGS if form == "list" else phrases.OPENINGS)


def _closing(writer: _Writer, form: AnswerForm) -> str:
    if form == "writing":
        return writer.draw(phrases.SCENE_CLOSINGS)
    return writer.draw(phrases.HEDGES if writer.chance(0.45) else phrases.CLOSINGS)


def _write_refusal(writer: _Writer) -> str:
    parts = [writer.draw(phrases.REFUSALS)]
    if writer.chance(0.2 + 0.8 * writer.level):
        parts.append(writer.draw(phrases.ALTERNATIVES))
    if writer.chance(0.5):
        parts.append(writer.draw(phrases.ALTERNATIVES))
    return " ".join(parts)


def _code_block(writer: _Writer, question: str) -> str:
    """Return a short code block in the language that the prompt names; Python if it names no known language."""
    match = _LANGUAGE.search(question)
    language = match.group().lower() if match else "python"
    stems = [word.lower() for word in re.findall(r"[A-Za-z]+", writer.next_phrase()) if word.lower() != language]
    name = "_".join(stems[:3]) or "solve"
    return "\n".join([f"```{language}", *_code_lines(language, name, writer.level, writer.rng), "```"])


def _code_lines(language: str, name: str, level: float, rng: Random) -> list[str]:
    if level < 0.3:
        return {"sql": ["SELECT * FROM table;"], "python": [f"def {name}():", "    pass  # code goes here"]}.get(
            language, [f"function {name}() {{}}"]
        )
    if language == "sql":
        return [f"SELECT {name}, COUNT(*) AS total", "FROM entries", f"GROUP BY {name}", "ORDER BY total DESC;"]
    if language in ("javascript", "typescript"):
        typed = "values: number[]" if language == "typescript" else "values"
        return [
            f"function {name}({typed}) {{",
            '  if (values.length === 0) throw new Error("no values");',
            "  return values.reduce((best, value) => Math.max(best, value));",
            "}",
        ]
    step = rng.choice(("result.append(value)", "if value not in result:\n            result.append(value)"))
    return [
        f"def {name}(values):",
        *(["    if not values:", '        raise ValueError("no values given")'] if level > 0.55 else []),
        "    result = []",
        "    for value in values:",
        f"        {step}",
        "    return result",
    ]
