"""Python files of a user's that register methods, techniques, architectures or stage kinds (docs/extend.md).

A file `x.py` becomes the module `x`, so that jobs can name what is in it as `x:name`. What it says is a part of what a
stage is a function of: the stages that run something of it have its digest in their fingerprints.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

VARIABLE = "SELFTRAIN_PLUGINS"
"""The files, separated as in PATH: children and their ranks import them too."""


@dataclass(frozen=True)
class Plugin:
    """One file, as it was when it was imported."""

    path: Path
    digest: str
    """sha256 of its bytes, in hex."""
    imports: tuple[str, ...]
    """The modules that it imports."""


_LOADED: dict[str, Plugin] = {}
"""Module -> plugin."""


# ------------------------------------------------------------------------------------------------------------- loading


def add_plugins(paths: Iterable[Path]) -> None:
    """Import these files, here and in every stage that is started from here.

    Raises:
        UserError: one is missing, or fails when it is imported.
    """
    load_plugins()
    for path in paths:
        absolute = os.path.abspath(path)
        if os.pathsep in absolute:
            raise UserError(f"--plugin {path}: {VARIABLE} cannot hold a path with {os.pathsep!r}; move the file")
        _load(Path(absolute))
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*_named(), absolute]))


def load_plugins() -> None:
    """Import the files that the environment names, each once per process, in their order.

    Raises:
        UserError: one is missing, fails when it is imported, or has the name of a module that is there already.
    """
    for path in _named():
        _load(Path(path))


def _named() -> list[str]:
    return [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]


def _load(path: Path) -> None:
    name = path.stem
    if not path.is_file():
        raise UserError(f"--plugin {path} is no file; give the path of a Python file (in {VARIABLE} too)")
    if not name.isidentifier():
        raise UserError(f"--plugin {path}: {name!r} cannot be the name of a module; rename the file, e.g. to my_net.py")
    if name in _LOADED and path.samefile(_LOADED[name].path):
        return
    if name in _LOADED or _is_of_others(name, path):
        raise UserError(f"--plugin {path}: a module {name!r} exists already; rename the file")
    source = path.read_bytes()
    if name not in sys.modules:  # else a script of the user's has imported it
        _run(name, path, source)
    _LOADED[name] = Plugin(path, hashlib.sha256(source).hexdigest(), tuple(_imports(ast.parse(source))))


def _is_of_others(name: str, path: Path) -> bool:
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return False
        file = spec.origin
    return file is None or not Path(file).exists() or not path.samefile(file)


def _run(name: str, path: Path, source: bytes) -> None:
    """Make a module of exactly these bytes: an import by name could take compiled ones of a moment before."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # an exit would end the command as if it were done
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--plugin {path} cannot be imported{where}: {what}") from error


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


# -------------------------------------------------------------------------------------------------------- what is there


def digests() -> dict[str, str]:
    """File name -> digest, of every plugin of this process."""
    return {plugin.path.name: plugin.digest for plugin in _LOADED.values()}


def sources_of(*names: str) -> dict[str, str]:
    """File name -> digest, of the plugins among these modules (`x`, or `x:name`) and of those that they import."""
    found: dict[str, str] = {}
    waiting = [name.partition(":")[0] for name in names]
    while waiting:
        plugin = _LOADED.get(waiting.pop())
        if plugin is not None and plugin.path.name not in found:
            found[plugin.path.name] = plugin.digest
            waiting += plugin.imports
    return dict(sorted(found.items()))


def check_plugins(wanted: Mapping[str, str], job: Path) -> None:
    """Refuse to run a job without the plugins that it was written with, or with others of their names.

    Raises:
        UserError: names the file.
    """
    here = digests()
    for name, digest in wanted.items():
        if name not in here:
            raise UserError(f"{job} needs the plugin {name}; pass --plugin {name}, or name its path in {VARIABLE}")
        if here[name] != digest:
            raise UserError(
                f"{name} was edited after {job} was written; type the command again, which begins what depends on it "
                "anew"
            )
