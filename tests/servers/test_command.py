"""The command and the environment of a server, the GPUs there are, and what a pipeline of another user may do."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.config.pipeline import parse
from aif.core.errors import BadInput
from aif.servers.command import (
    LaunchedEndpoint,
    adapter_path,
    available_gpus,
    check_owner,
    launched_endpoints,
    programs_run,
    secret_destinations,
    server_command,
    server_environment,
)
from aif.servers.placement import CPU


def entry(folder: Path, launch: str, more: str = "") -> LaunchedEndpoint:
    text = f"""
name: t
prompts: [{{file: p.jsonl}}]
completions: {{per_prompt: 2}}
models: {{a: {{provider: vllm, samples: 2, launch: {launch}{more}}}}}
judges: {{j: {{provider: simulator}}}}
"""
    (one,) = launched_endpoints(parse(text, folder / "pipeline.yaml"), [("completion", "a")])
    return one


@pytest.fixture
def smi(tmp_path: Path) -> Mapping[str, str]:
    """An environment whose nvidia-smi tells of three GPUs, or fails."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\n[ -z "$BROKEN" ] || { echo "Driver/library version mismatch"; exit 18; }\necho 0; echo 1; echo 2\n'
    )
    program.chmod(0o755)
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("0,1", ("0", "1")),
        (" 2 , GPU-5f3a,MIG-11 ", ("2", "GPU-5f3a", "MIG-11")),
        ("", CPU),
        ("-1", CPU),
        ("3,-1,4", ("3",)),  # CUDA stops at the first that is none
        ("NoDevFiles", ("NoDevFiles",)),
        ("1,1", ("1",)),
    ],
)
def test_gpus_are_those_in_cuda_visible_devices(smi: Mapping[str, str], named: str, found: tuple[str, ...]) -> None:
    assert available_gpus({**smi, "CUDA_VISIBLE_DEVICES": named}) == found


def test_gpus_are_else_those_that_nvidia_smi_lists(smi: Mapping[str, str], tmp_path: Path) -> None:
    broken = (tmp_path / "nvidia-smi").read_text()
    assert available_gpus(smi) == ("0", "1", "2")
    assert available_gpus({"PATH": str(tmp_path / "nothing")}) == CPU
    said = tmp_path / "nvidia-smi"
    said.write_text("#!/bin/sh\nprintf 'Warnung: Ger\\344t\\n'; echo 1; echo No devices were found\n")
    assert available_gpus(smi) == ("1",)
    said.write_text("#!/bin/sh\necho No devices were found\n")
    assert available_gpus(smi) == CPU
    said.write_text(broken)
    with pytest.raises(
        BadInput, match=r"nvidia-smi can't list the GPUs \(Driver/library version mismatch\); fix the driver"
    ):
        available_gpus({**smi, "BROKEN": "1"})


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "OPENAI_API_KEY",
                "OPENAI_ORG",
                "ANTHROPIC_X",
                "X_API_KEY",
                "VLLM_API_KEY",
                "MY_PASS",
                "AWS_SECRET_ACCESS_KEY",
                "GITHUB_TOKEN",
                "MISTRAL_KEY",
                "HF_SECRET",
                "DB_PASSWORD",
                "X_CREDENTIALS",
            ]
        ),
        st.just("secret"),
        min_size=1,
    )
)
def test_no_key_reaches_a_server(keys: dict[str, str]) -> None:
    one = entry(Path(), "{model: org/m}")
    kept = server_environment(
        one, {**keys, "HF_TOKEN": "t", "HF_HOME": "h", "PATH": "p", "TOKENIZERS_PARALLELISM": "1"}, {"MY_PASS"}, ("0",)
    )

    assert "secret" not in kept.values()
    assert {"HF_TOKEN": "t", "HF_HOME": "h", "PATH": "p", "TOKENIZERS_PARALLELISM": "1"}.items() <= kept.items()


def test_launch_env_overrides_the_environment(tmp_path: Path) -> None:
    one = entry(tmp_path, "{model: org/m, env: {VLLM_LOGGING_LEVEL: DEBUG}}")

    assert server_environment(one, {"VLLM_LOGGING_LEVEL": "INFO"}, ())["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_gpu_numbers_of_nvidia_smi_use_its_order_and_others_stay_as_they_are(tmp_path: Path) -> None:
    one = entry(tmp_path, "{model: org/m}")

    assert server_environment(one, {}, (), ("1", "2"))["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in server_environment(one, {"CUDA_VISIBLE_DEVICES": "1,2"}, (), ("1",))
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(one, {}, (), CPU)


def test_the_command_has_the_settings_of_the_pipeline(tmp_path: Path) -> None:
    one = entry(tmp_path, "{model: org/m, gpus: 2, max_model_len: 512, args: [--dtype, half]}", ", revision: v1")

    assert server_command(one, 8100)[1:] == [
        "-m", "vllm.entrypoints.openai.api_server", "--model", "org/m", "--served-model-name", "org/m", "--host",
        "127.0.0.1", "--port", "8100", "--generation-config", "vllm", "--tensor-parallel-size", "2", "--max-model-len",
        "512", "--revision", "v1", "--dtype", "half",
    ]  # fmt: skip


def test_the_window_of_the_entry_is_the_servers_too(tmp_path: Path) -> None:
    said = "--max-model-len 512"
    assert said in " ".join(server_command(entry(tmp_path, "{model: org/m}", ", max_model_len: 512"), 1))
    assert said in " ".join(
        server_command(entry(tmp_path, "{model: org/m, max_model_len: 512}", ", max_model_len: 512"), 1)
    )


def test_a_folder_beside_the_pipeline_file_comes_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "org" / "m").mkdir(parents=True)
    one = entry(tmp_path, "{model: org/m, python: env/bin/python}", ", revision: v1, model: short")

    assert one.model == str(tmp_path / "org" / "m")
    assert "--revision" not in server_command(one, 1)
    assert server_command(one, 1)[6] == "short"
    assert entry(tmp_path, "{model: org/n}").model == "org/n"


@pytest.mark.parametrize(("python", "meant"), [("python3.12", "python3.12"), ("env/bin/python", "{}/env/bin/python")])
def test_python_is_searched_beside_the_pipeline_file_or_in_path(tmp_path: Path, python: str, meant: str) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").touch()

    assert entry(tmp_path, f"{{model: org/m, python: {python}}}").python == meant.format(tmp_path)


def test_only_endpoints_with_work_are_launched(tmp_path: Path) -> None:
    made: Any = parse(
        "{name: t, prompts: [{file: p.jsonl}], completions: {per_prompt: 2}, judges: {j: {provider: simulator}}, "
        "models: {a: {provider: vllm, samples: 2, launch: {model: ./gone}}}}",
        tmp_path / "pipeline.yaml",
    )
    assert launched_endpoints(made, []) == []


@pytest.mark.parametrize(
    "word",
    [
        "--host",
        "--host=0.0.0.0",
        "--served_model_name=x",
        "--root_path=/x",
        "--ho=0.0.0.0",
        "--por",
        "--served_m=x",
        "--config",
        "--conf=x",
    ],
)
def test_arguments_that_aif_sets_are_refused_in_any_spelling(tmp_path: Path, word: str) -> None:
    with pytest.raises(BadInput, match="is set by aif"):
        entry(tmp_path, f"{{model: org/m, args: ['{word}']}}")


@pytest.mark.parametrize("word", ["--api-key", "--api_key=k", "--hf_token=k", "--api=k", "--hf-t=k"])
def test_api_key_is_refused_as_an_argument(tmp_path: Path, word: str) -> None:
    with pytest.raises(BadInput, match="an API key must not be in the file") as caught:
        entry(tmp_path, f"{{model: org/m, args: ['{word}']}}")
    assert "=k" not in str(caught.value)


PAID = """
name: t
prompts: [{file: p.jsonl}]
completions: {per_prompt: 2}
models:
  a: {provider: vllm, launch: {model: org/m, python: ./tool}}
  b: {provider: vllm, launch: {model: org/n, python: ./tool}}
  c: {provider: vllm, launch: {model: org/o}}
judges:
  j: {provider: openai, base_url: http://judge.example.com/v1, api_key_env: MINE, extra_headers: {x-key: {env: OTHER}}}
  k: {provider: openai, base_url: http://10.0.0.1:8000/v1, api_key_env: MINE}
  l: {provider: openai, api_key_env: MINE}
"""


def test_programs_and_secret_destinations_are_listed(tmp_path: Path) -> None:
    (tmp_path / "tool").touch()
    made = parse(PAID, tmp_path / "pipeline.yaml")
    way = "which anybody on the way can read; give an address with https"
    open_to_all = f"j: sends MINE, OTHER to judge.example.com by http, {way}"

    assert list(programs_run(made)) == [f"launch.python runs {tmp_path / 'tool'}"]
    assert list(secret_destinations(made)) == [open_to_all, "k: sends MINE to 10.0.0.1:8000"]
    assert list(secret_destinations(made, unsafe=True)) == [open_to_all]


def test_a_pipeline_of_another_user_runs_nothing_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PAID)
    made, harmless = parse(PAID, file), parse(SIMULATED, file)
    check_owner(made)
    file.chmod(0o666)
    with pytest.raises(BadInput, match=r"everybody may write to .*c: starts servers; j: sends MINE, OTHER to .*a copy"):
        check_owner(made)
    check_owner(harmless)
    check_owner(parse(PAID, tmp_path / "no-file.yaml"))
    file.chmod(0o777)  # as all files are on a disk of Windows
    check_owner(made)

    file.chmod(0o664)
    monkeypatch.setattr("aif.core.file_permissions.os.geteuid", lambda: 4001)
    monkeypatch.setattr(
        "aif.core.file_permissions.Path.stat",
        lambda one, **_: os.stat_result((0o100644, 0, 0, 0, MAKER[one == file], *[0] * 5)),
    )
    monkeypatch.setattr("aif.core.file_permissions.Path.is_file", lambda one: True)
    with pytest.raises(BadInput, match=r"pipeline.yaml belongs to 4002, and you may not want what it does \(launch"):
        check_owner(made)
    monkeypatch.setattr("aif.core.file_permissions.os.geteuid", lambda: 0)  # as in a container
    check_owner(made)


# who wrote aif, and who the file
MAKER = (4003, 4002)

SIMULATED = """
name: t
prompts: [{file: p.jsonl}]
completions: {per_prompt: 2}
models: {a: {provider: simulator, samples: 2}}
judges: {j: {provider: simulator}}
"""


@pytest.mark.parametrize("word", ["--hf-overrides", "--model-impl=vllm", "--hostile", "-tp", "--"])
def test_similar_arguments_are_not_refused(tmp_path: Path, word: str) -> None:
    assert entry(tmp_path, f"{{model: org/m, args: ['{word}']}}").launch.args == (word,)


def test_launch_env_may_not_set_the_gpus(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"CUDA_VISIBLE_DEVICES: aif assigns GPUs to each server; set it for aif itself"):
        entry(tmp_path, "{model: org/m, env: {CUDA_VISIBLE_DEVICES: 1}}")


@pytest.mark.parametrize(
    ("modules", "path"),
    [
        ("x=p/a, a=p=b", "p=b"),
        ('\'{"name": "a", "path": "p", "base_model_name": "b"}\'', "p"),
        ("x=p", None),
        ("'{\"name'", None),
        ("'[{\"name\": 1}]'", None),
    ],
)
def test_an_adapter_is_found_by_its_name(tmp_path: Path, modules: str, path: str | None) -> None:
    one = entry(tmp_path, f"{{model: org/m, args: [--lora-modules, {modules}, --dtype, half]}}", ", model: a")

    assert adapter_path(one.entry) == path
    assert server_command(one, 1)[6] == ("a.base" if path else "a")


def test_telemetry_is_off_unless_launch_env_turns_it_on(tmp_path: Path) -> None:
    kept = server_environment(entry(tmp_path, "{model: org/m}"), {}, ())

    assert [kept[name] for name in ("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY")] == ["1"] * 3
    assert server_environment(entry(tmp_path, "{model: org/m, env: {DO_NOT_TRACK: 0}}"), {}, ())["DO_NOT_TRACK"] == "0"
