"""Who may import whom, and what the command may load before it has something to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.command import ROOT, selftrain
from support.imports import imports_of, sources


def test_the_pipeline_never_imports_prefect_or_flows() -> None:
    files = list(sources("pipeline"))
    assert len(files) > 10
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in files
        for name in imports_of(file)
        if name.split(".")[0] in {"prefect", "flows"}
    }
    assert wrong == set()


@pytest.mark.process
@pytest.mark.parametrize("code", ["import pipeline.cli", "import flows.verbs", "import pipeline.stages.child"])
def test_importing_the_command_loads_nothing_heavy(code: str) -> None:
    heavy = {"torch", "timm", "prefect", "matplotlib", "pyarrow", "sklearn", "webdataset"}
    script = f"{code}; import sys; print(*sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.process
def test_help_of_run_shows_an_example() -> None:
    assert "Example: selftrain run" in selftrain("run", "--help", cwd=ROOT)
