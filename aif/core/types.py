"""The values that pass between the rooms, and how each gets its id. Frozen; no I/O.

Identity is content: an id is the sha256 of canonical JSON, so the same thing asked twice has the same key on any
machine. What can't change an answer (host, timeouts, concurrency, prices, weights, policies) is in no id.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

Role = Literal["system", "user", "assistant"]
Stage = Literal["completion", "judgement"]

OTHER = "+sha256:"  # in an identity, behind the name: what is not what was first served under it
CARRIED = "carried"  # the judge's name where scores came with the completions

KEY_LENGTH = 32  # hex digits of a key: 128 bits, no two of 10^9 keys meet by chance


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of a value's canonical JSON: UTF-8, keys sorted, no spaces."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def text_id(text: str) -> str:
    """A digest of a text: equal where texts are, but for how they are composed and for blanks at their ends."""
    return digest(plain(text))[:KEY_LENGTH]


def fraction(*parts: str | int) -> float:
    """A number in [0, 1) that only depends on the parts: what every seeded choice is drawn from."""
    head = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7]
    return (int.from_bytes(head, "big") >> 3) / 2**53


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as JSON and Arrow take them."""
    return [{"role": m.role, "content": m.content} for m in messages]


def as_messages(rows: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The inverse of `as_dicts`."""
    return tuple(Message(row["role"], row["content"]) for row in rows)


def prompt_id(messages: Sequence[Message]) -> str:
    """sha256 of the text for a single user turn (the convention of ultrafeedback_binarized), else of the messages."""
    if len(messages) == 1 and messages[0].role == "user":
        return hashlib.sha256(messages[0].content.encode()).hexdigest()
    return digest(as_dicts(messages))


def plain(text: str) -> str:
    """What texts have in common that look the same: however they are composed, whatever blanks they end with."""
    return unicodedata.normalize("NFC", text).strip()


_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # Unicode's categories: white space, controls, formats
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and a symbol by category, and nothing to look at


def is_blank(text: str) -> bool:
    """Whether a text has nothing in it that could be seen: white space, controls, zero-width and direction marks. For
    `str.strip` a zero-width space is a text; trained on, it is an empty answer."""
    return all(unicodedata.category(char) in _UNSEEN or char in _FILLERS for char in text.strip())


@dataclass(frozen=True, slots=True)
class Provided:
    """A completion that came with its prompt: who wrote it, its text, and the score it came with, if any, with what
    tells whose scale that is on."""

    model: str
    text: str
    score: float | None = None
    scale: str | None = field(default=None, compare=False)


def carried_identity(model: str) -> str:
    """What tells a completion that came with its prompt from one the same model was asked for."""
    return f"carried/{model}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a source, or a cell of one, that nothing can be made of, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the pool is asked: turns that end with the user's, the name of its source, and what the row held besides.

    `material` is what a judge is shown beside the conversation, by the rubric's slot (a reference answer, …); `again`
    are completions of the row that it has already, with another score; `where` is the place of the row.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    material: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[Provided, ...] = ()
    again: tuple[Provided, ...] = field(default=(), compare=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Principle:
    """A system prompt that steers a completion: its pool (honesty, …) and its text."""

    pool: str
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is sampled. None is not sent, so that the server's own default holds. `extra` is JSON, its keys
    sorted: settings that only the provider knows."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
    extra: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The settings as they enter a key. One that came later is left out where it isn't given, so that what was
        asked before it came keeps its key."""
        said: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        later = {"reasoning_effort": self.reasoning_effort, "extra_body": orjson.loads(self.extra or "null")}
        return said | {name: value for name, value in later.items() if value}


@dataclass(frozen=True, slots=True)
class Slot:
    """One completion to be had: which model answers which prompt, steered and sampled how."""

    key: str
    prompt_id: str
    slot: int
    model: str
    identity: str
    sample: int
    seed: int
    principle: Principle | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call as the server counted them. `cached` is the part of `input` that was read from a prefix cache,
    `written` the part that was written to one at a price of its own."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    written: int = 0


RatingState = Literal["rated", "not_applicable"]


class Rating(NamedTuple):
    """What a judge said of one completion in one aspect. `score` is None exactly when the state is not_applicable.

    (A tuple, since there are 16 of them in a judgement of four completions: made in a third of the time.)
    """

    completion: str
    aspect: str
    state: RatingState
    score: float | None
    rationale: str
    types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failing:
    """Items without an answer, of one model or judge and for one kind of reason (see chat.base.Kind), with an example.
    `verdict`: failed, later or refused; pending, of items that were not asked yet, and waiting, of judgements whose
    completions are pending: these have no kind. During a run also again, of calls."""

    stage: str
    endpoint: str
    kind: str
    verdict: str
    items: int
    example: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class Spec:
    """One request the present rubric makes of a judge about n completions at once, of prompts that have at `least` so
    many; `spec` is the digest of what of it reaches the wire, `instead` that of the requests about one completion each
    that take its place where it doesn't fit, if they do."""

    judge: str
    identity: str
    judge_pass: int
    request: str
    listwise: bool
    n: int
    least: int
    spec: str
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What calls cost, in USD: what is known, and how much more it may be at most (calls without an answer that tells,
    and what runs that crashed had reserved). `unpriced` calls had no price, and are in neither."""

    known: float = 0.0
    unknown: float = 0.0
    unpriced: int = 0

    @property
    def counted(self) -> float:
        """What counts against a budget."""
        return self.known + self.unknown

    def left(self, budget: float) -> float:
        return max(0.0, budget - self.counted)


UNSPENT = Spent()
