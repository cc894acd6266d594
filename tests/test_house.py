"""The house stays as it was planned: floors, few loose files, one home per method, files of a readable length."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import ROOT
from support.imports import imports_of, sources

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "arrays"),
    ("files", "randomness", "remote", "threads"),
    ("config",),
    ("techniques",),
    ("stages",),
    ("shards",),
    ("packing", "views", "models"),
    ("evaluate",),
    ("features",),
    ("labels", "predict"),
    ("selection",),
    ("probe", "train"),
    ("methods",),
    ("runs",),
    ("champions", "report"),
    ("ablation", "inspection"),
    ("starter", "demos"),
    ("cli",),
)
"""Each imports from itself and from those before it only."""
LONG_LINES, REASON = 300, "long because"


def room_of(module: str) -> str:
    """`pipeline.train.loop` -> `train`."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("path", list(sources("pipeline")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_floor_and_from_those_below(path: Path) -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    room = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in floor_of, f"{room} has no floor in FLOORS"
    for module in imports_of(path):
        if not module.startswith("pipeline.") or room_of(module) in (room, "__version__"):
            continue
        other = room_of(module)
        assert floor_of[other] < floor_of[room], f"{path} imports {module}, which is not below it"


def test_few_files_lie_loose_at_the_top() -> None:
    loose = [path.name for path in (ROOT / "pipeline").glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= 7, loose


def test_nothing_outside_the_methods_asks_for_a_method_by_its_name() -> None:
    asks = re.compile(r"method\s*(==|!=)|\.method\s+(not\s+)?in\b|match\s+\S*\.method\b")
    homes = (ROOT / "pipeline" / "methods", ROOT / "pipeline" / "config" / "methods.py")
    for path in [*sources("pipeline"), *sources("flows")]:
        if any(path == home or home in path.parents for home in homes):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not asks.search(line), f"{path}:{number} branches on the method: {line.strip()}"


def test_a_long_file_says_why_in_its_first_lines() -> None:
    for path in (path for folder in ("pipeline", "flows", "tests", "benchmarks") for path in sources(folder)):
        lines = path.read_text().splitlines()
        if len(lines) > LONG_LINES:
            assert REASON in " ".join(lines[:8]), f"{path} has {len(lines)} lines and gives no reason"


PARTS = {
    "__init__.py",
    "__main__.py",
    "stage.py",
    "learner.py",
    "rounds.py",
    "config.py",
    "cli.py",
    "folder.py",
    "loop.py",
    "plot.py",
    "store.py",
    "intake.py",
    "promote.py",
}
"""Names that several files have, because they play the same part: `loop.py` is a loop over rounds or over steps,
`folder.py` says what may be in a run folder or in a stage folder, `plot.py` draws one figure,
`store.py` has the files of one stage, one per shard, `intake.py` and `promote.py` do so, as a verb or as a flow."""


def test_files_of_one_name_play_the_same_part() -> None:
    names: dict[str, list[Path]] = {}
    for path in [*sources("pipeline"), *sources("flows")]:
        # A section of the config is called after the file that reads it, and rows of techniques after where they act.
        if path.parent.name not in ("config", "techniques"):
            names.setdefault(path.name, []).append(path)
    assert not {name: paths for name, paths in names.items() if len(paths) > 1 and name not in PARTS}


def test_no_test_imports_another_test() -> None:
    """What two of them need is in `support`."""
    for path in sources("tests"):
        for module in imports_of(path):
            of_tests = [part for part in module.split(".") if part.startswith("test_") or part in ("tests", "conftest")]
            assert not of_tests, f"{path} imports {module}; move what it needs to tests/support/"


def test_a_test_that_does_not_say_so_cannot_start_a_process() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"mark it `process`"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(pytest.fail.Exception, match=r"mark it `process`"):
        multiprocessing.get_context("spawn").Process().start()
