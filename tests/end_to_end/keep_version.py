"""Make the data of test_earlier_versions.py: pipelines with the journal and store that one version made of them.

    PYTHONPATH=<checkout of that version> python tests/end_to_end/keep_version.py <version>

Every model and judge is simulated on loopback. The data goes to data/<version>/<name>/:

    pipeline.yaml, prompts.jsonl, ...   what the user writes
    store.tar.xz                        the journal and the store: runs/<name>/feedback.journal and feedback.duckdb
    expected.json                       what that version made of them: keys, exit codes, digests of the exported files

Run it at each release whose journals must stay readable, and commit the new folder. Never change an old one.
"""

import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from asyncio import Event, get_running_loop, run
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from aif.simulator import Arrival, Fault, InjectedFault, SimulatedModels, Simulator

DATA = Path(__file__).resolve().parent / "data"
FORMATS = ["trl", "h4", "ultrafeedback", "kto", "reward", "sft"]
WRITTEN = ("runs", "dataset")  # in a scenario's folder: what aif makes, not the user
LONGEST_S = 120.0
HOLDS = 3300  # tokens: a few judgements of all completions together are more

# Not compared: the place in the journal, what a run has yet to do, and `troubles`, which goes by the order of the rows
# of `calls`: it differs between a store that a run filled and one that was made again.
NOT_COMPARED = frozenset({"about", "settled", "todo", "ready", "incoming", "incoming_carried", "troubles"})
KEYS = {
    "prompts": "prompt_id",
    "slots": "key",
    "carried": "key",
    "completions": "key",
    "judgements": "key",
    "failed": "key",
    "specs": "spec",
    "texts": "digest",
    "materials": "digest",
    "marks": "value",
}

Aif = Callable[..., int]  # runs a command, and returns its exit code


@dataclass(frozen=True)
class Scenario:
    """A pipeline of data/<version>/<name>. `remote` are the entries whose server `serving` plays."""

    name: str
    remote: tuple[str, ...] = ()

    def sets(self, address: str) -> list[str]:
        """The options that lead all calls to the server at `address` (http://host:port)."""
        addresses = {entry: address if "claude" in entry else f"{address}/v1" for entry in self.remote}
        return [word for entry, url in addresses.items() for word in ("--set", f"{entry}.base_url={url}")]


SCENARIOS = (
    Scenario("quickstart"),
    Scenario("byo-completions"),
    Scenario("scored"),
    Scenario("faults", ("models.able", "models.fair", "models.plain", "judges.strict", "judges.claude")),
    Scenario("launched"),
)


# ----------------------------------------------------------------------------------------------------------------------
# What a version made: read without any code of aif


def store_of(folder: Path) -> Path:
    """Return the store below a scenario's folder."""
    name = yaml.safe_load((folder / "pipeline.yaml").read_text())["name"]
    return folder / "runs" / str(name) / "feedback.duckdb"


def records(folder: Path) -> list[dict[str, Any]]:
    """Return all records of a scenario's journal."""
    return [record for _, record in lines(folder) if record is not None]


def lines(folder: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the journal's lines, each with its record; None where its checksum does not match."""
    for segment in sorted(store_of(folder).with_suffix(".journal").glob("*.jsonl")):
        for line in segment.read_bytes().splitlines(keepends=True):
            sound = line[:8] == b"%08x" % zlib.crc32(line[9:-1])
            yield line, json.loads(line[9:]) if sound else None


def asked(folder: Path) -> list[str]:
    """Return the stage and key of each call in the journal, in order."""
    return [f"{record['stage']} {record['key']}" for record in records(folder) if record["t"] == "call"]


def tables(store: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return columns and sorted rows of every table and view that a user reads. Numbers are rounded to 12 digits,
    since sums may be made in another order."""
    with duckdb.connect(str(store), read_only=True, config={"threads": 1}) as database:
        names = database.execute(
            "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
        contents = {}
        for name in sorted({name for (name,) in names} - NOT_COMPARED):
            result = database.execute(f'FROM "{name}"')
            columns = [column[0] for column in result.description or ()]
            contents[name] = columns, sorted(repr(_rounded(row)) for row in result.fetchall())
        return contents


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def keys(store: Path, names: Iterable[str] = KEYS) -> dict[str, list[str]]:
    """Return every key and digest in the store, by table."""
    with duckdb.connect(str(store), read_only=True) as database:
        return {
            name: [str(key) for (key,) in database.execute(f"SELECT DISTINCT {KEYS[name]} AS k FROM {name} ORDER BY k")
                   .fetchall()]
            for name in names
        }  # fmt: skip


def judgements(store: Path) -> set[str]:
    """Return the key of every judgement that the pipeline wants and that a judge was asked for, as `asked` does."""
    with duckdb.connect(str(store), read_only=True) as database:
        rows = database.execute(
            "SELECT coalesce(judgement, failure) FROM needed WHERE state <> 'pending' AND judge <> 'carried' "
            "UNION SELECT key FROM failed WHERE kind = 'context_overflow'"
        ).fetchall()
    return {f"judgement {key}" for (key,) in rows}


def exported(dataset: Path) -> dict[str, Any]:
    """Return the digests of an export's data files, each as it is and of its content, and what its run.json says.

    The bytes of a Parquet file differ with the version of pyarrow that writes it; its content does not.
    """
    files = {}
    for path in sorted(dataset.rglob("*.parquet")):
        table = pq.read_table(path)
        content = json.dumps([str(table.schema.remove_metadata()), table.to_pylist()], sort_keys=True).encode()
        digests = [hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), content)]
        files[path.relative_to(dataset).as_posix()] = digests
    run_file = json.loads((dataset / "run.json").read_text())
    kept = {name: run_file[name] for name in ("rows", "files", "rubric", "state")}
    return {"pyarrow": pa.__version__, "files": files, "run": kept}


def unpack(source: Path, folder: Path) -> Path:
    """Copy data/<version>/<name> into a new folder, the journal and store in their places."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("store.tar.xz", "expected.json"))
    with tarfile.open(source / "store.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def cut_down(folder: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Delete the store, and from the journal each record but those to `keep`."""
    kept = [line for line, record in lines(folder) if record is None or keep(record)]
    journal = store_of(folder).with_suffix(".journal")
    shutil.rmtree(journal.parent)
    if kept:
        journal.mkdir(parents=True)
        (journal / "000001.jsonl").write_bytes(b"".join(kept))


@contextmanager
def serving(faults: Callable[[Arrival], InjectedFault | None] | None = None, latency_s: float = 0.0) -> Iterator[str]:
    """Serve simulated models and judges of any name in a thread. Yields the address."""
    simulator = Simulator(
        SimulatedModels({}, {}, 7, open=True), faults=faults, latency_s=latency_s, max_model_len=HOLDS
    )
    up = threading.Event()
    down: list[Callable[[], object]] = []

    async def serve() -> None:
        end, loop = Event(), get_running_loop()
        async with simulator:
            down.append(lambda: loop.call_soon_threadsafe(end.set))
            up.set()
            await end.wait()

    thread = threading.Thread(target=lambda: run(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield simulator.base_url.removesuffix("/v1")
    finally:
        for stop in down:
            stop()
        thread.join(10)


# ----------------------------------------------------------------------------------------------------------------------
# Making it

FAULTS = """\
# Everything that can go wrong, and most settings that enter a key.
name: faults
seed: 11
prompts:
  - {file: prompts.jsonl, source_field: source, material: {reference: answer}}
principles: principles.yaml
completions: {per_prompt: 3, min_completions: 2, temperature: 0.8, top_p: 0.95, max_tokens: 200}
models:
  able:
    {provider: vllm, model: some/able, revision: r2, base_url: "http://127.0.0.1:8000/v1", timeout_s: 2, concurrency: 4,
     price: {input: 1.0, output: 2.0}, extra_body: {top_k: 20, min_p: 0.05}}
  fair:
    {provider: vllm, model: some/fair, base_url: "http://127.0.0.1:8000/v1", timeout_s: 2, concurrency: 4,
     price: {input: 1.0, output: 2.0}, system: fold_into_user, temperature: null, reasoning_effort: low}
  plain:
    {provider: vllm, model: some/plain, base_url: "http://127.0.0.1:8000/v1", timeout_s: 2, concurrency: 4, samples: 2,
     price: {input: 0.5, output: 1.0}, reasoning_tags: ["<plan>", "</plan>"], max_tokens: 150}
judges:
  strict:
    {provider: openai, model: some/strict, base_url: "http://127.0.0.1:8000/v1", timeout_s: 4, concurrency: 4,
     weight: 2, price: {input: 2.0, output: 4.0}, on_overflow: single}
  claude:
    {provider: anthropic, model: some/claude, base_url: "http://127.0.0.1:8000", timeout_s: 4, concurrency: 4,
     price: {input: 2.0, output: 4.0}, reply: text, max_tokens: 1000}
rubric: rubric
budget_usd: 10
pairs: {policy: all, max_pairs_per_prompt: 2, min_margin: 0.05}
export: {formats: [trl, h4, ultrafeedback, kto, reward, sft], test_size: 3}
"""
SCORED = """\
# Completions that came with scores, each source on a scale of its own: no model and no judge.
name: scored
seed: 5
prompts:
  - {file: prompts.jsonl, source: teachers, completions: {field: answers, score: score}}
  - {file: more.csv, completions: {field: answer, model: who, score: points}}
pairs: {policy: best_vs_worst}
export: {formats: [trl, h4, ultrafeedback, kto, reward, sft], test_size: 2}
"""
LAUNCHED = """\
# A model whose identity is what its server loads; the checkpoint was replaced once.
name: launched
seed: 3
prompts: [{file: prompts.jsonl}]
completions: {per_prompt: 2, max_tokens: 400}
models:
  tuned: {provider: vllm, model: tuned, launch: {model: checkpoint, args: [--dtype, float32]}}
  other: {provider: simulator, quality: 0.4}
judges:
  judge: {provider: simulator, noise: 0.2}
rubric: mt-bench
pairs: {policy: on_policy, model: tuned}
export: {formats: [trl, h4, ultrafeedback, kto, reward, sft], kto: {rule: scores, desirable: 6, undesirable: 4}}
"""
PRINCIPLES = {
    "name": "own",
    "pools": {"plain": ["Answer plainly.", "Use short words."], "careful": ["Say what you don't know."]},
    "sources": {"sums": {"careful": 1.0}},
    "default": {"plain": 0.7, "careful": 0.3},
}
LIMIT = 12


def _rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(text)


def _shipped(version: Path, name: str, rows: int, folder: Path) -> None:
    """Copy a shipped pipeline with the first prompts of its file, and have it export in every format."""
    text = (version / "pipelines" / f"{name}.yaml").read_text()
    source = yaml.safe_load(text)["prompts"][0]["file"]
    exports = next(line for line in text.splitlines() if line.startswith("export:"))
    formats = exports[exports.index("[") : exports.index("]") + 1]
    text = text.replace(source, "prompts.jsonl").replace(formats, f"[{', '.join(FORMATS)}]")
    (folder / "pipeline.yaml").write_text(text)
    (folder / "prompts.jsonl").write_text("".join((version / source).read_text().splitlines(keepends=True)[:rows]))


def _quickstart(version: Path, folder: Path, aif: Aif) -> None:
    _shipped(version, "quickstart", 12, folder)
    assert aif("run", "pipeline.yaml") == 0


def _byo_completions(version: Path, folder: Path, aif: Aif) -> None:
    _shipped(version, "byo-completions", 8, folder)
    assert aif("run", "pipeline.yaml") == 0


def _scored(version: Path, folder: Path, aif: Aif) -> None:
    (folder / "pipeline.yaml").write_text(SCORED)
    answers = [{"text": f"It is {n}.", "model": f"m{n}", "score": 1.5 * n} for n in range(1, 4)]
    _rows(folder, ({"prompt": f"What is {n} of 3?", "answers": answers} for n in range(6)))
    cells = [f"How far is {n // 2}?,{n} miles,m{n % 2},{100 - n * n % 7}" for n in range(8)]
    (folder / "more.csv").write_text("\n".join(["prompt,answer,who,points", *cells]) + "\n")
    assert aif("run", "pipeline.yaml") == 0


def _launched(version: Path, folder: Path, aif: Aif) -> None:
    (folder / "pipeline.yaml").write_text(LAUNCHED)
    _rows(folder, ({"prompt": f"Name {n} rivers."} for n in range(2, 6)))
    (folder / "checkpoint").mkdir()
    fakes = next(Path(__file__).resolve().parents[1].rglob("fakes/vllm")).parent
    with tempfile.TemporaryDirectory() as started:
        env = {"PYTHONPATH": f"{fakes}:{version}", "FAKE_FOLDER": started}
        for weights in ("weights of step 1", "weights of step 2"):
            (folder / "checkpoint" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}\n')
            (folder / "checkpoint" / "model.safetensors").write_text(weights)
            assert aif("run", "pipeline.yaml", "--set", f"models.tuned.launch.env={json.dumps(env)}") == 0


def _faults(version: Path, folder: Path, aif: Aif) -> None:
    (folder / "pipeline.yaml").write_text(FAULTS)
    (folder / "principles.yaml").write_text(yaml.safe_dump(PRINCIPLES, sort_keys=False))
    assert aif("rubric", "copy", "ultrafeedback", "rubric") == 0
    _rows(folder, map(_prompt, range(15)))
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "faults")
    words = ("run", "pipeline.yaml", "--yes", "--limit", str(LIMIT))
    with serving(latency_s=0.1) as address:
        aif(*words, *scenario.sets(address), until=lambda: len(asked(folder)) >= 12, ended_by=signal.SIGKILL)
    with serving(_fault_for) as address:
        sets = scenario.sets(address)
        nowhere = ("--set", "models.plain.base_url=http://127.0.0.1:9/v1")
        count = len(asked(folder))
        aif(*words, *sets, *nowhere, until=lambda: len(asked(folder)) >= count + 14, ended_by=signal.SIGINT)
        calls = [record for record in records(folder) if record["t"] == "call"]
        budget = 2 * sum(call["usd"] or call.get("bound", 0) for call in calls)
        assert aif(*words, *sets, "--set", f"budget_usd={budget}") == 4
        _damage(folder)
        assert aif(*words, *sets) == 3
        assert aif(*words, *sets, "--retry-failed") == 3


def _prompt(number: int) -> dict[str, Any]:
    """Return a row; some have earlier turns, a system turn, marks of reasoning, a reference answer."""
    text = f"What is {number} times {number + 1}?" + " Explain every step at length." * (number % 5 == 4) * 40
    user: list[dict[str, str]] = [{"role": "user", "content": text}]
    earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "<think>Hm.</think> Hello."}]
    turns = {1: earlier + user, 2: [{"role": "system", "content": "You count."}, *user]}.get(number % 4)
    answer = None if number % 3 else str(number * (number + 1))
    return {"prompt": turns or text, "source": ("sums", "talk")[number % 2], "answer": answer, "row": number}


def _fault_for(arrival: Arrival) -> InjectedFault | None:
    """Decide by the body, so that the same calls always fare the same."""
    judge = arrival.model in ("some/strict", "some/claude")
    lasting, passing = (int(hashlib.sha256(f"{arrival.key} {n}".encode()).hexdigest()[:4], 16) / 65536 for n in "ab")
    if judge:
        if lasting < 0.08 or (passing < 0.15 and arrival.nth == 1):
            return InjectedFault(Fault.SAYS, text="I can't rate these.")
    elif lasting < 0.08:
        return InjectedFault(Fault.REFUSAL)
    elif lasting < 0.16:
        return InjectedFault(Fault.TRUNCATED)
    elif lasting < 0.55:
        number = int(lasting * 1000)
        begin, end = ("<plan>", "</plan>") if arrival.model == "some/plain" else ("<think>", "</think>")
        texts = (f"{begin}Let me see.{end}It is {number}.", f"It is {number}. {begin}Is it?", f"{end} {number} it is.")
        return InjectedFault(Fault.SAYS, text=texts[number % 3])
    if arrival.nth > 1:
        return None
    faults = (Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.OVERLOADED, Fault.HANG, Fault.EMPTY, Fault.CUT, Fault.HTML,
              Fault.BROKEN_JSON)  # fmt: skip
    at = int((1 - passing) / 0.05)
    return InjectedFault(faults[at], "1", 3600.0) if at < len(faults) else None


def _damage(folder: Path) -> None:
    """Flip a letter in the record of a completion, as a disk may, and lose the store, which held a copy of it."""
    store_of(folder).unlink()
    (segment,) = store_of(folder).with_suffix(".journal").glob("*.jsonl")
    data = bytearray(segment.read_bytes())
    data[data.index(b'"stage":"completion"') + 10] ^= 1
    segment.write_bytes(data)


def _aif(folder: Path) -> Aif:
    """Return a function that runs `aif` in `folder`. With `until`, it is ended by a signal as soon as that is true."""

    def command(*words: str, until: Callable[[], bool] | None = None, ended_by: int = 0) -> int:
        sys.stderr.write(f"$ aif {' '.join(words)}\n")
        environ = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1",
                   "OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "aif", *words], cwd=folder, env=environ)
        deadline = time.monotonic() + LONGEST_S
        while until and process.poll() is None and time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if until():
                    process.send_signal(ended_by)
                    break
            time.sleep(0.02)
        return process.wait(LONGEST_S)

    return command


def _keep(folder: Path, place: Path, scenario: Scenario) -> None:
    """Put down what stands in `folder`, and what the version makes of it."""
    store = store_of(folder)
    first = next(record["prompt_id"] for record in records(folder) if record["t"] == "prompt")
    commands = {"export": ["export"], "status": ["status"], "failures": ["failures"], "pairs": ["pairs"],
                "show": ["show"]}  # fmt: skip
    codes = {}
    for name, words in commands.items():
        end = [first[:12]] if name == "show" else ["--out", "dataset"] if name == "export" else []
        codes[name] = _aif(folder)(*words, "pipeline.yaml", *end)
    dataset = exported(folder / "dataset")
    place.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in WRITTEN:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name)
    _pack(folder, [store, *sorted(store.with_suffix(".journal").iterdir())], place / "store.tar.xz")

    count = len(asked(folder))
    with serving() as address:
        codes["run"] = _aif(folder)("run", "pipeline.yaml", "--yes", *scenario.sets(address))
    resumed = sorted(asked(folder)[count:])
    with tempfile.TemporaryDirectory() as temporary:
        kept = unpack(place, Path(temporary) / scenario.name)
        expected = {"prompt": first, "exit_codes": codes, "keys": keys(store_of(kept)), "resumed": resumed,
                    "exported": dataset}  # fmt: skip
    (place / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _pack(folder: Path, paths: Iterable[Path], archive: Path) -> None:
    """Write the files as an archive that tells nothing of this machine."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in paths:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, 0o600
            with path.open("rb") as file:
                tar.addfile(info, file)
    archive.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    import aif

    version = Path(aif.__file__).resolve().parents[1]
    make = {"quickstart": _quickstart, "byo-completions": _byo_completions, "scored": _scored, "faults": _faults,
            "launched": _launched}  # fmt: skip
    label, *only = sys.argv[1:]
    for scenario in SCENARIOS:
        if only and scenario.name not in only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / scenario.name
            folder.mkdir()
            make[scenario.name](version, folder, _aif(folder))
            shutil.rmtree(DATA / label / scenario.name, ignore_errors=True)
            _keep(folder, DATA / label / scenario.name, scenario)


if __name__ == "__main__":
    main()
