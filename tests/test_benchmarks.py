"""Benchmarks, which no test runs, name what exists."""

from __future__ import annotations

import ast
import runpy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.command import ROOT
from support.imports import sources

from pipeline.config import load_config


@pytest.mark.parametrize("path", list(sources("benchmarks")), ids=lambda path: path.name)
def test_a_benchmark_imports_what_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pipeline", "flows"):
            module = import_module(node.module or "")
            names = [alias.name for alias in node.names]
            absent = [n for n in names if not hasattr(module, n) and find_spec(f"{node.module}.{n}") is None]
            assert absent == [], f"{path} imports {absent} from {node.module}"


def test_the_configs_of_the_comparison_of_methods_parse() -> None:
    comparison = runpy.run_path(str(ROOT / "benchmarks" / "compare_methods.py"))
    for method in comparison["METHODS"].values():
        load_config(comparison["CONFIGS"] / method.config, ["data.root=shards/cifar10_4k", *method.overrides])
