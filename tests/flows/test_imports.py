"""Who may import whom, and what the command may load before it has something to do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import ROOT, selftrain


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_the_pipeline_never_imports_prefect_or_flows() -> None:
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    assert len(files) > 10
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in files
        for name in imported(file)
        if name.split(".")[0] in {"prefect", "flows"}
    }
    assert wrong == set()


@pytest.mark.process
@pytest.mark.parametrize("code", ["import pipeline.cli", "import flows.cli", "import pipeline.stages.child"])
def test_importing_the_command_loads_nothing_heavy(code: str) -> None:
    heavy = {"torch", "timm", "prefect", "matplotlib", "pyarrow", "sklearn", "webdataset"}
    script = f"{code}; import sys; print(*sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.process
def test_help_of_run_shows_an_example() -> None:
    assert "Example: selftrain run" in selftrain("run", "--help", cwd=ROOT)
