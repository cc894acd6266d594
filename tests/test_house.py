"""The house stays as it was planned: floors, few loose files, one home per method, files of a readable length."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent.parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "arrays"),
    ("files", "randomness", "threads"),
    ("config",),
    ("techniques",),
    ("stages",),
    ("shards",),
    ("packing", "views", "models"),
    ("evaluate",),
    ("labels",),
    ("selection",),
    ("train",),
    ("methods",),
    ("runs",),
    ("report",),
    ("ablation",),
    ("starter", "demos"),
    ("cli",),
)
"""Each imports from itself and from those before it only."""
LONG_LINES, REASON = 300, "long because"


def sources(folder: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def room_of(module: str) -> str:
    """`pipeline.train.loop` -> `train`."""
    return [*module.split("."), ""][1]


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "pipeline" else {f"pipeline.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


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
    for path in [*sources("pipeline"), *sources("flows")]:
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
}
"""Names that several files have, because they play the same part."""


def test_files_of_one_name_play_the_same_part() -> None:
    names: dict[str, list[Path]] = {}
    for path in [*sources("pipeline"), *sources("flows")]:
        if path.parent.name != "config":  # a section of the config is called after the file that reads it
            names.setdefault(path.name, []).append(path)
    assert not {name: paths for name, paths in names.items() if len(paths) > 1 and name not in PARTS}
