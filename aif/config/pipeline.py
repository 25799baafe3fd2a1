"""Read a pipeline file: YAML in, a frozen `Pipeline` out. Every key is checked; no key is ignored.

All errors of a file are reported at once, a line each: `file:line: key.path: what is wrong; what to do`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from aif.config import error_messages, located_yaml
from aif.config.fields import (
    FromEnvironment,
    Name,
    NonEmpty,
    NotNegative,
    Positive,
    RunName,
    StorePath,
    is_auth_header,
    is_private_host,
)
from aif.config.located_yaml import KeyPath, Problem, dotted
from aif.config.sections import (
    AnyEndpoint,
    CompletionColumns,
    Completions,
    DeclaredEndpoint,
    Export,
    Judge,
    KtoLabels,
    Launch,
    Model,
    Pairs,
    Price,
    Rates,
    Section,
    Source,
    publishable_name,
)
from aif.core import resources
from aif.core.errors import BadInput
from aif.core.reasoning import Tags
from aif.core.types import Sampling
from aif.providers.base import Options


class Pipeline(Section):
    """A checked pipeline file. A relative `store` has been resolved by `parse`; other relative paths are resolved only
    where they are used (`resources.find_resource`)."""

    name: RunName
    seed: int = 0
    store: StorePath = Field(default_factory=lambda values: Path("runs", values["name"], "feedback.duckdb"))
    prompts: Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
    principles: NonEmpty | None = None
    completions: Completions = Completions()
    models: dict[Name, Model] = Field(default_factory=dict)
    judges: dict[Name, Judge] = Field(default_factory=dict)
    rubric: NonEmpty = "unified"
    pairs: Pairs = Pairs()
    budget_usd: Positive | None = None
    confirm_usd: NotNegative = 1.0
    export: Export = Export()

    _path: Path = PrivateAttr(default=Path("pipeline.yaml"))
    _yaml_text: str = PrivateAttr(default="")
    _declared_store: Path | None = PrivateAttr(default=None)

    @property
    def declared_store(self) -> Path:
        """Path of the store as written in the file, or the default path; relative paths are not resolved."""
        return self._declared_store or self.store

    @property
    def path(self) -> Path:
        """Path of the file that this pipeline was read from."""
        return self._path

    @property
    def folder(self) -> Path:
        """Folder of the pipeline file. Relative paths in the file are searched here first."""
        return self._path.parent

    @property
    def yaml_text(self) -> str:
        """The file with `--set` applied, as YAML without comments, for the journal. It never contains an API key."""
        return self._yaml_text

    @property
    def public_yaml(self) -> str:
        """`yaml_text` for publication: without the store, addresses, headers, query parameters and names of environment
        variables. Any other path is cut to its last part. `launch` keeps only model, gpus and max_model_len."""
        data = yaml.safe_load(self._yaml_text)
        data.pop("store", None)
        for entry in (*data.get("models", {}).values(), *data.get("judges", {}).values()):
            for key in ("base_url", "api_key_env", "extra_headers", "extra_query"):
                entry.pop(key, None)
            if launch := entry.get("launch"):
                entry["launch"] = {key: launch[key] for key in ("model", "gpus", "max_model_len") if key in launch}
            if entry.get("model"):
                entry["model"] = publishable_name(entry["model"])
            if launch:
                entry["launch"]["model"] = publishable_name(launch["model"], hub=True)
        for source in data["prompts"]:
            if source.get("file"):
                source["file"] = PurePosixPath(source["file"]).name
            if source.get("hub"):
                source["hub"] = publishable_name(source["hub"], hub=True)
        for key in ("rubric", "principles"):
            if isinstance(data.get(key), str):
                data[key] = PurePosixPath(data[key]).name
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)

    @property
    def has_scores(self) -> bool:
        """Whether the rows of every source hold completions with scores. Then no model and no judge is called."""
        return all(source.completions and source.completions.score for source in self.prompts)

    @property
    def reasoning_tags(self) -> dict[str, Tags]:
        """The `reasoning_tags` setting of every model and judge. The keys are `completion/IDENTITY` for models and
        `judgement/IDENTITY` for judges, where IDENTITY is `declared_identity`."""
        models = {f"completion/{model.declared_identity}": model.reasoning_tags for model in self.models.values()}
        return models | {f"judgement/{judge.declared_identity}": judge.reasoning_tags for judge in self.judges.values()}

    def sampling(self, model: Model) -> Sampling:
        """Return the sampling settings of a model of the pool. For max_tokens, temperature and top_p that the model's
        entry doesn't give, those of `completions` are used. A model that refuses temperature and top_p gets them only
        from its own entry."""
        own, default = model.model_fields_set, self.completions
        takes = model.takes_temperature
        return Sampling(
            max_tokens=model.max_tokens or default.max_tokens,
            temperature=model.temperature if "temperature" in own else default.temperature if takes else None,
            top_p=model.top_p if "top_p" in own else default.top_p if takes else None,
            reasoning_effort=model.reasoning_effort,
            extra=model.extra_body_json,
        )

    @field_validator("models", "judges")
    @classmethod
    def _named(cls, entries: dict[str, AnyEndpoint]) -> dict[str, AnyEndpoint]:
        for name, entry in entries.items():
            entry._name = name
        return entries

    def conflicts(self) -> Iterator[Problem]:
        yield from self._missing_entries()
        if self.models and self.pairs.model and self.pairs.model not in self.models and not self._has_provided():
            names = ", ".join(self.models)
            yield Problem(("pairs", "model"), f"the pool has no model {self.pairs.model!r}; name one of: {names}")
        yield from self._mixed_scores()
        yield from self._unknown_prices()
        yield from self._too_few_models()
        yield from self._duplicate_entries()
        yield from self._different_tags()

    def _has_provided(self) -> bool:
        return any(source.completions for source in self.prompts)

    def _missing_entries(self) -> Iterator[Problem]:
        """Yield a problem if `models` or `judges` is missing but needed. If all rows hold completions with scores,
        neither is needed: then yield a problem for each that is given."""
        if not self.models and not all(source.completions for source in self.prompts):
            yield Problem(
                ("models",),
                "missing; name at least one, or set completions: of every source if its rows bring completions",
            )
        if not self.judges and not self.has_scores:
            yield Problem(("judges",), "missing; name at least one")
        for key in ("models", "judges"):
            if getattr(self, key) and self.has_scores:
                yield Problem(
                    (key,),
                    "not needed: the rows bring completions with scores, so none is generated or rated; remove it, or "
                    "the sources' completions.score",
                )

    def _mixed_scores(self) -> Iterator[Problem]:
        """Yield a problem for each source with scores if another source has none. Also yield a problem if the bounds of
        `export.kto` would apply to scores on several scales."""
        for n, source in enumerate(self.prompts):
            if source.completions and source.completions.score and not self.has_scores:
                yield Problem(
                    ("prompts", n, "completions", "score"),
                    "not every source has scores, so a judge rates them all; remove it, or give it for each source",
                )
        if self.export.kto.rule == "scores" and len(self.score_scales) > 1:
            yield Problem(
                ("export", "kto", "rule"),
                "the scores of several sources can't have the same bounds "
                f"({', '.join(sorted(self.score_scales))}); use rule pairs, or give sources with one scale the same "
                "`source`",
            )

    @property
    def score_scales(self) -> set[str]:
        """Names of the scales of the sources' scores; empty if judges rate. Scores are compared only within a scale."""
        return {source.scale for source in self.prompts} if self.has_scores else set()

    def _unknown_prices(self) -> Iterator[Problem]:
        """Yield a problem for each model or judge without a known price, if there is a budget."""
        if self.budget_usd is None:
            return
        for kind, entries in (("models", self.models), ("judges", self.judges)):
            for name, entry in entries.items():
                if not entry.unpriced:
                    continue
                if entry.price is not None:
                    tier = entry.service_tier
                    yield Problem(
                        (kind, name, "service_tier"),
                        f"budget_usd needs the price of service_tier {tier}; add price.tiers: "
                        f"{{{tier}: {{input: …, output: …}}}}",
                    )
                else:
                    server = next((url for url in entry.base_url if not is_private_host(url)), entry.provider)
                    yield Problem(
                        (kind, name),
                        f"budget_usd needs the price of a call to {server}; add price: {{input: …, output: …}}, in USD "
                        "per million tokens (0 if it is free), or remove budget_usd",
                    )

    def _too_few_models(self) -> Iterator[Problem]:
        wanted, possible = self.completions.per_prompt, sum(model.samples for model in self.models.values())
        if self.models and possible < wanted:
            each = ", ".join(f"{name} {model.samples}" for name, model in self.models.items())
            yield Problem(
                ("models",),
                f"completions.per_prompt is {wanted}, but the pool can give {possible} ({each}); "
                "add models, raise their samples, or lower per_prompt",
            )

    def _different_tags(self) -> Iterator[Problem]:
        """Yield a problem for each entry whose `reasoning_tags` differ from those of an earlier entry for the same
        model. Replies are stored under the model's identity, so all replies of a model must be split by the same
        tags."""
        for kind, entries in (("models", self.models), ("judges", self.judges)):
            first: dict[str, Model | Judge] = {}
            for name, entry in entries.items():
                other = first.setdefault(entry.identity, entry)
                if entry.reasoning_tags != other.reasoning_tags:
                    yield Problem(
                        (kind, name, "reasoning_tags"), f"{kind}.{other.name} is the same model; give both the same"
                    )

    def _duplicate_entries(self) -> Iterator[Problem]:
        seen: dict[tuple[str, str, object], str] = {}
        entries: list[tuple[str, Model | Judge, object]] = [
            # without principles, `system` matters only for prompts with a system turn of their own
            *(
                ("models", model, (self.sampling(model), model.system if self.principles else ""))
                for model in self.models.values()
            ),
            *(("judges", judge, (judge.sampling, judge.reply)) for judge in self.judges.values()),
        ]
        for kind, entry, settings in entries:
            first = seen.setdefault((kind, entry.identity, settings), entry.name)
            if first == entry.name:
                continue
            same = f"same model and settings as {kind}.{first}, so both would give the same"
            if isinstance(entry, Model):
                samples = entry.samples + self.models[first].samples
                yield Problem((kind, entry.name), f"{same} completions; keep one, with samples: {samples}")
            else:
                yield Problem((kind, entry.name), f"{same} ratings; keep one")


def load(path: Path, sets: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file. Raises BadInput with all errors of the file.

    path: the file. A relative path is searched in the working directory, then among the files that ship with aif.
    sets: `--set` options as KEY=VALUE, such as `completions.temperature=0.7`, which change values of the file.

    A relative `store` is resolved from one of these folders:

    - for a shipped file, or a file read from a pipe: the working directory;
    - for a file in a folder called `pipelines`: the parent of that folder;
    - for any other file: the file's folder.
    """
    file = resources.find_resource(str(path), None, "", "pipeline file")
    no_own_folder = resources.is_shipped(str(path), file) or not file.is_file()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}; give the path of a pipeline file") from error
    return parse(text, file, sets, Path.cwd() if no_own_folder else None)


def parse(text: str, path: Path, sets: Sequence[str] = (), home: Path | None = None) -> Pipeline:
    """Parse the text of a pipeline file. Raises BadInput with all errors of the file.

    path: the file's path.
    sets: `--set` options as KEY=VALUE, which change values of the file.
    home: the folder from which a relative `store` is resolved. If None, it is the file's folder, or the parent of a
        folder called `pipelines`.
    """
    label = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    document = located_yaml.parse_yaml(text, lambda line: f"{label}:{line}")
    for assignment in sets:
        document.assign(assignment)
    if document.data is None:
        raise BadInput(f"{label}:1: the file is empty; it needs name, prompts, models and judges")
    problems = list(document.problems)
    unparsed = {problem.keys for problem in problems}
    try:
        pipeline = Pipeline.model_validate(document.data)
    except ValidationError as error:
        invalid = error_messages.validation_problems(error, document, _unknown_key)
        problems += [problem for problem in invalid if problem.keys not in unparsed]
    if problems:
        raise BadInput("\n".join(_line(document.location_of(problem.keys).where, problem) for problem in problems))
    declared = pipeline.store
    pipeline = pipeline.model_copy(update={"store": _resolved_store(declared, home or _home(path))})
    pipeline._declared_store = declared
    pipeline._path = path
    pipeline._yaml_text = yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)
    return pipeline


def _home(file: Path) -> Path:
    """Return the folder from which a relative `store` is resolved: the file's folder, or its parent if that is called
    `pipelines`. Links are resolved, so a file has the same store however it is named."""
    folder = file.resolve().parent
    return folder.parent if folder.name == "pipelines" else folder


def _resolved_store(declared: Path, home: Path) -> Path:
    """Return the path of the store. A `declared` path that is relative is resolved from `home`; if the result is inside
    the working directory, it is returned relative to the working directory, so that messages are short."""
    store, cwd = home / declared, Path.cwd()
    return store.relative_to(cwd) if not declared.is_absolute() and store.is_relative_to(cwd) else store


def _line(where: str, problem: Problem) -> str:
    return ": ".join(part for part in (where, dotted(problem.keys), problem.text) if part)


_SECTIONS: Mapping[str, type[Section]] = {
    "": Pipeline,
    "prompts.*": Source,
    "prompts.*.completions": CompletionColumns,
    "completions": Completions,
    "models.*": Model,
    "models.*.launch": Launch,
    "models.*.price": Price,
    "models.*.price.tiers.*": Rates,
    "judges.*": Judge,
    "judges.*.launch": Launch,
    "judges.*.price": Price,
    "judges.*.price.tiers.*": Rates,
    "pairs": Pairs,
    "export": Export,
    "export.kto": KtoLabels,
}


def _unknown_key(keys: KeyPath) -> str:
    has_names = keys[0] in ("prompts", "models", "judges")
    section = _SECTIONS[dotted(tuple("*" if has_names and n in (1, 4) else key for n, key in enumerate(keys[:-1])))]
    return error_messages.unknown_key_message(str(keys[-1]), list(section.model_fields))


def api_key(endpoint: DeclaredEndpoint, environ: Mapping[str, str]) -> str | None:
    """Return the API key for an endpoint; None if it needs none.

    The key is in the environment variable that `api_key_env` names. Without `api_key_env` a server at a `base_url` gets
    no key, and a provider's own address gets OPENAI_API_KEY or ANTHROPIC_API_KEY. Raises BadInput with the variable's
    name if a needed key is missing or unusable.
    """
    variable = endpoint.api_key_env
    if variable is None:
        if endpoint.provider not in _KEY_VARIABLES or endpoint.base_url:
            return None
        variable = _KEY_VARIABLES[endpoint.provider]
    return _variable(endpoint, variable, "API key", environ)


def request_options(endpoint: DeclaredEndpoint, environ: Mapping[str, str]) -> Options:
    """Return the settings that every request to an endpoint is sent with: API key, headers, query, dialect, …

    Raises BadInput with the variable's name if an environment variable is missing or unusable.
    """
    key = api_key(endpoint, environ)
    headers = {
        name: _variable(endpoint, value.variable, name, environ) if isinstance(value, FromEnvironment) else value
        for name, value in endpoint.extra_headers.items()
    }
    secrets = [headers[name] for name, value in endpoint.extra_headers.items() if isinstance(value, FromEnvironment)]
    needs_key = endpoint.provider in _KEY_VARIABLES and not any(map(is_auth_header, headers))
    bearer = key or ("none" if needs_key else None)
    adds_bearer = bearer and "authorization" not in map(str.lower, headers)  # never the same header twice
    return Options(
        endpoint.api_dialect,
        frozenset(endpoint.omit),
        endpoint.service_tier,
        ({"Authorization": f"Bearer {bearer}"} if adds_bearer else {}) | headers,
        endpoint.extra_query,
        tuple(filter(None, [key, *secrets])),
        endpoint.reasoning_tags,
    )


def _variable(endpoint: DeclaredEndpoint, variable: str, purpose: str, environ: Mapping[str, str]) -> str:
    value = environ.get(variable, "").strip()
    if not value:
        raise BadInput(
            f"{endpoint.name}: no {purpose}; set the environment variable {variable} (export {variable}=...)"
        )
    if not value.isascii() or not value.isprintable():
        raise BadInput(f"{endpoint.name}: the environment variable {variable} holds no {purpose}; set it again")
    return value


_KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
