"""Publish an export on the Hub in one commit. Nothing else in aif writes to the Hub.

- The export's files are compared with the files on the Hub.
- Files that differ are sent. If all are the same, nothing is sent.
- A commit is atomic, so the same command resumes after an interruption.
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
from aif.export.card import endpoints_without_terms, simulated_endpoints
from aif.export.formats import content_digest
from aif.export.hub import HubDataset
from aif.export.manifest import MANIFEST, Manifest, parse, parse_any_version, store_state, with_digest
from aif.judging.rubric import Rubric
from aif.sources.load import local_folder
from aif.store.journaled_store import JournaledStore
from aif.store.result_queries import ResultReader

CARD = "README.md"
METADATA_FILES = (CARD, "pipeline.yaml", MANIFEST)  # the files of an export beside its data files

Change = Literal["added", "changed", "unchanged", "removed"]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file of the dataset, and how publishing changes it on the Hub.

    path: relative to the dataset's folder.
    size: in bytes.
    change: "added", "changed", "unchanged" or "removed".
    """

    path: str
    size: int
    change: Change


@dataclass(frozen=True, slots=True)
class LoadedExport:
    """An export read from its folder before the user confirms.

    run: its run.json.
    texts: content of README.md, pipeline.yaml and run.json, by path. This content is sent, even if another export
        replaces the folder meanwhile.

    Data files are read when they are sent, and checked by the digest in their names.
    """

    run: Manifest
    texts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """The changes that publishing an export would make on the Hub.

    folder: the exported folder.
    run: its run.json.
    repo: the dataset on the Hub, as ORG/NAME.
    public: whether the dataset is to be public.
    head: commit on the Hub that the export was compared with; None if the dataset is new.
    files: every file of the export, and every file to remove.
    texts: content of README.md, pipeline.yaml and run.json, by path.
    replaced_pipeline: name of the pipeline whose export is on the Hub now; None if there is no export.
    restricted: the pipeline's sources on the Hub that are private or gated, each with the reason; empty unless
        `public`.
    """

    pipeline: Pipeline
    folder: Path
    run: Manifest
    repo: str
    public: bool
    head: str | None
    files: tuple[FileChange, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    replaced_pipeline: str | None = None
    restricted: Sequence[str] = ()

    @property
    def sent(self) -> list[FileChange]:
        return [file for file in self.files if file.change in ("added", "changed")]

    @property
    def removed(self) -> list[FileChange]:
        return [file for file in self.files if file.change == "removed"]


# --- the export to publish --------------------------------------------------------------------------------------------


def load_export(
    pipeline: Pipeline, rubric: Rubric, journaled: JournaledStore, folder: Path, command: str
) -> LoadedExport:
    """Read the export in `folder`, and check that it is what `aif export` would write now. Calls no model.

    To compare, it makes the pairs in the store again. Raises BadInput if the export is out of date or damaged; the
    message names `command`, the command that exports again.
    """
    loaded = _read_export(folder, command)
    run = loaded.run
    make_pairs(pipeline, rubric, journaled.store)
    with ResultReader.of(journaled.store) as reader:
        state = store_state(reader, reader.prompt_counts(), reader.pair_keys())
    changed = [f"`{key}`" for key in _changed_keys(run.pipeline_yaml, pipeline.public_yaml)]
    changed += ["the rubric"] if run.rubric != rubric.digest else []
    if run.state != state and not changed:  # a changed pipeline or rubric may explain other pairs
        changed = ["the store"]
    if changed:
        raise BadInput(f"{folder}: this export is out of date: {', '.join(changed)} changed since; run `{command}`")
    return loaded


def _read_export(folder: Path, command: str) -> LoadedExport:
    """Read an export. Raises BadInput if it is incomplete, changed or of another version of aif. The message names
    `command`, the command that exports again."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        data = b""
    if parse_any_version(data) is None:
        raise BadInput(f"{folder}: no aif export here; run `{command}`")
    if (run := parse(data)) is None:
        raise BadInput(f"{folder}: this export is of another version of aif; run `{command}`")
    for path in (*METADATA_FILES, *run.paths):
        if not (folder / path).is_file():
            raise BadInput(f"{folder}: {path} is missing; run `{command}`")
    texts = {path: (folder / path).read_bytes() for path in METADATA_FILES} | {MANIFEST: data}
    changed = [path for path in run.paths if not _matches_name(folder, path)]
    changed += ["pipeline.yaml"] if texts["pipeline.yaml"] != run.pipeline_yaml.encode() else []
    changed += [MANIFEST] if with_digest(orjson.loads(data))["digest"] != run.digest else []
    if changed:
        raise BadInput(f"{folder}: {changed[0]} has changed since the export; run `{command}`")
    return LoadedExport(run, texts)


def _matches_name(folder: Path, path: str) -> bool:
    """Return whether the data file `path` exists in `folder`, and its content has the digest that is in its name."""
    expected = content_digest(path)
    return bool(expected and (folder / path).is_file() and hub.file_sha256(folder / path).startswith(expected))


def _changed_keys(before: str, now: str) -> list[str]:
    """Return the names of the top-level keys whose values differ between two pipeline files, given as YAML."""
    old, new = yaml.safe_load(before), yaml.safe_load(now)
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


# --- what would change ------------------------------------------------------------------------------------------------


def plan_publish(pipeline: Pipeline, folder: Path, loaded: LoadedExport, repo: str, public: bool) -> PublishPlan:
    """Compare an export with the dataset `repo` on the Hub, and return the changes to make there. Sends nothing.

    Raises BadInput if the dataset exists and is neither empty nor an export of aif, or if its visibility differs from
    `public`. Raises ProviderRefused if the Hub refuses the token, BadInput for all other errors of the Hub.
    """
    run, texts, former, replaced_pipeline = loaded.run, loaded.texts, set[str](), None
    with hub.hub_client(repo) as api:
        dataset = hub.find_dataset(api, repo)
        if dataset is not None:
            _check_visibility(repo, dataset, public)
            former, replaced_pipeline = _former_export(api, repo, dataset)
        restricted = tuple(_restricted_sources(api, pipeline)) if public else ()
        remote = dataset.files if dataset else {}
        paths = (*run.paths, *METADATA_FILES)
        files = [_compare(texts.get(path, folder / path), path, remote.get(path)) for path in paths]
    files += [FileChange(path, remote[path].size, "removed") for path in sorted(former - {file.path for file in files})]
    head = dataset.head if dataset else None
    return PublishPlan(pipeline, folder, run, repo, public, head, tuple(files), texts, replaced_pipeline, restricted)


def _compare(local: Path | bytes, path: str, remote: RepoFile | None) -> FileChange:
    change: Change = "added" if remote is None else "unchanged" if hub.has_same_content(local, remote) else "changed"
    return FileChange(path, len(local) if isinstance(local, bytes) else local.stat().st_size, change)


def _restricted_sources(api: HfApi, pipeline: Pipeline) -> Iterator[str]:
    """Yield the name of each of the pipeline's Hub datasets that is private, gated or not visible, with the reason."""
    names = dict.fromkeys(source.hub for source in pipeline.prompts if source.hub)
    for name in (name for name in names if not local_folder(name, pipeline.folder)):
        try:
            info = api.dataset_info(name, timeout=hub.TIMEOUT_S)
        except RepositoryNotFoundError:
            yield f"{name}, which this token can't see, so it may be private"
        else:
            if info.private or info.gated:
                yield f"{name}, which is {'private' if info.private else 'gated: its terms hold for its prompts here'}"


def _check_visibility(repo: str, dataset: HubDataset, public: bool) -> None:
    if dataset.public and not public:
        raise BadInput(
            f"{repo} is public, and nothing is sent to a public dataset without --public; pass --public, make it "
            "private in its settings on the Hub, or name another --repo"
        )
    if public and not dataset.public:
        raise BadInput(
            f"{repo} is private, and publishing doesn't change that; make it public in its settings on the Hub, or "
            "leave out --public"
        )


def _former_export(api: HfApi, repo: str, dataset: HubDataset) -> tuple[set[str], str | None]:
    """Return the data files of the export that the dataset on the Hub holds now, and the name of that export's
    pipeline.

    Return no files and None if the dataset is empty. A dataset with only a blank card, such as the Hub's website
    creates, counts as empty. Raises BadInput if it holds anything else.
    """
    if MANIFEST in dataset.files:
        run = parse_any_version(hub.download_file(api, repo, dataset, MANIFEST))
        if run is not None:
            return _listed_files(run.get("files")) & dataset.files.keys(), str(run.get("pipeline"))
    if dataset.files.keys() <= {CARD, ".gitattributes"} and (
        CARD not in dataset.files or _is_blank(hub.download_file(api, repo, dataset, CARD))
    ):
        return set(), None
    raise BadInput(f"{repo} already exists and isn't an aif export; name another --repo")


def _listed_files(files: object) -> set[str]:
    """Return the paths of the data files in a run.json's `files`. Paths that aif wouldn't make are left out, since
    somebody may have edited the file."""
    configs = files.values() if isinstance(files, dict) else ()
    paths = [path for splits in configs if isinstance(splits, dict) for path in splits.values()]
    return {path for path in paths if isinstance(path, str) and content_digest(path)}


def _is_blank(card: bytes) -> bool:
    """Return whether a card has no text beside its YAML metadata."""
    return not re.sub(rb"\A---\r?\n.*?^---\s*$", b"", card, flags=re.DOTALL | re.MULTILINE).strip()


# --- sending ----------------------------------------------------------------------------------------------------------


def send_plan(plan: PublishPlan, tell: Callable[[str], None], bars: bool = False) -> str:
    """Create the dataset if it is new, and commit all changes of the plan at once. Return the commit's hash.

    tell: prints a line.
    bars: whether to show progress bars.

    The Hub refuses the commit if the dataset has changed since the plan was made. Raises BadInput if a data file or the
    dataset isn't as planned. Raises ProviderRefused if the Hub refuses the token, BadInput for all other errors of the
    Hub.
    """
    if not bars:
        disable_progress_bars()
    with hub.hub_client(plan.repo) as api, _report_warnings(tell), _exit_on_interrupt(tell):
        additions = [_addition(plan, file.path) for file in plan.sent]
        if plan.head is None:
            api.create_repo(plan.repo, repo_type="dataset", private=not plan.public)
        head = plan.head or _first_commit(plan, _current_dataset(api, plan))
        api.preupload_lfs_files(plan.repo, additions, repo_type="dataset", free_memory=False)
        _current_dataset(api, plan)
        commit = api.create_commit(
            plan.repo,
            [*additions, *(CommitOperationDelete(file.path) for file in plan.removed)],
            commit_message=f"Publish {plan.run.prompt_counts.pairs:,} pairs of {plan.pipeline.name}",
            commit_description=f"By aif {__version__}.",
            repo_type="dataset",
            parent_commit=head,
        )
    return str(commit.oid)


def _addition(plan: PublishPlan, path: str) -> CommitOperationAdd:
    """Return the commit operation that uploads the file `path`. Raises BadInput if it is a data file that has changed
    since the plan was made."""
    if path not in plan.texts and not _matches_name(plan.folder, path):
        raise BadInput(f"{plan.folder}: {path} has changed since it was shown, so nothing was sent; {hub.RERUN}")
    return CommitOperationAdd(path, plan.texts.get(path, plan.folder / path))


def _current_dataset(api: HfApi, plan: PublishPlan) -> HubDataset:
    """Return the dataset as it is on the Hub now. Raises BadInput if it can't be found, or if it is public but planned
    as private, or private but planned as public.

    An organisation's settings may make a new dataset public, or somebody may have changed it during the upload.
    """
    dataset = hub.find_dataset(api, plan.repo)
    if dataset is None:
        raise BadInput(f"{plan.repo}: can't be seen on the Hub now; run the same command again")
    _check_visibility(plan.repo, dataset, plan.public)
    return dataset


def _first_commit(plan: PublishPlan, dataset: HubDataset) -> str:
    """Return the hash of the newest commit of a dataset created a moment ago. Raises BadInput if somebody else has
    added files to it."""
    if dataset.files.keys() - {".gitattributes"}:
        raise BadInput(f"{plan.repo}: somebody else has put files there meanwhile; {hub.RERUN}")
    return dataset.head


@contextmanager
def _report_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Collect huggingface_hub's warnings in the block, such as those on the card's metadata, and then report each as
    one line with `tell`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, UserWarning):  # DeprecationWarning of huggingface_hub's own code
            continue
        tell(f"the Hub's client warns: {' '.join(str(warning.message).split())}")


@contextmanager
def _exit_on_interrupt(tell: Callable[[str], None]) -> Iterator[None]:
    """In the block, make Ctrl-C exit the program at once. Else huggingface_hub's threads would first finish the upload
    of each file in flight."""

    def leave(signum: int, frame: object) -> None:
        tell(f"\nstopped. A commit is made completely or not at all; {hub.RERUN}")
        os._exit(Exit.INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- shown before sending ---------------------------------------------------------------------------------------------


def publish_warnings(plan: PublishPlan) -> Iterator[str]:
    """Yield a line for each problem that the user should know before publishing."""
    if names := simulated_endpoints(plan.pipeline):
        yield f"a rehearsal: {', '.join(names)} are simulated, so no text and no rating is real"
    if plan.replaced_pipeline not in (None, plan.pipeline.name):
        yield f"it replaces the export of the pipeline {plan.replaced_pipeline}"
    for source in plan.restricted:
        yield f"everyone will see prompts of {source}"
    if not plan.pipeline.export.license:
        yield "no licence: `export.license` in the pipeline sets one"
    if names := endpoints_without_terms(plan.pipeline):
        yield f"licence of model outputs not stated for: {', '.join(names)} (set `terms` of each)"
    if pending := plan.run.prompt_counts.outcomes.get("pending", 0):
        of_all = f"{pending:,} of {plan.run.prompt_counts.selected:,} prompts"
        yield f"{of_all} are pending: `aif run {plan.pipeline.path}` continues with them"
