"""Config files of tests."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, text: str) -> Path:
    """A config file with this text."""
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"
