"""Python files of a user's, which every process of a run imports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages import plugins
from pipeline.stages.launch import child_variables, run_child
from pipeline.stages.plugins import VARIABLE, add_plugins, load_plugins

CODE = "from pathlib import Path\nwith open(Path(__file__).with_suffix('.log'), 'a') as log: log.write('imported ')\n"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports and names is forgotten after it."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(plugins, "_LOADED", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def plugin(folder: Path, code: str = CODE, name: str = "my_method") -> Path:
    (folder / f"{name}.py").write_text(code)
    return folder / f"{name}.py"


def test_a_plugin_is_imported_once_and_named_for_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plugin(tmp_path)
    monkeypatch.chdir(tmp_path)
    add_plugins([Path(path.name), path])
    add_plugins([path])
    assert os.environ[VARIABLE] == str(path)
    assert path.with_suffix(".log").read_text() == "imported "
    assert Path(sys.modules["my_method"].__file__ or "") == path
    assert child_variables({})[VARIABLE] == str(path)


@pytest.mark.process
def test_a_child_imports_the_plugins_of_its_parent(tmp_path: Path) -> None:
    first, second = plugin(tmp_path), plugin(tmp_path, name="my_other")
    add_plugins([first, second])
    code = "from pipeline.stages.plugins import load_plugins; load_plugins(); import my_method, my_other"
    run_child([sys.executable, "-c", code], tmp_path, title="stage")
    assert [path.with_suffix(".log").read_text() for path in (first, second)] == ["imported imported "] * 2


@pytest.mark.process
def test_a_plugin_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plugin .*nothing\.py does not exist"):
        add_plugins([tmp_path / "nothing.py"])
    broken = plugin(tmp_path, "import nothing_of_that_name", "my_broken")
    with pytest.raises(
        UserError, match=r"my_broken\.py cannot be imported: ModuleNotFoundError: .*nothing_of_that_name"
    ):
        add_plugins([broken])
    assert "my_broken" not in sys.modules


@pytest.mark.parametrize("name", ["json", "pipeline", "this"])
def test_a_plugin_may_not_take_the_name_of_a_module(tmp_path: Path, name: str) -> None:
    """Be it imported already or not."""
    with pytest.raises(UserError, match=rf"a module '{name}' exists already; rename the file"):
        add_plugins([plugin(tmp_path, name=name)])


def test_without_plugins_nothing_is_imported() -> None:
    before = set(sys.modules)
    load_plugins()
    assert set(sys.modules) == before
