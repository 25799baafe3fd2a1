"""The tokenizer of a model that vLLM serves, where it is on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aif.config.sections import DeclaredEndpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(one: DeclaredEndpoint) -> "Tokenizer | None":
    """The tokenizer of a model that vLLM serves, from its local folder or the Hub's cache; nothing is downloaded."""
    if one.provider != "vllm":
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from tokenizers import Tokenizer

    folder = Path(os.path.expanduser(one.served_name))  # noqa: PTH111 - `~` may be nobody's
    file: object = folder / "tokenizer.json"
    if not folder.is_dir():
        try:
            file = try_to_load_from_cache(one.served_name, "tokenizer.json", revision=one.revision)
        except HFValidationError:  # a name of the server's own, and no repository's
            return None
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return None
    return Tokenizer.from_file(str(file))
