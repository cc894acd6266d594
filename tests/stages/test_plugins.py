"""Python files of a user's, which every process of a run imports."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages import plugins
from pipeline.stages.environment import child_variables
from pipeline.stages.launch import run_child
from pipeline.stages.plugins import VARIABLE, add_plugins, digests, load_plugins

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
    with pytest.raises(UserError, match=r"--plugin .*nothing\.py is no file"):
        add_plugins([tmp_path / "nothing.py"])
    broken = plugin(tmp_path, "import nothing_of_that_name", "my_broken")
    with pytest.raises(
        UserError, match=r"my_broken\.py cannot be imported \(line 1\): ModuleNotFoundError: .*nothing_of_that_name"
    ):
        add_plugins([broken])
    assert "my_broken" not in sys.modules


@pytest.mark.parametrize("name", ["json", "pipeline", "this"])
def test_a_plugin_may_not_take_the_name_of_a_module(tmp_path: Path, name: str) -> None:
    """Be it imported already or not."""
    with pytest.raises(UserError, match=rf"a module '{name}' exists already; rename the file"):
        add_plugins([plugin(tmp_path, name=name)])


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise SystemExit('asked for a GPU')"])
def test_a_plugin_that_exits_is_an_error_and_no_good_end(tmp_path: Path, code: str) -> None:
    (tmp_path / "quits.py").write_text(code)
    with pytest.raises(UserError, match=r"quits\.py cannot be imported \(line 1\): SystemExit"):
        add_plugins([tmp_path / "quits.py"])


def test_a_plugin_by_another_path_to_the_same_file_is_that_plugin(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/my_twice.py").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    add_plugins([tmp_path / "real/my_twice.py", tmp_path / "link/my_twice.py"])
    assert list(digests()) == ["my_twice.py"]


def test_the_name_of_a_plugin_must_be_that_of_a_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'my-net' cannot be the name of a module; rename the file, e\.g\. to my_net"):
        add_plugins([plugin(tmp_path, name="my-net")])


def test_a_file_that_a_script_imported_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("my_method")
    add_plugins([path])
    assert path.with_suffix(".log").read_text() == "imported "
    assert sys.modules["my_method"] is module
    assert plugins.digests() == {"my_method.py": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_the_code_that_runs_is_that_of_the_digest(tmp_path: Path) -> None:
    """Python's own import may take the compiled code of a file that was as long, and edited in the same second."""
    for value in (1, 2):
        path = plugin(tmp_path, f"value = {value}\n", "my_value")
        os.utime(path, (1e9, 1e9))
        add_plugins([path])
        assert sys.modules["my_value"].value == value
        assert plugins.digests() == {"my_value.py": hashlib.sha256(path.read_bytes()).hexdigest()}
        del sys.modules["my_value"]
        plugins._LOADED.clear()


def test_the_sources_of_a_name_are_its_plugin_and_those_that_it_imports(tmp_path: Path) -> None:
    paths = [
        plugin(tmp_path, "", "my_views"),
        plugin(tmp_path, "import json\nfrom my_views import __name__ as name\n", "my_step"),
        plugin(tmp_path, "def late():\n    import my_step\n", "my_learner"),
    ]
    add_plugins(paths)
    assert list(plugins.sources_of("my_learner:Learner")) == ["my_learner.py", "my_step.py", "my_views.py"]
    assert list(plugins.sources_of("my_views", "json", "pipeline.train.stage:run_train")) == ["my_views.py"]


def test_without_plugins_nothing_is_imported() -> None:
    before = set(sys.modules)
    load_plugins()
    assert set(sys.modules) == before


METHOD = "from dataclasses import replace\nfrom pipeline.methods import *\nfrom pipeline.config.methods import *\n"
ROW = "from pipeline.techniques import *\nregister_technique(replace(TECHNIQUES['mixup'], name='mine', keys={keys}))\n"
MISTAKES = {
    "register_method(METHODS['uda'], METHOD_CONFIGS['uda'])": r"there is a method 'uda' already",
    "register_method(replace(METHODS['uda'], name='mine'), MethodConfig(reads=('studnet',)))": (
        r"method mine reads a section 'studnet', did you mean `student`\?"
    ),
    "register_method(replace(METHODS['uda'], name='mine'), MethodConfig((), settings={'student': Uda}))": (
        r"method mine: the config has a section 'student' already"
    ),
    ROW.format(keys=("training.mixp",)): r"there is no config key `training\.mixp`, did you mean `mixup`\?",
    ROW.format(keys=("training.mixup",)): r"its key `training\.mixup` is that of mixup",
    ROW.format(keys=("training.steps",)): r"nothing turns `training\.steps` off; declare its field by technique\(\)",
    "from pipeline.stages.kinds import *\nregister_kind(KINDS['label'])": r"LabelJob\.kind is 'label', which is a kind",
}


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_in_what_is_registered_is_told_when_the_file_is_imported(tmp_path: Path, code: str) -> None:
    with pytest.raises(UserError, match=r"my_method\.py cannot be imported \(line \d+\): .*" + MISTAKES[code]):
        add_plugins([plugin(tmp_path, METHOD + code)])
