"""What a fresh machine installs, and what the Makefile does to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.command import ROOT
from support.imports import imports_of, sources

import pipeline
from pipeline.config import Config, load
from pipeline.demos.digits import pack_digits
from pipeline.demos.moons.config import TwoMoons
from pipeline.errors import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return dict(line.lower().split("==") for line in lines if line)


def requirements(*extras: str) -> dict[str, Requirement]:
    """By name: those of the package, and those of extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    found = {requirement.name.lower(): requirement for requirement in map(Requirement, texts)}
    of_extras = found.pop(PROJECT["name"], None)
    return found if of_extras is None else requirements(*of_extras.extras) | found


def test_every_requirement_is_pinned_to_a_version_that_it_accepts() -> None:
    pins = constraints()
    wrong = {name: pins.get(name) for name, r in requirements("dev").items() if pins.get(name, "") not in r.specifier}
    assert wrong == {}


BROUGHT = {
    "annotated-types": "pydantic",
    "pydantic-core": "pydantic",
    "huggingface-hub": "timm",
    "httpx": "prefect",
    "packaging": "pytest",
}
"""Parts of a requirement that are imported beside it, and the requirement that brings them."""


@pytest.mark.parametrize(("folder", "extras"), [("pipeline", ("demo",)), ("flows", ()), ("tests", ("dev",))])
def test_what_is_imported_is_required(folder: str, extras: tuple[str, ...]) -> None:
    of_modules, required = packages_distributions(), requirements(*extras)
    modules = {module.split(".")[0] for path in sources(folder) for module in imports_of(path)}
    for module in modules - sys.stdlib_module_names - {"pipeline", "flows", "selftrain", "support"}:
        names = {name.lower().replace("_", "-") for name in of_modules[module]}
        assert {BROUGHT.get(name, name) for name in names} & set(required), f"{folder} imports {module}"


def test_a_part_is_brought_by_its_requirement() -> None:
    for part, whole in BROUGHT.items():
        texts = requires(whole) or []
        assert part in {Requirement(text).name.lower().replace("_", "-") for text in texts}, f"{whole} without {part}"


def test_only_the_digits_need_the_extra_of_demos() -> None:
    users = [path for path in sources("pipeline") if any(name.split(".")[0] == "sklearn" for name in imports_of(path))]
    assert users == [ROOT / "pipeline" / "demos" / "digits.py"]


def test_digits_without_their_extra_name_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install selftrain\[demo\]"):
        pack_digits(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_torch_and_torchvision_are_pinned_as_one_pair() -> None:
    pins = constraints()
    torch, torchvision = (list(map(int, pins[name].split("."))) for name in ("torch", "torchvision"))
    assert torchvision[1] == torch[1] + 15  # 2.13 goes with 0.28, and so on since 2.0 and 0.15


def test_prefect_is_kept_from_the_versions_that_break_it() -> None:
    assert "0.151" not in requirements()["fastapi"].specifier
    assert "2.1.0" not in requirements()["sqlalchemy"].specifier


def test_the_console_script_exists() -> None:
    module, _, name = PROJECT["scripts"]["selftrain"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_version_is_said_once() -> None:
    assert PROJECT["version"] == pipeline.__version__


def test_the_licence_is_there_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses_and_begins_with_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
    load(TwoMoons if path.stem == "two_moons" else Config, path)


@pytest.mark.process
def test_make_clean_leaves_data_and_runs_alone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = [
        "shards/birds/labeled-000000.tar",
        "runs/demo/result.json",
        "birds.yaml",
        "pipeline/mine.py",
        "selftrain.py",
    ]
    gone = [".venv/installed", ".pytest_cache/x", "pipeline/__pycache__/mine.pyc", "selftrain.egg-info/PKG-INFO"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for folder in ("flows", "tests", "benchmarks"):
        (tmp_path / folder).mkdir()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "Makefile"}


def test_the_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named - targets == set()


def test_the_makefile_runs_modules_and_configs_that_exist() -> None:
    text = (ROOT / "Makefile").read_text()
    modules = re.findall(r"python -m (pipeline[\w.]*)", text)
    configs = re.findall(r"\bconfigs/\S+\.yaml", text)
    assert {"pipeline.demos.digits", "pipeline.demos.moons"} <= set(modules)
    assert [name for name in modules if find_spec(name) is None] == []
    assert configs != []
    assert [name for name in configs if not (ROOT / name).exists()] == []
