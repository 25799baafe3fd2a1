"""The dataset card, README.md on the Hub: what a dataset contains, how it is made and what it cost.

Times and spend are in one section, between two HTML comments (MARKS). The other sections depend on the store and the
pipeline alone. An endpoint is shown by name and model, without its host or key. Of a path, the last part is shown.
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
from aif.config.sections import DeclaredEndpoint, publishable_name
from aif.core.formatting import plural
from aif.core.resources import shipped
from aif.engine.make_pairs import policy_of
from aif.engine.outcome_text import (
    OUTCOME_TEXTS,
    STAGE_NAMES,
    balance_lines,
    policy_text,
    reasoning_mark_text,
    row_notes,
    tally_counts,
)
from aif.judging.rubric import Rubric
from aif.pairing.labels import LabelCounts, balancing_weight
from aif.pairing.scores import TOLERANCE, Floats
from aif.store.report_queries import ItemCounts, PromptCounts, ReasoningMarks

# The card's tags, each with the configs that give it; None: every dataset has the tag.
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
MAX_SOURCES = 20  # listed in the card; a column of sources may have thousands
BAR_WIDTH = 30  # characters
MIN_BINS = 8  # of the histogram
UNLABELLED = {
    "in_no_pair": "in no pair",
    "between": "between the two scores",
    "truncated": "desirable but cut at max_tokens",
    "both_ways": "desirable in one place and undesirable in another",
}
MARKS = ("<!-- run:begin -->", "<!-- run:end -->")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The values that a card shows.

    pipeline, rubric: as loaded from the pipeline file.
    rows: number of rows by config (such as "trl") and split.
    files: path of the data file by config and split.
    prompt_counts: number of rows read and of prompts, by outcome.
    balance: number of completions and judgements wanted, answered, failed and pending.
    sources: (name, number of prompts, number of pairs) of each source, most prompts first.
    chosen: score of the chosen completion of each pair.
    rejected: score of the rejected completion of each pair.
    leaderboard: a row for each model, with its mean scores, best first.
    agreement: a row for every two judges, with the difference and correlation of their scores.
    disputed: number of pairs in which at least one judge prefers the rejected completion.
    spend: a row for each model and judge, with its calls, tokens and USD.
    sample: a row of the default config.
    version: version of aif.
    made: time of the export.
    calls: when the first and the last call started; None before any call.
    labels: number of completions with each label of the config `kto`, and without a label; None without that config.
    apart: by judge, number of prompts whose completions were rated one at a time. All of them together exceed the
        judge's context window.
    marks: number of completions whose reasoning may not have been removed correctly, and of prompts with a reasoning
        tag.
    """

    pipeline: Pipeline
    rubric: Rubric
    rows: Mapping[str, Mapping[str, int]]
    files: Mapping[str, Mapping[str, str]]
    prompt_counts: PromptCounts
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


def render_card(facts: CardFacts) -> str:
    """Return the whole README.md: metadata in YAML, then the text."""
    template = _templates().from_string(shipped("data", "card.md.j2").read_text(encoding="utf-8"))
    leaderboard = [{**row, "aspects": row["aspects"] or {}} for row in facts.leaderboard]
    requests = facts.rubric.sheet.requests
    by_mode = {
        mode: [table_cell(name) for name in requests if requests[name].mode == mode] for mode in ("listwise", "single")
    }
    body = template.render(
        facts=facts,
        pipeline=facts.pipeline,
        judges=facts.pipeline.judges,
        carried=any(source.completions for source in facts.pipeline.prompts),
        sheet=facts.rubric.sheet,
        pairs=facts.prompt_counts.pairs,
        rule=_sentence(policy_text(policy_of(facts.pipeline, facts.rubric))),
        prompts=facts.prompt_counts.selected,
        default=default_config(facts.rows),
        tested=any(split.startswith("test") for splits in facts.rows.values() for split in splits),
        unsteered=[table_cell(name) for name, model in facts.pipeline.models.items() if model.system == "none"],
        by_mode=by_mode,
        modes=[mode for mode, names in by_mode.items() if names],
        material=sorted({table_cell(slot) for source in facts.pipeline.prompts for slot in source.material}),
        simulated=[table_cell(name) for name in simulated_endpoints(facts.pipeline)],
        terms=[(name, endpoint.terms) for name, endpoint in _endpoints(facts.pipeline) if endpoint.terms],
        without_terms=[table_cell(name) for name in endpoints_without_terms(facts.pipeline)],
        prompt_counts=_count_lines(facts.prompt_counts),
        items=[
            (table_cell(name), STAGE_NAMES[stage], *tally_counts(tally))
            for (stage, name), tally in facts.balance.tallies.items()
        ],
        balanced=[_escape(line) for line in balance_lines(facts.balance)],
        missing=[failing for failing in facts.balance.missing if failing.kind],
        marked=[(_escape(reasoning_mark_text(mark)), mark) for mark in facts.marks],
        sources=_sources(facts.sources),
        histogram=_histogram(facts.chosen, facts.rejected, _scale(facts)) if len(facts.chosen) else None,
        margins=_margin_statistics(facts.chosen - facts.rejected) if len(facts.chosen) else None,
        weight=_balancing_weight(facts.labels),
        aspects=[name for name in facts.rubric.sheet.aspects if any(name in row["aspects"] for row in leaderboard)],
        leaderboard=leaderboard,
        spent=_total_spend(facts.spend),
        sample=_sample_json(facts.sample),
        reasons=UNLABELLED,
        marks=MARKS,
    )
    return f"---\n{_metadata(facts)}---\n\n{body}"


def _balancing_weight(labels: LabelCounts | None) -> tuple[str, float, float] | None:
    return balancing_weight(**labels.labels["train"]) if labels else None


def _endpoints(pipeline: Pipeline) -> list[tuple[str, DeclaredEndpoint]]:
    return [*pipeline.models.items(), *pipeline.judges.items()]


def simulated_endpoints(pipeline: Pipeline) -> list[str]:
    """Return the names of the models and judges that are simulated."""
    return [name for name, endpoint in _endpoints(pipeline) if endpoint.provider == "simulator"]


def endpoints_without_terms(pipeline: Pipeline) -> list[str]:
    """Return the names of the real models and judges whose `terms`, the licence of their output, are not stated."""
    return [name for name, endpoint in _endpoints(pipeline) if endpoint.provider != "simulator" and not endpoint.terms]


def default_config(rows: Collection[str]) -> str:
    """Return the config that `load_dataset` loads if the user names none: `trl` if it is in `rows`, else the first.
    `rows` has the names of the configs that have rows."""
    return "trl" if "trl" in rows else next(iter(rows))


def _metadata(facts: CardFacts) -> str:
    default = default_config(facts.rows)
    metadata = {
        **({"license": facts.pipeline.export.license} if facts.pipeline.export.license else {}),
        "pretty_name": facts.pipeline.name,
        "tags": [tag for tag, only in TAGS.items() if only is None or any(config in facts.rows for config in only)],
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
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES if rows < limit), "n>10M")


def _templates() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., str]] = {
        "cell": table_cell,
        "fenced": code_block,
        "identity": public_identity,
        "number": _number,
        "count": lambda value: f"{int(value or 0):,}",
        "setting": lambda value: "server's default" if value is None else f"{value:g}",
        "stem": lambda name: PurePosixPath(name.replace("\\", "/")).stem,
        "usd": _usd,
    }
    environment.filters.update(filters)
    return environment


# --- text from outside ----------------------------------------------------------------------------------------------


def table_cell(text: object) -> str:
    """Return any text as a cell of a Markdown table: one line of at most 80 characters, with markup escaped."""
    line = " ".join(str(text).split())
    if len(line) > 80:
        line = line[:79] + "…"
    return _escape(line)


def _sentence(words: str) -> str:
    return _escape(words[:1].upper() + words[1:])


def _escape(text: str) -> str:
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def code_block(text: str, language: str = "") -> str:
    """Return a Markdown code block whose fence is longer than any in the text, so the text can't end it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def public_identity(endpoint: DeclaredEndpoint) -> str:
    """Return a text for the card that identifies an endpoint's model, such as its name and revision, without paths of
    this machine.

    If aif started its servers, a digest of the model's files and settings is added.
    """
    launched = endpoint.model is None and endpoint.launch is not None
    name = publishable_name(endpoint.served_name, hub=launched)
    identity = endpoint.declared_identity.replace(endpoint.served_name, name, 1)
    served = endpoint.served
    return f"{identity} (sha256:{served.digest[:12]})" if served and served.digest else identity


def _sample_json(row: Mapping[str, Any]) -> str:
    """Return a row as JSON with `<!--` escaped, so that a text in it can't pass for one of the card's MARKS."""
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


def _count_lines(prompt_counts: PromptCounts) -> list[tuple[str, str]]:
    """Return how rows become pairs, as lines (amount, description) of a sum: rows read, minus rows left out for each
    reason, equals prompts, and so on to pairs."""
    intake, outcomes = prompt_counts.intake, prompt_counts.outcomes
    left_out = [(f"− {rows:,}", reason) for reason, rows in intake.items() if reason != "selected" and rows]
    dropped = [
        (f"− {outcomes[outcome]:,}", words)
        for outcome, words in OUTCOME_TEXTS.items()
        if outcome != "paired" and outcomes.get(outcome)
    ]
    rows, paired = sum(intake.values()), outcomes.get("paired", 0)
    several = prompt_counts.pairs != paired
    return [
        (f"{rows:,}", f"{plural(rows, 'row')} read"),
        *((amount, reason.replace("_", " ")) for amount, reason in left_out),
        (f"= {prompt_counts.selected:,}", plural(prompt_counts.selected, "prompt")),
        *dropped,
        (f"= {paired:,}", "prompts with pairs" if several else plural(paired, "pair")),
        *([(f"{prompt_counts.pairs:,}", "pairs of these")] if several else []),
        *((f"{n:,}", words) for n, words in row_notes(prompt_counts)),
    ]


def _sources(sources: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    rest = sources[MAX_SOURCES:]
    shown = list(sources[:MAX_SOURCES])
    if rest:
        shown.append((f"{len(rest):,} more", sum(n for _, n, _ in rest), sum(n for _, _, n in rest)))
    return shown


def _scale(facts: CardFacts) -> tuple[float, float]:
    """Return the lowest and the highest score that the rubric can give, for the histogram's axis.

    If scores came with the prompts, their scale is unknown: return the lowest rejected and the highest chosen score.
    """
    if facts.pipeline.has_scores:
        return float(facts.rejected.min()), float(facts.chosen.max())
    aspects = facts.rubric.sheet.aspects
    entering = [a for a in aspects.values() if a.weight > 0]
    if facts.pipeline.pairs.score == "overall":
        entering = [aspects["overall"]]
    elif facts.rubric.ranges_differ:
        return 0.0, 1.0
    return min(a.scale[0] for a in entering), max(a.scale[1] for a in entering)


def _histogram(chosen: Floats, rejected: Floats, scale: tuple[float, float]) -> str:
    """Return a histogram as text: a line for each bin, with a bar for chosen and a bar for rejected scores.

    `scale` is the lowest and the highest score. A score on the edge of two bins counts in the upper one.
    """
    low, high = scale
    step = _step(high - low) if high - low > np.finfo(float).tiny else high - low
    rounding = TOLERANCE * step
    edges = np.append(np.arange(low, high - rounding, step), high)
    # a mean of ratings may be a rounding error below its true value, which is an edge
    sides = [np.histogram(np.clip(scores + rounding, low, high), edges)[0] for scores in (chosen, rejected)]
    most = max(int(counts.max()) for counts in sides)
    width = len(f"{most:,}")
    lines = [f"{'score':>11}  {'chosen':<{BAR_WIDTH + width + 1}}  rejected"]
    for i in range(len(edges) - 1):
        bars = [f"{counts[i]:>{width},} {_draw_bar(int(counts[i]), most):<{BAR_WIDTH}}" for counts in sides]
        label = f"{edges[i]:g}–{edges[i + 1]:g}"
        lines.append(f"{label:>11}  {'  '.join(bars)}".rstrip())
    return "\n".join(lines)


def _step(span: float) -> float:
    """Return the bin width of a histogram of scores: 1, 2 or 5 times a power of ten. `span` is the axis's length.

    It is the largest such width that gives at least MIN_BINS bins: 0.5 for scores from 1 to 5, and 1 for 1 to 10.
    """
    power: float = 10.0 ** np.floor(np.log10(span / MIN_BINS))
    return max(step for step in (power, 2 * power, 5 * power) if span / step >= MIN_BINS - TOLERANCE)


def _draw_bar(n: int, most: int) -> str:
    """Return a bar for the count `n`; the largest count, `most`, has BAR_WIDTH characters. It is drawn in eighths of a
    character, and not empty if `n` is above 0."""
    eighths = max(round(8 * BAR_WIDTH * n / most), 1) if n else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _margin_statistics(margins: Floats) -> dict[str, float]:
    names = ("min", "p25", "median", "p75", "max")
    quantiles = np.quantile(margins, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"mean": float(margins.mean()), **dict(zip(names, quantiles, strict=True))}


def _total_spend(spend: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over all endpoints: `calls`, `input_tokens`, `usd` and so on. `usd` is None if no endpoint has a
    known price."""
    priced = [row["usd"] for row in spend if row["usd"] is not None]
    names = ("calls", "answered", "input_tokens", "cached_tokens", "output_tokens", "unknown", "unpriced")
    return {name: sum(row.get(name) or 0 for row in spend) for name in names} | {"usd": sum(priced) if priced else None}
