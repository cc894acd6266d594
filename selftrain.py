"""The import name of selftrain, by which others load its flows: `selftrain.self_train`, `.intake` and `.promote`.

The code lies in the packages `flows` and `pipeline`. A project may have packages of these names, too, and Prefect looks
into the project's folder first. So this module loads ours from where it lies itself, and gives the names back to the
project afterwards: its own flows are deployed by the same `prefect deploy`. In the process of a flow run the names
remain ours, since whatever our code imports later must be found there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

FLOWS = {
    "self_train": "flows.flow",
    "intake": "flows.intake",
    "promote": "flows.promote",
    "crash_zombie": "flows.zombie",
}
"""Each flow, with its module."""
NAMES = ("flows", "pipeline")
HOME = Path(__file__).resolve().parent
IN_A_FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""The variable of a process that Prefect started for a flow run."""

_ours: dict[str, ModuleType] = {}
"""Our modules, while the project has the names."""


def __getattr__(name: str) -> object:
    """A flow, which is loaded when it is asked for."""
    if name not in FLOWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _named(keep=IN_A_FLOW_RUN in os.environ):
        return getattr(importlib.import_module(FLOWS[name]), name)


def main() -> NoReturn:
    """The console script."""
    with _named(keep=True):
        from flows.cli import main as console
    console()


def engine() -> NoReturn:
    """The command of a deployment's runs, `selftrain-engine`: see `flows.engine`."""
    with _named(keep=True):
        from flows.engine import main as keep
    sys.exit(keep())


class _Finder:
    """Finds our packages whatever lies before them on the path."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of one of our packages; their submodules are found by their own paths."""
        return PathFinder.find_spec(name, [str(HOME)]) if name in NAMES else None


_finder = _Finder()


@contextlib.contextmanager
def _named(*, keep: bool) -> Iterator[None]:
    """Have the names stand for our packages, afterwards too with `keep`, or if nobody else has them."""
    if all(_is_ours(name) for name in NAMES):
        yield
        return
    theirs = _swap(_ours)
    sys.meta_path.insert(0, _finder)
    try:
        yield
    finally:
        if not keep:
            sys.meta_path.remove(_finder)
            _ours.update(_swap(theirs))


def _is_ours(name: str) -> bool:
    """Whether a name stands for our package, or would if it was imported."""
    loaded = sys.modules.get(name)
    spec = PathFinder.find_spec(name) if loaded is None else loaded.__spec__
    origin = None if spec is None else spec.origin
    return (origin is not None and Path(origin).resolve() == HOME / name / "__init__.py") or _finder in sys.meta_path


def _swap(modules: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Replace all modules of these names; returns those that were there."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in NAMES}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    return before


if __name__ == "__main__":
    main()
