"""The values that packages pass to each other, and how each gets its id. Frozen; no I/O.

An id is a digest of content (sha256 of canonical JSON), so the same request has the same key on every machine. Settings
that can't change a reply (host, timeouts, concurrency, prices, weights, policies) are not part of any id.

The fields of `Sampling`, `Usage`, `FailureGroup`, `JudgingSpec` and `Spent` are part of identities, journal records,
`progress.json` or the store's tables, by name or by repr: renaming one changes those.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

Role = Literal["system", "user", "assistant"]
Stage = Literal["completion", "judgement"]

# Starts a suffix of a model's identity, for a server that loads other files than those first served under this name.
DIGEST_SUFFIX = "+sha256:"
PROVIDED_JUDGE = "carried"  # the judge's name in records and tables, for scores that came with provided completions

KEY_LENGTH = 32  # hex digits of a key: 128 bits, so 10^9 keys don't collide by chance


def digest(value: Any) -> str:
    """Return the sha256 (64 hex digits) of a value's canonical JSON: UTF-8, keys sorted, no spaces."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def text_id(text: str) -> str:
    """Return a digest (32 hex digits) of a text. Texts that differ only in white space at their ends or in their
    Unicode form (NFC, NFD) have the same digest."""
    return digest(normalized(text))[:KEY_LENGTH]


def fraction(*parts: str | int) -> float:
    """Return a number in [0, 1) that depends on `parts` alone. Every seeded random choice is made by such a number."""
    head = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7]
    return (int.from_bytes(head, "big") >> 3) / 2**53


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Convert messages to `{"role": …, "content": …}` dicts, for JSON and Arrow."""
    return [{"role": m.role, "content": m.content} for m in messages]


def as_messages(rows: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Convert `{"role": …, "content": …}` dicts to messages; the inverse of `as_dicts`."""
    return tuple(Message(row["role"], row["content"]) for row in rows)


def prompt_id(messages: Sequence[Message]) -> str:
    """Return the id of a prompt: for a single user turn the sha256 of its text (the convention of
    ultrafeedback_binarized), else the sha256 of the messages as canonical JSON."""
    if len(messages) == 1 and messages[0].role == "user":
        return hashlib.sha256(messages[0].content.encode()).hexdigest()
    return digest(as_dicts(messages))


def normalized(text: str) -> str:
    """Return the text in Unicode form NFC, without white space at its ends."""
    return unicodedata.normalize("NFC", text).strip()


_INVISIBLE = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # Unicode categories: white space, controls, formats
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # invisible, though Unicode calls them letters or symbols


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character: only white space, controls, zero-width and direction marks.
    (`str.strip` keeps zero-width spaces; a model trained on answers that hold nothing else learns to give empty
    answers.)"""
    return all(unicodedata.category(char) in _INVISIBLE or char in _FILLERS for char in text.strip())


@dataclass(frozen=True, slots=True)
class ProvidedCompletion:
    """A completion that a source row brings with its prompt, in place of one by a model of the pool: its author
    (`model`), its text, and its score if the row has one. `scale` names the scale of the score (see `Source.scale`)."""

    model: str
    text: str
    score: float | None = None
    scale: str | None = field(default=None, compare=False)


def provided_identity(model: str) -> str:
    """Return the model identity that stands for the author `model` of completions that came with their prompt. It
    differs from the identity of a model of that name in the pool."""
    return f"carried/{model}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a source, or a cell of a row, that can't be read, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that models complete: its turns (the last is the user's) and the name of its source.

    `meta` holds the row's unused columns. `material` holds texts that a judge sees beside the conversation (a reference
    answer, …), by the name of their slot (placeholder) in the rubric. `provided` are completions that the row brings.
    `rescored` are completions that the row repeats with a different score. `where` is the place of the row
    (`file:line`).
    """

    prompt_id: str
    messages: tuple[Message, ...]
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    material: Mapping[str, str] = field(default_factory=dict)
    provided: tuple[ProvidedCompletion, ...] = ()
    rescored: tuple[ProvidedCompletion, ...] = field(default=(), compare=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Principle:
    """A system prompt that steers a completion: the pool that it was drawn from (honesty, …) and its text."""

    pool: str
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is sampled. A setting that is None is not sent, so the server's default applies. `extra` holds other
    request parameters (the setting `extra_body`) as JSON with sorted keys."""

    # planning sorts pools by repr(): its version changes if the class, a field or their order does

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
    extra: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that are part of a completion's or judgement's key. Settings that later versions of aif added
        are left out unless they are set, so that older keys stay the same."""
        settings: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        later = {"reasoning_effort": self.reasoning_effort, "extra_body": orjson.loads(self.extra or "null")}
        return settings | {name: value for name, value in later.items() if value}


@dataclass(frozen=True, slots=True)
class Slot:
    """A planned completion: which model answers which prompt, with which principle and sampling seed.

    `key` is the completion's id, `slot` its number within the prompt, `identity` the model's identity. `sample` numbers
    the completions by the same model for the same prompt. Both numbers begin at 0.
    """

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
    """Token counts of one call, as reported by the server. `input` includes `cached` (read from the prompt cache) and
    `written` (written to it); `output` includes `reasoning`."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    written: int = 0


RatingState = Literal["rated", "not_applicable"]


class Rating(NamedTuple):
    """A judge's rating of one completion in one aspect. `score` is None exactly if the state is not_applicable. `types`
    are the numbers of the aspect's types (such as kinds of error) that the judge named.

    Creating a NamedTuple takes a third of the time of a dataclass; a judgement of four completions has 16 ratings.
    """

    completion: str
    aspect: str
    state: RatingState
    score: float | None
    rationale: str
    types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Unanswered completions or judgements of one model or judge (`endpoint`) with the same kind of failure and
    verdict. `items` is their number. `example` is the error message of one item and `prompt_id` the prompt of one item;
    the two items may differ.

    `kind` is an `aif.providers.base.Kind`, or empty for items that were never requested. `verdict`: `failed`
    (permanent), `later` (retried by the next run), `refused` (by the provider), `pending` (not requested yet),
    `waiting` (a judgement whose completions are pending); during a run also `again` (a call that is retried).
    """

    stage: str
    endpoint: str
    kind: str
    verdict: str
    items: int
    example: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class JudgingSpec:
    """A request of the current rubric (`request` is its name there) to a judge of the pipeline, about `n` completions.

    A listwise request shows a judge all completions of a prompt together, and applies to prompts with exactly `n` of
    them. Any other request shows one at a time (`n` is 1), and applies to prompts with at least `least` completions.
    `judge_pass` numbers repeated ratings by one judge. `spec` is the digest of everything sent besides the texts. If a
    listwise request exceeds the judge's context window, a request about single completions may replace it; `instead` is
    the `spec` of that request, if there is one.
    """

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
    """The cost of calls in USD. `known` is certain. `unknown` is the most that calls of unknown cost may add: calls
    that ended without usage, and calls in flight when a run crashed. `unpriced` is the number of calls without a price;
    neither sum includes them."""

    known: float = 0.0
    unknown: float = 0.0
    unpriced: int = 0

    @property
    def counted(self) -> float:
        """The amount that counts against a budget: the sum of `known` and `unknown`."""
        return self.known + self.unknown

    def left(self, budget: float) -> float:
        """Return the rest of a budget, at least 0."""
        return max(0.0, budget - self.counted)


UNSPENT = Spent()
