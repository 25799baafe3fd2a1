"""The entries of a pipeline file: sources, models, judges, how pairs are made, what is exported. Each checks itself."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from aif.config.error_messages import ConflictError, format_value
from aif.config.fields import (
    AtLeastTwo,
    Count,
    Format,
    FromEnvironment,
    Headers,
    JsonObject,
    Name,
    NonEmpty,
    NotNegative,
    Omitted,
    Positive,
    Provider,
    QueryParameters,
    Ratio,
    ReasoningTags,
    Seconds,
    Share,
    SlotName,
    Temperature,
    TestSize,
    TopP,
    Urls,
    VariableName,
    VariableValue,
    is_openai_host,
    is_private_host,
)
from aif.config.located_yaml import Problem
from aif.core.types import DIGEST_SUFFIX, Sampling, Usage
from aif.providers.base import Dialect

_CONCURRENCY: Mapping[str, int] = {"vllm": 64, "openai": 16, "anthropic": 16, "simulator": 32}
_PAID = ("openai", "anthropic")
# OpenAI's reasoning models answer 400 to a temperature; their chat variants take one.
REASONING_MODELS = re.compile(r"(o[1-9]|gpt-5(?!.*chat))")
_USUAL = (None, "auto", "default", "standard", "standard_only", "on_demand")  # tiers: OpenAI, Anthropic, Groq
_FLEX_S = 900.0  # OpenAI: "we recommend 15 minutes"
# What of a body has a key of its own, or no place at all.
_ELSEWHERE: Mapping[str, str] = {
    "model": "see `model`",
    "messages": "see prompts and principles",
    "system": "see principles and `system`",
    "max_tokens": "see `max_tokens`",
    "max_completion_tokens": "see `max_tokens`, and `dialect: openai` for this name of it",
    "temperature": "see `temperature`",
    "top_p": "see `top_p`",
    "seed": "see `seed` of the pipeline; `omit: [seed]` leaves it out",
    "n": "see `samples`",
    "stream": "replies come whole; take it out",
    "stream_options": "replies come whole; take it out",
    "response_format": "see a judge's `reply`",
    "output_config": "see `reasoning_effort` and a judge's `reply`",
    "tools": "nothing could call them; take it out",
    "tool_choice": "nothing could call them; take it out",
    "reasoning_effort": "see `reasoning_effort`",
    "service_tier": "see `service_tier`",
}
_FILES = (".jsonl", ".parquet", ".csv")
_NO_KEY = "a key has no place in the file"
_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD)$")
_KEY_ARGS = ("--api-key", "--hf-token")


_FOLDER = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]")
_DEEP = re.compile(r"[^/]*/[^/]*/")


def publishable_name(name: str, hub: bool = False) -> str:
    """What was declared as a path by its last part; anything else as it is.

    `hub` names are of the Hub or folders, and none of the Hub's has two slashes. What a server calls its model may.
    """
    if _FOLDER.match(name) or (hub and _DEEP.match(name)):
        return PurePosixPath(name.replace("\\", "/")).name
    return name


def option_name(word: str) -> str:
    """The option that an argument of vLLM's names, which takes `--api_key` and `--api-key` for one."""
    return word.partition("=")[0].replace("_", "-")


def matches_option(word: str, options: Iterable[str]) -> bool:
    """Whether vLLM may take an argument for one of these options: as argparse does, it knows one by its first letters,
    and what these leave open differs by its version."""
    return len(option_name(word)) > 2 and any(option.startswith(option_name(word)) for option in options)


@dataclass(frozen=True, slots=True)
class ServedContent:
    """What is known of a launched model besides what is declared: the `digest` of what its server loads ("" where that
    is not known), whether that is not what this name once began with (`other`), the `commit` on the Hub."""

    digest: str
    other: bool = False
    commit: str = ""


class Section(BaseModel):
    """A mapping of the pipeline file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[Problem]:
        """What is wrong between keys that are each sound; keys counted from this mapping."""
        yield from ()

    @model_validator(mode="after")
    def _no_clashes(self) -> Self:
        if found := list(self.conflicts()):
            raise ConflictError(found)
        return self


class CompletionColumns(Section):
    """Completions that come with the rows (`prompts.completions`), and where their parts stand.

    `field` is a column: a list of objects (then `text`, `model` and `score` are keys of each), a list of texts (then
    `model` and `score` are columns with lists of the same length), or one text (then they are columns; rows with the
    same prompt are gathered). `score` makes judging needless.
    """

    field: NonEmpty
    text: NonEmpty = "text"
    model: NonEmpty = "model"
    score: NonEmpty | None = None


class Source(Section):
    """One entry of `prompts`: a file or a Hub dataset (or a local folder of one), and how its rows are read.

    `material` names, by the rubric's slot, the column that holds what the judge is shown beside the conversation.
    """

    file: NonEmpty | None = None
    hub: NonEmpty | None = None
    config: NonEmpty | None = None
    split: NonEmpty = "train"
    revision: NonEmpty | None = None
    field: NonEmpty = "prompt"
    source: Name = Field(default_factory=lambda given: _source_name(given.get("file"), given.get("hub")))
    source_field: NonEmpty | None = None
    limit: Count | None = None
    max_chars: Count = 100_000
    material: dict[SlotName, NonEmpty] = Field(default_factory=dict)
    completions: CompletionColumns | None = None

    @property
    def scale(self) -> str:
        """Whose scale its scores are on: by `source` where it is given, else by the file or dataset itself: two of
        these may have one name."""
        if "source" in self.model_fields_set:
            return self.source
        return " ".join(filter(None, (self.file, self.hub, self.config)))

    def conflicts(self) -> Iterator[Problem]:
        if (self.file is None) == (self.hub is None):
            count = "both file and hub are given" if self.file else "neither file nor hub is given"
            yield Problem((), f"{count}; give one: file: prompts.jsonl, or hub: ORG/NAME")
        elif self.file is not None:
            yield from self._file_clashes(self.file)

    def _file_clashes(self, file: str) -> Iterator[Problem]:
        if PurePosixPath(file).suffix.lower() not in _FILES:
            yield Problem(
                ("file",),
                f"expected a .jsonl, .parquet or .csv file, got {format_value(file)}; write the rows as .jsonl, one "
                "JSON object a line",
            )
        for key in ("config", "split", "revision"):
            if key in self.model_fields_set:
                yield Problem((key,), "only for hub datasets; take it out, or give hub: instead of file:")


def _source_name(file: str | None, hub: str | None) -> str:
    return PurePosixPath(file).stem if file else PurePosixPath(hub or "").name


class Completions(Section):
    """How many completions a prompt gets, and how they are sampled unless a model says otherwise."""

    per_prompt: AtLeastTwo = 4
    min_completions: AtLeastTwo = 2
    temperature: Temperature | None = 1.0
    top_p: TopP | None = 1.0
    max_tokens: Count = 1024

    def conflicts(self) -> Iterator[Problem]:
        if self.min_completions > self.per_prompt:
            yield Problem(
                ("min_completions",),
                f"{self.min_completions} is more than per_prompt ({self.per_prompt}); "
                f"lower it to {self.per_prompt} or less",
            )


class Rates(Section):
    """USD per million tokens. Without `cached_input` and `cache_write`, tokens read from a provider's cache and written
    to it cost what the others do."""

    input: NotNegative
    output: NotNegative
    cached_input: NotNegative | None = None
    cache_write: NotNegative | None = None

    def cost(self, usage: Usage) -> float:
        """USD for one call."""
        read = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        plain = max(0, usage.input - usage.cached - usage.written)
        return (plain * self.input + usage.cached * read + usage.written * write + usage.output * self.output) / 1e6

    def max_cost(self, input: int, output: int) -> float:
        """The most, in USD, that a call of at most so many tokens can cost."""
        dearest = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0)
        return (input * dearest + output * self.output) / 1e6


class Price(Rates):
    """What a model costs; `tiers` holds what it costs by another `service_tier` than the usual."""

    tiers: dict[NonEmpty, Rates] = Field(default_factory=dict)

    def rates_for(self, tier: str | None) -> Rates | None:
        """What a tier costs; None where that is not known."""
        return self if tier in _USUAL else self.tiers.get(tier or "")


class Launch(Section):
    """A vLLM server that aif starts, watches and stops: `gpus` of them (or one CPU) for each of `replicas` servers.

    Without `replicas`, GPUs left idle get further servers of the models that run. `python` is an interpreter that has
    vLLM, aif's own if left out; `args` go to vLLM as they are; `env` is added to the server's environment. `ready_s`
    counts from when the model's files are there.
    """

    model: NonEmpty
    gpus: Count = 1
    replicas: Count | None = None
    max_model_len: Count | None = None
    python: NonEmpty | None = None
    args: Annotated[tuple[str, ...], Field(strict=False)] = ()
    env: dict[VariableName, VariableValue] = Field(default_factory=dict)
    ready_s: Seconds = 900.0

    def conflicts(self) -> Iterator[Problem]:
        for name in self.env:
            if _SECRET.search(name):
                yield Problem(("env", name), f"{_NO_KEY}; take it out: the server gets aif's HF_TOKEN, and no API key")
        if "CUDA_VISIBLE_DEVICES" in self.env:
            why = "aif gives each server its GPUs; set it for aif itself, which takes those that it names"
            yield Problem(("env", "CUDA_VISIBLE_DEVICES"), why)
        for n, given in enumerate(self.args):
            if matches_option(given, _KEY_ARGS):
                yield Problem(("args", n), f"{_NO_KEY}; take it out, the server listens to this machine alone")


class DeclaredEndpoint(Section):
    """A model that is called: in the pool (`Model`) or as a judge (`Judge`).

    `base_url` is a text or a list in the file and a tuple here; empty for the provider's own address. `terms` names the
    licence or the terms its output comes under, for the card.
    """

    provider: Provider
    model: NonEmpty | None = None
    revision: NonEmpty | None = None
    base_url: Urls = ()
    launch: Launch | None = None
    api_key_env: VariableName | None = None
    concurrency: Count = Field(default_factory=lambda given: _CONCURRENCY[given["provider"]])
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    price: Price | None = None
    reasoning_effort: NonEmpty | None = None
    extra_body: JsonObject = Field(default_factory=dict)
    service_tier: NonEmpty | None = None
    extra_headers: Headers = Field(default_factory=dict)
    extra_query: QueryParameters = Field(default_factory=dict)
    omit: Omitted = ()
    dialect: Dialect | None = None
    max_model_len: Count | None = None
    reasoning_tags: ReasoningTags = "auto"
    terms: NonEmpty | None = None

    _name: str = PrivateAttr(default="")
    _served: ServedContent | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """The key of this entry in the pipeline file."""
        return self._name

    @property
    def served_name(self) -> str:
        """What the server calls the model: `model`, else what is launched, else the entry's key."""
        return self.model or (self.launch.model if self.launch else self._name)

    @property
    def served(self) -> ServedContent | None:
        """What servers/served.py has found out of a launched one; None of all others."""
        return self._served

    @property
    def declared_identity(self) -> str:
        """What tells this model from every other, on whichever host it runs, as far as the pipeline file says."""
        return f"{self.served_name}@{self.revision}" if self.revision else self.served_name

    @property
    def digest_suffix(self) -> str:
        """What tells a launched model from the one that was first served under its name; empty for that one."""
        return f"{DIGEST_SUFFIX}{self._served.digest[:12] or '?'}" if self._served and self._served.other else ""

    @property
    def identity(self) -> str:
        """What tells this model from every other: part of the keys of what it says."""
        return self.declared_identity + self.digest_suffix

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and reply together that it is declared to hold."""
        return self.max_model_len or (self.launch.max_model_len if self.launch else None)

    @property
    def takes_temperature(self) -> bool:
        """Whether `completions.temperature` and `top_p` hold for it: reasoning models and Anthropic refuse them."""
        if self.provider in ("openai", "simulator"):
            return self.reasoning_effort is None and not REASONING_MODELS.match(self.served_name)
        return self.provider != "anthropic"

    @property
    def is_reasoning_model(self) -> bool:
        """Whether it is known to think before it answers: unseen, and billed as output."""
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return self.provider in ("openai", "simulator") and bool(REASONING_MODELS.match(self.served_name))

    @property
    def extra_body_json(self) -> str:
        """`extra_body` as JSON, its keys sorted."""
        return orjson.dumps(self.extra_body, option=orjson.OPT_SORT_KEYS).decode() if self.extra_body else ""

    @property
    def api_dialect(self) -> Dialect:
        """Whose names and schemas it knows: OpenAI's own where the host is OpenAI's or Azure's."""
        if self.dialect or self.provider != "openai":
            return self.dialect or "compatible"
        return "openai" if all(map(is_openai_host, self.base_url)) else "compatible"

    @property
    def unpriced(self) -> bool:
        """Whether nobody knows what a call costs: it has no price, and a provider's address or one that is not one's
        own, or none of its `service_tier`."""
        if self.price is not None:
            return self.price.rates_for(self.service_tier) is None
        return self.provider in _PAID or not all(map(is_private_host, self.base_url))

    @property
    def is_free(self) -> bool:
        """Whether calls are known to cost nothing: models of one's own without a price, and what has one of 0."""
        return self.max_cost(1, 1) == 0

    def cost(self, usage: Usage | None, served: str | None = None) -> float | None:
        """USD for one call, by the tier that it was `served` by. None where price or usage isn't known; 0 for models of
        one's own without a price."""
        if self.price is None:
            return None if self.unpriced else 0.0
        if self.service_tier is None:  # what others call the usual one is not known
            rates: Rates | None = self.price.tiers.get(served or "", self.price)
        else:
            rates = self.price.rates_for(served or self.service_tier)
        return rates.cost(usage) if usage and rates else None

    def max_cost(self, input: int, output: int) -> float | None:
        """USD that a call of at most so many tokens costs at most, by its tier or the usual one, by which a provider
        may serve it instead. None where the price isn't known."""
        if self.price is None or self.unpriced:
            return None if self.unpriced else 0.0
        rates = (self.price, self.price.rates_for(self.service_tier) or self.price)
        return max(one.max_cost(input, output) for one in rates)

    @property
    def environment_variables(self) -> list[str]:
        """The environment variables that it names, for its key and its headers."""
        headers = [said.variable for said in self.extra_headers.values() if isinstance(said, FromEnvironment)]
        return [*([self.api_key_env] if self.api_key_env else []), *headers]

    def conflicts(self) -> Iterator[Problem]:
        yield from self._server_clashes()
        if self.provider == "simulator":
            for key in ("model", "revision", "base_url", "api_key_env"):
                if key in self.model_fields_set:
                    yield Problem(
                        (key,), "provider simulator has a server of its own and takes no such key; take it out"
                    )
        if self.reasoning_effort and self.provider == "simulator":
            yield Problem(("reasoning_effort",), "a simulated model doesn't think; take it out")
        if len(self.base_url) > 1 and self.provider in _PAID:
            yield Problem(("base_url",), "several addresses are for provider vllm; give one, or an entry each")
        if self.api_key_env and any(name.lower() == "authorization" for name in self.extra_headers):
            yield Problem(("extra_headers",), "Authorization is what api_key_env is sent as; take one of them out")
        for name in self.extra_body:
            if mend := _ELSEWHERE.get(name):
                yield Problem(("extra_body", name), f"aif sets it itself; {mend}")
        if self.provider == "anthropic":
            for key in ("omit", "dialect"):
                if getattr(self, key):
                    yield Problem((key,), "Anthropic's API has one dialect, and gets no seed; take it out")
            for key in ("temperature", "top_p"):
                if getattr(self, key, None) is not None and key in self.model_fields_set:
                    yield Problem((key,), "Anthropic's API refuses it since version 2026-10-21; take it out")

    def _server_clashes(self) -> Iterator[Problem]:
        if self.launch and self.launch.max_model_len and self.context_window != self.launch.max_model_len:
            yield Problem(
                ("max_model_len",), f"launch.max_model_len says {self.launch.max_model_len}; take one of them out"
            )
        if self.launch and self.provider != "vllm":
            yield Problem(("launch",), f"only for provider vllm, not {self.provider}; take it out")
        elif self.launch and self.base_url:
            yield Problem(("base_url",), "a launched server gets its address from aif; take out base_url or launch")
        elif self.provider == "vllm" and not self.launch and not self.base_url:
            yield Problem(
                ("base_url",),
                "provider vllm needs the address of a running server (base_url: http://localhost:8000/v1), or launch: "
                "{model: ...} to have aif start one",
            )

    def _only_simulated(self, key: str) -> Iterator[Problem]:
        if self.provider != "simulator" and key in self.model_fields_set:
            yield Problem((key,), f"only for provider simulator, not {self.provider}; take it out")


def _timeout_s(given: Mapping[str, Any], usual: float) -> float:
    return _FLEX_S if given.get("service_tier") == "flex" else usual


class Model(DeclaredEndpoint):
    """A model of the pool. Sampling settings given here go before those of `completions`; null is not sent."""

    system: Literal["role", "fold_into_user", "none"] = "role"
    samples: Count = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Count | None = None
    timeout_s: Seconds = Field(default_factory=lambda given: _timeout_s(given, 300.0))
    quality: Share = 0.5  # of provider simulator

    @property
    def declared_identity(self) -> str:
        return (
            f"simulator/{self.name}?quality={self.quality}"
            if self.provider == "simulator"
            else super().declared_identity
        )

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        yield from self._only_simulated("quality")
        if "max_tokens" in self.model_fields_set and self.max_tokens is None:
            yield Problem(("max_tokens",), "expected a whole number, got nothing; give a number or take the key out")


class Judge(DeclaredEndpoint):
    """A model that rates. `reply` says how ratings are asked for: by JSON schema, or as text that is read; `weight` is
    its part in a score that several judges give. `on_overflow` says whether completions are rated one by one where all
    of a prompt's together don't fit."""

    reply: Literal["schema", "text"] = "schema"
    on_overflow: Literal["single", "fail"] = "fail"
    temperature: Temperature | None = 0.0
    top_p: TopP | None = None
    max_tokens: Count = 2048
    timeout_s: Seconds = Field(default_factory=lambda given: _timeout_s(given, 120.0))
    weight: Positive = 1.0
    noise: NotNegative = 0.1  # of provider simulator

    @property
    def declared_identity(self) -> str:
        return (
            f"simulator/{self.name}?noise={self.noise}" if self.provider == "simulator" else super().declared_identity
        )

    @property
    def sampling(self) -> Sampling:
        """The settings a judgement is asked for with."""
        said = self.takes_temperature or "temperature" in self.model_fields_set
        temperature = self.temperature if said else None
        return Sampling(self.max_tokens, temperature, self.top_p, self.reasoning_effort, self.extra_body_json)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        yield from self._only_simulated("noise")


AnyEndpoint = TypeVar("AnyEndpoint", Model, Judge)


class Pairs(Section):
    """How ratings become chosen and rejected. `model` is the one `on_policy` has on one side of every pair."""

    policy: Literal["best_vs_random", "best_vs_worst", "all", "on_policy"] = "best_vs_random"
    model: Name | None = None
    score: Literal["mean", "overall"] = "mean"
    min_margin: NotNegative = 0.0
    missing: Literal["leave_out", "drop"] = "leave_out"
    max_pairs_per_prompt: Count | None = None
    max_length_ratio: Ratio | None = None
    max_per_model: Count | None = None

    def conflicts(self) -> Iterator[Problem]:
        if self.policy == "on_policy" and self.model is None:
            yield Problem(("model",), "missing; policy on_policy needs the model that is on one side of every pair")
        if self.policy != "on_policy" and self.model is not None:
            yield Problem(("model",), f"only for policy on_policy, not {self.policy}; take it out")
        if self.policy != "all" and self.max_pairs_per_prompt is not None:
            yield Problem(("max_pairs_per_prompt",), f"only for policy all, not {self.policy}; take it out")


class KtoLabels(Section):
    """What makes a completion desirable or not in the `kto` format: the side of its pair, or its score."""

    rule: Literal["pairs", "scores"] = "pairs"
    desirable: float | None = None
    undesirable: float | None = None

    def conflicts(self) -> Iterator[Problem]:
        for key in ("desirable", "undesirable"):
            if self.rule == "scores" and getattr(self, key) is None:
                bound = "from" if key == "desirable" else "up to"
                yield Problem((key,), f"missing; rule scores needs the score {bound} which a completion is {key}")
            if self.rule == "pairs" and key in self.model_fields_set:
                yield Problem((key,), "only for rule scores; take it out")
        if self.desirable is not None and self.undesirable is not None and self.desirable <= self.undesirable:
            yield Problem(
                ("desirable",), f"must be more than undesirable ({self.undesirable:g}), got {self.desirable:g}"
            )


class Export(Section):
    """What is written: `test_size` is a count of prompts (int) or a share of them (float). `completeness` is the share
    of the prompts below which `incomplete` says what is done."""

    formats: Annotated[tuple[Format, ...], Field(strict=False, min_length=1)] = ("trl", "h4")
    test_size: TestSize = 0
    license: NonEmpty | None = None
    completeness: Share = 1.0
    incomplete: Literal["warn", "refuse"] = "warn"
    kto: KtoLabels = KtoLabels()

    def conflicts(self) -> Iterator[Problem]:
        if len(set(self.formats)) < len(self.formats):
            yield Problem(("formats",), "a format is named twice; name each once")
