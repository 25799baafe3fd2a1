"""The pipeline file: YAML in, a frozen `Pipeline` out. Every key is checked; nothing in the file is ignored.

All that is wrong with a file is said at once, a line each: `file:line: key.path: what is wrong; what to do`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from aif import complaints, resources, yamltext
from aif.complaints import ClashError, shown
from aif.errors import BadInput, Unavailable
from aif.records import Sampling, Usage
from aif.values import (
    NOT_BUILT,
    Count,
    Filled,
    Format,
    Name,
    NotNegative,
    PathText,
    Provider,
    RunName,
    Seconds,
    Several,
    Share,
    Temperature,
    TestSize,
    TopP,
    Urls,
    Variable,
)
from aif.yamltext import Keys, Problem, dotted

_CONCURRENCY: Mapping[str, int] = {"vllm": 64, "openai": 16, "simulator": 32}


class Part(BaseModel):
    """A mapping of the pipeline file. `LATER` names keys of the contract that aif doesn't have yet, and what to do."""

    LATER: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def clashes(self) -> Iterator[Problem]:
        """What is wrong between keys that are each sound; keys counted from this mapping."""
        yield from ()

    @model_validator(mode="after")
    def _no_clashes(self) -> Self:
        if found := list(self.clashes()):
            raise ClashError(found)
        return self


class Source(Part):
    """One entry of `prompts`: a file or a Hub dataset (or a local folder of one), and how its rows are read."""

    file: Filled | None = None
    hub: Filled | None = None
    config: Filled | None = None
    split: Filled = "train"
    revision: Filled | None = None
    field: Filled = "prompt"
    source: Name = Field(default_factory=lambda given: _source_name(given.get("file"), given.get("hub")))
    source_field: Filled | None = None
    limit: Count | None = None
    max_chars: Count = 100_000

    def clashes(self) -> Iterator[Problem]:
        if (self.file is None) == (self.hub is None):
            count = "both file and hub are given" if self.file else "neither file nor hub is given"
            yield Problem((), f"{count}; give one: file: prompts.jsonl, or hub: ORG/NAME")
        elif self.file is not None:
            yield from self._file_clashes(self.file)

    def _file_clashes(self, file: str) -> Iterator[Problem]:
        suffix = PurePosixPath(file).suffix.lower()
        if suffix in (".parquet", ".csv"):
            yield Problem(("file",), f"{NOT_BUILT}{suffix} files; write the rows as .jsonl, one JSON object a line")
        elif suffix != ".jsonl":
            yield Problem(
                ("file",),
                f"expected a .jsonl file, got {shown(file)}; write the rows as .jsonl, one JSON object a line",
            )
        for key in ("config", "split", "revision"):
            if key in self.model_fields_set:
                yield Problem((key,), "only for hub datasets; take it out, or give hub: instead of file:")


def _source_name(file: str | None, hub: str | None) -> str:
    return PurePosixPath(file).stem if file else PurePosixPath(hub or "").name


class Completions(Part):
    """How many completions a prompt gets, and how they are sampled unless a model says otherwise."""

    per_prompt: Several = 4
    min_completions: Several = 2
    temperature: Temperature | None = 1.0
    top_p: TopP | None = 1.0
    max_tokens: Count = 1024

    def clashes(self) -> Iterator[Problem]:
        if self.min_completions > self.per_prompt:
            yield Problem(
                ("min_completions",),
                f"{self.min_completions} is more than per_prompt ({self.per_prompt}); "
                f"lower it to {self.per_prompt} or less",
            )


class Price(Part):
    """USD per million tokens. Without `cached_input`, cached tokens cost what the others do."""

    input: NotNegative
    output: NotNegative
    cached_input: NotNegative | None = None

    def cost(self, usage: Usage) -> float:
        """USD for one call."""
        cached = self.input if self.cached_input is None else self.cached_input
        parts = (usage.input - usage.cached) * self.input + usage.cached * cached + usage.output * self.output
        return parts / 1e6


class Endpoint(Part):
    """A model that is called: in the pool (`Model`) or as the judge (`Judge`).

    `base_url` is a text or a list in the file and a tuple here; empty for the provider's own address.
    """

    LATER = {"launch": "start the server yourself (vllm serve MODEL) and give its address as base_url"}

    provider: Provider
    model: Filled | None = None
    revision: Filled | None = None
    base_url: Urls = ()
    api_key_env: Variable | None = None
    concurrency: Count = Field(default_factory=lambda given: _CONCURRENCY[given["provider"]])
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    price: Price | None = None

    _name: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """The key of this entry in the pipeline file."""
        return self._name

    @property
    def served_name(self) -> str:
        """What the server calls the model: `model`, or the key where that is left out."""
        return self.model or self._name

    @property
    def identity(self) -> str:
        """What tells this model from every other, on whichever host it runs: part of the keys of what it says."""
        return f"{self.served_name}@{self.revision}" if self.revision else self.served_name

    def cost(self, usage: Usage | None) -> float | None:
        """USD for one call. None where price or usage isn't known; 0 for models of one's own without a price."""
        if self.price is None:
            return None if self.provider == "openai" else 0.0
        return self.price.cost(usage) if usage else None

    def clashes(self) -> Iterator[Problem]:
        if self.provider == "vllm" and "base_url" not in self.model_fields_set:
            yield Problem(
                ("base_url",),
                "provider vllm needs the address of a running server; add base_url: http://localhost:8000/v1",
            )
        if self.provider == "simulator":
            for key in ("model", "revision", "base_url", "api_key_env"):
                if key in self.model_fields_set:
                    yield Problem(
                        (key,), "provider simulator has a server of its own and takes no such key; take it out"
                    )

    def _only_simulated(self, key: str) -> Iterator[Problem]:
        if self.provider != "simulator" and key in self.model_fields_set:
            yield Problem((key,), f"only for provider simulator, not {self.provider}; take it out")


class Model(Endpoint):
    """A model of the pool. Sampling settings given here go before those of `completions`; null is not sent."""

    system: Literal["role", "fold_into_user", "none"] = "role"
    samples: Count = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Count | None = None
    timeout_s: Seconds = 300.0
    quality: Share = 0.5  # of provider simulator

    @property
    def identity(self) -> str:
        return f"simulator/{self.name}?quality={self.quality}" if self.provider == "simulator" else super().identity

    def clashes(self) -> Iterator[Problem]:
        yield from super().clashes()
        yield from self._only_simulated("quality")
        if "max_tokens" in self.model_fields_set and self.max_tokens is None:
            yield Problem(("max_tokens",), "expected a whole number, got nothing; give a number or take the key out")


class Judge(Endpoint):
    """The model that rates. `reply` says how ratings are asked for: by JSON schema, or as text that is read."""

    reply: Literal["schema", "text"] = "schema"
    temperature: Temperature | None = 0.0
    top_p: TopP | None = None
    max_tokens: Count = 2048
    timeout_s: Seconds = 120.0
    noise: NotNegative = 0.1  # of provider simulator

    @property
    def identity(self) -> str:
        return f"simulator/{self.name}?noise={self.noise}" if self.provider == "simulator" else super().identity

    @property
    def sampling(self) -> Sampling:
        """The settings a judgement is asked for with."""
        return Sampling(self.max_tokens, self.temperature, self.top_p)

    def clashes(self) -> Iterator[Problem]:
        yield from super().clashes()
        yield from self._only_simulated("noise")


AnyEndpoint = TypeVar("AnyEndpoint", Model, Judge)


class Pairs(Part):
    """How ratings become chosen and rejected."""

    policy: Literal["best_vs_random", "best_vs_worst"] = "best_vs_random"
    score: Literal["mean", "overall"] = "mean"
    min_margin: NotNegative = 0.0
    missing: Literal["leave_out", "drop"] = "leave_out"


class Export(Part):
    """What is written: `test_size` is a count of prompts (int) or a share of them (float)."""

    formats: Annotated[tuple[Format, ...], Field(strict=False, min_length=1)] = ("trl", "h4")
    test_size: TestSize = 0
    license: Filled | None = None

    def clashes(self) -> Iterator[Problem]:
        if len(set(self.formats)) < len(self.formats):
            yield Problem(("formats",), "a format is named twice; name each once")


class Pipeline(Part):
    """A pipeline file, checked. Relative paths in it are not resolved here (`resources.find`, `beside`)."""

    LATER = {"budget_usd": "take it out; nothing stops a run at a budget yet"}

    name: RunName
    seed: int = 0
    store: PathText = Field(default_factory=lambda given: Path("runs", given["name"], "feedback.duckdb"))
    prompts: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    principles: Filled | None = None
    completions: Completions = Completions()
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    judges: Annotated[dict[Name, Judge], Field(min_length=1)]
    rubric: Filled = "unified"
    pairs: Pairs = Pairs()
    export: Export = Export()

    _path: Path = PrivateAttr(default=Path("pipeline.yaml"))
    _raw: str = PrivateAttr(default="")

    @property
    def path(self) -> Path:
        """The file this pipeline was read from."""
        return self._path

    @property
    def beside(self) -> Path:
        """The folder of the pipeline file, where relative paths in it are looked for first."""
        return self._path.parent

    @property
    def raw(self) -> str:
        """The file as YAML after --set, comments left out: for the record. It can't hold a key."""
        return self._raw

    @property
    def public(self) -> str:
        """`raw` as it may be published: without where things are (hosts, keys' variables, folders)."""
        told = yaml.safe_load(self._raw)
        told.pop("store", None)
        for one in (*told["models"].values(), *told["judges"].values()):
            one.pop("base_url", None)
            one.pop("api_key_env", None)
        for source in told["prompts"]:
            if "file" in source:
                source["file"] = PurePosixPath(source["file"]).name
        for key in ("rubric", "principles"):
            if isinstance(told.get(key), str):
                told[key] = PurePosixPath(told[key]).name
        return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)

    @property
    def judge(self) -> Judge:
        """The one judge."""
        return next(iter(self.judges.values()))

    def sampling(self, model: Model) -> Sampling:
        """The settings `model` is sampled with: its own where it has any, else those of `completions`."""
        given = model.model_fields_set
        return Sampling(
            max_tokens=model.max_tokens or self.completions.max_tokens,
            temperature=model.temperature if "temperature" in given else self.completions.temperature,
            top_p=model.top_p if "top_p" in given else self.completions.top_p,
        )

    @field_validator("models", "judges")
    @classmethod
    def _named(cls, entries: dict[str, AnyEndpoint]) -> dict[str, AnyEndpoint]:
        for name, entry in entries.items():
            entry._name = name
        return entries

    def clashes(self) -> Iterator[Problem]:
        if len(self.judges) > 1:
            names = ", ".join(self.judges)
            yield Problem(("judges",), f"{NOT_BUILT}several judges ({names}); keep one")
        yield from self._too_few()
        yield from self._same_twice()

    def _too_few(self) -> Iterator[Problem]:
        wanted, had = self.completions.per_prompt, sum(model.samples for model in self.models.values())
        if had < wanted:
            each = ", ".join(f"{name} {model.samples}" for name, model in self.models.items())
            yield Problem(
                ("models",),
                f"completions.per_prompt is {wanted}, but the pool can give {had} ({each}); "
                "add models, raise their samples, or lower per_prompt",
            )

    def _same_twice(self) -> Iterator[Problem]:
        seen: dict[tuple[str, Sampling], str] = {}
        for name, model in self.models.items():
            first = seen.setdefault((model.identity, self.sampling(model)), name)
            if first != name:
                yield Problem(
                    ("models", name),
                    f"same model and settings as models.{first}, so both would give the same completions; "
                    f"keep one, with samples: {model.samples + self.models[first].samples}",
                )


def load(path: Path, sets: Sequence[str] = ()) -> Pipeline:
    """The pipeline in a file, after `--set KEY=VALUE` arguments (see `yamltext.Text.put`).

    A relative path is looked for in the working directory, then among what aif ships. Raises BadInput, saying all
    that is wrong; Unavailable where all of it is keys or values that aif doesn't have yet.
    """
    file = resources.find(str(path), None, "", "pipeline file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}; give the path of a pipeline file") from error
    return parse(text, file, sets)


def parse(text: str, path: Path, sets: Sequence[str] = ()) -> Pipeline:
    """`load` for a text at hand; `path` is the file it stands for."""
    called = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    found = yamltext.read(text, lambda line: f"{called}:{line}")
    for assignment in sets:
        found.put(assignment)
    if found.data is None:
        raise BadInput(f"{called}:1: the file is empty; it needs name, prompts, models and judges")
    wrong = list(found.problems)
    misread = {problem.keys for problem in wrong}
    try:
        pipeline = Pipeline.model_validate(found.data)
    except ValidationError as error:
        wrong += [said for said in complaints.problems(error, found, _unknown) if said.keys not in misread]
    if wrong:
        kind = Unavailable if all(problem.text.startswith(NOT_BUILT) for problem in wrong) else BadInput
        raise kind("\n".join(_line(found.place(problem.keys).where, problem) for problem in wrong))
    pipeline._path = path
    pipeline._raw = yaml.safe_dump(found.data, sort_keys=False, allow_unicode=True)
    return pipeline


def _line(where: str, problem: Problem) -> str:
    return ": ".join(part for part in (where, dotted(problem.keys), problem.text) if part)


_PARTS: Mapping[str | int, type[Part]] = {
    "prompts": Source,
    "completions": Completions,
    "models": Model,
    "judges": Judge,
    "pairs": Pairs,
    "export": Export,
}


def _unknown(keys: Keys) -> str:
    part: type[Part] = Pipeline
    if len(keys) > 1:
        part = Price if len(keys) == 4 else _PARTS[keys[0]]
    key = str(keys[-1])
    if key in part.LATER:
        return f"{NOT_BUILT}{key}; {part.LATER[key]}"
    return complaints.unknown_key(key, list(part.model_fields))


def api_key(endpoint: Endpoint, environ: Mapping[str, str]) -> str | None:
    """The key for an endpoint: from the variable its `api_key_env` names, or OPENAI_API_KEY for OpenAI's own address.

    None where no key is needed: a server at a `base_url` is sent none but the one named for it. Raises BadInput, naming
    the variable, where one is needed and missing or unusable.
    """
    variable = endpoint.api_key_env
    if variable is None:
        if endpoint.provider != "openai" or endpoint.base_url:
            return None
        variable = "OPENAI_API_KEY"
    key = environ.get(variable, "").strip()
    if not key:
        raise BadInput(f"{endpoint.name}: no API key; set the environment variable {variable} (export {variable}=...)")
    if not key.isascii() or not key.isprintable():
        raise BadInput(f"{endpoint.name}: the environment variable {variable} holds no API key; set it again")
    return key
