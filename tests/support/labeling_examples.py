"""The examples of docs/scale_out.md for labeling on many machines, and a `selftrain` that notes how they call it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from support import slurm
from support.command import ROOT, environment

SECTION = "## Labeling on many machines"
ARGUMENTS = ["label", "birds.yaml", "--teacher", "champion", "--run-dir", "runs/birds", "--part"]
RECORDER = """
import json, os, sys
with open("typed.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def example(language: str, holds: str) -> str:
    """The one block of the section in this language that holds these words."""
    text = (ROOT / "docs" / "scale_out.md").read_text()
    section = text[text.index(f"\n{SECTION}\n") + 1 :].partition("\n## ")[0]
    (found,) = [block for block in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL) if holds in block]
    return str(found)


def shell(code: str, folder: Path, path: str) -> None:
    subprocess.run(["sh", "-c", code], cwd=folder, env=environment(PATH=path), check=True)


def recording(folder: Path) -> str:
    """A PATH on which `selftrain` notes how it is called, and `ssh HOST COMMAND` runs the command here."""
    path = slurm.install(folder / "bin")
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "bin" / "selftrain").write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/recorder.py "$@"\n')
    (folder / "bin" / "ssh").write_text('#!/bin/sh\nexec sh -c "$2"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    return path


def typed(folder: Path) -> list[list[str]]:
    """The calls of `selftrain` in this folder, sorted."""
    return sorted(json.loads(line) for line in (folder / "typed.jsonl").read_text().splitlines())


def of_parts(number: int) -> list[list[str]]:
    return [[*ARGUMENTS, f"{part}/{number}"] for part in range(1, number + 1)]
