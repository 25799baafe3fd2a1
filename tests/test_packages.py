"""What the packages of aif may load and import. `make lint` holds the order of imports; see `[tool.importlinter]`."""

import subprocess
import sys

import pytest

HEAVY = ("rich", "typer", "duckdb", "datasets", "huggingface_hub", "openai", "anthropic", "pyarrow", "numpy", "aiohttp")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("aif", ()),
        ("aif.core.types", ()),
        ("aif.config.pipeline", ()),
        ("aif.pairing.pairs", ("numpy", "pyarrow")),
        ("aif.cli.views.status", ("rich",)),
    ],
)
def test_a_module_loads_no_heavy_library_that_it_does_not_need(module: str, allowed: tuple[str, ...]) -> None:
    asked = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= set(allowed)
