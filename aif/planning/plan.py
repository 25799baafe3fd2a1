"""Which completions a prompt gets: prompt x seed -> slots. Pure.

Models are ranked per prompt by a hash of (seed, prompt, model, sample), so a model added to the pool displaces at most
one slot of a prompt per sample and moves no other. Principle and sampling seed are drawn from the same tuple, never
from the slot's number. Where one model is in the pool under several settings, all but the first of these draw with
their settings besides: else they would be drawn together, with one principle and one seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

from aif.config.error_text import shown, unknown_key
from aif.core.errors import BadInput
from aif.core.types import (
    KEY_LENGTH,
    Message,
    Principle,
    Prompt,
    Provided,
    Sampling,
    Slot,
    as_dicts,
    carried_identity,
    digest,
    fraction,
)

System = Literal["role", "fold_into_user", "none"]
Parts = tuple[str | int, ...]  # what a number is drawn by

PLAN_VERSION = 1  # raised when the same inputs give other slots
APART_VERSION = 2  # the same, of pools that have a model under several settings


@dataclass(frozen=True, slots=True)
class PoolModel:
    """A model of the pool, as far as the plan knows it: no host, no price. `identity` is as declared, and draws go by
    it; `other` tells what is served from what first was under that name: it has the same places and seeds."""

    name: str
    identity: str
    sampling: Sampling
    samples: int = 1
    system: System = "role"
    other: str = ""

    @property
    def settings(self) -> str:
        """What tells it from the same model in the pool once more."""
        return digest([self.sampling.identity, self.system])


@dataclass(frozen=True, slots=True)
class Principles:
    """Pools of system prompts, and for each source the probability of each pool (they sum to 1)."""

    pools: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Mapping[str, float]]
    default: Mapping[str, float]

    @classmethod
    def of(cls, data: Any, where: str) -> "Principles":
        """A principles file's content, checked. `where` names the file in errors. Raises BadInput."""
        given = _named(data, where)
        if unknown := [key for key in given if key not in _FILE_KEYS]:
            raise BadInput(f"{where}: {unknown_key(unknown[0], _FILE_KEYS)}")
        pools = {
            name: _texts(texts, f"{where}: pools.{name}")
            for name, texts in _named(given.get("pools"), f"{where}: pools").items()
        }
        sources = {
            name: _shares(shares, pools, f"{where}: sources.{name}")
            for name, shares in (_named(given["sources"], f"{where}: sources") if "sources" in given else {}).items()
        }
        return cls(pools, sources, _shares(given.get("default"), pools, f"{where}: default"))

    def draw(self, source: str, *parts: str | int) -> Principle:
        """The principle for one completion of a prompt of `source`, drawn by the parts alone, in whatever order the
        file names its pools."""
        shares = sorted((pool, share) for pool, share in self.sources.get(source, self.default).items() if share > 0)
        point, bounds = fraction(*parts, "pool"), accumulate(share for _, share in shares)
        # the last bound may be a rounding below 1, and the point above it
        pool = next((pool for (pool, _), bound in zip(shares, bounds, strict=True) if point < bound), shares[-1][0])
        # ranked by hash, as models are: a text added to a pool of n takes one in n + 1 of its draws and moves no other
        return Principle(pool, max(self.pools[pool], key=lambda text: fraction(*parts, "text", text)))


_FILE_KEYS = ("name", "description", "pools", "sources", "default")


def _named(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise BadInput(f"{where}: expected names with something below each, got {shown(value or None)}; fill it in")
    return {str(name): below for name, below in value.items()}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: expected a list of texts, got {shown(value or None)}; give at least one")
    for n, text in enumerate(value, start=1):
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{where}: text {n}: expected a text, got {shown(text or None)}; write it in quotes")
    return tuple(value)


def _shares(value: Any, pools: Mapping[str, Any], where: str) -> dict[str, float]:
    shares = _named(value, where)
    for pool, share in shares.items():
        if pool not in pools:
            raise BadInput(f"{where}: there is no pool {pool!r}; pools are {', '.join(pools)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise BadInput(f"{where}.{pool}: expected a probability from 0 to 1, got {shown(share)}")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise BadInput(f"{where}: the probabilities sum to {sum(shares.values()):g}; they must sum to 1")
    return {pool: float(share) for pool, share in shares.items()}


def sent_messages(prompt: Prompt, principle: Principle | None, system: System) -> tuple[Message, ...]:
    """The turns a model is sent. The user's own system turn comes first, then the principle.

    `role` sends them as a system turn; `fold_into_user` puts them before the first user turn, for chat templates that
    refuse a system turn; `none` sends no principle and folds the user's own system turn.
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
    """A completion's identity: prompt, model, sample, and the logical request. Never the host."""
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


def carried_key(prompt_id: str, one: Provided) -> str:
    """The identity of a completion that came with its prompt: who wrote what. Its score is no part of it."""
    return digest({"v": 1, "prompt": prompt_id, "carried": one.model, "text": one.text})[:KEY_LENGTH]


def carried_slots(prompt_id: str, carried: Sequence[tuple[str, str]]) -> tuple[Slot, ...]:
    """The slots of a prompt that brings its completions: those, (key, identity), and no others."""
    return tuple(
        Slot(key, prompt_id, n, identity.removeprefix(carried_identity("")), identity, 0, 0, None)
        for n, (key, identity) in enumerate(carried)
    )


def slots(
    prompt: Prompt, pool: Sequence[PoolModel], per_prompt: int, principles: Principles | None, seed: int
) -> tuple[Slot, ...]:
    """The `per_prompt` slots of a prompt, best rank first, in whatever order the pool is given.

    Raises BadInput where the pool's models and samples are too few.
    """
    candidates: list[tuple[PoolModel, int, Parts]] = [
        (model, sample, (seed, prompt.prompt_id, model.identity, sample, *own))
        for model, own in _apart(tuple(pool))
        for sample in range(model.samples)
    ]
    if len(candidates) < per_prompt:
        raise BadInput(f"{per_prompt} completions a prompt, but the pool's models and samples make {len(candidates)}")
    best = sorted(candidates, key=lambda one: fraction(*one[2], "rank"))[:per_prompt]
    return tuple(_slot(prompt, n, *one, principles) for n, one in enumerate(best))


@lru_cache(maxsize=8)
def _apart(pool: tuple[PoolModel, ...]) -> list[tuple[PoolModel, tuple[str, ...]]]:
    """Each model with what it adds to the tuple it draws by: nothing where it is the first of its identity. So what was
    bought of that one stays: it is the one that came first where all drew alike, too."""
    first: dict[str, PoolModel] = {}
    for model in sorted(pool, key=lambda one: (repr(one.sampling), one.system)):
        first.setdefault(model.identity, model)
    return [(model, () if model.settings == first[model.identity].settings else (model.settings,)) for model in pool]


def _slot(prompt: Prompt, n: int, model: PoolModel, sample: int, parts: Parts, principles: Principles | None) -> Slot:
    drawn = principles.draw(prompt.source, *parts) if principles and model.system != "none" else None
    sampling_seed = int(fraction(*parts, "seed") * 2**31)
    return Slot(
        key=completion_key(prompt, model, sample, sampling_seed, drawn),
        prompt_id=prompt.prompt_id,
        slot=n,
        model=model.name,
        identity=model.identity + model.other,
        sample=sample,
        seed=sampling_seed,
        principle=drawn,
    )


def plan_digest(pool: Sequence[PoolModel], per_prompt: int, principles: Principles | None, seed: int) -> str:
    """What tells that the slots planned before still hold: everything `slots` depends on besides the prompt."""
    return digest(
        {
            "v": APART_VERSION if any(own for _, own in _apart(tuple(pool))) else PLAN_VERSION,
            "pool": [
                {name: value for name, value in asdict(model).items() if name != "other" or value} for model in pool
            ],
            "per_prompt": per_prompt,
            "principles": asdict(principles) if principles else None,
            "seed": seed,
        }
    )
