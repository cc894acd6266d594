"""What source files import, read without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from support.command import ROOT


def sources(folder: str) -> Iterator[Path]:
    """The Python files of a folder of this project."""
    return (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "pipeline" else {f"pipeline.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
