"""Finding files: the order of places, and what aif ships in a checkout and in an installed wheel."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from aif.core import resources
from aif.core.errors import BadInput


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_shipped_in_a_checkout() -> None:
    root = Path(resources.__file__).parents[2]
    for folder in resources.FOLDERS:
        assert resources.shipped(folder) == root / folder
        assert resources.shipped(folder).is_dir()


def test_shipped_in_an_installed_wheel(tmp_path: Path, cwd: Path) -> None:
    package = tmp_path / "site-packages" / "aif"
    rubric = package / "_resources" / "prompts" / "rubrics" / "unified"
    rubric.mkdir(parents=True)
    (package / "core").mkdir()
    shutil.copy(resources.__file__, package / "core")
    spec = importlib.util.spec_from_file_location("installed_resources", package / "core" / "resources.py")
    assert spec
    assert spec.loader
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)

    assert installed.shipped("prompts", "rubrics", "unified") == rubric
    assert installed.find_resource("unified", cwd, "prompts/rubrics", "rubric") == rubric
    assert installed.find_resource("prompts/rubrics/unified", cwd, "", "rubric") == rubric


def test_the_base_folder_comes_before_cwd_before_shipped(tmp_path: Path, cwd: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    name = "prompts/rubrics"

    assert resources.find_resource(name, beside, "", "folder") == resources.shipped("prompts", "rubrics")
    (cwd / name).mkdir(parents=True)
    assert resources.find_resource(name, beside, "", "folder") == cwd / name
    (beside / name).mkdir(parents=True)
    assert resources.find_resource(name, beside, "", "folder") == beside / name
    assert resources.find_resource(name, None, "", "folder") == cwd / name


def test_a_shipped_name_comes_before_a_folder_of_the_user_s(tmp_path: Path, cwd: Path) -> None:
    for folder in (tmp_path, cwd):
        (folder / "unified").mkdir()

    shelf = "prompts/rubrics"
    assert resources.find_resource("unified", tmp_path, shelf, "rubric") == resources.shipped(
        "prompts", "rubrics", "unified"
    )
    assert resources.find_resource("./unified", tmp_path, shelf, "rubric") == tmp_path / "unified"
    assert resources.find_resource("unified", tmp_path, None, "source") == tmp_path / "unified"


def test_an_absolute_path_is_searched_nowhere_else(tmp_path: Path, cwd: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert resources.find_resource(str(tmp_path / "a.jsonl"), cwd, "", "prompt file") == tmp_path / "a.jsonl"
    with pytest.raises(BadInput) as raised:
        resources.find_resource(str(tmp_path / "b.jsonl"), cwd, "", "prompt file")
    assert str(cwd) not in str(raised.value)


def test_tilde_is_the_home_folder(tmp_path: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").touch()
    assert resources.find_resource("~/a.yaml", cwd, None, "file") == tmp_path / "a.yaml"


def test_a_home_folder_that_does_not_exist(cwd: Path) -> None:
    with pytest.raises(BadInput, match="no such home folder; write the path in full"):
        resources.find_resource("~no-such-person-here/a.yaml", cwd, None, "file")


def test_not_found_names_every_place(tmp_path: Path, cwd: Path) -> None:
    with pytest.raises(BadInput) as raised:
        resources.find_resource("gentle", tmp_path, "prompts/rubrics", "rubric")
    text = str(raised.value)
    assert text.startswith("rubric 'gentle' not found")
    for place in (tmp_path / "gentle", cwd / "gentle", resources.shipped("prompts", "rubrics", "gentle")):
        assert str(place) in text


def test_only_shipped_files_are_found_in_the_package_s_root(cwd: Path) -> None:
    """The root of a checkout has more files than an installed wheel; these must not be found by name."""
    with pytest.raises(BadInput):
        resources.find_resource("tests/core/test_resources.py", cwd, "", "file")
    with pytest.raises(BadInput):
        resources.find_resource("prompts", cwd, None, "file")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_is_no_path(name: str, cwd: Path) -> None:
    with pytest.raises(BadInput, match="is no path"):
        resources.find_resource(name, cwd, "", "file")


def test_a_name_too_long_to_look_for(cwd: Path) -> None:
    with pytest.raises(BadInput, match="can't be accessed"):
        resources.find_resource("x" * 5000, cwd, None, "file")
