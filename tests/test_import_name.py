"""A project with packages `flows` and `pipeline` of its own loads and runs ours by the name `selftrain`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import ROOT, environment, finish, type_command
from support.images import class_files, write_files
from support.waiting import LIMIT_S

SCRIPT = """
import importlib, sys
from prefect.flows import load_flow_from_entrypoint as load

def is_theirs():
    return [importlib.import_module(name).WHOSE for name in ("flows", "flows.etl", "pipeline.train")] == ["theirs"] * 3

for entrypoint in ENTRYPOINTS:
    print(entrypoint, load(entrypoint, use_placeholder_flow=False).name, is_theirs())
import selftrain
assert selftrain.promote is selftrain.promote
"""
THEIRS = '''
WHOSE = "theirs"
from prefect import flow

@flow
def etl():
    """A flow of the project."""
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with both packages."""
    plain = b'WHOSE = "theirs"\n'
    files = {
        "flows/__init__.py": plain,
        "flows/etl.py": THEIRS.encode(),
        "pipeline/__init__.py": plain,
        "pipeline/train.py": plain,
    }
    return write_files(tmp_path / "project", files)


def python(script: str, project: Path, path: str, **variables: str) -> str:
    """What a script prints that runs in the project's folder."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project,
        env=environment(PYTHONPATH=path, **variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.mark.process
def test_one_deploy_loads_flows_of_the_project_and_ours_in_any_order(project: Path) -> None:
    entrypoints = [
        "selftrain.self_train",
        "flows.etl.etl",
        "selftrain.intake",
        "selftrain.promote",
        "flows/etl.py:etl",
    ]
    script = SCRIPT.replace("ENTRYPOINTS", repr(entrypoints))
    assert python(script, project, f"{project}:{ROOT}").splitlines() == [
        "selftrain.self_train self-train True",
        "flows.etl.etl etl True",
        "selftrain.intake intake True",
        "selftrain.promote promote True",
        "flows/etl.py:etl etl True",
    ]


@pytest.mark.process
def test_in_a_flow_run_the_names_remain_ours(project: Path) -> None:
    script = (
        "import flows, selftrain, sys\n"
        "selftrain.FLOWS['RETRY_S'] = 'flows.early_end'\n"
        "print(selftrain.RETRY_S > 0, hasattr(sys.modules['flows'], 'WHOSE'))\n"
    )
    assert python(script, project, f"{project}:{ROOT}") == "True True\n"  # given back
    script += "import flows.settings, pipeline.errors\n"
    assert python(script, project, f"{project}:{ROOT}", PREFECT__FLOW_RUN_ID="some") == "True False\n"


@pytest.mark.process
def test_the_command_and_its_stages_find_their_own_packages(project: Path, tmp_path: Path) -> None:
    """Even where PYTHONPATH names the project, the user works in it, and selftrain is installed."""
    for name in ("flows", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / "site-packages" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "selftrain.py", tmp_path / "site-packages")
    path = f"{project}:{tmp_path / 'site-packages'}"
    write_files(tmp_path / "images", class_files(2))
    arguments = ("pack", tmp_path / "images", "--out", tmp_path / "packed", "--split", "val")
    command = (sys.executable, "-m", "selftrain")
    code, _, err = finish(type_command(*arguments, cwd=project, command=command, PYTHONPATH=path))
    assert code == 0, err
    script = (
        "import selftrain, subprocess\n"
        "with selftrain._named(keep=True):\n"
        "    from pipeline.stages.environment import child_variables\n"
        "    from pipeline.stages.launch import CHILD\n"
        "done = subprocess.run([*CHILD, 'no-job.json'], env=child_variables({}), capture_output=True, text=True)\n"
        "print(done.stderr)\n"
    )
    said = python(script, project, path)
    assert "no-job.json" in said
    assert "ModuleNotFoundError" not in said
