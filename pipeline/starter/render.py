"""Values to the text of a starting config: one comment per key, and no key that the method does not read."""

from __future__ import annotations

import json
import re

from pipeline.config.unread import is_read
from pipeline.errors import escaped

_COMMENT_COLUMN = 54
_KEY = re.compile(r"( {0,2})(\w+):")


def render(method: str, **values: object) -> str:
    """Fill in the template, leave out what the method does not read, and align the comments in one column."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.starter", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # A JSON string is a YAML string, too, also with what a terminal must not get. Jinja's own filter is for HTML.
    environment.filters["tojson"] = lambda value: escaped(json.dumps(value, ensure_ascii=False))
    text = environment.get_template("starter.yaml.j2").render(method=method, **values)
    return "\n".join(_align(line) for line in _read_lines(text, method)) + "\n"


def _read_lines(text: str, method: str) -> list[str]:
    lines, section, keep = [], "", True
    for line in text.split("\n"):
        if (found := _KEY.match(line)) and not found[1]:
            section, keep = found[2], is_read(method, found[2])
        if keep and not (found and found[1] and not is_read(method, f"{section}.{found[2]}")):
            lines.append(line)
    return lines


def _align(line: str) -> str:
    value, mark, comment = line.rpartition("  # ")
    is_section = value.endswith(":") or not value.strip()
    return line if is_section or not mark else f"{value.ljust(_COMMENT_COLUMN)}{mark}{comment}"
