"""The record types of the journal, one JSON object a line. Each function here builds a record of one type.

Every record has `t`, its type, and `v`, that type's version. Later versions of aif must be able to read these formats.

    prompt     a prompt as its source holds it: prompt_id, messages, meta, material
    carried    a completion provided with its prompt: key, prompt_id, model, text
    page       a part of the selection (the prompts that the sources hold now, in order): start (position of its first
               prompt), rows [[prompt_id, source]]; and the completions provided with these prompts:
               carried [[prompt_id, key, score]], sources (the name of each score's scale)
    selected   the end of the selection's pages: fingerprint of the sources, counts [[source, reason, rows]]
    text       a text that other records name by digest: kind (principle, rubric, material, model), content
    call       one call to an endpoint, whatever its result
    reserve    a ceiling (the most that a run may spend so far), written before the spend reaches it: run, n (from 1),
               usd. The ceiling with a run's highest n is valid, and counts as spent if the run crashes. A run that
               ends normally writes its counted spend as its last ceiling
    retry      from here on, permanent failures are pending again (`--retry-failed`)
    split      the share of prompts in the test split, computed for a test size: asked, threshold
    mended     the number of damaged lines before this record that were recovered: lines

A call is made for an *item*: one completion or one judgement. Its record holds:

    id                       the run's id, a hyphen and a number
    stage, key, prompt_id    completion or judgement; the id of the item; the id of its prompt
    endpoint, identity       the model or judge: its name in the pipeline file, and which model exactly
    item                     what only items of this stage have, see below
    n                        number of the call among the item's calls in its run, from 1
    started, seconds         when the call was sent, and how long it took
    verdict                  answered, again, later, failed or refused
    kind, message, raw       of a failed call: kind of failure, error message, reply as received
    usage, usd               token counts and cost; null if unknown
    bound                    the most that the call can have cost, if usd is unknown and this is known
    sent, served             the request's settings, and what the server reports about itself
    text, reasoning, finish  the reply, split, and its finish reason
    said                     if reasoning was cut out of the text: [the content as received, the reasoning received in a
                             separate field]
    mark                     text that looks like a reasoning tag (see core/reasoning.py)

The field `item` holds:

    completion: sample, seed, principle (digest), system
    judgement:  pass, request, rubric (digest), spec, material (digest or null), form, completions (keys in the order
                shown), shown (text_id of each; without it, the texts as the completions' records hold them)

In a call written back from a set-aside store, `item` is empty if its completion or judgement never got a result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from aif.core.types import Prompt, ProvidedCompletion, Stage, as_dicts
from aif.providers.base import CallError, Reply

Record = dict[str, Any]


def prompt(prompt: Prompt) -> Record:
    return {
        "t": "prompt",
        "v": 1,
        "prompt_id": prompt.prompt_id,
        "messages": as_dicts(prompt.messages),
        "meta": dict(prompt.meta),
        "material": dict(prompt.material),
    }


def carried(key: str, prompt_id: str, completion: ProvidedCompletion) -> Record:
    return {
        "t": "carried",
        "v": 1,
        "key": key,
        "prompt_id": prompt_id,
        "model": completion.model,
        "text": completion.text,
    }


def page(start: int, rows: Iterable[tuple[str, str]], carried: Iterable[Sequence[Any]] = ()) -> Record:
    """Build the record of a page: a part of the selection (the prompts that the sources hold now).

    start: the position of the page's first prompt.
    rows: (prompt_id, source) of each prompt.
    carried: the completions provided with these prompts, each as (prompt_id, key, score) or (prompt_id, key, score,
        name of the score's scale).
    """
    provided = [list(row) for row in carried]
    sources = [row.pop() if len(row) > 3 else None for row in provided]
    return {
        "t": "page",
        "v": 1,
        "start": start,
        "rows": [list(row) for row in rows],
        "carried": provided,
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
    """The completion or judgement that a call is for.

    endpoint: the name of the model or judge that is called.
    identity: which model exactly, such as `qwen3-8b@main`.
    details: what only items of this stage have, such as a completion's seed or a judgement's rubric. The call's record
        holds it as `item`.
    """

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
    """Build the record of one call, with the whole reply even if it could not be used.

    id: the run's id, a hyphen and a number.
    n: numbers the calls for this item (completion or judgement) in its run, from 1.
    verdict: what becomes of the item, such as `answered`, `failed` (permanent) or `later`.
    error: why the call failed; None if it succeeded.
    usd: the cost; None if unknown.
    bound: the most that a call of unknown cost can have cost; None if that is unknown too.
    """
    received = reply or (error.reply if error else None)
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
        "usage": asdict(received.usage) if received and received.usage else None,
        "usd": usd,
        **({"bound": bound} if usd is None and bound is not None else {}),
        "sent": dict(received.sent) if received else {},
        "served": dict(received.served) if received else {},
        "text": received.text if received else None,
        "reasoning": received.reasoning if received else None,
        "finish": received.finish if received else None,
        **({"said": list(received.received)} if received and received.received else {}),
        **({"mark": received.mark} if received and received.mark else {}),
    }
