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
    """A completion that a source row brings with its prompt, in place of one by a model of the pool.

    model: the name of its author.
    score: None if the row has no score for it.
    scale: the name of the score's scale, such as the source's name. Scores on different scales are not compared. None
        if the completion has no score, or if its scale is unknown.
    """

    model: str
    text: str
    score: float | None = None
    scale: str | None = field(default=None, compare=False)


def provided_identity(model: str) -> str:
    """Return the identity `carried/MODEL` for the author `model` of completions that came with their prompt. It differs
    from the identity of a model of that name in the pool."""
    return f"carried/{model}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a source, or a cell of a row, that can't be read, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that models complete.

    messages: its turns; the last is the user's.
    source: the name of its source.
    meta: the row's unused columns.
    material: texts that a judge sees beside the conversation, such as a reference answer, by the name of their
        placeholder in the rubric.
    provided: completions that the row brings.
    rescored: completions that the row repeats with a different score.
    where: the place of the row, such as `file:line`.
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
    """How a model is sampled. A setting that is None is not sent, so the server's default applies.

    max_tokens: the most tokens of a reply.
    extra: other request parameters (the setting `extra_body`) as JSON with sorted keys; empty if there are none.
    """

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

    key: the completion's id, a digest.
    slot: the completion's number within the prompt, from 0.
    model: the model's name in the pool, or the author of a provided completion.
    identity: which model exactly, such as `qwen3-8b@main`: declared name and revision, plus a digest of the files of a
        launched model if these changed. `carried/AUTHOR` for a provided completion.
    sample: numbers the completions by the same model for the same prompt, from 0.
    seed: the sampling seed sent to the server.
    principle: None if the completion has none.
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
    """Token counts of one call, as reported by the server.

    input: all tokens of the request, with those read from and written to the prompt cache.
    output: all tokens of the reply, with its reasoning.
    cached: input tokens read from the prompt cache.
    reasoning: output tokens of reasoning.
    written: input tokens written to the prompt cache.
    """

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    written: int = 0


RatingState = Literal["rated", "not_applicable"]


class Rating(NamedTuple):
    """A judge's rating of one completion in one aspect.

    completion: the completion's key.
    score: None exactly if the state is not_applicable.
    rationale: the judge's reason for the rating.
    types: the numbers of the aspect's types (such as kinds of error) that the judge named.

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
    """Unanswered completions or judgements of one model or judge, with the same kind of failure and the same verdict.

    stage: `completion` or `judgement`.
    endpoint: the model's or judge's name.
    kind: an `aif.providers.base.Kind`. For items that were never requested, the failure that stopped all calls to the
        model or judge; empty if there was none.
    verdict: what becomes of the items: `failed` (permanent), `later` (retried by the next run), `refused` (by the
        provider), `pending` (not requested yet), `waiting` (a judgement whose completions are pending); during a run
        also `again` (a call that is retried).
    items: the number of completions or judgements.
    example: an error message of such an item; empty if there is none.
    prompt_id: the prompt of one item, perhaps another than that of `example`.
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
    """A request of the current rubric to a judge of the pipeline. A *listwise* request shows all completions of a
    prompt together; any other request shows one completion at a time.

    identity: which model the judge is, such as `qwen3-8b@main`.
    judge_pass: numbers repeated ratings by the same judge, from 0.
    request: the request's name in the rubric.
    n: how many completions the request shows. A listwise request applies to prompts with exactly `n` completions.
    least: the fewest completions of a prompt to which a request about single completions applies.
    spec: the digest of everything sent besides the texts.
    instead: the `spec` of a request about single completions. That request replaces a listwise request that exceeds the
        judge's context window. None if no request may replace it.
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
    """The cost of calls in USD.

    known: the sum of the costs that are certain.
    unknown: the most that calls of unknown cost may add: calls that ended without usage, and calls in flight when a run
        crashed.
    unpriced: the number of calls without a price. Neither sum includes them.
    """

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
