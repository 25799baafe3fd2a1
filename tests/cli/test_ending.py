"""How a run's end is reported."""

import pytest

from aif.cli.ending import exit_if_cut_short
from aif.core.errors import ProviderRefused
from aif.engine.run import CallingResult

NO_KEY = "HTTP 401: Incorrect API key\n    → set the key's environment variable"


def test_endpoints_that_refuse_alike_are_reported_together() -> None:
    refused = {f"model-{n}": NO_KEY for n in range(3)} | {"judge": "HTTP 404: no such model"}
    with pytest.raises(ProviderRefused) as caught:
        exit_if_cut_short("aif run a.yaml", CallingResult(True, refused, None))
    assert str(caught.value).splitlines() == [
        "stopped; fix this and rerun `aif run a.yaml`:",
        "  model-0, model-1, model-2: for example: HTTP 401: Incorrect API key",
        "    → set the key's environment variable",
        "  judge: HTTP 404: no such model",
    ]
