"""Downloads of a model's files from a Hub on loopback: once, without duplicates, with plain messages for failures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aif.servers import download
from tests.support.hub import echoing
from tests.support.model_hub import COMMIT


def fetched(folder: Path, hub: str, *words: str, offline: bool = False) -> tuple[int, str]:
    environ = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1" if offline else "0"}
    told = subprocess.run(
        [sys.executable, "-P", str(download.__file__), *words], env=environ, capture_output=True, text=True, timeout=60
    )
    return told.returncode, told.stdout


def names(folder: Path) -> set[str]:
    root = folder.glob(f"hub/*/snapshots/{COMMIT}/**/*")
    return {file.name for file in root if file.is_file()}


def test_files_are_downloaded_once_without_duplicates(tmp_path: Path, hub: str) -> None:
    assert fetched(tmp_path, hub, "org/small", "") == (0, "downloading org/small, 0.0 GB\n")
    assert names(tmp_path) == {"config.json", "model.safetensors"}
    assert fetched(tmp_path, hub, "org/small", "") == (0, "")
    assert fetched(tmp_path, hub, "org/small", "", offline=True) == (0, "")


def test_weights_in_old_formats_are_downloaded_if_there_are_no_others(tmp_path: Path, hub: str) -> None:
    assert fetched(tmp_path, hub, "org/old", COMMIT)[0] == 0
    assert names(tmp_path) == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize("option", [[], ["--check"]])
@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        (
            "org/gated",
            "",
            "org/gated is gated: accept its licence at https://huggingface.co/org/gated, and set HF_TOKEN",
        ),
        (
            "org/none",
            "",
            "org/none is neither a folder here nor a model on the Hub that this token can see; check launch.model",
        ),
        ("no/model/at/all", "", "no/model/at/all is neither a folder here nor a model on the Hub"),
        ("org/small", "v9", "org/small has no revision 'v9' on the Hub"),
    ],
)
def test_a_failed_download_is_reported_with_its_fix(
    tmp_path: Path, hub: str, option: list[str], model: str, revision: str, said: str
) -> None:
    code, told = fetched(tmp_path, hub, *option, model, revision)

    assert code == 1
    assert told.startswith(said)
    assert told.count("\n") == 1


@pytest.mark.parametrize("model", ["org/small", "org/mistral"])
def test_a_check_downloads_no_weights(tmp_path: Path, hub: str, model: str) -> None:
    assert fetched(tmp_path, hub, "--check", model, "") == (0, "")
    assert names(tmp_path) <= {"config.json"}


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_offline_with_an_incomplete_cache_is_reported(tmp_path: Path, hub: str, option: list[str]) -> None:
    code, told = fetched(tmp_path, hub, *option, "org/small", "", offline=True)

    assert code == 1
    assert told.startswith(
        "org/small is not complete in the Hub's cache, and the Hub can't be reached; check HF_HUB_OFFLINE"
    )


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_a_token_repeated_by_the_hub_is_in_no_message(
    tmp_path: Path, option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_f3a9c51d2e8b7064")
    with echoing() as (address, seen):
        code, told = fetched(tmp_path, address, *option, "org/small", "")

    assert code == 1
    assert "Bearer hf_f3a9c51d2e8b7064" in seen
    assert "hf_f3a9" not in told
