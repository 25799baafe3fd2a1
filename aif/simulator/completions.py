"""A model of declared quality: it writes a completion about whatever the prompt is about, well or badly.

Quality shows in what a reader can see: how much of the ask is taken up, how specific and structured the text is, how
much of it is filler, overclaiming, drift and repetition. Pure: the same arguments give the same text.
"""

import re
from collections.abc import Sequence
from random import Random

from aif.core.types import Message, as_dicts, digest
from aif.simulator import phrases
from aif.simulator.words import Kind, harmful, key_phrases, kind

SPREAD = 0.08  # standard deviation of one text's quality around its model's
_LANGUAGE = re.compile(r"\b(javascript|typescript|sql|python)\b", re.IGNORECASE)


def write(messages: Sequence[Message], quality: float, rng_seed: int) -> str:
    """A completion for the conversation by a model of `quality` (0 to 1), some 10 to 250 tokens of English prose."""
    rng = Random(int(digest([as_dicts(messages), rng_seed])[:16], 16))
    turns = [message.content for message in messages if message.role == "user"]
    system = " ".join(message.content for message in messages if message.role == "system")
    asked = turns[-1] if turns else ""
    level = min(1.0, max(0.0, rng.gauss(quality, SPREAD)))
    pen = _Pen(rng, level, key_phrases(turns) or ("this",))
    if harmful(asked) and rng.random() < 1 / (1 + 2.718 ** (-9 * (level - 0.45))):
        return _decline(pen)
    return _compose(pen, kind(asked), asked, system)


class _Places(dict[str, str]):
    """The places of one pattern, filled as the pattern asks for them."""

    def __init__(self, pen: "_Pen") -> None:
        super().__init__()
        self._pen = pen

    def __missing__(self, place: str) -> str:
        rng = self._pen.rng
        if place == "n":
            value = str(rng.randint(12, 60))
        elif place == "m":
            value = str(rng.randint(3, 11))
        elif place == "off":
            value = rng.choice(phrases.OFF_TOPICS)
        else:
            value = self._pen.next_phrase()
        self[place] = value
        return value


class _Pen:
    """Fills patterns: goes round the phrases that this text takes up, and round each bank without repeating itself."""

    def __init__(self, rng: Random, level: float, found: Sequence[str]) -> None:
        self.rng = rng
        self.level = level
        reach = max(1, round(len(found) * min(1.0, 0.25 + 0.85 * level)))
        kept = set(rng.sample(range(len(found)), reach))
        self._phrases = [phrase for at, phrase in enumerate(found) if at in kept]
        self._next = 0
        self._decks: dict[int, list[str]] = {}

    def next_phrase(self) -> str:
        phrase = self._phrases[self._next % len(self._phrases)]
        self._next += 1
        return phrase

    def fill(self, pattern: str) -> str:
        text = pattern.format_map(_Places(self))
        return text[0].upper() + text[1:]

    def draw(self, patterns: Sequence[str]) -> str:
        """A sentence from a pattern of the bank that was not used yet, as long as there is one."""
        deck = self._decks.get(id(patterns))
        if not deck:
            deck = self._decks[id(patterns)] = self.rng.sample(patterns, len(patterns))
        return self.fill(deck.pop())

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def weak(self) -> str:
        """A sentence of the sort that makes a text worse."""
        return self.draw(self.rng.choices((phrases.FILLER, phrases.OVERCLAIMS, phrases.DRIFTS), weights=(4, 3, 3))[0])


_GOOD: dict[Kind, tuple[str, ...]] = {
    "question": phrases.POINTS,
    "list": phrases.ITEMS,
    "writing": phrases.SCENES,
    "code": phrases.CODE_NOTES,
}
_SIZE: dict[Kind, tuple[int, int]] = {"question": (5, 8), "list": (5, 8), "writing": (6, 9), "code": (4, 5)}


def _compose(pen: _Pen, form: Kind, asked: str, system: str) -> str:
    opening, *body, closing = _parts(pen, form, system)
    if form == "code" and pen.chance(pen.level + 0.2):
        return "\n\n".join(part for part in (opening, _code(pen, asked), " ".join(body), closing) if part)
    rows = len(body) > 2 and pen.chance({"list": pen.level + 0.2, "question": 0.4 * pen.level}.get(form, 0.0))
    if rows:
        numbered = form == "list" and pen.chance(0.6)
        lines = [f"{at}. {row}" if numbered else f"- {row}" for at, row in enumerate(body, 1)]
        return "\n\n".join(part for part in (opening, "\n".join(lines), closing) if part)
    half = 1 + (len(body) + 1) // 2
    text = [row if row[-1] in ".!?:”" else f"{row}." for row in (opening, *body, closing) if row]
    breaks = "\n\n" if pen.chance(0.2 + 0.8 * pen.level) else " "
    return breaks.join(" ".join(part) for part in (text[:half], text[half:]) if part)


def _parts(pen: _Pen, form: Kind, system: str) -> list[str]:
    """Opening, sentences between, closing: as many good ones as the text's quality, the rest weak or repeated."""
    size = pen.rng.randint(*_SIZE[form]) + 2
    if pen.chance(0.25 * (1 - pen.level)):
        size = max(2, size // 3)
    good = min(size, int(size * pen.level + pen.rng.random()))
    marks = [True] * good + [False] * (size - good)
    pen.rng.shuffle(marks)
    opening = _opening(pen, form, system) if marks[0] else pen.weak()
    rows: list[str] = []
    for is_good in marks[1:-1]:
        if is_good:
            rows.append(pen.draw(_GOOD[form]))
        else:
            rows.append(pen.rng.choice(rows) if rows and pen.chance(0.25) else pen.weak())
    if pen.chance(0.3 * (1 - pen.level)):
        rows += rows[: 1 + len(rows) // 2]
    closing = _closing(pen, form) if marks[-1] else pen.weak() if pen.chance(0.7) else ""
    return [opening, *rows, closing]


def _opening(pen: _Pen, form: Kind, system: str) -> str:
    if system and pen.chance(0.3 + 0.5 * pen.level):
        for cue, pattern in phrases.TINTS:
            if re.search(cue, system, re.IGNORECASE):
                return pen.fill(pattern)
    if form == "writing":
        return pen.draw(phrases.SCENES)
    return pen.draw(phrases.LIST_OPENINGS if form == "list" else phrases.OPENINGS)


def _closing(pen: _Pen, form: Kind) -> str:
    if form == "writing":
        return pen.draw(phrases.SCENE_CLOSINGS)
    return pen.draw(phrases.HEDGES if pen.chance(0.45) else phrases.CLOSINGS)


def _decline(pen: _Pen) -> str:
    parts = [pen.draw(phrases.REFUSALS)]
    if pen.chance(0.2 + 0.8 * pen.level):
        parts.append(pen.draw(phrases.ALTERNATIVES))
    if pen.chance(0.5):
        parts.append(pen.draw(phrases.ALTERNATIVES))
    return " ".join(parts)


def _code(pen: _Pen, asked: str) -> str:
    """A small block in the language the prompt names (Python where it names none that is known here)."""
    found = _LANGUAGE.search(asked)
    language = found.group().lower() if found else "python"
    stems = [word.lower() for word in re.findall(r"[A-Za-z]+", pen.next_phrase()) if word.lower() != language]
    name = "_".join(stems[:3]) or "solve"
    return "\n".join([f"```{language}", *_lines(language, name, pen.level, pen.rng), "```"])


def _lines(language: str, name: str, level: float, rng: Random) -> list[str]:
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
