"""Advice that an error message gives is tried: its commands are run as a user would paste them, but in this process."""

from __future__ import annotations

import contextlib
import shlex
import shutil

from typer.testing import CliRunner

from pipeline.cli.app import app

_COMMANDS = ("selftrain", "mv", "python3")


def commands_of(error: Exception) -> list[list[str]]:
    """The words of the commands in an error message: of its lines that begin with one, joined where they are quoted."""
    lines = str(error).splitlines()
    commands = []
    for number, line in enumerate(lines):
        if not line.strip().startswith(_COMMANDS):
            continue
        for end in range(number + 1, len(lines) + 1):
            with contextlib.suppress(ValueError):  # "No closing quotation": it goes on in the next line
                commands.append(shlex.split("\n".join(lines[number:end]).removesuffix(" &&")))
                break
    return commands


def run_advice(error: Exception) -> list[list[str]]:
    """Run all commands that an error message proposes; returns them. Fails if there is none or one fails."""
    commands = commands_of(error)
    assert commands, f"no command in: {error}"
    for words in commands:
        if words[0] == "mv":
            shutil.move(words[1], words[2])
        elif words[0] == "python3":
            exec(words[2], {})
        else:
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, (words, result.output, result.exception)
    return commands
