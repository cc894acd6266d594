"""Names that others gave to classes, files and folders: a terminal shows them, and does not obey them."""

from __future__ import annotations

import logging
import shutil
import unicodedata
from io import StringIO
from pathlib import Path

import pytest
import yaml
from support.command import selftrain_here
from support.images import digit_files, write_files
from typer.testing import CliRunner

from flows import cli
from flows.verbs import app
from pipeline.stages.progress import Progress, show_progress
from pipeline.stages.terminal import Terminal, output

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "[bold]loud[/bold]",
    "\u202etxt.exe",
    "\x07bell\rback",
    "[/]",
    "[link=x]y",
    "\x9b2J",
    "[on red]",
)


def check_safe(text: str) -> None:
    odd = {c for c in text if unicodedata.category(c)[0] == "C" and c not in "\n\t"}
    assert not odd, text


def squeezed(text: str) -> str:
    """A text without what a table adds to it."""
    return "".join(text.replace("│", "").split())


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Digits in classes of hostile names, beside a damaged image of such a name, in a folder of such a name."""
    files = [(path.replace("/", "-"), data) for path, data in digit_files(-84).items()]
    classes = [name.replace("/", "\u2215") for name in HOSTILE if name.isprintable()]
    for number, name in enumerate(classes):
        write_files(tmp_path / "in" / name, dict(files[number :: len(classes)]))
    write_files(tmp_path / "in" / classes[0], {f"{HOSTILE[0]}.png": b"damaged"})
    out = tmp_path / f"out{HOSTILE[0]}[red]\nroot: x"
    carve = ("--labels", "28", "--val-fraction", "0.3", "--skip-bad-images")
    text = selftrain_here("pack", tmp_path / "in", "--out", out, *carve)
    check_safe(text)
    assert "[bold]loud" in text
    assert "\\x1b[31mred\\x1b[0m.png" in squeezed(text)
    assert "out\\x1b[31mred\\x1b[0m[red]root:x" in squeezed(text)
    return out


def test_pack_verify_and_init_show_hostile_names_as_they_are(packed: Path) -> None:
    check_safe(selftrain_here("verify", packed))
    text = selftrain_here("init", packed)
    check_safe(text)
    assert yaml.safe_load(text)["data"]["root"] == str(packed)
    for tar in packed.glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:-10240])
    done = CliRunner().invoke(app, ["verify", str(packed)])
    check_safe(done.output)
    assert "problem: " in done.output


@pytest.mark.process
def test_evaluate_and_export_show_hostile_names_as_they_are(teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / HOSTILE[0]))
    text = selftrain_here("export", folder, "--out", tmp_path / f"{HOSTILE[2]}[red].safetensors")
    check_safe(text)
    assert "txt.exe[red].safetensors" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_and_warnings_are_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli._say(f"error: {name} does not exist", 2)
    handler = cli._Terminal()
    handler.emit(logging.LogRecord("selftrain", logging.WARNING, "", 0, "%s is odd", (name,), None))
    err = capsys.readouterr().err
    check_safe(err)
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_progress_shows_a_hostile_title_as_it_is(name: str) -> None:
    """In a terminal, where rich itself moves the cursor."""
    console = Terminal()
    console.file = StringIO()
    console._force_terminal = True
    with show_progress(console) as show:
        show(Progress(f"train {name}", 1, 2, "steps", name))
    assert name not in console.file.getvalue() or name.startswith("[")
    assert name.isprintable() is (name in console.file.getvalue())


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_show_hostile_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as that of a selection, of classes."""
    from rich.table import Table
    from rich.text import Text

    table = Table("class", title=name)
    table.add_row(name)
    table.add_row(Text(name))
    output().print(table)
    text = capsys.readouterr().out
    check_safe(text)
    if name.isprintable():
        assert text.count(name) == 3
