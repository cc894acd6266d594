"""Plugins in a process of tests: imported as in a child, and forgotten as if they had never been."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from pipeline.config.methods import METHOD_CONFIGS
from pipeline.methods import METHODS
from pipeline.stages import plugins
from pipeline.stages.kinds import KINDS
from pipeline.stages.plugins import VARIABLE, load_plugins
from pipeline.techniques import TECHNIQUES

_TABLES: tuple[dict[str, Any], ...] = (METHODS, METHOD_CONFIGS, KINDS, TECHNIQUES)
_OWN = [dict(table) for table in _TABLES]


def forget() -> None:
    """As in a process that has imported no plugin yet; only timm keeps what it was told."""
    for name in plugins._LOADED:
        sys.modules.pop(name, None)
    plugins._LOADED.clear()
    for table, rows in zip(_TABLES, _OWN, strict=True):
        table.clear()
        table.update(rows)


def importing() -> partial[None]:
    """What a fork does first, for `before` of `processes.start`: it imports the plugins of this process."""
    return partial(_import_only, os.pathsep.join(str(plugin.path) for plugin in plugins._LOADED.values()))


def _import_only(named: str) -> None:
    os.environ[VARIABLE] = named  # the server of forks may have begun in another test, with that one's
    load_plugins()
