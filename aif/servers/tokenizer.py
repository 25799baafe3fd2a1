"""The tokenizer of a model that vLLM serves, if its files are on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aif.config.sections import DeclaredEndpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def local_tokenizer(endpoint: DeclaredEndpoint) -> "Tokenizer | None":
    """Load a vLLM model's tokenizer from its local folder or the Hub's cache; None if neither has it.

    Downloads nothing.
    """
    if endpoint.provider != "vllm":
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from tokenizers import Tokenizer

    folder = Path(os.path.expanduser(endpoint.served_name))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    file: object = folder / "tokenizer.json"
    if not folder.is_dir():
        try:
            file = try_to_load_from_cache(endpoint.served_name, "tokenizer.json", revision=endpoint.revision)
        except HFValidationError:  # a name that the server made up, not a repository's
            return None
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return None
    return Tokenizer.from_file(str(file))
