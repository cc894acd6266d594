"""The `selftrain` command of this checkout, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pipeline
from support.waiting import LIMIT_S

ROOT = Path(pipeline.__file__).parents[1]
SELFTRAIN = (sys.executable, "-m", "flows.cli")


def environment(**more: str) -> dict[str, str]:
    """The variables of a process that finds this checkout wherever it works, and no Prefect of whoever tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **more}


def type_command(
    *arguments: str | Path, cwd: Path, command: tuple[str, ...] = SELFTRAIN, **variables: str
) -> subprocess.Popen[str]:
    """Begin the command as in a terminal of its own; `variables` are those of its environment."""
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; returns exit code, output and errors."""
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def selftrain(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Run the command to its end, which must be a good one; returns what it printed."""
    code, out, err = finish(type_command(*arguments, cwd=cwd, **variables))
    assert code == 0, out + err
    return out


def selftrain_here(*arguments: str | Path) -> str:
    """Run the command in this process; returns what it printed, and raises what it raises."""
    from typer.testing import CliRunner

    from flows.verbs import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception:
        raise done.exception
    return done.stdout
