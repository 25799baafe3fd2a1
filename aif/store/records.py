"""The journal's record types: what is kept for good, one JSON object a line.

Every record has `t`, its type, and `v`, that type's version. These shapes are a promise: later versions read them.

    prompt     a prompt as it came in: prompt_id, messages, meta, material
    carried    a completion that came with its prompt: key, prompt_id, model, text
    page       some of the prompts the sources hold now, in order: start (position of the first),
               rows [[prompt_id, source]]; and of the completions they carry: carried [[prompt_id, key, score]], and,
               where scores came with them, whose scale each is on: sources
    selected   the end of the pages: fingerprint of the sources, counts [[source, reason, rows]]
    text       a text that others name by digest: kind (principle, rubric, material, model), content
    call       one call to an endpoint, whatever came of it
    reserve    a ceiling that the counted spend of a run stays below from here on: run, n (from 1: the highest of a run
               holds), usd. Lowered to what was counted where the run ends in order; of one that crashed it counts
    retry      from here on, failures for good are pending again (`--retry-failed`)
    split      the threshold that a test size was turned into: asked, threshold
    mended     so many of the damaged lines before it are made good: lines

A call holds: id, stage, key, prompt_id, endpoint, identity, n, started, seconds, verdict, kind, message, raw, usage,
usd, sent, served, text, reasoning, finish; where usd is not known, but what it can be at most is, that as bound. Its id
is its run's, a hyphen, and a number. Where reasoning was cut out of the text, `said` holds [the content as it came, the
thoughts that came apart from it]; `mark` says what looks like a mark of reasoning (see core/reasoning.py). In `item`
stands what its stage needs besides:
    completion: sample, seed, principle (digest), system
    judgement:  pass, request, rubric (digest), spec, material (digest or null), form, completions (keys in the order
                shown), shown (text_id of each; where it is missing, of the text as the completion's record holds it)
One that was put back from a store holds in it what the store knew: nothing where nothing came of the call in the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from aif.core.types import Prompt, ProvidedCompletion, Stage, as_dicts
from aif.providers.base import CallError, Reply

Record = dict[str, Any]


def prompt(one: Prompt) -> Record:
    return {
        "t": "prompt",
        "v": 1,
        "prompt_id": one.prompt_id,
        "messages": as_dicts(one.messages),
        "meta": dict(one.meta),
        "material": dict(one.material),
    }


def carried(key: str, prompt_id: str, one: ProvidedCompletion) -> Record:
    return {"t": "carried", "v": 1, "key": key, "prompt_id": prompt_id, "model": one.model, "text": one.text}


def page(start: int, rows: Iterable[tuple[str, str]], carried: Iterable[Sequence[Any]] = ()) -> Record:
    """`carried`: prompt_id, key, score, and the source of a score."""
    came = [list(row) for row in carried]
    sources = [row.pop() if len(row) > 3 else None for row in came]
    return {
        "t": "page",
        "v": 1,
        "start": start,
        "rows": [list(row) for row in rows],
        "carried": came,
        **({"sources": sources} if any(sources) else {}),
    }


def selected(fingerprint: str, counts: Mapping[tuple[str, str], int]) -> Record:
    rows = [[source, reason, n] for (source, reason), n in counts.items()]
    return {"t": "selected", "v": 1, "fingerprint": fingerprint, "counts": rows}


def text(digest: str, kind: str, content: Any) -> Record:
    return {"t": "text", "v": 1, "digest": digest, "kind": kind, "content": content}


def reserve(run: str, n: int, usd: float) -> Record:
    return {"t": "reserve", "v": 1, "run": run, "n": n, "usd": usd}


def retry(started: datetime) -> Record:
    return {"t": "retry", "v": 1, "started": started.isoformat()}


def split(asked: float, threshold: float) -> Record:
    return {"t": "split", "v": 1, "asked": asked, "threshold": threshold}


def mended(lines: int) -> Record:
    return {"t": "mended", "v": 1, "lines": lines}


@dataclass(frozen=True, slots=True)
class CallItem:
    """What a call is for: its place in the journal's terms."""

    stage: Stage
    key: str
    prompt_id: str
    endpoint: str
    identity: str
    details: Mapping[str, Any]


def call(
    item: CallItem,
    *,
    id: str,
    n: int,
    started: datetime,
    seconds: float,
    verdict: str,
    reply: Reply | None,
    error: CallError | None,
    usd: float | None,
    bound: float | None = None,
) -> Record:
    """The record of one call. A reply that could not be used is kept whole, as one that could. `bound` is the most it
    can have cost."""
    had = reply or (error.reply if error else None)
    return {
        "t": "call",
        "v": 1,
        "id": id,
        "stage": item.stage,
        "key": item.key,
        "prompt_id": item.prompt_id,
        "endpoint": item.endpoint,
        "identity": item.identity,
        "item": dict(item.details),
        "n": n,
        "started": started.isoformat(),
        "seconds": round(seconds, 4),
        "verdict": verdict,
        "kind": error.kind if error else None,
        "message": error.message if error else None,
        "raw": error.raw or None if error else None,
        "usage": asdict(had.usage) if had and had.usage else None,
        "usd": usd,
        **({"bound": bound} if usd is None and bound is not None else {}),
        "sent": dict(had.sent) if had else {},
        "served": dict(had.served) if had else {},
        "text": had.text if had else None,
        "reasoning": had.reasoning if had else None,
        "finish": had.finish if had else None,
        **({"said": list(had.received)} if had and had.received else {}),
        **({"mark": had.mark} if had and had.mark else {}),
    }
