"""Plan the completions of a prompt: by which models, with which principles and sampling seeds. Pure.

- A *slot* is one planned completion.
- A *sample* of a model is one of the completions that the model may write for a prompt.
- The *candidates* for a prompt's slots are all samples of all models in the pool.
- The *draw key* of a candidate is (seed, prompt, model, sample). Hashes of the draw key give the candidate's rank,
  principle and sampling seed.

The `per_prompt` candidates with the lowest ranks get the slots. So each sample of a model that is added to the pool
replaces at most one completion of a prompt. All other completions keep their model, principle, seed and key.

A model may be in the pool several times, with different settings:

- The entries of a model are sorted by sampling settings, then by `system`.
- The draw keys of all but the first entry also contain the settings. Without them, equal draw keys would give equal
  ranks, principles and seeds.
- If a new entry becomes the first, it gets the draw key without settings. So it gets the slots of the former first
  entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

from aif.config.error_messages import format_value, unknown_key_message
from aif.core.errors import BadInput
from aif.core.types import (
    KEY_LENGTH,
    Message,
    Principle,
    Prompt,
    ProvidedCompletion,
    Sampling,
    Slot,
    as_dicts,
    digest,
    fraction,
    provided_identity,
)

SystemMode = Literal["role", "fold_into_user", "none"]
DrawKey = tuple[str | int, ...]  # the tuple that a completion's rank, principle and sampling seed are drawn from

PLAN_VERSION = 1  # incremented when the same inputs give other slots
REPEATED_MODEL_VERSION = 2  # the same for pools that have a model with several settings


@dataclass(frozen=True, slots=True)
class PoolModel:
    """A model of the pool, with the settings that plans depend on (host and price are not among them).

    name: its name in the pipeline file.
    identity: which model it is by the pipeline file: its name at the provider, with the revision if there is one.
    sampling: temperature, top_p, max_tokens and so on.
    samples: how many completions of one prompt the model may write.
    system: whether the principle and the prompt's own system turn are sent as a system turn (`role`) or before the
        first user turn (`fold_into_user`); `none` does the latter without the principle.
    other: "", or a suffix of the identity if the server now loads other files than it first served under the name. It
        changes completion keys, but not what is drawn for a completion.
    """

    # plan_digest() hashes these fields by name

    name: str
    identity: str
    sampling: Sampling
    samples: int = 1
    system: SystemMode = "role"
    other: str = ""

    @property
    def settings_digest(self) -> str:
        """Digest of `sampling` and `system`, which tell two entries of the same model apart."""
        return digest([self.sampling.identity, self.system])


@dataclass(frozen=True, slots=True)
class Principles:
    """The content of a principles file. A principle is a system prompt that is drawn for a completion.

    pools: lists of system prompts, by name of the list (the pool).
    sources: by source of prompts, the probability of each pool; the probabilities sum to 1.
    default: the probability of each pool for sources that aren't in `sources`.
    """

    # plan_digest() hashes these fields by name

    pools: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Mapping[str, float]]
    default: Mapping[str, float]

    @classmethod
    def parse(cls, data: Any, where: str) -> "Principles":
        """Return the principles in `data`, the parsed content of a principles file. Raises BadInput if it is invalid,
        with `where` as the file's name."""
        content = _mapping(data, where)
        if unknown := [key for key in content if key not in _FILE_KEYS]:
            raise BadInput(f"{where}: {unknown_key_message(unknown[0], _FILE_KEYS)}")
        pools = {
            name: _texts(texts, f"{where}: pools.{name}")
            for name, texts in _mapping(content.get("pools"), f"{where}: pools").items()
        }
        sources = {
            name: _probabilities(shares, pools, f"{where}: sources.{name}")
            for name, shares in (
                _mapping(content["sources"], f"{where}: sources") if "sources" in content else {}
            ).items()
        }
        return cls(pools, sources, _probabilities(content.get("default"), pools, f"{where}: default"))

    def draw(self, source: str, *parts: str | int) -> Principle:
        """Draw the principle for a completion of a prompt of `source`, by hashes of `parts` (the draw key). The order
        of pools and texts in the file doesn't matter."""
        shares = sorted((pool, share) for pool, share in self.sources.get(source, self.default).items() if share > 0)
        point, bounds = fraction(*parts, "pool"), accumulate(share for _, share in shares)
        # by rounding, the last bound may be below 1 and the point above it
        pool = next((pool for (pool, _), bound in zip(shares, bounds, strict=True) if point < bound), shares[-1][0])
        # ranked by hash, like models: a text added to a pool of n takes 1/(n + 1) of its draws and changes no other
        return Principle(pool, max(self.pools[pool], key=lambda text: fraction(*parts, "text", text)))


_FILE_KEYS = ("name", "description", "pools", "sources", "default")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise BadInput(
            f"{where}: expected a mapping with at least one entry, got {format_value(value or None)}; fill it in"
        )
    return {str(name): below for name, below in value.items()}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: expected a list of texts, got {format_value(value or None)}; give at least one")
    for n, text in enumerate(value, start=1):
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{where}: text {n}: expected a text, got {format_value(text or None)}; write it in quotes")
    return tuple(value)


def _probabilities(value: Any, pools: Mapping[str, Any], where: str) -> dict[str, float]:
    shares = _mapping(value, where)
    for pool, share in shares.items():
        if pool not in pools:
            raise BadInput(f"{where}: there is no pool {pool!r}; pools are {', '.join(pools)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise BadInput(f"{where}.{pool}: expected a probability from 0 to 1, got {format_value(share)}")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise BadInput(f"{where}: the probabilities sum to {sum(shares.values()):g}; they must sum to 1")
    return {pool: float(share) for pool, share in shares.items()}


def sent_messages(prompt: Prompt, principle: Principle | None, system: SystemMode) -> tuple[Message, ...]:
    """Return the turns that are sent to a model: the prompt's, with the principle joined to the prompt's own system
    turn.

    `system` says where the joined text goes:

    - `role`: it is sent as a system turn.
    - `fold_into_user`: it is put before the first user turn, for chat templates that refuse a system turn.
    - `none`: the principle is dropped; the prompt's own system turn is put before the first user turn.
    """
    own = prompt.messages[0].content if prompt.messages[0].role == "system" else None
    turns = prompt.messages[1:] if own is not None else prompt.messages
    steer = principle.text if principle and system != "none" else None
    head = "\n\n".join(part for part in (own, steer) if part)
    if not head:
        return turns
    if system == "role":
        return (Message("system", head), *turns)
    at = next(n for n, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:at], Message("user", f"{head}\n\n{turns[at].content}"), *turns[at + 1 :])


def completion_key(prompt: Prompt, model: PoolModel, sample: int, seed: int, principle: Principle | None) -> str:
    """Return a completion's id: a digest of prompt, model, sample and the request (messages, sampling, seed). The host
    is no part of it."""
    return digest(
        {
            "v": 1,
            "prompt": prompt.prompt_id,
            "model": model.identity + model.other,
            "sample": sample,
            "messages": as_dicts(sent_messages(prompt, principle, model.system)),
            "sampling": model.sampling.identity,
            "seed": seed,
        }
    )[:KEY_LENGTH]


def provided_key(prompt_id: str, completion: ProvidedCompletion) -> str:
    """Return the id of a completion that came with its prompt: a digest of prompt, model and text. The score is no part
    of it."""
    content = {"v": 1, "prompt": prompt_id, "carried": completion.model, "text": completion.text}
    return digest(content)[:KEY_LENGTH]


def provided_slots(prompt_id: str, completions: Sequence[tuple[str, str]]) -> tuple[Slot, ...]:
    """Return a slot for each completion that came with a prompt, in the given order; such a prompt gets no planned
    completions. `completions` has the (key, model identity) of each."""
    return tuple(
        Slot(key, prompt_id, n, identity.removeprefix(provided_identity("")), identity, 0, 0, None)
        for n, (key, identity) in enumerate(completions)
    )


def plan_slots(
    prompt: Prompt, pool: Sequence[PoolModel], per_prompt: int, principles: Principles | None, seed: int
) -> tuple[Slot, ...]:
    """Plan the completions of a prompt, and return their slots (the planned completions), `per_prompt` in number.

    pool: the models that may write completions; their order doesn't matter.
    principles: system prompts to draw from; None: no principle is drawn.
    seed: for all draws.

    The candidates are all samples of all models; those with the lowest hashes get the slots, lowest first. Raises
    BadInput if the models have fewer than `per_prompt` samples in all.
    """
    candidates: list[tuple[PoolModel, int, DrawKey]] = [
        (model, sample, (seed, prompt.prompt_id, model.identity, sample, *settings))
        for model, settings in _with_settings(tuple(pool))
        for sample in range(model.samples)
    ]
    if len(candidates) < per_prompt:
        raise BadInput(f"{per_prompt} completions a prompt, but the pool's models and samples make {len(candidates)}")
    best = sorted(candidates, key=lambda candidate: fraction(*candidate[2], "rank"))[:per_prompt]
    return tuple(_slot(prompt, n, *candidate, principles) for n, candidate in enumerate(best))


@lru_cache(maxsize=8)
def _with_settings(pool: tuple[PoolModel, ...]) -> list[tuple[PoolModel, tuple[str, ...]]]:
    """Return each entry of the pool with what its settings add to its draw key. Hashes of a draw key decide which
    completions are planned, and with which principle and seed.

    The first entry of each identity (sorted by sampling settings, then `system`) adds nothing. Every other entry adds a
    digest of its settings. So the draws of the first entry stay the same when an entry is added after it.
    """
    first: dict[str, PoolModel] = {}
    for model in sorted(pool, key=lambda entry: (repr(entry.sampling), entry.system)):
        first.setdefault(model.identity, model)
    return [
        (model, () if model.settings_digest == first[model.identity].settings_digest else (model.settings_digest,))
        for model in pool
    ]


def _slot(prompt: Prompt, n: int, model: PoolModel, sample: int, key: DrawKey, principles: Principles | None) -> Slot:
    principle = principles.draw(prompt.source, *key) if principles and model.system != "none" else None
    sampling_seed = int(fraction(*key, "seed") * 2**31)
    return Slot(
        key=completion_key(prompt, model, sample, sampling_seed, principle),
        prompt_id=prompt.prompt_id,
        slot=n,
        model=model.name,
        identity=model.identity + model.other,
        sample=sample,
        seed=sampling_seed,
        principle=principle,
    )


def plan_digest(pool: Sequence[PoolModel], per_prompt: int, principles: Principles | None, seed: int) -> str:
    """Return a digest of everything besides the prompt that `plan_slots` depends on. While it is unchanged, stored
    slots are still valid."""
    return digest(
        {
            "v": REPEATED_MODEL_VERSION
            if any(settings for _, settings in _with_settings(tuple(pool)))
            else PLAN_VERSION,
            "pool": [
                {name: value for name, value in asdict(model).items() if name != "other" or value} for model in pool
            ],
            "per_prompt": per_prompt,
            "principles": asdict(principles) if principles else None,
            "seed": seed,
        }
    )
