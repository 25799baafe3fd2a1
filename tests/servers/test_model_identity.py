"""Which files and arguments identify a launched model, when files are read again, and when a server has other files."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from aif.config.pipeline import Pipeline, parse
from aif.core.errors import BadInput
from aif.core.types import digest
from aif.servers import model_files, model_identity
from aif.servers.command import download_command, launched_endpoints, server_command
from aif.servers.model_files import loaded_files
from aif.servers.model_identity import ModelChange, base_option, identify_models, identity_arguments, loads_other_files
from tests.support.model_hub import COMMIT, FILES

BASE = {
    "config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}", "chat_template.jinja": "{{ a }}",
}  # fmt: skip


def model(folder: Path, **files: str) -> Path:
    """A checkpoint; in the names of files given, `_` before the last part stands for a dot."""
    for name, content in (BASE | {name.replace("__", "."): content for name, content in files.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def pipeline(folder: Path, launch: dict[str, Any], **entry: Any) -> Pipeline:
    models = {"a": {"provider": "vllm", "samples": 2, "model": "policy", "launch": launch, **entry}}
    made = {
        "name": "t", "prompts": [{"file": "p.jsonl"}], "completions": {"per_prompt": 2}, "models": models,
        "judges": {"j": {"provider": "simulator"}},
    }  # fmt: skip
    return parse(json.dumps(made), folder / "pipeline.yaml")


class Past(list[Any]):
    """What is on record, and what was told; each look by who is going to ask adds to both."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def look(self, one: Pipeline) -> str:
        """The identity, once what is there now was looked at."""
        self.seen: list[ModelChange] = identify_models(one, self, self.told.append)
        self += [found.record["content"] for found in self.seen]
        return one.models["a"].identity

    def read(self, one: Pipeline) -> str:
        """The identity by the records alone."""
        assert identify_models(one, self) == []
        return one.models["a"].identity


@pytest.fixture
def past() -> Past:
    return Past()


def test_the_first_content_keeps_the_plain_name_and_other_content_is_another_model(tmp_path: Path, past: Past) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    assert past.look(one) == "policy"
    assert past.seen[0].changes == ""
    assert past.look(one) == "policy"
    assert past.seen == []

    model(tmp_path / "m", model__safetensors="trained")
    other = past.look(one)
    assert other == f"policy+sha256:{one.models['a'].served.digest[:12]}"  # type: ignore[union-attr]
    assert past.seen[0].changes == "model.safetensors (9a129038 → 33fbcd84)"
    assert past.read(one) == other

    model(tmp_path / "m")
    assert past.look(one) == "policy"
    assert past.read(one) == "policy"
    assert len(past) == 3
    past.reverse()  # as a store gives them
    assert past.read(one) == "policy"


def test_reasoning_tags_depend_on_the_declared_name(tmp_path: Path, past: Past) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))}, reasoning_tags="none")
    tags = one.reasoning_tags
    past.look(one)
    model(tmp_path / "m", model__safetensors="trained")
    assert past.look(one) != "policy"
    assert one.reasoning_tags == tags


def test_another_folder_is_another_model_unless_its_content_is_the_same(tmp_path: Path, past: Past) -> None:
    first, same = model(tmp_path / "ckpt_1000"), model(tmp_path / "elsewhere")
    assert past.look(pipeline(tmp_path, {"model": str(first)})) == "policy"
    assert past.look(pipeline(tmp_path, {"model": str(same)})) == "policy"
    second = pipeline(tmp_path, {"model": str(model(tmp_path / "ckpt_2000", model__safetensors="trained"))})
    assert past.read(second).startswith("policy+sha256:")
    assert past.look(second).startswith("policy+sha256:")


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "LICENSE", "figure.png", "training_args.bin", "optimizer.pt", "trainer_state.json",
        "rng_state.pth", "original/consolidated.safetensors", "pytorch_model.bin", "eval_results.json", "modeling_x.py",
    ],
)  # fmt: skip
def test_files_that_vllm_does_not_load_change_nothing(tmp_path: Path, past: Past, name: str) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    model(tmp_path / "m", **{name: "new"})

    past.look(one)
    assert past.seen == []


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "model-00002-of-00002.safetensors", "consolidated.safetensors",
        "model.safetensors.index.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
        "merges.txt", "vocab.json", "qwen.tiktoken", "chat_template.jinja", "chat_template.json", "tekken.json",
        "additional_chat_templates/tool.jinja", "quantize_config.json", "hf_quant_config.json", "params.json",
    ],
)  # fmt: skip
def test_files_that_vllm_loads_change_the_identity(tmp_path: Path, past: Past, name: str) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    model(tmp_path / "m", **{name: "new"})

    assert past.look(one).startswith("policy+sha256:")
    assert name in past.seen[0].changes


def test_weights_in_old_formats_count_without_safetensors_or_with_load_format() -> None:
    names = ["pytorch_model.bin", "m.pt", "training_args.bin", "scheduler.pt", "x.py"]
    assert loaded_files(names, ()) == ["m.pt", "pytorch_model.bin"]
    assert loaded_files([*names, "model.safetensors"], ()) == ["model.safetensors"]
    assert loaded_files([*names, "model.safetensors"], ["--load-format"]) == [
        "m.pt",
        "model.safetensors",
        "pytorch_model.bin",
    ]
    assert loaded_files([*names, "model.safetensors"], ["--trust-remote-code"]) == ["model.safetensors", "x.py"]


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (["--quantization", "fp8"], {"--quantization": "fp8"}),
        (["-q", "fp8"], {"-q": "fp8"}),
        (["--kv_cache_dtype=fp8"], {"--kv-cache-dtype": "fp8"}),
        (["--dtype", "half", "--dtype", "bfloat16"], {"--dtype": "bfloat16"}),
        (["--hf-overrides.rope_theta", "-1"], {"--hf-overrides.rope-theta": "-1"}),
        (["--override-generation-config", '{"top_k": 5}'], {"--override-generation-config": '{"top_k":5}'}),
        (["--hf-overrides", '{"b": {"x":1},\n "a": 2}'], {"--hf-overrides": '{"a":2,"b":{"x":1}}'}),
        (["--chat-template", "{{ a }}"], {"--chat-template": "{{ a }}"}),
        (["--no-trust-remote-code"], {"--no-trust-remote-code": ""}),
        (["--tensor-parallel-size", "4", "-tp", "2", "-O3", "--max-num-seqs=8", "--seed", "1"], {}),
        (["--gpu-memory-utilization", ".9", "--enforce-eager", "--no-enable-prefix-caching", "--max-model-len=9"], {}),
        (["--speculative-config", '{"method": "ngram"}', "--enable-lora", "--lora-modules", "a=b", "c=d"], {}),
        (["--invented", "x", "y"], {"--invented": digest("x\0y")}),
    ],
)
def test_arguments_that_change_the_text_are_part_of_the_identity(args: list[str], counts: dict[str, str]) -> None:
    assert identity_arguments(args) == counts


def test_no_argument_is_in_both_lists() -> None:
    known_args = [
        "--dtype",
        "--model-impl",
        "--lora-dtype",
        "--load-format",
        "--max-model-len",
        "--lora-modules",
        "--seed",
    ]
    for name in known_args:
        assert bool(model_identity._OUTPUT_OPTIONS.fullmatch(base_option(name))) != bool(
            model_identity._RUNTIME_OPTIONS.fullmatch(base_option(name))
        ), name


def test_an_unknown_argument_counts_and_is_reported_once(tmp_path: Path, past: Past) -> None:
    folder = str(model(tmp_path / "m"))
    one = pipeline(tmp_path, {"model": folder, "args": ["--invented", "1", "--dtype", "half", "--max-num-seqs", "9"]})
    past.look(one)
    assert [line for line in past.told if "--invented" in line] == past.told
    assert len(past.told) == 1
    past.look(one)
    assert len(past.told) == 1

    moved = pipeline(tmp_path, {"model": folder, "args": ["--dtype", "half", "--invented=1", "--max-num-seqs", "12"]})
    assert past.look(moved) == "policy"
    other = pipeline(tmp_path, {"model": folder, "args": ["--dtype", "float32", "--invented", "1"]})
    assert past.look(other).startswith("policy+sha256:")
    assert past.seen[0].changes == "--dtype ('half' → 'float32')"
    assert len(past.told) == 1


def test_a_file_or_folder_in_an_argument_counts_by_its_content(tmp_path: Path, past: Past) -> None:
    template, words = tmp_path / "t.jinja", model(tmp_path / "tokenizer")
    template.write_text("one")
    args = ["--chat-template", str(template), "--tokenizer", str(words)]
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m")), "args": args})
    past.look(one)
    template.write_text("two")
    assert "--chat-template" in (past.look(one), past.seen[0].changes)[1]
    model(words, tokenizer__json="[]")
    assert "--tokenizer tokenizer.json" in (past.look(one), past.seen[0].changes)[1]
    words.rename(tmp_path / "moved")
    past.look(pipeline(tmp_path, {"model": str(tmp_path / "m"), "args": [*args[:-1], str(tmp_path / "moved")]}))
    assert past.seen == []
    assert "{{ 'x' }}" * 999 in identity_arguments(["--chat-template", "{{ 'x' }}" * 999]).values()
    past.look(pipeline(tmp_path, {"model": str(tmp_path / "m"), "args": ["--chat-template", "{{ 'x' }}" * 999]}))


@pytest.mark.parametrize("syntax", ["name=path", "json"])
def test_only_the_adapter_that_calls_use_counts(tmp_path: Path, past: Past, syntax: str) -> None:
    for name in ("policy", "critic"):
        model(tmp_path / name, adapter_config__json="{}", adapter_model__safetensors=name)
    modules = [
        f"{name}={tmp_path / name}"
        if syntax == "name=path"
        else json.dumps({"name": name, "path": str(tmp_path / name)})
        for name in ("policy", "critic")
    ]
    one = pipeline(
        tmp_path, {"model": str(model(tmp_path / "m")), "args": ["--enable-lora", "--lora-modules", *modules]}
    )
    past.look(one)
    model(tmp_path / "critic", adapter_model__safetensors="trained")
    assert past.look(one) == "policy"
    model(tmp_path / "policy", adapter_model__safetensors="trained")
    assert past.look(one).startswith("policy+sha256:")
    assert past.seen[0].changes.startswith("adapter adapter_model.safetensors")


def test_an_adapter_on_the_hub_counts_by_its_name(tmp_path: Path, past: Past) -> None:
    folder = str(model(tmp_path / "m"))
    past.look(pipeline(tmp_path, {"model": folder, "args": ["--lora-modules", "policy=org/a"]}))
    one = pipeline(tmp_path, {"model": folder, "args": ["--lora-modules", "policy=org/b", "x=org/c"]})

    assert past.look(one).startswith("policy+sha256:")
    assert past.seen[0].changes == "adapter ('org/a' → 'org/b')"


def test_files_with_equal_size_and_mtime_differ_and_unchanged_files_are_not_read_again(
    tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_SETTLED_S", -1.0)
    read: list[str] = []
    real = model_files._sha256

    def noted(path: Path, over: Event) -> str:
        read.append(path.name)
        return real(path, over)

    monkeypatch.setattr(model_files, "_sha256", noted)
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    assert len(read) == len(BASE)
    past.look(one)
    assert len(read) == len(BASE)

    weights = tmp_path / "m" / "model.safetensors"
    stat = weights.stat()
    time.sleep(0.02)
    weights.write_text("WEIGHTS")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_size == stat.st_size
    assert past.look(one).startswith("policy+sha256:")
    assert read[len(BASE) :] == ["model.safetensors"]


def test_a_cached_file_that_is_now_forbidden_does_no_harm(
    tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_SETTLED_S", -1.0)
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    real = os.stat
    gone = str(tmp_path / "m" / "tokenizer.json")

    def refused(path: Any, **options: Any) -> os.stat_result:
        if str(path) == gone:
            raise PermissionError(13, "Permission denied", gone)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", refused)
    model_files._write_cache({})
    assert gone not in model_files._read_cache()
    assert len(model_files._read_cache()) == len(BASE) - 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 1}', b'{"x": [1, 2, 3, 4]}', b"\xff"])
def test_a_damaged_cache_is_ignored(tmp_path: Path, past: Past, content: bytes) -> None:
    place = model_files._cache_file()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)

    assert past.look(pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})) == "policy"
    assert len(past[0]["parts"]) == len(BASE)


def test_a_cache_that_can_not_be_written_is_no_error(
    tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(model_files, "_SETTLED_S", -1.0)

    assert past.look(pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})) == "policy"


def test_without_a_home_folder_there_is_no_cache(tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    monkeypatch.setattr(model_files, "_SETTLED_S", -1.0)
    monkeypatch.chdir(tmp_path)

    assert past.look(pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})) == "policy"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_file_changed_a_moment_ago_is_not_cached(tmp_path: Path, past: Past) -> None:
    past.look(pipeline(tmp_path, {"model": str(model(tmp_path / "m"))}))

    assert not model_files._cache_file().exists()


def test_a_file_that_can_not_be_read_is_reported(tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, over: Event) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(model_files, "_sha256", refused)
    with pytest.raises(BadInput, match=r"a: .*can't be read: Permission denied"):
        past.look(pipeline(tmp_path, {"model": str(model(tmp_path / "m"))}))


def test_a_deleted_folder_keeps_its_last_identity(tmp_path: Path, past: Past) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    model(tmp_path / "m", model__safetensors="trained")
    other = past.look(one)
    (tmp_path / "m").rename(tmp_path / "away")

    assert past.look(one) == past.read(one) == other
    assert past.read(pipeline(tmp_path, {"model": str(tmp_path / "never")})) == "policy+sha256:?"


def test_two_entries_of_one_name_seen_together_both_keep_the_plain_name(tmp_path: Path) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    launch = {"model": str(tmp_path / "m"), "args": ["--dtype", "half"]}
    two = pipeline(tmp_path, launch, temperature=0.5)
    both = one.model_copy(update={"models": {"a": one.models["a"], "b": two.models["a"].model_copy()}})
    both.models["b"]._name = "b"
    past: list[Any] = []
    for _ in range(2):
        past += [found.record["content"] for found in identify_models(both, past, print)]
        assert [entry.identity for entry in both.models.values()] == ["policy", "policy"]
    assert [row["n"] for row in past] == [0, 0]


# --- models on the Hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def online(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The Hub on loopback, asked by processes of their own, with a cache of its own."""
    for name, value in {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_model_on_the_hub_is_identified_by_its_files_without_a_download(
    tmp_path: Path, past: Past, online: pytest.MonkeyPatch
) -> None:
    one = pipeline(tmp_path, {"model": "org/small"})
    assert past.look(one) == "policy"
    assert set(past[0]["parts"]) == {"config.json", "model.safetensors"}
    assert past[0]["commit"] == COMMIT
    assert not list((tmp_path / "hf").glob("hub/*/blobs/*"))

    online.setitem(FILES["org/small"], "README.md", b"new")
    past.look(one)
    assert past.seen == []
    assert not list((tmp_path / "hf").glob("hub/*/refs/*")), "who is offline goes by what the cache names"
    past[0]["commit"] = "another"  # that commit is not looked at again
    past.look(one)
    assert past.seen == []
    online.setitem(FILES["org/small"], "model.safetensors", b"trained")
    assert past.look(one).startswith("policy+sha256:")


def test_offline_the_cache_identifies_the_model_and_else_the_last_record(
    tmp_path: Path, past: Past, online: pytest.MonkeyPatch
) -> None:
    one = pipeline(tmp_path, {"model": "org/small"})
    past.look(one)
    online.setenv("HF_HUB_OFFLINE", "1")
    assert past.look(one) == "policy"
    assert past.seen == []

    online.setenv("HF_HUB_OFFLINE", "0")
    (found,) = launched_endpoints(one, [("completion", "a")])
    assert server_command(found, 1)[-2:] == ["--revision", COMMIT]
    subprocess.run(download_command(found), check=True)
    online.setenv("HF_HUB_OFFLINE", "1")
    past[0]["commit"] = "another"
    past.look(one)
    assert past.seen == []
    assert one.models["a"].served.commit == COMMIT  # type: ignore[union-attr]
    (snapshot,) = (tmp_path / "hf").glob("hub/*/snapshots/*")
    assert past.look(pipeline(tmp_path, {"model": str(snapshot)})) == "policy"

    past[:1] = [past[0] | {"commit": COMMIT}]
    for link in snapshot.iterdir():  # as on a file system without links, where no name tells a digest
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    past.look(one)
    assert past.seen == []


def test_ctrl_c_stops_the_reading_of_files() -> None:
    began = time.monotonic()
    Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        model_files._read_all([Path("/dev/zero")] * 3, Event())
    assert time.monotonic() - began < 10


def test_the_reading_of_files_can_be_stopped_and_nothing_partial_is_cached(
    tmp_path: Path, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pipeline(tmp_path, {"model": str(model(tmp_path / "m"))})
    past.look(one)
    monkeypatch.setattr(model_files, "_SETTLED_S", -1.0)
    (found,) = launched_endpoints(one, [("completion", "a")])
    over = Event()
    over.set()

    with pytest.raises(BadInput, match="can't be read: Operation canceled"):
        loads_other_files(found, over)
    assert model_files._read_cache() == {}


def test_a_home_folder_of_an_unknown_user_is_reported(tmp_path: Path, past: Past) -> None:
    for launch in ({"model": "~nobody-here/m"}, {"model": "m", "python": "~nobody-here/python"}):
        with pytest.raises(BadInput, match="no such home folder"):
            launched_endpoints(pipeline(tmp_path, launch), [("completion", "a")])
    folder = str(model(tmp_path / "m"))
    past.look(pipeline(tmp_path, {"model": folder, "args": ["--lora-modules", "policy=~nobody-here/a"]}))
    assert past[0]["parts"]["adapter"] == "~nobody-here/a"


def test_a_server_is_used_only_if_its_files_are_those_of_the_plan(tmp_path: Path, past: Past) -> None:
    folder = model(tmp_path / "m")
    one = pipeline(tmp_path, {"model": str(folder)})
    past.look(one)
    (found,) = launched_endpoints(one, [("completion", "a")])
    assert not loads_other_files(found, Event())
    model(folder, README__md="words")
    assert not loads_other_files(found, Event())
    model(folder, config__json="[]")
    assert loads_other_files(found, Event())

    away = pipeline(tmp_path, {"model": "org/none"})  # what it loads, should it come up yet, nobody knows
    assert past.look(away) == "policy+sha256:?"
    (found,) = launched_endpoints(away, [("completion", "a")])
    assert loads_other_files(found, Event())
