"""Who answers, and what they say to a conversation, whichever API it comes by. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aif.core.errors import BadInput
from aif.core.types import Message, digest, fraction
from aif.simulator import completions, judgements
from aif.simulator.words import count_tokens

FRAME = 4  # tokens that a chat template puts around each message


@dataclass(frozen=True, slots=True)
class Cast:
    """Who answers: models by name with their quality (0 to 1), judges with their noise.

    Noise is the standard deviation of a rating, in units of the whole scale. A name declared in one role answers in
    the other with what an undeclared one would have: quality 0.2 to 0.9 by a hash of seed and name, noise 0.1. `open`
    serves undeclared names, too.
    """

    models: Mapping[str, float]
    judges: Mapping[str, float]
    seed: int = 0
    open: bool = False

    def __post_init__(self) -> None:
        for kind, values in (("quality of model", self.models), ("noise of judge", self.judges)):
            for name, value in values.items():
                if not 0 <= value <= 1:
                    raise BadInput(f"simulator: the {kind} {name!r} is {value}; give a number from 0 to 1")

    def serves(self, name: str) -> bool:
        """Whether requests for this model are answered."""
        return self.open or name in self.models or name in self.judges

    def quality(self, name: str) -> float:
        """How well this model writes."""
        return self.models.get(name, 0.2 + 0.7 * fraction(self.seed, name))

    def noise(self, name: str) -> float:
        """How far this model's ratings stray."""
        return self.judges.get(name, 0.1)


class RefusedError(Exception):
    """A request that is answered with an error, which each API shapes in its own way."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request, read and checked. `settings` are what the draw depends on beside messages and model."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    schema: Mapping[str, Any] | None
    settings: tuple[Any, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return sum(FRAME + count_tokens(message.content) for message in self.messages)


def say(cast: Cast, ask: ModelRequest) -> str:
    """The whole of a reply."""
    seed = int(digest([cast.seed, ask.model, ask.settings])[:16], 16)
    if judgements.read(ask.messages) is not None:
        return judgements.judge(ask.messages, ask.schema, cast.noise(ask.model), seed)
    if ask.schema is not None:
        return judgements.instance(ask.schema)
    return completions.write(ask.messages, cast.quality(ask.model), seed)


def number(body: Mapping[str, Any], name: str, low: int, high: int, whole: bool = False, default: Any = None) -> Any:
    """A number of a body, or the default where there is none. Raises RefusedError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        sort = "an integer" if whole else "a number"
        raise RefusedError(400, f"Invalid value for '{name}': expected {sort} from {low} to {high}.", param=name)
    return value


def text_of(content: Any) -> str | None:
    """The text of a message's content, also where it comes in parts; None where not all of it is text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else None
