"""Python files of a user's that register methods, techniques, architectures or stage kinds (docs/extend.md)."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError

VARIABLE = "SELFTRAIN_PLUGINS"
"""The files, separated as in PATH: children and their ranks import them too."""


def add_plugins(paths: Iterable[Path]) -> None:
    """Import these files, here and in every stage that is started from here.

    Raises:
        UserError: one is missing, or fails when it is imported.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"--plugin {path} does not exist; give the path of a Python file")
        known = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
        absolute = str(path.resolve())
        if absolute not in known:
            os.environ[VARIABLE] = os.pathsep.join([*known, absolute])
    load_plugins()


def load_plugins() -> None:
    """Import the files that the environment names, each once per process.

    A file `x.py` becomes the module `x`, so that jobs can name what is in it as `x:name`.

    Raises:
        UserError: one fails when it is imported, or has the name of a module that is there already.
    """
    for text in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = Path(text)
        loaded = sys.modules.get(path.stem)
        if loaded is not None:
            if Path(getattr(loaded, "__file__", None) or "").resolve() != path:
                raise UserError(f"--plugin {path}: a module {path.stem!r} exists already; rename the file")
            continue
        found = importlib.util.find_spec(path.stem)
        if found is not None and Path(found.origin or "").resolve() != path:
            raise UserError(f"--plugin {path}: a module {path.stem!r} exists already; rename the file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[path.stem]
            raise UserError(f"--plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
