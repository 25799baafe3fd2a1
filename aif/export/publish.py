"""An exported dataset to the Hub in one commit: what would change is told first, and sent when agreed to.

A commit on the Hub is made whole or not at all, and files are compared by content before anything is sent. So the same
command goes on after any stop, and sends nothing when there is nothing new. The only room that writes to the Hub.
"""

import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from aif import __version__
from aif.config.pipeline import Pipeline
from aif.core.errors import BadInput, Exit
from aif.engine.make_pairs import make_pairs
from aif.export import hub
from aif.export.card import simulated, without_terms
from aif.export.formats import digest_of
from aif.export.hub import There
from aif.export.manifest import NAME, RunFile, marked, parsed, sealed, state_of
from aif.judging.rubric import Rubric
from aif.sources.load import local_folder
from aif.store.journaled_store import JournaledStore
from aif.store.result_queries import ResultReader

CARD = "README.md"
DESCRIBED = (CARD, "pipeline.yaml", NAME)  # what a dataset holds beside its data files

Change = Literal["added", "changed", "unchanged", "removed"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the dataset, its size in bytes, and what publishing makes of it on the Hub."""

    path: str
    size: int
    change: Change


@dataclass(frozen=True, slots=True)
class Found:
    """An export as it was read: what its run.json says, and what is sent of it from memory, so that another export made
    meanwhile changes nothing of it. The content of data files is known by their names."""

    run: RunFile
    texts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Plan:
    """What publishing would do. `head` is the commit on the Hub it was compared with, None where there is no dataset
    of this name yet; `replaced` the pipeline whose export stands there; `closed` the sources that not everyone sees."""

    pipeline: Pipeline
    folder: Path
    run: RunFile
    repo: str
    public: bool
    head: str | None
    files: tuple[File, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    replaced: str | None = None
    closed: Sequence[str] = ()

    @property
    def sent(self) -> list[File]:
        return [file for file in self.files if file.change in ("added", "changed")]

    @property
    def removed(self) -> list[File]:
        return [file for file in self.files if file.change == "removed"]


# --- what there is to publish -----------------------------------------------------------------------------------------


def exported(pipeline: Pipeline, rubric: Rubric, ledger: JournaledStore, folder: Path, mend: str) -> Found:
    """The export in `folder`, where it is what `aif export` would write now. Calls no model.

    Raises BadInput where it isn't, with `mend`, the command that makes it so.
    """
    found = _whole(folder, mend)
    run = found.run
    make_pairs(pipeline, rubric, ledger.store)
    with ResultReader.of(ledger.store) as reader:
        state = state_of(reader, reader.prompt_counts(), reader.pair_keys())
    changed = [f"`{key}`" for key in _differing(run.pipeline_yaml, pipeline.public)]
    changed += ["the rubric"] if run.rubric != rubric.digest else []
    if run.state != state and not changed:  # other pairs may only follow from the others
        changed = ["what is in the store"]
    if changed:
        raise BadInput(f"{folder}: was exported before {', '.join(changed)} changed; `{mend}` makes it anew")
    return found


def _whole(folder: Path, mend: str) -> Found:
    """Reads an export, which must have every file it names, as it was written."""
    try:
        data = (folder / NAME).read_bytes()
    except OSError:
        data = b""
    if marked(data) is None:
        raise BadInput(f"{folder}: no dataset of aif's stands here; `{mend}` makes it")
    if (run := parsed(data)) is None:
        raise BadInput(f"{folder}: was exported by another version of aif; `{mend}` makes it anew")
    for path in (*DESCRIBED, *run.paths):
        if not (folder / path).is_file():
            raise BadInput(f"{folder}: {path} is missing; `{mend}` makes it anew")
    texts = {path: (folder / path).read_bytes() for path in DESCRIBED} | {NAME: data}
    changed = [path for path in run.paths if not _as_named(folder, path)]
    changed += ["pipeline.yaml"] if texts["pipeline.yaml"] != run.pipeline_yaml.encode() else []
    changed += [NAME] if sealed(orjson.loads(data))["digest"] != run.digest else []
    if changed:
        raise BadInput(f"{folder}: {changed[0]} is not as it was written; `{mend}` makes it anew")
    return Found(run, texts)


def _as_named(folder: Path, path: str) -> bool:
    """Whether a data file is there, with the content that its name says."""
    named = digest_of(path)
    return bool(named and (folder / path).is_file() and hub.sha256(folder / path).startswith(named))


def _differing(before: str, now: str) -> list[str]:
    old, new = yaml.safe_load(before), yaml.safe_load(now)
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


# --- what would change ------------------------------------------------------------------------------------------------


def survey(pipeline: Pipeline, folder: Path, found: Found, repo: str, public: bool) -> Plan:
    """Compares an export with what stands on the Hub. Sends nothing.

    Raises BadInput where `repo` is of the other visibility or holds something that is no export of aif's, and what
    `hub.opened` raises.
    """
    run, texts, gone, replaced = found.run, found.texts, set[str](), None
    with hub.opened(repo) as api:
        there = hub.look(api, repo)
        if there is not None:
            _check_visibility(repo, there, public)
            gone, replaced = _former(api, repo, there)
        closed = tuple(_closed(api, pipeline)) if public else ()
        of = there.files if there else {}
        files = [_compared(texts.get(path, folder / path), path, of.get(path)) for path in (*run.paths, *DESCRIBED)]
    files += [File(path, of[path].size, "removed") for path in sorted(gone - {file.path for file in files})]
    head = there.head if there else None
    return Plan(pipeline, folder, run, repo, public, head, tuple(files), texts, replaced, closed)


def _compared(local: Path | bytes, path: str, there: RepoFile | None) -> File:
    change: Change = "added" if there is None else "unchanged" if hub.same(local, there) else "changed"
    return File(path, len(local) if isinstance(local, bytes) else local.stat().st_size, change)


def _closed(api: HfApi, pipeline: Pipeline) -> Iterator[str]:
    """The datasets of the Hub among the sources that not everyone may see, and why."""
    every = dict.fromkeys(one.hub for one in pipeline.prompts if one.hub)
    for name in (one for one in every if not local_folder(one, pipeline.beside)):
        try:
            info = api.dataset_info(name, timeout=hub.WAIT_S)
        except RepositoryNotFoundError:
            yield f"{name}, which this token can't see, so it may be private"
        else:
            if info.private or info.gated:
                yield f"{name}, which is {'private' if info.private else 'gated: its terms hold for its prompts here'}"


def _check_visibility(repo: str, there: There, public: bool) -> None:
    if there.public and not public:
        raise BadInput(
            f"{repo} is public, and without --public nothing is sent where everyone sees it; give --public, make it "
            "private in its settings on the Hub, or name another --repo"
        )
    if public and not there.public:
        raise BadInput(
            f"{repo} is private, and publishing opens nothing; make it public in its settings on the Hub, or take out "
            "--public"
        )


def _former(api: HfApi, repo: str, there: There) -> tuple[set[str], str | None]:
    """The data files of the export that stands there, and its pipeline. Raises BadInput where something else does.

    A card without a word in its body counts as nothing: the Hub's form for a new dataset makes one.
    """
    if NAME in there.files and (found := marked(hub.content(api, repo, there, NAME))) is not None:
        return _listed(found.get("files")) & there.files.keys(), str(found.get("pipeline"))
    if there.files.keys() <= {CARD, ".gitattributes"} and (
        CARD not in there.files or _is_blank(hub.content(api, repo, there, CARD))
    ):
        return set(), None
    raise BadInput(f"{repo} holds something that is no export of aif's; name another --repo")


def _listed(files: object) -> set[str]:
    """What a run.json lists as data files, whoever wrote it, so far as they are named as ours are."""
    splits = files.values() if isinstance(files, dict) else ()
    paths = [path for one in splits if isinstance(one, dict) for path in one.values()]
    return {path for path in paths if isinstance(path, str) and digest_of(path)}


def _is_blank(card: bytes) -> bool:
    return not re.sub(rb"\A---\r?\n.*?^---\s*$", b"", card, flags=re.DOTALL | re.MULTILINE).strip()


# --- sending ----------------------------------------------------------------------------------------------------------


def send(plan: Plan, tell: Callable[[str], None], bars: bool = False) -> str:
    """Makes the dataset if there is none, and one commit of all that differs. Returns the commit's hash.

    The Hub refuses it if somebody else has committed since the plan was made. Raises BadInput where the Hub no longer
    is as the plan has it, and what `hub.opened` raises.
    """
    if not bars:
        disable_progress_bars()
    with hub.opened(plan.repo) as api, _warned(tell), _leaving_at_once(tell):
        additions = [_addition(plan, file.path) for file in plan.sent]
        if plan.head is None:
            api.create_repo(plan.repo, repo_type="dataset", private=not plan.public)
        head = plan.head or _untouched(plan, _looked(api, plan))
        api.preupload_lfs_files(plan.repo, additions, repo_type="dataset", free_memory=False)
        _looked(api, plan)
        commit = api.create_commit(
            plan.repo,
            [*additions, *(CommitOperationDelete(file.path) for file in plan.removed)],
            commit_message=f"Publish {plan.run.books.pairs:,} pairs of {plan.pipeline.name}",
            commit_description=f"By aif {__version__}.",
            repo_type="dataset",
            parent_commit=head,
        )
    return str(commit.oid)


def _addition(plan: Plan, path: str) -> CommitOperationAdd:
    """A file as it was shown. An export made since has data files of other names, or the same."""
    if path not in plan.texts and not _as_named(plan.folder, path):
        raise BadInput(f"{plan.folder}: {path} has changed since it was shown, so nothing was sent; {hub.AGAIN}")
    return CommitOperationAdd(path, plan.texts.get(path, plan.folder / path))


def _looked(api: HfApi, plan: Plan) -> There:
    """The dataset as it is now: an organisation's settings may have made it otherwise than asked for, and somebody may
    have opened it while files were sent."""
    there = hub.look(api, plan.repo)
    if there is None:
        raise BadInput(f"{plan.repo}: can't be seen on the Hub now; give the same command again")
    _check_visibility(plan.repo, there, plan.public)
    return there


def _untouched(plan: Plan, there: There) -> str:
    """The first commit of a dataset that was made a moment ago."""
    if there.files.keys() - {".gitattributes"}:
        raise BadInput(f"{plan.repo}: somebody else has put files there meanwhile; {hub.AGAIN}")
    return there.head


@contextmanager
def _warned(tell: Callable[[str], None]) -> Iterator[None]:
    """Tells what huggingface_hub warns of, such as the card's metadata, in lines of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if not issubclass(one.category, UserWarning):  # DeprecationWarning: of what it calls itself
            continue
        tell(f"the Hub's client warns: {' '.join(str(one.message).split())}")


@contextmanager
def _leaving_at_once(tell: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C leaves at once. huggingface_hub's threads would first upload each file in flight to its end."""

    def leave(signum: int, frame: object) -> None:
        tell(f"\nstopped. A commit is made whole or not at all; {hub.AGAIN}")
        os._exit(Exit.INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- told to a person -------------------------------------------------------------------------------------------------


def concerns(plan: Plan) -> Iterator[str]:
    """What whoever publishes should know first."""
    if names := simulated(plan.pipeline):
        yield f"a rehearsal: {', '.join(names)} are simulated, so no text and no rating is real"
    if plan.replaced not in (None, plan.pipeline.name):
        yield f"it takes the place of what the pipeline {plan.replaced} has published there"
    for words in plan.closed:
        yield f"everyone will see prompts of {words}"
    if not plan.pipeline.export.license:
        yield "no licence: `export.license` in the pipeline sets one"
    if names := without_terms(plan.pipeline):
        yield f"nobody has said what the output of {', '.join(names)} comes under: `terms` of each says it"
    if pending := plan.run.books.outcomes.get("pending", 0):
        yield f"{pending:,} of {plan.run.books.selected:,} prompts are pending: `aif run` goes on with them"
