"""The dataset card: what a dataset holds, how it was made and what it cost, as README.md for the Hub. Pure.

Everything but one marked section depends on the store and the pipeline alone. No host, path or key gets in: endpoints
are shown by name and declared identity, and what was declared as a path by its last part.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import orjson
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aif.config.pipeline import Pipeline
from aif.config.sections import DeclaredEndpoint, public
from aif.core.resources import shipped
from aif.core.words import of
from aif.engine.make_pairs import policy_of
from aif.engine.outcome_text import OUTCOMES, STAGES, balanced, beside, counts, marked, rule_of
from aif.judging.rubric import Rubric
from aif.pairing.labels import LabelCounts, balancing
from aif.pairing.scores import TOLERANCE, Floats
from aif.store.report_queries import ItemCounts, PromptCounts, ReasoningMarks

# The tag, and the configs that give it; None: every dataset has it.
TAGS: Mapping[str, Collection[str] | None] = {
    "rlaif": None,
    "preference": None,
    "dpo": ("trl", "h4"),
    "kto": ("kto",),
    "reward-model": ("reward",),
    "sft": ("sft",),
    "ultrafeedback": ("ultrafeedback",),
    "synthetic": None,
    "trl": ("trl", "kto", "reward", "sft"),
    "aif": None,
}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
SOURCES = 20  # named in the card; a column of sources may hold thousands
BAR = 30  # characters
BINS = 8  # of the histogram, at least
UNLABELLED = {
    "in_no_pair": "in no pair",
    "between": "between the two scores",
    "truncated": "desirable but cut at the limit",
    "both_ways": "desirable in one place and undesirable in another",
}
MARKS = ("<!-- run:begin -->", "<!-- run:end -->")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card is made of. `rows` and `files` are by config and split; `balance` is all that is wanted, and how it
    stands; `sources` are (name, prompts, pairs), most first; `chosen` and `rejected` the scores of each pair;
    `leaderboard`, `agreement` and `spend` rows of the views leaderboard, score_agreement and spend; `disputed` the
    pairs that some judge has the other way round; `sample` a row of the default config; `calls` the times of the first
    and the last call; `labels` what config `kto` holds, if it is there; `apart` prompts by the judge who could not hold
    all their completions; `marks` what looks like reasoning."""

    pipeline: Pipeline
    rubric: Rubric
    rows: Mapping[str, Mapping[str, int]]
    files: Mapping[str, Mapping[str, str]]
    books: PromptCounts
    balance: ItemCounts
    sources: Sequence[tuple[str, int, int]]
    chosen: Floats
    rejected: Floats
    leaderboard: Sequence[Mapping[str, Any]]
    agreement: Sequence[Mapping[str, Any]]
    disputed: int
    spend: Sequence[Mapping[str, Any]]
    sample: Mapping[str, Any]
    version: str
    made: datetime
    calls: tuple[datetime, datetime] | None
    labels: LabelCounts | None = None
    apart: Mapping[str, int] = field(default_factory=dict)
    marks: Sequence[ReasoningMarks] = ()


def render(facts: CardFacts) -> str:
    """The whole README.md: metadata in YAML, then the body."""
    template = _templates().from_string(shipped("data", "card.md.j2").read_text(encoding="utf-8"))
    leaderboard = [{**row, "aspects": row["aspects"] or {}} for row in facts.leaderboard]
    asked = facts.rubric.sheet.requests
    by_mode = {mode: [cell(name) for name in asked if asked[name].mode == mode] for mode in ("listwise", "single")}
    body = template.render(
        facts=facts,
        pipeline=facts.pipeline,
        judges=facts.pipeline.judges,
        carried=any(source.completions for source in facts.pipeline.prompts),
        sheet=facts.rubric.sheet,
        pairs=facts.books.pairs,
        rule=_sentence(rule_of(policy_of(facts.pipeline, facts.rubric))),
        prompts=facts.books.selected,
        default=default_config(facts.rows),
        tested=any(split.startswith("test") for splits in facts.rows.values() for split in splits),
        unsteered=[cell(name) for name, model in facts.pipeline.models.items() if model.system == "none"],
        by_mode=by_mode,
        modes=[mode for mode, names in by_mode.items() if names],
        material=sorted({cell(slot) for source in facts.pipeline.prompts for slot in source.material}),
        simulated=[cell(name) for name in simulated(facts.pipeline)],
        terms=[(name, one.terms) for name, one in _endpoints(facts.pipeline) if one.terms],
        without_terms=[cell(name) for name in without_terms(facts.pipeline)],
        books=_books(facts.books),
        items=[(cell(name), STAGES[stage], *counts(one)) for (stage, name), one in facts.balance.tallies.items()],
        balanced=[_plain(line) for line in balanced(facts.balance)],
        missing=[one for one in facts.balance.missing if one.kind],
        marked=[(_plain(marked(one)), one) for one in facts.marks],
        sources=_sources(facts.sources),
        histogram=_histogram(facts.chosen, facts.rejected, _scale(facts)) if len(facts.chosen) else None,
        margins=_margins(facts.chosen - facts.rejected) if len(facts.chosen) else None,
        weight=_weight(facts.labels),
        aspects=[name for name in facts.rubric.sheet.aspects if any(name in row["aspects"] for row in leaderboard)],
        leaderboard=leaderboard,
        spent=_total(facts.spend),
        sample=_json(facts.sample),
        reasons=UNLABELLED,
        marks=MARKS,
    )
    return f"---\n{_metadata(facts)}---\n\n{body}"


def _weight(labels: LabelCounts | None) -> tuple[str, float, float] | None:
    return balancing(**labels.labels["train"]) if labels else None


def _endpoints(pipeline: Pipeline) -> list[tuple[str, DeclaredEndpoint]]:
    return [*pipeline.models.items(), *pipeline.judges.items()]


def simulated(pipeline: Pipeline) -> list[str]:
    """The models and judges that are none."""
    return [name for name, one in _endpoints(pipeline) if one.provider == "simulator"]


def without_terms(pipeline: Pipeline) -> list[str]:
    """The real models and judges of which nobody has said what terms their output comes under."""
    return [name for name, one in _endpoints(pipeline) if one.provider != "simulator" and not one.terms]


def default_config(rows: Collection[str]) -> str:
    """The config that is loaded when none is named."""
    return "trl" if "trl" in rows else next(iter(rows))


def _metadata(facts: CardFacts) -> str:
    default = default_config(facts.rows)
    said = {
        **({"license": facts.pipeline.export.license} if facts.pipeline.export.license else {}),
        "pretty_name": facts.pipeline.name,
        "tags": [tag for tag, of in TAGS.items() if of is None or any(config in facts.rows for config in of)],
        "task_categories": ["text-generation"],
        "size_categories": [_size(sum(facts.rows[default].values()))],
        "configs": [
            {
                "config_name": config,
                **({"default": True} if config == default else {}),
                "data_files": [{"split": split, "path": path} for split, path in splits.items()],
            }
            for config, splits in facts.files.items()
        ],
    }
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES if rows < limit), "n>10M")


def _templates() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., str]] = {
        "cell": cell,
        "fenced": fenced,
        "identity": identity,
        "number": _number,
        "count": lambda value: f"{int(value or 0):,}",
        "setting": lambda value: "server's default" if value is None else f"{value:g}",
        "stem": lambda name: PurePosixPath(name.replace("\\", "/")).stem,
        "usd": _usd,
    }
    made.filters.update(filters)
    return made


# --- text that comes from elsewhere ----------------------------------------------------------------------------------


def cell(text: object) -> str:
    """Any text as one cell of a Markdown table: nothing in it is markup, and it is short."""
    line = " ".join(str(text).split())
    if len(line) > 80:
        line = line[:79] + "…"
    return _plain(line)


def _sentence(words: str) -> str:
    """Words as a sentence of Markdown, of whatever length."""
    return _plain(words[:1].upper() + words[1:])


def _plain(text: str) -> str:
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def fenced(text: str, language: str = "") -> str:
    """A code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def identity(one: DeclaredEndpoint) -> str:
    """Who a model is, without where it lies on some machine; of a launched one, by the content that was served, too."""
    launched = one.model is None and one.launch is not None
    said = one.declared.replace(one.served_name, public(one.served_name, hub=launched), 1)
    return f"{said} (sha256:{one.served.digest[:12]})" if one.served and one.served.digest else said


def _json(row: Mapping[str, Any]) -> str:
    """A row as JSON in which nothing passes for an HTML comment, such as the marks of the run's section."""
    text = orjson.dumps(row, option=orjson.OPT_INDENT_2).decode()
    return text.replace("<!--", "\\u003c!--")


# --- numbers ---------------------------------------------------------------------------------------------------------


def _number(value: Any, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _usd(row: Mapping[str, Any]) -> str:
    if row["usd"] is None:
        return "unknown"
    unknown = f" and up to {row['unknown']:,.4f} more" if row.get("unknown") else ""
    return f"{row['usd']:,.4f}{unknown}" + (f" and {row['unpriced']:,} calls unknown" if row["unpriced"] else "")


def _books(books: PromptCounts) -> list[tuple[str, str]]:
    """Lines that add up: rows read to prompts, prompts to pairs."""
    left_out = [(f"− {rows:,}", reason) for reason, rows in books.intake.items() if reason != "selected" and rows]
    dropped = [
        (f"− {books.outcomes[outcome]:,}", words)
        for outcome, words in OUTCOMES.items()
        if outcome != "paired" and books.outcomes.get(outcome)
    ]
    paired = books.outcomes.get("paired", 0)
    several = books.pairs != paired
    return [
        (f"{sum(books.intake.values()):,}", f"{of(sum(books.intake.values()), 'row')} read"),
        *((amount, reason.replace("_", " ")) for amount, reason in left_out),
        (f"= {books.selected:,}", of(books.selected, "prompt")),
        *dropped,
        (f"= {paired:,}", "prompts with pairs" if several else of(paired, "pair")),
        *([(f"{books.pairs:,}", "pairs of these")] if several else []),
        *((f"{n:,}", words) for n, words in beside(books)),
    ]


def _sources(sources: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    rest = sources[SOURCES:]
    shown = list(sources[:SOURCES])
    if rest:
        shown.append((f"{len(rest):,} more", sum(n for _, n, _ in rest), sum(n for _, _, n in rest)))
    return shown


def _scale(facts: CardFacts) -> tuple[float, float]:
    """Lowest and highest score there can be; of scores that came with completions, those there are."""
    if facts.pipeline.scored:
        return float(facts.rejected.min()), float(facts.chosen.max())
    aspects = facts.rubric.sheet.aspects
    entering = [a for a in aspects.values() if a.weight > 0]
    if facts.pipeline.pairs.score == "overall":
        entering = [aspects["overall"]]
    elif facts.rubric.mixed:
        return 0.0, 1.0
    return min(a.scale[0] for a in entering), max(a.scale[1] for a in entering)


def _histogram(chosen: Floats, rejected: Floats, scale: tuple[float, float]) -> str:
    """Two bars a line; each bin holds its lower edge, the last one its upper edge too."""
    low, high = scale
    step = _step(high - low) if high - low > np.finfo(float).tiny else high - low
    rounding = TOLERANCE * step
    edges = np.append(np.arange(low, high - rounding, step), high)
    # a mean of ratings may lie a rounding error below the edge it stands for
    sides = [np.histogram(np.clip(scores + rounding, low, high), edges)[0] for scores in (chosen, rejected)]
    most = max(int(counts.max()) for counts in sides)
    width = len(f"{most:,}")
    lines = [f"{'score':>11}  {'chosen':<{BAR + width + 1}}  rejected"]
    for i in range(len(edges) - 1):
        bars = [f"{counts[i]:>{width},} {_bar(int(counts[i]), most):<{BAR}}" for counts in sides]
        label = f"{edges[i]:g}–{edges[i + 1]:g}"
        lines.append(f"{label:>11}  {'  '.join(bars)}".rstrip())
    return "\n".join(lines)


def _step(span: float) -> float:
    """The widest of 1, 2 and 5 times a power of ten that makes at least eight bins: 0.5 for 1–5, 1 for 1–10."""
    power: float = 10.0 ** np.floor(np.log10(span / BINS))
    return max(step for step in (power, 2 * power, 5 * power) if span / step >= BINS - TOLERANCE)


def _bar(n: int, most: int) -> str:
    """A bar in eighths of a character; what is not zero is seen."""
    eighths = max(round(8 * BAR * n / most), 1) if n else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _margins(margins: Floats) -> dict[str, float]:
    names = ("least", "quarter", "median", "three quarters", "most")
    at = np.quantile(margins, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"mean": float(margins.mean()), **dict(zip(names, at, strict=True))}


def _total(spend: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The bill over all endpoints; `usd` is None where no price is known at all."""
    priced = [row["usd"] for row in spend if row["usd"] is not None]
    names = ("calls", "answered", "input_tokens", "cached_tokens", "output_tokens", "unknown", "unpriced")
    return {name: sum(row.get(name) or 0 for row in spend) for name in names} | {"usd": sum(priced) if priced else None}
