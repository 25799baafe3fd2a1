"""The sections of a pipeline file (sources, models, judges, pairs, export) as classes that check their own keys."""

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
# OpenAI's reasoning models answer 400 if a temperature is sent; their chat variants accept it.
REASONING_MODELS = re.compile(r"(o[1-9]|gpt-5(?!.*chat))")
_DEFAULT_TIERS = (None, "auto", "default", "standard", "standard_only", "on_demand")  # OpenAI, Anthropic, Groq
_FLEX_TIMEOUT_S = 900.0  # OpenAI: "we recommend 15 minutes"
# Keys of a request's body that can't be set in extra_body, and the fix.
_NOT_IN_BODY: Mapping[str, str] = {
    "model": "see `model`",
    "messages": "see prompts and principles",
    "system": "see principles and `system`",
    "max_tokens": "see `max_tokens`",
    "max_completion_tokens": "see `max_tokens`; `dialect: openai` sends it under this name",
    "temperature": "see `temperature`",
    "top_p": "see `top_p`",
    "seed": "see `seed` of the pipeline; `omit: [seed]` leaves it out",
    "n": "see `samples`",
    "stream": "replies are not streamed; remove it",
    "stream_options": "replies are not streamed; remove it",
    "response_format": "see a judge's `reply`",
    "output_config": "see `reasoning_effort` and a judge's `reply`",
    "tools": "aif runs no tools; remove it",
    "tool_choice": "aif runs no tools; remove it",
    "reasoning_effort": "see `reasoning_effort`",
    "service_tier": "see `service_tier`",
}
_FILES = (".jsonl", ".parquet", ".csv")
_NO_KEY = "an API key must not be in the file"
_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD)$")
_KEY_ARGS = ("--api-key", "--hf-token")


_PATH = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]")
_TWO_SLASHES = re.compile(r"[^/]*/[^/]*/")


def publishable_name(name: str, hub: bool = False) -> str:
    """Return a model's or dataset's name as it may be published. A path on somebody's machine is cut to its last part.

    With `hub`, a name with two slashes is a path too, since a name on the Hub has at most one. Without `hub`, `name` is
    a server's name for its model, which may have two.
    """
    if _PATH.match(name) or (hub and _TWO_SLASHES.match(name)):
        return PurePosixPath(name.replace("\\", "/")).name
    return name


def option_name(argument: str) -> str:
    """Return the option's name in a command-line argument for vLLM: `--port` for `--port=8000`. `_` becomes `-`, since
    vLLM treats `--api_key` and `--api-key` alike."""
    return argument.partition("=")[0].replace("_", "-")


def matches_option(argument: str, options: Iterable[str]) -> bool:
    """Return whether vLLM may read a command-line argument as one of the options. vLLM accepts abbreviated options;
    which ones depends on its version, so every prefix of an option matches."""
    name = option_name(argument)
    return len(name) > 2 and any(option.startswith(name) for option in options)


@dataclass(frozen=True, slots=True)
class ServedContent:
    """Identifies the model files that the server of a launched model loads.

    digest: a digest of these files and the server's settings; "" if unknown.
    other: True if the files or settings differ from those first seen under the model's name.
    commit: the files' commit on the Hub; "" if unknown.
    """

    digest: str
    other: bool = False
    commit: str = ""


class Section(BaseModel):
    """Base of the mappings in a pipeline file: frozen, unknown keys refused, types not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[Problem]:
        """Yield a problem for each contradiction between keys that are valid one by one. A problem's key path is
        relative to this mapping: `base_url`, not `models.a.base_url`."""
        yield from ()

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if problems := list(self.conflicts()):
            raise ConflictError(problems)
        return self


class CompletionColumns(Section):
    """Names of the columns or keys that hold completions in a source's rows (`prompts.completions`): their texts,
    models and scores. If every source names a `score`, no judge is needed.

    The column `field` may hold:

    - a list of objects: `text`, `model` and `score` are keys of each object;
    - a list of texts: `model` and `score` are columns with lists of the same length (or one model for all);
    - a single text: `model` and `score` are columns with single values, and rows with the same prompt are joined.
    """

    field: NonEmpty
    text: NonEmpty = "text"
    model: NonEmpty = "model"
    score: NonEmpty | None = None


class Source(Section):
    """An entry of `prompts`: rows of a file or dataset, and how they are read.

    file: a .jsonl, .parquet or .csv file; None if `hub` is given.
    hub: a dataset on the Hub, or a local folder with a dataset; None if `file` is given.
    config: the dataset's configuration on the Hub.
    field: the column with the prompt.
    source: the source's name in the exported dataset.
    source_field: a column with the source's name of each row; None if all rows have the name `source`.
    limit: the most prompts to read; None for all.
    max_chars: prompts with more characters are left out.
    material: by key of the rubric's `material`, the column with additional text for the judge, such as a reference
        answer.
    completions: where the rows hold completions; None if models make all of them.
    """

    # the names of these fields are part of a source's fingerprint

    file: NonEmpty | None = None
    hub: NonEmpty | None = None
    config: NonEmpty | None = None
    split: NonEmpty = "train"
    revision: NonEmpty | None = None
    field: NonEmpty = "prompt"
    source: Name = Field(default_factory=lambda values: _source_name(values.get("file"), values.get("hub")))
    source_field: NonEmpty | None = None
    limit: Count | None = None
    max_chars: Count = 100_000
    material: dict[SlotName, NonEmpty] = Field(default_factory=dict)
    completions: CompletionColumns | None = None

    @property
    def scale(self) -> str:
        """Name of the scale of this source's scores. A *scale* is a range of scores with one meaning; scores on
        different scales are not compared.

        The name is `source` if the file gives that key, else the path or dataset. Two sources may have the same default
        for `source`.
        """
        if "source" in self.model_fields_set:
            return self.source
        return " ".join(filter(None, (self.file, self.hub, self.config)))

    def conflicts(self) -> Iterator[Problem]:
        if (self.file is None) == (self.hub is None):
            count = "both file and hub are given" if self.file else "neither file nor hub is given"
            yield Problem((), f"{count}; give one: file: prompts.jsonl, or hub: ORG/NAME")
        elif self.file is not None:
            yield from self._file_conflicts(self.file)

    def _file_conflicts(self, file: str) -> Iterator[Problem]:
        if PurePosixPath(file).suffix.lower() not in _FILES:
            yield Problem(
                ("file",),
                f"expected a .jsonl, .parquet or .csv file, got {format_value(file)}; write the rows as .jsonl, one "
                "JSON object a line",
            )
        for key in ("config", "split", "revision"):
            if key in self.model_fields_set:
                yield Problem((key,), "only for hub datasets; remove it, or give hub: instead of file:")


def _source_name(file: str | None, hub: str | None) -> str:
    return PurePosixPath(file).stem if file else PurePosixPath(hub or "").name


class Completions(Section):
    """How the completions of a prompt are made.

    per_prompt: the number of completions of a prompt.
    min_completions: the least completions that must be left for the prompt to be judged, if others failed permanently.
    temperature, top_p, max_tokens: sampling settings, which a model's own entry may override.
    """

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
    """Prices in USD per million tokens.

    input: prompt tokens.
    output: reply tokens.
    cached_input: tokens read from the provider's cache; None: as `input`.
    cache_write: tokens written to the provider's cache; None: as `input`.
    """

    input: NotNegative
    output: NotNegative
    cached_input: NotNegative | None = None
    cache_write: NotNegative | None = None

    def cost(self, usage: Usage) -> float:
        """Return the cost of a call in USD."""
        read = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        plain = max(0, usage.input - usage.cached - usage.written)
        return (plain * self.input + usage.cached * read + usage.written * write + usage.output * self.output) / 1e6

    def max_cost(self, input: int, output: int) -> float:
        """Return the most that a call with at most `input` and `output` tokens can cost, in USD."""
        highest = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0)
        return (input * highest + output * self.output) / 1e6


class Price(Rates):
    """A model's prices at the default service tier; `tiers` has those of other service tiers, by the tier's name."""

    tiers: dict[NonEmpty, Rates] = Field(default_factory=dict)

    def rates_for(self, tier: str | None) -> Rates | None:
        """Return the prices of a service tier (None: the default tier); None if they are unknown."""
        return self if tier in _DEFAULT_TIERS else self.tiers.get(tier or "")


class Launch(Section):
    """vLLM servers that aif starts, monitors and stops for a model.

    model: a model on the Hub, or a folder with its files.
    gpus: the number of GPUs of each server. On a machine without GPUs one server runs on the CPU.
    replicas: the number of servers. None: one, or more if GPUs would otherwise be idle.
    max_model_len: the context window in tokens; None: `max_model_len` of the model's entry, else vLLM's default.
    python: the path of an interpreter that has vLLM; None for aif's own.
    args: command-line arguments that vLLM gets unchanged.
    env: variables added to the servers' environment.
    ready_s: the most seconds that a server may take to start after the model's files are downloaded.
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
                yield Problem(("env", name), f"{_NO_KEY}; remove it: the server gets aif's HF_TOKEN, and no API key")
        if "CUDA_VISIBLE_DEVICES" in self.env:
            reason = "aif assigns GPUs to each server; set it for aif itself, which uses the GPUs that it names"
            yield Problem(("env", "CUDA_VISIBLE_DEVICES"), reason)
        for n, argument in enumerate(self.args):
            if matches_option(argument, _KEY_ARGS):
                yield Problem(("args", n), f"{_NO_KEY}; remove it, the server listens on this machine alone")


class DeclaredEndpoint(Section):
    """Base of `Model` and `Judge`: where a model is served and how it is called.

    model: the model's name on the server; None: `launch.model`, or the entry's key without `launch`.
    base_url: the servers' URLs; in the file a text or a list. Empty for the provider's own address.
    launch: the servers that aif starts for the model; None if it starts none.
    api_key_env: the environment variable that holds the API key.
    concurrency: the most calls in flight.
    extra_body: settings that are added to each request's body unchanged.
    omit: settings that are not sent, such as `seed`.
    max_model_len: the context window in tokens; None if the file doesn't give it.
    reasoning_tags: the tags around the model's reasoning in its replies.
    terms: the licence of the model's output, which the dataset card states.
    """

    provider: Provider
    model: NonEmpty | None = None
    revision: NonEmpty | None = None
    base_url: Urls = ()
    launch: Launch | None = None
    api_key_env: VariableName | None = None
    concurrency: Count = Field(default_factory=lambda values: _CONCURRENCY[values["provider"]])
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
        """Key of this entry in the pipeline file."""
        return self._name

    @property
    def served_name(self) -> str:
        """The model's name in requests to the server: `model`, else `launch.model`, else the entry's key in the
        pipeline file."""
        return self.model or (self.launch.model if self.launch else self._name)

    @property
    def served(self) -> ServedContent | None:
        """A digest of the files and settings that a launched model's server loads, and the files' commit on the Hub.
        None if aif doesn't launch the model, or if `servers/model_identity.py` has not set it yet."""
        return self._served

    @property
    def declared_identity(self) -> str:
        """Identity of the model as far as the pipeline file gives it: name and revision, such as `ORG/MODEL@main`. The
        host is not part of it, so a model may move to another server."""
        return f"{self.served_name}@{self.revision}" if self.revision else self.served_name

    @property
    def digest_suffix(self) -> str:
        """Suffix of `identity` that tells apart different files or settings under one model name. It is empty for those
        first seen under the name, and for models that aif doesn't launch; else it contains their digest."""
        return f"{DIGEST_SUFFIX}{self._served.digest[:12] or '?'}" if self._served and self._served.other else ""

    @property
    def identity(self) -> str:
        """Identity of the model: declared name and revision. For a launched model a digest of its files and settings
        follows, unless these were the first seen under the name.

        The keys of completions and judgements are computed from the identity. So a model with another identity is
        called again.
        """
        return self.declared_identity + self.digest_suffix

    @property
    def context_window(self) -> int | None:
        """Context window (tokens of prompt and reply together) that the pipeline file declares; None if it doesn't."""
        return self.max_model_len or (self.launch.max_model_len if self.launch else None)

    @property
    def takes_temperature(self) -> bool:
        """Whether the model accepts `temperature` and `top_p`. OpenAI's reasoning models and Anthropic's API refuse
        them, so these settings are sent there only if the model's own entry gives them."""
        if self.provider in ("openai", "simulator"):
            return self.reasoning_effort is None and not REASONING_MODELS.match(self.served_name)
        return self.provider != "anthropic"

    @property
    def is_reasoning_model(self) -> bool:
        """Whether the model is known to reason before it answers, in tokens that aif doesn't see and that are billed as
        output."""
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return self.provider in ("openai", "simulator") and bool(REASONING_MODELS.match(self.served_name))

    @property
    def extra_body_json(self) -> str:
        """`extra_body` as JSON with sorted keys; empty without it."""
        return orjson.dumps(self.extra_body, option=orjson.OPT_SORT_KEYS).decode() if self.extra_body else ""

    @property
    def api_dialect(self) -> Dialect:
        """The dialect of the API: `dialect` if the file gives it. Otherwise it is `openai` for provider openai if
        `base_url` is empty or all its hosts are OpenAI's or Azure's. In all other cases it is `compatible`."""
        if self.dialect or self.provider != "openai":
            return self.dialect or "compatible"
        return "openai" if all(map(is_openai_host, self.base_url)) else "compatible"

    @property
    def unpriced(self) -> bool:
        """Whether the cost of a call is unknown: `price` lacks the `service_tier`; or there is no `price` and the
        server may be somebody else's (provider openai or anthropic, or a host outside private networks)."""
        if self.price is not None:
            return self.price.rates_for(self.service_tier) is None
        return self.provider in _PAID or not all(map(is_private_host, self.base_url))

    @property
    def is_free(self) -> bool:
        """Whether calls are known to cost nothing: the price is 0, or none is given and the server is the user's
        own."""
        return self.max_cost(1, 1) == 0

    def cost(self, usage: Usage | None, served: str | None = None) -> float | None:
        """Return the cost of a call in USD; None if price or usage is unknown. If no price is given, calls to the
        user's own servers cost 0.

        usage: the token counts of the call.
        served: the service tier that the server reports for the call; None if it reports none.
        """
        if self.price is None:
            return None if self.unpriced else 0.0
        if self.service_tier is None:  # servers have different names for the default tier
            rates: Rates | None = self.price.tiers.get(served or "", self.price)
        else:
            rates = self.price.rates_for(served or self.service_tier)
        return rates.cost(usage) if usage and rates else None

    def max_cost(self, input: int, output: int) -> float | None:
        """Return the most, in USD, that a call with at most `input` prompt tokens and `output` reply tokens can cost;
        None if the price is unknown. The dearer of `service_tier` and the default tier counts, since a provider may use
        either."""
        if self.price is None or self.unpriced:
            return None if self.unpriced else 0.0
        rates = (self.price, self.price.rates_for(self.service_tier) or self.price)
        return max(rate.max_cost(input, output) for rate in rates)

    @property
    def environment_variables(self) -> list[str]:
        """Names of the environment variables that the entry gives for its API key (`api_key_env`) and for values of
        headers."""
        headers = [value.variable for value in self.extra_headers.values() if isinstance(value, FromEnvironment)]
        return [*([self.api_key_env] if self.api_key_env else []), *headers]

    def conflicts(self) -> Iterator[Problem]:
        yield from self._server_conflicts()
        if self.provider == "simulator":
            for key in ("model", "revision", "base_url", "api_key_env"):
                if key in self.model_fields_set:
                    yield Problem(
                        (key,), "provider simulator has a server of its own and doesn't use this key; remove it"
                    )
        if self.reasoning_effort and self.provider == "simulator":
            yield Problem(("reasoning_effort",), "a simulated model doesn't reason; remove it")
        if len(self.base_url) > 1 and self.provider in _PAID:
            yield Problem(
                ("base_url",), "only provider vllm takes several addresses; give one, or make an entry for each"
            )
        if self.api_key_env and any(name.lower() == "authorization" for name in self.extra_headers):
            yield Problem(("extra_headers",), "api_key_env is sent as Authorization, too; remove one of them")
        for name in self.extra_body:
            if fix := _NOT_IN_BODY.get(name):
                yield Problem(("extra_body", name), f"aif sets it itself; {fix}")
        if self.provider == "anthropic":
            for key in ("omit", "dialect"):
                if getattr(self, key):
                    yield Problem((key,), "Anthropic's API has one dialect, and gets no seed; remove it")
            for key in ("temperature", "top_p"):
                if getattr(self, key, None) is not None and key in self.model_fields_set:
                    yield Problem((key,), "Anthropic's API refuses it since version 2026-10-21; remove it")

    def _server_conflicts(self) -> Iterator[Problem]:
        if self.launch and self.launch.max_model_len and self.context_window != self.launch.max_model_len:
            yield Problem(
                ("max_model_len",), f"launch.max_model_len is {self.launch.max_model_len}; remove one of them"
            )
        if self.launch and self.provider != "vllm":
            yield Problem(("launch",), f"only for provider vllm, not {self.provider}; remove it")
        elif self.launch and self.base_url:
            yield Problem(("base_url",), "a launched server gets its address from aif; remove base_url or launch")
        elif self.provider == "vllm" and not self.launch and not self.base_url:
            yield Problem(
                ("base_url",),
                "provider vllm needs the address of a running server (base_url: http://localhost:8000/v1), or launch: "
                "{model: ...} to have aif start one",
            )

    def _only_simulated(self, key: str) -> Iterator[Problem]:
        if self.provider != "simulator" and key in self.model_fields_set:
            yield Problem((key,), f"only for provider simulator, not {self.provider}; remove it")


def _timeout_s(values: Mapping[str, Any], default: float) -> float:
    return _FLEX_TIMEOUT_S if values.get("service_tier") == "flex" else default


class Model(DeclaredEndpoint):
    """A model of the pool.

    system: where the system turn goes. It is the prompt's own system turn, joined with the principle. `role` sends it
        as a system turn. `fold_into_user` puts it before the first user turn. `none` drops the principle and puts the
        prompt's own system turn before the first user turn.
    samples: the most completions of one prompt that the model may give.
    temperature, top_p: sampling settings instead of those of `completions`. An explicit null is not sent.
    max_tokens: the most tokens of a completion; None: as in `completions`.
    timeout_s: the most seconds of a whole call.
    quality: how good a simulated model's completions are, from 0 to 1; for provider simulator only.
    """

    system: Literal["role", "fold_into_user", "none"] = "role"
    samples: Count = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Count | None = None
    timeout_s: Seconds = Field(default_factory=lambda values: _timeout_s(values, 300.0))
    quality: Share = 0.5  # for provider simulator

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
            yield Problem(("max_tokens",), "expected a whole number, got nothing; give a number or remove the key")


class Judge(DeclaredEndpoint):
    """A model that rates completions.

    reply: the form of the judge's replies: JSON by a `schema`, or `text` that is parsed.
    on_overflow: what happens if a prompt's completions together exceed the context window. `single` rates them one by
        one; `fail` makes the judgement fail.
    timeout_s: the most seconds of a whole call.
    weight: the judge's weight in the mean over several judges.
    noise: the standard deviation of the noise in ratings, as a share of the scale; for provider simulator only.
    """

    reply: Literal["schema", "text"] = "schema"
    on_overflow: Literal["single", "fail"] = "fail"
    temperature: Temperature | None = 0.0
    top_p: TopP | None = None
    max_tokens: Count = 2048
    timeout_s: Seconds = Field(default_factory=lambda values: _timeout_s(values, 120.0))
    weight: Positive = 1.0
    noise: NotNegative = 0.1  # for provider simulator

    @property
    def declared_identity(self) -> str:
        return (
            f"simulator/{self.name}?noise={self.noise}" if self.provider == "simulator" else super().declared_identity
        )

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of the judge's requests: max_tokens, temperature, top_p, reasoning_effort and
        `extra_body`."""
        is_sent = self.takes_temperature or "temperature" in self.model_fields_set
        temperature = self.temperature if is_sent else None
        return Sampling(self.max_tokens, temperature, self.top_p, self.reasoning_effort, self.extra_body_json)

    def conflicts(self) -> Iterator[Problem]:
        yield from super().conflicts()
        yield from self._only_simulated("noise")


AnyEndpoint = TypeVar("AnyEndpoint", Model, Judge)


class Pairs(Section):
    """How pairs of a chosen and a rejected completion are made from ratings.

    policy: which completions of a prompt become a pair.
    model: the model whose completion is on one side of every pair; for policy `on_policy` only.
    score: what completions are compared by: the weighted `mean` of the aspects, or the aspect `overall` alone.
    min_margin: the least difference of the two scores.
    missing: what happens if a judge's rating of an aspect is N/A or missing for a completion. `leave_out`: the scores
        of the prompt ignore this judge's ratings of this aspect. `drop`: no pair is made of the prompt.
    max_pairs_per_prompt: the most pairs of a prompt; for policy `all` only.
    max_length_ratio: the most characters of the longer text per character of the shorter.
    max_per_model: how often a model may be chosen, and how often rejected.
    """

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
            yield Problem(("model",), f"only for policy on_policy, not {self.policy}; remove it")
        if self.policy != "all" and self.max_pairs_per_prompt is not None:
            yield Problem(("max_pairs_per_prompt",), f"only for policy all, not {self.policy}; remove it")


class KtoLabels(Section):
    """Which completions the `kto` format labels desirable and undesirable.

    rule: `pairs` labels chosen completions desirable and rejected ones undesirable. `scores` labels by score.
    desirable: the lowest score of a desirable completion; for rule `scores` only.
    undesirable: the highest score of an undesirable completion; for rule `scores` only.
    """

    rule: Literal["pairs", "scores"] = "pairs"
    desirable: float | None = None
    undesirable: float | None = None

    def conflicts(self) -> Iterator[Problem]:
        for key in ("desirable", "undesirable"):
            if self.rule == "scores" and getattr(self, key) is None:
                bound = "from" if key == "desirable" else "up to"
                yield Problem((key,), f"missing; rule scores needs the score {bound} which a completion is {key}")
            if self.rule == "pairs" and key in self.model_fields_set:
                yield Problem((key,), "only for rule scores; remove it")
        if self.desirable is not None and self.undesirable is not None and self.desirable <= self.undesirable:
            yield Problem(
                ("desirable",), f"must be more than undesirable ({self.undesirable:g}), got {self.desirable:g}"
            )


class Export(Section):
    """What an export writes.

    formats: the dataset formats, such as `trl`.
    test_size: the number of prompts in the test split (int), or their share (float).
    license: the licence that the dataset card states.
    completeness: the share of prompts that should be complete.
    incomplete: what to do if fewer are: `warn`, or `refuse` the export.
    """

    formats: Annotated[tuple[Format, ...], Field(strict=False, min_length=1)] = ("trl", "h4")
    test_size: TestSize = 0
    license: NonEmpty | None = None
    completeness: Share = 1.0
    incomplete: Literal["warn", "refuse"] = "warn"
    kto: KtoLabels = KtoLabels()

    def conflicts(self) -> Iterator[Problem]:
        if len(set(self.formats)) < len(self.formats):
            yield Problem(("formats",), "a format is named twice; name each once")
