"""What has no answer, as it is told: by kind, with an example and what to do."""

from collections.abc import Sequence

from rich.console import Console

from aif.chat.base import Kind
from aif.progress import counted, say
from aif.records import Failing

MENDS: dict[str, str] = {
    Kind.CONTEXT_OVERFLOW: "prompt and max_tokens don't fit the model's context, or a minute's limit: lower max_tokens",
    Kind.BLOCKED: "the provider's filter refused it; another model may answer",
    Kind.BAD_REQUEST: "a setting is refused: `temperature: null` and `top_p: null` take them out; a chat template that "
    "refuses a system turn wants `system: fold_into_user`; `reply: text` asks without a schema",
    Kind.EMPTY: "the model says nothing; if it reasons, raise max_tokens (which asks all its completions again)",
    Kind.TRUNCATED: "raise the judge's max_tokens (which asks all judgements again)",
    Kind.UNREADABLE: "see `raw` in the table `failed`; try `reply: schema` or `text`, or another judge",
    Kind.RATE_LIMITED: "a run slows down by itself; requests_per_minute, if set, spares it the refusals",
    Kind.SERVER_ERROR: "the server is ill, or this request makes it so; see its log",
    Kind.TIMEOUT: "is the server still loading? else raise timeout_s, or lower concurrency",
    Kind.CONNECTION: "nothing answers there: is the server up, is base_url right?",
    Kind.BAD_REPLY: "what answers there is no chat completions API: see base_url (it ends with /v1)",
    Kind.UNAUTHORIZED: "set the key's environment variable to a key that may use this model",
    Kind.QUOTA_EXHAUSTED: "the account has no money left: add some, or use another key",
    Kind.UNKNOWN_MODEL: "the server has no such model: see `model` and `base_url`",
}

THEN = {
    "later": "asked again by the next run",
    "failed": "waits for --retry-failed",
    "refused": "takes no call until it is mended",
    "pending": "not asked yet",
    "waiting": "waiting for completions that are pending",
    "again": "made again in this run",
}


def tell_failures(console: Console, failures: Sequence[Failing]) -> None:
    """Each kind in a line, with an example and what to do; nothing where there is none. Apart stand calls that were
    made again: their items may be answered by now."""
    again = [one for one in failures if one.verdict == "again"]
    _tell(console, "Without an answer", [one for one in failures if one not in again])
    _tell(console, "Calls that failed and were made again", again)


def _tell(console: Console, title: str, failures: Sequence[Failing]) -> None:
    if failures:
        console.print(f"\n[bold]{title}[/bold]")
    for one in failures:
        items = counted(one.items, "call" if one.verdict == "again" else "item")
        if not one.kind:
            say(console, f"{one.endpoint}: {items}, {THEN[one.verdict]}")
            continue
        say(console, f"{one.endpoint}: {one.kind}, {items}, {THEN[one.verdict]}")
        say(console, f"    {one.example}")
        if mend := MENDS.get(one.kind):
            say(console, f"    → {mend}", "dim")
