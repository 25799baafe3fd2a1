"""Publishing on a Hub on loopback: private by default, complete, in one commit, and nothing but the export.

huggingface_hub reads the Hub's address when it is imported, so every command runs in a process of its own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st

from aif.cli.views.export import question
from aif.config.pipeline import parse
from aif.core.errors import Exit
from aif.engine.prepare import rubric_of
from aif.engine.rebuild import rebuild
from aif.export.dataset import export
from aif.export.formats import FORMATS, content_digest, file_path
from aif.export.manifest import Manifest
from aif.export.publish import FileChange, PublishPlan, _is_blank, _listed_files, _restricted_sources, publish_warnings
from aif.store.journaled_store import JournaledStore
from aif.store.report_queries import PromptCounts
from tests.end_to_end.test_carried import Row, answered, rows, scored
from tests.engine.test_orchestrator import run
from tests.support.building import PIPELINE, Fate, build, complete
from tests.support.hub import Commit, Hub, User, serving_hub

TOKEN = "hf_alicealicealice"

# Types commands one after another; tells exit code and what was printed and said of each.
TYPED = """
import contextlib, io, json, os, sys
from aif.cli import main as cli
told = []
for token, words in json.load(sys.stdin):
    os.environ["HF_TOKEN"] = token
    sys.argv = ["aif", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            told.append([int(ended.code or 0), out.getvalue(), err.getvalue()])
json.dump(told, sys.stdout)
"""

LOADED = """
import json, sys
from datasets import load_dataset
name, *revisions = sys.argv[1:]
for revision in revisions:
    for config in ("trl", "h4"):
        found = load_dataset(name, config, revision=revision)
        print(json.dumps({"config": config, "rows": {split: list(rows["prompt_id"]) for split, rows in found.items()}}))
"""

Said = tuple[int, str, str]


@dataclass
class Desk:
    """A pipeline with an export, somebody who types, and the Hub they type at."""

    folder: Path
    hub: Hub
    sets: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "store" / "dataset"

    def export(self, n_prompts: int = 12, *sets: str, **hooks: Any) -> None:
        """Exports by a pipeline that is changed by `sets`; what is published from then on is this one."""
        self.sets = [f"store={self.folder}/store/feedback.duckdb", *sets]
        (self.folder / "pipeline.yaml").write_text(PIPELINE)
        pipeline, rubric, journaled = build(self.folder, n_prompts, sets=sets, **hooks)
        with journaled:
            export(pipeline, rubric, journaled, self.out, lambda words: None)

    def words(self, repo: str, *words: str) -> list[str]:
        sets = [word for one in self.sets for word in ("--set", one)]
        return ["publish", str(self.folder / "pipeline.yaml"), "--repo", repo, *words, *sets]

    def environ(self) -> dict[str, str]:
        return self.hub.environ(self.folder / "home", TOKEN)

    def publish(self, *commands: list[str], tokens: Sequence[str] = (), **environ: str) -> list[Said]:
        """Types commands in one process, each with the token in its place, if there is one."""
        ran = subprocess.run(
            [sys.executable, "-c", TYPED],
            input=json.dumps(list(zip_longest(tokens, commands, fillvalue=TOKEN))),
            env=self.environ() | environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        assert not any(token in ran.stdout + ran.stderr for token in (TOKEN, *tokens) if token)
        return [(code, out, err) for code, out, err in json.loads(ran.stdout)]

    def one(self, repo: str, *words: str, **environ: str) -> Said:
        return self.publish(self.words(repo, *words), **environ)[0]

    def typing(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "aif", *words],
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def head(self, repo: str) -> Commit:
        return self.hub.repos[repo].head

    def files(self) -> dict[str, bytes]:
        """The exported files."""
        return {p.relative_to(self.out).as_posix(): p.read_bytes() for p in self.out.rglob("*") if p.is_file()}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with serving_hub() as hub:
        hub.users[TOKEN] = User("alice", writes=("alice", "team"), orgs=("team", "club"))
        made = Desk(tmp_path, hub)
        made.export()
        yield made


def ours(files: dict[str, bytes] | Any) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path not in (".gitattributes", "notes.txt")}


# --- what is published ------------------------------------------------------------------------------------------------


def test_a_new_and_a_changed_dataset_are_a_commit_each_and_load_by_revision(desk: Desk) -> None:
    first, second = desk.publish(desk.words("team/pairs", "--yes"), desk.words("team/pairs"))
    repo = desk.hub.repos["team/pairs"]
    assert (first[0], second[0]) == (Exit.DONE, Exit.DONE), (first, second)
    assert repo.private
    assert [commit.summary for commit in repo.commits] == ["initial commit", "Publish 12 pairs of built"]
    assert ours(repo.head.files) == desk.files()
    loads = f'load_dataset("team/pairs", "trl", revision="{repo.head.oid}")'
    assert "private dataset" in first[1]
    assert "new" in first[1]
    assert loads in first[1]
    assert "nothing to send" in second[1]
    assert loads in second[1]

    before = repo.commit("notes", {**repo.head.files, "notes.txt": b"of others"})
    desk.export(12, "export.test_size=3", "export.license=mit")
    ((code, told, said),) = desk.publish(desk.words("team/pairs", "--yes"))
    assert code == Exit.DONE, said
    assert len(repo.commits) == 4
    assert ours(repo.head.files) == desk.files()
    assert repo.head.files["notes.txt"] == b"of others"
    assert len(re.findall(r"^  removed +(?:trl|h4)/\S+-[0-9a-f]{16}\.parquet", told, re.MULTILINE)) == 4
    assert re.search(r"^  changed +README.md", told, re.MULTILINE)

    read = subprocess.run(
        [sys.executable, "-c", LOADED, "team/pairs", before.oid, repo.head.oid],
        env=desk.environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert read.returncode == 0, read.stderr
    loaded = [json.loads(line) for line in read.stdout.splitlines()]
    assert [(one["config"], {split: len(ids) for split, ids in one["rows"].items()}) for one in loaded] == [
        ("trl", {"train": 12}),
        ("h4", {"train_prefs": 12, "train_sft": 12, "train_gen": 12}),
        ("trl", {"train": 9, "test": 3}),
        ("h4", {"train_prefs": 9, "test_prefs": 3, "train_sft": 9, "test_sft": 3, "train_gen": 9, "test_gen": 3}),
    ]
    assert len({frozenset(chain(*one["rows"].values())) for one in loaded}) == 1


def test_publishing_never_changes_the_visibility(desk: Desk) -> None:
    opened, hidden, closed, again = desk.publish(
        desk.words("team/open", "--public", "--yes"),
        desk.words("team/open", "--yes"),
        desk.words("team/shut", "--yes"),
        desk.words("team/shut", "--yes", "--public"),
    )
    assert [one[0] for one in (opened, hidden, closed, again)] == [0, Exit.BAD_INPUT, 0, Exit.BAD_INPUT]
    assert "public dataset" in opened[1]
    assert "is public, and nothing is sent to a public dataset without --public" in hidden[2]
    assert "is private, and publishing doesn't change that" in again[2]
    assert {name: repo.private for name, repo in desk.hub.repos.items()} == {"team/open": False, "team/shut": True}
    assert [len(repo.commits) for repo in desk.hub.repos.values()] == [2, 2]


OTHERS: list[dict[str, bytes]] = [
    {"README.md": b"---\nlicense: mit\n---\n# Mine\n"},
    {"README.md": b"---\ndataset_info: {}\n---\n", "data/train-00000-of-00001.parquet": b"PAR1"},
    {"run.json": b'{"made_by": "another"}'},
    {"run.json": b"no JSON", "README.md": b""},
]
FREE: list[dict[str, bytes]] = [
    {},
    {"README.md": b"---\nlicense: mit\n---\n\n"},
    {
        "run.json": b'{"made_by": "aif", "files": {"trl": {"train": "precious.bin", "test": 3}, "h4": 7}}',
        "precious.bin": b"of others",
        "trl/train-00000-of-00001-0123456789abcdef.parquet": b"of others, named as ours are",
    },
]


def test_a_dataset_that_is_no_export_is_not_replaced(desk: Desk) -> None:
    repos = {f"team/r{i}": desk.hub.make(f"team/r{i}", True, **there) for i, there in enumerate([*OTHERS, *FREE])}
    before = {name: repo.head.files for name, repo in repos.items()}
    typed = desk.publish(*(desk.words(name, "--yes") for name in repos))
    for i, ((code, _, said), name) in enumerate(zip(typed, repos, strict=True)):
        if i < len(OTHERS):
            assert code == Exit.BAD_INPUT
            assert f"{name} already exists and isn't an aif export; name another --repo" in said
            assert repos[name].head.files == before[name]
        else:
            assert code == Exit.DONE, said
            assert repos[name].head.files == {**before[name], **desk.files()}


# --- asking first -----------------------------------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_sent_without_yes(desk: Desk) -> None:
    code, told, said = desk.one("team/pairs")
    assert code == Exit.BAD_INPUT
    assert re.search(r"added +README.md", told)
    assert "nothing was sent: no terminal to confirm the upload; pass --yes" in said
    assert desk.hub.writes() == []


@pytest.mark.parametrize(("answer", "code"), [("n", Exit.INTERRUPTED), ("\x04", Exit.INTERRUPTED), ("y", Exit.DONE)])
def test_at_a_terminal_it_asks(desk: Desk, answer: str, code: Exit) -> None:
    keyboard, terminal = os.openpty()
    with os.fdopen(keyboard, "w") as keys, os.fdopen(terminal) as stdin:
        process = desk.typing(*desk.words("team/pairs"), stdin=stdin)
        keys.write(f"{answer}\n")
        keys.flush()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert re.search(r"Send 7 files \([\d.]+ [kM]B\), in one commit to the private dataset team/pairs\?", said)
    assert (desk.hub.writes() == []) == (answer != "y")


RUN = Manifest(
    made_by="aif",
    rows={"trl": {"train": 3}},
    files={},
    books=PromptCounts({}, {"paired": 3, "pending": 2}, 3),
    rubric="",
    state="",
    pipeline_yaml="",
    digest="",
)


def test_warnings_before_publishing() -> None:
    from aif.config.pipeline import parse

    text = """
name: guarded
prompts: [{file: prompts.jsonl}]
completions: {per_prompt: 2}
models:
  local: {provider: vllm, base_url: "http://localhost:8000/v1", terms: apache-2.0}
  hosted: {provider: openai}
  pretended: {provider: simulator}
judges: {wise: {provider: openai}}
"""
    plan = PublishPlan(parse(text, Path("p.yaml")), Path(), RUN, "a/b", False, None, ())
    rehearsal, licence, terms, pending = publish_warnings(plan)
    assert rehearsal.startswith("a rehearsal: pretended are simulated")
    assert licence.startswith("no licence")
    assert terms.startswith("licence of model outputs not stated for: hosted, wise (set `terms`")
    assert pending.startswith("2 of 5 prompts are pending")
    assert list(publish_warnings(PublishPlan(parse(text, Path("p.yaml"), ["export.license=mit"]), *_rest(plan)))) == [
        rehearsal, terms, pending,
    ]  # fmt: skip


def _rest(plan: PublishPlan) -> tuple[Any, ...]:
    return plan.folder, plan.run, plan.repo, plan.public, plan.head, plan.files


def test_the_question_names_all_changes() -> None:
    files = (
        FileChange("a", 2000, "added"),
        FileChange("b", 500, "changed"),
        FileChange("c", 9, "unchanged"),
        FileChange("d", 9, "removed"),
    )
    plan = PublishPlan(None, Path(), RUN, "a/b", True, None, files)  # type: ignore[arg-type]
    assert question(plan) == "Send 2 files (2.5 kB), remove 1, in one commit to the public dataset a/b?"


# --- only what the pipeline says --------------------------------------------------------------------------------------


def test_an_export_that_differs_from_the_pipeline_is_not_published(desk: Desk) -> None:
    other = desk.publish(
        [*desk.words("team/pairs", "--yes"), "--set", "pairs.policy=best_vs_worst", "--set", "export.license=mit"],
        [*desk.words("team/pairs", "--yes"), "--set", "rubric=ultrafeedback"],
        [*desk.words("team/pairs", "--yes"), "--out", str(desk.folder / "elsewhere")],
        [*desk.words("team/pairs", "--yes"), "--set", f"store={desk.folder}/none.duckdb"],
    )
    assert [code for code, _, _ in other] == [Exit.BAD_INPUT] * 4
    assert "this export is out of date: `pairs`, `export` changed since; run `aif export" in other[0][2]
    assert "--set pairs.policy=best_vs_worst --set export.license=mit`" in other[0][2]
    assert "the rubric" in other[1][2]
    assert f"elsewhere: no aif export here; run `aif export {desk.folder}/pipeline.yaml --out" in other[2][2]
    assert "no store here yet; `aif run" in other[3][2]

    _, _, journaled = build(desk.folder, 13, sets=[])
    journaled.close()
    ((code, _, said),) = desk.publish(desk.words("team/pairs", "--yes"))
    assert code == Exit.BAD_INPUT
    assert "this export is out of date: the store changed since; run `aif export" in said
    assert desk.hub.requests == []


def test_changes_outside_of_pairs_count_too(tmp_path: Path) -> None:
    """A score, a reference, a source's name: no call is made, and every pair stays as it is."""

    def row(score: int, known: str) -> Row:
        return answered(0, 5, score, 1) | {"correct_answers": known}

    def state() -> str:
        with JournaledStore.open(pipeline.store, print) as journaled:
            made = export(pipeline, rubric_of(pipeline), journaled, tmp_path / "out", lambda words: None)
        assert made.prompt_counts.pairs == 1
        found: str = json.loads((tmp_path / "out" / "run.json").read_text())["state"]
        return found

    path = scored(tmp_path, row(3, "So."), pairs={"policy": "best_vs_worst"}, export={"formats": ["ultrafeedback"]})
    states = []
    for changed in (row(3, "So."), row(4, "So."), row(4, "Thus."), row(3, "So.")):
        rows(tmp_path, "prompts.jsonl", changed)
        pipeline, _ = run(path)
        states.append(state())
    assert len(set(states)) == 3
    assert states[0] == states[-1]
    rebuild(pipeline, print)
    run(path)
    assert state() == states[-1], "a store that is made again is the same"


def test_every_pair_is_counted_in_the_commit(desk: Desk) -> None:
    desk.export(3, "pairs.policy=all")
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.DONE, said
    assert desk.head("team/pairs").summary == "Publish 18 pairs of built"


def test_a_damaged_export_is_not_published(desk: Desk) -> None:
    path = next((desk.out / "trl").iterdir()).relative_to(desk.out)
    cases: dict[str, Callable[[Path], object]] = {
        f"{path} has changed since the export": lambda folder: (folder / path).write_bytes(b"PAR1"),
        f"{path} is missing": lambda folder: (folder / path).unlink(),
        "pipeline.yaml has changed since the export": lambda folder: _edit(
            folder / "pipeline.yaml", "seed:", "secret: x\nseed:"
        ),
        "run.json has changed since the export": lambda folder: _edit(
            folder / "run.json", '"pairs": 12', '"pairs": 99'
        ),
        "pipeline.yaml is missing": lambda folder: (folder / "pipeline.yaml").unlink(),
        "this export is of another version of aif": lambda folder: (folder / "run.json").write_text(
            '{"made_by": "aif"}'
        ),
        "no aif export here": lambda folder: (folder / "run.json").write_text("{"),
    }
    folders = [desk.folder / f"copy{i}" for i in range(len(cases))]
    for folder, damage in zip(folders, cases.values(), strict=True):
        shutil.copytree(desk.out, folder)
        damage(folder)
    typed = desk.publish(*(desk.words("team/pairs", "--yes", "--out", str(folder)) for folder in folders))
    for (code, _, said), folder, words in zip(typed, folders, cases, strict=True):
        assert code == Exit.BAD_INPUT
        assert f"{folder}: {words}; run `aif export {desk.folder}/pipeline.yaml --out {folder}" in said
    assert desk.hub.requests == []


def _edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def test_only_the_files_that_were_shown_are_published(desk: Desk) -> None:
    shown, data = desk.files(), next((desk.out / "trl").iterdir())

    def meanwhile(do: Callable[[], object]) -> tuple[int, str]:
        """What comes of it when something happens between the question and the answer."""
        keyboard, terminal = os.openpty()
        with os.fdopen(keyboard, "w") as keys, os.fdopen(terminal) as stdin:
            process = desk.typing(*desk.words("team/pairs"), stdin=stdin)
            assert process.stdout is not None
            said = ""
            while "?" not in said:
                said += process.stdout.read(1)
            do()
            keys.write("y\n")
            keys.flush()
            said += process.communicate(timeout=60)[0]
        return process.returncode, said

    def another() -> None:
        data.rename(data.with_name("train-0123456789abcdef.parquet"))

    code, said = meanwhile(another)
    assert code == Exit.BAD_INPUT
    assert f"trl/{data.name} has changed since it was shown, so nothing was sent" in said
    assert desk.hub.repos == {}

    data.write_bytes(shown[f"trl/{data.name}"])
    code, said = meanwhile(lambda: [(desk.out / name).write_bytes(b"{}") for name in ("README.md", "run.json")])
    assert code == Exit.DONE, said
    assert ours(desk.head("team/pairs").files) == shown


def test_an_export_deleted_during_the_comparison_is_reported(desk: Desk) -> None:
    def once(method: str, path: str) -> None:
        desk.hub.fail = lambda method, path: None
        shutil.rmtree(desk.out)

    desk.hub.fail = once
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.BAD_INPUT
    assert "can't be read: No such file or directory. Nothing was published" in said


def test_pending_prompts_are_reported(desk: Desk) -> None:
    desk.export(13, complete=lambda n, model: Fate.PENDING if n == 12 else complete(n, model))
    code, told, said = desk.one("team/pairs", "--yes")
    assert code == Exit.DONE, said
    assert "1 of 13 prompts are pending" in told


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_refused_token_is_reported_in_a_line_with_its_fix(desk: Desk) -> None:
    desk.hub.users["hf_bob"] = User("bob")
    desk.hub.make("club/open", private=True)
    cases = [
        ("", "team/pairs", Exit.BAD_INPUT, "no token for the Hub; run `hf auth login`, or set .* HF_TOKEN"),
        ("hf_gone", "team/pairs", Exit.REFUSED, "refuses this token .*; run `hf auth login`, or set HF_TOKEN again"),
        ("hf_\x01bad", "team/pairs", Exit.BAD_INPUT, "the value of HF_TOKEN or `hf auth login` is no token"),
        ("hf_bob", "team/pairs", Exit.REFUSED, 'team/pairs: refused: .*namespace "team".*a read token of bob'),
        (TOKEN, "nobody/pairs", Exit.REFUSED, 'namespace "nobody".*a write token of alice, .*: team, club'),
        (TOKEN, "club/open", Exit.REFUSED, "club/open: refused"),
        (TOKEN, "pairs", Exit.BAD_INPUT, "--repo pairs: expected ORG/NAME"),
        (TOKEN, "a/b/c", Exit.BAD_INPUT, "--repo a/b/c: expected ORG/NAME"),
        (TOKEN, "team/pa--irs", Exit.BAD_INPUT, "--repo team/pa--irs: Cannot have -- or .. in repo_id"),
    ]
    typed = desk.publish(*(desk.words(repo, "--yes") for _, repo, _, _ in cases), tokens=[token for token, *_ in cases])
    for (found, _, said), (_, _, code, words) in zip(typed, cases, strict=True):
        assert found == code, said
        assert re.search(f"^aif: .*{words}", said.splitlines()[-1]), said
    assert [len(repo.commits) for repo in desk.hub.repos.values()] == [1]


def test_a_failed_network_or_hub_is_reported_and_the_same_command_resumes(desk: Desk) -> None:
    gone = desk.one("team/pairs", "--yes", HF_ENDPOINT="http://127.0.0.1:9")
    offline = desk.one("team/pairs", "--yes", HF_HUB_OFFLINE="1")
    desk.hub.fail = lambda method, path: 500 if "/commit/" in path else None
    ill = desk.one("team/pairs", "--yes")
    for (code, _, said), words in (
        (gone, "http://127.0.0.1:9: can't be reached: .*; check the network and HF_ENDPOINT, then run"),
        (offline, "can't be reached: .*HF_HUB_OFFLINE"),
        (ill, "answers 500 .*; later run the same command again"),
    ):
        assert code == Exit.BAD_INPUT
        assert re.search(words, said), said
    assert len(desk.hub.repos["team/pairs"].commits) == 1
    desk.hub.fail = lambda method, path: None
    assert desk.one("team/pairs", "--yes")[0] == Exit.DONE
    assert ours(desk.head("team/pairs").files) == desk.files()


def test_a_licence_the_hub_does_not_know_is_reported_in_its_words(desk: Desk) -> None:
    desk.export(12, "export.license=mine")
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.BAD_INPUT
    assert '"license" must be one of [mit,' in said
    assert len(desk.hub.repos["team/pairs"].commits) == 1


def test_a_dataset_made_public_during_the_upload_gets_no_commit(desk: Desk) -> None:
    repo = desk.hub.make("team/pairs", private=True)
    desk.hub.on_upload = lambda: setattr(repo, "private", False)
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.BAD_INPUT
    assert "team/pairs is public, and nothing is sent to a public dataset without --public" in said
    assert len(repo.commits) == 1


def test_files_added_by_others_to_a_new_dataset_are_not_overwritten(desk: Desk) -> None:
    def fill(method: str, path: str) -> None:
        if method == "GET" and (repo := desk.hub.repos.get("team/pairs")) and len(repo.commits) == 1:
            repo.commit("notes", {**repo.head.files, "README.md": b"# Mine"})

    desk.hub.fail = fill
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.BAD_INPUT
    assert "team/pairs: somebody else has put files there meanwhile" in said
    assert desk.head("team/pairs").files["README.md"] == b"# Mine"


def test_replacing_another_pipelines_export_is_reported(desk: Desk) -> None:
    assert "it replaces" not in desk.one("team/pairs", "--yes")[1]
    repo = desk.hub.repos["team/pairs"]
    files = dict(repo.head.files)
    files["run.json"] = files["run.json"].replace(b'"pipeline": "built"', b'"pipeline": "other"')
    repo.commit("by another", files)
    code, told, said = desk.one("team/pairs", "--yes")
    assert code == Exit.DONE, said
    assert "it replaces the export of the pipeline other" in told


def test_making_prompts_of_a_restricted_source_public_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    names = ("team/secret", "team/gated", "team/open", "team/gone", "folder", "team/secret")
    listed = "".join(f"\n  - {{hub: {name}, source: s{n}}}" for n, name in enumerate(names))
    pipeline = parse(re.sub("prompts: .*", f"prompts:{listed}", PIPELINE), tmp_path / "pipeline.yaml")
    with serving_hub() as hub:
        hub.users[TOKEN] = User("alice", orgs=("team",))
        hub.make("team/secret", private=True)
        hub.make("team/gated", private=False).gated = "auto"
        hub.make("team/open", private=False)
        closed = list(_restricted_sources(HfApi(hub.url, token=TOKEN), pipeline))
    plan = PublishPlan(pipeline, tmp_path, RUN, "a/b", True, None, (), restricted=closed)
    assert [said for said in publish_warnings(plan) if "everyone" in said] == [
        "everyone will see prompts of team/secret, which is private",
        "everyone will see prompts of team/gated, which is gated: its terms hold for its prompts here",
        "everyone will see prompts of team/gone, which this token can't see, so it may be private",
    ]


def test_a_commit_of_somebody_else_is_not_overwritten(desk: Desk) -> None:
    repo = desk.hub.make("team/pairs")
    desk.hub.on_upload = lambda: repo.commit("notes", {**repo.head.files, "README.md": b"# Mine"})
    code, _, said = desk.one("team/pairs", "--yes")
    assert code == Exit.BAD_INPUT
    assert "team/pairs: has changed meanwhile" in said
    assert repo.head.files["README.md"] == b"# Mine"
    assert "already exists and isn't an aif export" in desk.one("team/pairs", "--yes")[2]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_during_the_upload_publishes_nothing_and_the_same_command_resumes(
    desk: Desk, how: signal.Signals
) -> None:
    reached, stopped = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        reached.release()
        stopped.wait(60)

    desk.hub.on_upload = hold
    process = desk.typing(*desk.words("team/pairs", "--yes"))
    try:
        assert reached.acquire(timeout=60)
        process.send_signal(how)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        stopped.set()
    assert process.returncode == (Exit.INTERRUPTED if how == signal.SIGINT else -how), said
    assert ("stopped. A commit is made completely or not at all" in said) == (how == signal.SIGINT)
    assert [commit.summary for commit in desk.hub.repos["team/pairs"].commits] == ["initial commit"]

    code, _, err = desk.one("team/pairs", "--yes")
    assert code == Exit.DONE, err
    assert len(desk.hub.repos["team/pairs"].commits) == 2
    assert ours(desk.head("team/pairs").files) == desk.files()


# --- what is ours -----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([(c, s) for c, splits in FORMATS.items() for s in splits]),
    st.from_regex("[0-9a-f]{16}", fullmatch=True),
)
def test_data_files_are_known_by_their_name(split: tuple[str, str], digest: str) -> None:
    assert content_digest(file_path(*split, digest)) == digest
    assert content_digest(file_path(*split)) is None
    assert content_digest(f"../{file_path(*split, digest)}") is None
    assert content_digest(f"{file_path(*split, digest)}\n") is None


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_a_forged_run_json_removes_no_other_files(files: Any) -> None:
    assert _listed_files(files) == set()
    ours = file_path("trl", "train", "0123456789abcdef")
    assert _listed_files({"trl": {"train": ours, "test": files}}) == {ours}


@pytest.mark.parametrize(
    ("card", "blank"),
    [
        (b"", True), (b"\n", True), (b"---\na: 1\n---", True), (b"---\r\na: 1\r\n---\r\n", True),
        (b"---\na: 1\n---\nwords", False), (b"words", False), (b"---\na: 1\n", False), (b"--- x ---", False),
    ],
)  # fmt: skip
def test_a_card_without_text_is_blank(card: bytes, blank: bool) -> None:
    assert _is_blank(card) == blank
