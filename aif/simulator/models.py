"""The simulated models and judges, and the text of their replies, the same for all APIs. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aif.core.errors import BadInput
from aif.core.types import Message, digest, fraction
from aif.simulator import completions, judgements
from aif.simulator.text_analysis import count_tokens

MESSAGE_OVERHEAD = 4  # tokens that a chat template adds around each message


@dataclass(frozen=True, slots=True)
class SimulatedModels:
    """The models and judges that the simulator serves.

    models: quality by name. *Quality*, 0 to 1, decides how well a model writes.
    judges: noise by name. *Noise*, 0 to 1, is the standard deviation of a judge's ratings as a share of the scale.
    seed: seed of the random choices in replies, and of each quality that isn't given.
    open: whether any other name is served too.

    A name without a given noise judges with 0.1. A name without a given quality writes with 0.2 to 0.9, by a hash of
    seed and name. Raises BadInput for values outside 0 to 1.
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
        """Return whether requests for the model `name` are answered; others get a 404."""
        return self.open or name in self.models or name in self.judges

    def quality(self, name: str) -> float:
        """Return how well the model `name` writes, from 0 to 1."""
        return self.models.get(name, 0.2 + 0.7 * fraction(self.seed, name))

    def noise(self, name: str) -> float:
        """Return the noise with which `name` judges: the standard deviation of its ratings, as a share of the scale."""
        return self.judges.get(name, 0.1)


class RefusedError(Exception):
    """Raised if a request is to be answered with an error.

    status: HTTP status, such as 429.
    message: the text for the client.
    code: OpenAI's name of the error, such as "model_not_found"; Anthropic's API has none.
    param: the invalid key of the request, for OpenAI's API alone.
    headers: HTTP headers of the reply.
    """

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
    """A parsed and validated request, the same for all APIs.

    model: name of the requested model.
    messages: the conversation, with the system prompt as a message.
    max_tokens: limit on the reply, in tokens; None for no limit.
    schema: JSON schema that the reply must fit; None for free text.
    settings: temperature, top_p and seed; empty at temperature 0. With messages and model, they seed the random choices
        in the reply.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    schema: Mapping[str, Any] | None
    settings: tuple[Any, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens in the prompt, with those that a chat template adds."""
        return sum(MESSAGE_OVERHEAD + count_tokens(message.content) for message in self.messages)


def reply_text(models: SimulatedModels, request: ModelRequest) -> str:
    """Return the full text of the reply, not yet cut at max_tokens: a judgement for a judging request; minimal JSON for
    any other request with a schema; else a completion."""
    seed = int(digest([models.seed, request.model, request.settings])[:16], 16)
    if judgements.parse_request(request.messages) is not None:
        return judgements.write_judgement(request.messages, request.schema, models.noise(request.model), seed)
    if request.schema is not None:
        return judgements.minimal_instance(request.schema)
    return completions.write_completion(request.messages, models.quality(request.model), seed)


def number_field(
    body: Mapping[str, Any], name: str, low: int, high: int, whole: bool = False, default: Any = None
) -> Any:
    """Return the number under the key `name` of a request body.

    low, high: the smallest and the largest number allowed.
    whole: whether only integers are allowed.
    default: returned if the key is absent or its value is null.

    Raises RefusedError (400) if the value isn't such a number.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "an integer" if whole else "a number"
        raise RefusedError(400, f"Invalid value for '{name}': expected {kind} from {low} to {high}.", param=name)
    return value


def content_text(content: Any) -> str | None:
    """Return the text of a message's `content`, which is a string or a list of text parts. None if it is something
    else, or a part is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else None
