"""List all keys of a file that pydantic models describe."""

import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def parts(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models inside an annotation: X, X | None, list[X], dict[str, X], Annotated[…]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) or isinstance(annotation, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from parts(inner)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield dotted keys without the names of entries, as `models.launch.gpus`, with their fields."""
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}", info
        for part in parts(info.annotation):
            yield from keys(part, f"{prefix}{name}.")
